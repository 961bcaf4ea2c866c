"""MONAI Label's real server, started as a user starts it.

It runs in an environment of its own, .venv-monailabel, made by `bash scripts/monai_label.sh --set_up`. Without it its
tests are skipped, or, where MONAI_LABEL_TESTS=1 is set, it is made.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "monai_label.sh"
STAMP = ROOT / ".venv-monailabel" / "made-by-setup-env"
REQUIREMENTS = ROOT / "requirements-monailabel.txt"
THRESHOLD = 0.7
LAST_LAYERS = {"out.conv": 0.2, "fc.": 0.2, "cls_logits": 60.0}  # and how much their weights have to vary
ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
MISSING = (
    "there is no .venv-monailabel of these versions: `bash scripts/monai_label.sh --set_up` makes it, and so does "
    "MONAI_LABEL_TESTS=1"
)

made = STAMP.is_file() and STAMP.read_text().endswith(REQUIREMENTS.read_text())
wanted = os.environ.get("MONAI_LABEL_TESTS") == "1"


class Server(NamedTuple):
    address: str
    app: Path
    log: Path

    def bundle(self, model: str) -> Path:
        return self.app / "model" / model

    def answer(
        self, path: str, data: bytes | None = None, content_type: str = "", method: str | None = None
    ) -> tuple[int, bytes]:
        """The status, and what is answered."""
        headers = {"Content-Type": content_type} if content_type else {}
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def ask(self, path: str, data: bytes | None = None, content_type: str = "", method: str | None = None) -> bytes:
        status, content = self.answer(path, data, content_type, method)
        assert status in (200, 422), f"{path}: HTTP Error {status}\n{self.log.read_text()[-5000:]}"
        return content

    def ask_json(self, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        return json.loads(self.ask(path, data, "application/json"))

    def send(self, path: str, field: str, file: Path, method: str = "POST", **fields: Any) -> bytes:
        """A form with a file in it, as the clients send it."""
        return self.ask(path, *form(field, file.name, file.read_bytes(), **fields), method)

    def train(self, model: str, **options: Any) -> dict[str, Any]:
        """The state of a training when it has ended."""
        self.ask_json(f"/train/{model}", {"device": "cpu", "max_epochs": 1, "val_split": 0.5, **options})
        end = time.monotonic() + 600
        while time.monotonic() < end:
            task = self.ask_json("/train/")
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return task
            time.sleep(1)
        raise AssertionError(f"no end of the training in ten minutes\n{self.log.read_text()[-5000:]}")


def form(field: str, name: str, content: bytes, **fields: Any) -> tuple[bytes, str]:
    """A form with a file in it, and its content type; fields are text, or made JSON."""
    parts = [
        f'--limit\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n'
        f"{value if isinstance(value, str) else json.dumps(value)}\r\n".encode()
        for key, value in fields.items()
    ]
    head = f'--limit\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    data = b"".join([*parts, head.encode(), content, b"\r\n--limit--\r\n"])
    return data, "multipart/form-data; boundary=limit"


def write_weights(name: str, folder: Path) -> Path:
    """Seeded weights of the demo's network with varied answers, the record beside them, and a threshold."""
    configs = ROOT / "bundles" / name / "configs"
    overlay = json.loads((configs / "variants" / "demo.json").read_text())
    parser = ConfigParser({**json.loads((configs / "inference.json").read_text()), **overlay})
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    with torch.no_grad():
        for key, value in network.named_parameters():
            for last, deviation in LAST_LAYERS.items():
                if last in key:
                    value.copy_(torch.randn_like(value) * (deviation if key.endswith("weight") else 0.0))
    folder.mkdir(exist_ok=True)
    torch.save(network.state_dict(), folder / "model.pt")
    record = {"name": "nothing", "synthetic": True, "network_overlay": overlay["network_overlay"]}
    (folder / "model.json").write_text(json.dumps(record))
    (folder / "threshold.json").write_text(json.dumps({"threshold": THRESHOLD}))
    return folder / "model.pt"


@contextmanager
def start(folder: Path, studies: Path | str, names: Sequence[str], **environ: str) -> Iterator[Server]:
    """The server with these bundles, as `scripts/monai_label.sh` starts it; `environ` is added to the environment."""
    if not made:
        subprocess.run(["bash", SCRIPT, "--set_up"], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = Server(f"http://127.0.0.1:{port}", folder / "app", folder / "server.log")
    weights = [f"{name}={write_weights(name, folder / name)}" for name in names]
    command = ["bash", SCRIPT, studies, *weights, "--port", str(port), "--app_dir", found.app]
    environ = {**ENVIRON, "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"), **environ}
    with found.log.open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, env=environ) as process:
        try:
            wait_for(found, process)
            yield found
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:  # it waits for what it was asked last
                process.kill()


def wait_for(server: Server, process: subprocess.Popen) -> None:
    end = time.monotonic() + 600  # on a machine that does other things besides
    while time.monotonic() < end and process.poll() is None:
        try:
            server.ask("/info/")
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(server.log.read_text())
