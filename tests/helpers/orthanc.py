"""A real Orthanc on this machine alone, which can be killed and started again."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PROGRAMS = ("Orthanc", "dciodvfy", "dcmdump", "plastimatch", "segimage2itkimage", "tid1500reader")
INSTALLS = "bash scripts/install_pacs_programs.sh"


def program(name: str) -> str | None:
    """Where a program is; dcmqi's lie beside Python."""
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)]))


def missing() -> list[str]:
    """What the tests of a real PACS need and this machine lacks."""
    return [name for name in PROGRAMS if program(name) is None] + ["orthanc-dicomweb"] * (not PLUGIN.exists())


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody has signed but itself: with its key, and alone."""
    both, public = folder / "own.pem", folder / "public.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-days", "2"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(both), "-out", str(public)]
    subprocess.run(command, check=True, capture_output=True)
    with both.open("a") as file:
        file.write(public.read_text())
    return both, public


class Tunnel(socketserver.BaseRequestHandler):
    """A connection by TLS whose other end is a port without."""

    port: int

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as inner:
            other = {inner: self.request, self.request: inner}
            while True:
                ready = [self.request] if self.request.pending() else select.select([*other], [], [])[0]
                for end in ready:
                    data = end.recv(2**16)
                    if not data:
                        return
                    other[end].sendall(data)


@contextmanager
def tls_before(port: int, certificate: Path) -> Iterator[str]:
    """The address at which a server is reached by TLS, as it would be behind a proxy.

    Debian's Orthanc 1.10.1 has TLS of its own, and ends with a crash at its first request.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    handler = type("Own", (Tunnel,), {"port": port})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_address[1]}/dicom-web"
        finally:
            server.shutdown()
            thread.join()


class Orthanc:
    """A server with a folder of its own.

    Args:
        folder: for its files.
        user: who may log in, with the password "secret"; empty: everybody.
    """

    def __init__(self, folder: Path, user: str = "") -> None:
        folder.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder, self.process = folder, None
        self.root, self.port = f"http://127.0.0.1:{port}", port
        self.url = f"{self.root}/dicom-web"
        settings = {
            "StorageDirectory": str(folder / "files"),
            "IndexDirectory": str(folder / "files"),
            "Plugins": [str(PLUGIN)],
            "HttpPort": port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": bool(user),
            "RegisteredUsers": {user: "secret"} if user else {},
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))

    def start(self) -> Orthanc:
        with (self.folder / "log.txt").open("a") as log:
            command = [program("Orthanc"), str(self.folder / "orthanc.json")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(300):
            assert self.process.poll() is None, (self.folder / "log.txt").read_text()[-2000:]
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.1)
        raise AssertionError("Orthanc does not listen")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def count(self) -> int:
        """How many files it has, by its own interface."""
        with urllib.request.urlopen(f"{self.root}/statistics", timeout=20) as answer:
            return json.loads(answer.read())["CountInstances"]
