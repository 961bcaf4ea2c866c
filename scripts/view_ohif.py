"""Look at what a PACS holds in OHIF, a viewer that runs in the browser."""

from __future__ import annotations

import datetime
import json
import shutil
import sys
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

from command_line import run_command

from shared.dicom import DicomWeb
from shared.dicom.connection import Connection
from shared.utils import DataError
from shared.utils.values import Number, Whole

OHIF = Path(__file__).resolve().parents[1] / "build" / "viewer" / "ohif" / "dist"
INSTALLS = "bash scripts/install_pacs_programs.sh viewer"
SERVICES = "/dicom-web"
SETTINGS = {  # of OHIF; what has no meaning without a choice is its own default
    "routerBasename": "/",
    "showStudyList": True,
    "disableConfirmationPrompts": True,  # a segmentation that is picked is opened
    "extensions": [],
    "modes": [],
    "defaultDataSourceName": "pacs",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "pacs",
            "configuration": {
                "friendlyName": "PACS",
                "name": "pacs",
                "qidoRoot": SERVICES,
                "wadoRoot": SERVICES,
                "qidoSupportsIncludeField": False,
                "imageRendering": "wadors",
                "thumbnailRendering": "wadors",
                "enableStudyLazyLoad": True,
                "supportsFuzzyMatching": False,
                "supportsWildcard": True,
                "omitQuotationForMultipartRequest": True,
                "bulkDataURI": {"enabled": True},
            },
        }
    ],
}


class Handler(SimpleHTTPRequestHandler):
    """OHIF's files, and below `SERVICES` the answers of the PACS: a browser lets OHIF ask where it comes from alone."""

    server: Server

    def log_message(self, *_: Any) -> None:
        """Nothing: an address may have a patient's id in it."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.headers.get("Host") not in self.server.names:
            # a page of elsewhere has given this machine's address to a name of its own
            self.send_error(HTTPStatus.FORBIDDEN)
        elif path.startswith(f"{SERVICES}/"):
            self.hand_on()
        elif path == "/app-config.js":
            self.send_settings()
        else:
            if not Path(self.translate_path(path)).is_file():
                self.path = "/index.html"  # its pages have addresses, and no files
            super().do_GET()

    def send_settings(self) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/javascript")
        self.end_headers()
        self.wfile.write(f"window.config = {json.dumps(SETTINGS)};".encode())

    def hand_on(self) -> None:
        """Answer what the PACS answers, as it comes."""
        pacs, url = self.server.pacs, self.server.pacs.url + self.path.removeprefix(SERVICES)
        headers = {name: self.headers.get(name) for name in ("Accept", "Accept-Encoding")}
        # so that addresses in its answers are those of this server
        headers["Forwarded"] = f"host={self.headers['Host']};proto=http"
        try:
            answer = pacs.ask(lambda: pacs.session.get(url, headers=headers, stream=True, timeout=pacs.timeout))
        except DataError as e:
            self.send_error(HTTPStatus.BAD_GATEWAY, explain=str(e))
            return
        with answer:
            self.send_response(answer.status_code)
            for name in ("Content-Type", "Content-Encoding", "Content-Length"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Cache-Control", "no-store")  # patients are not kept on this machine's disk
            self.end_headers()
            shutil.copyfileobj(answer.raw, self.wfile)


class Server(ThreadingHTTPServer):
    """OHIF in front of a PACS, for the browsers of this machine.

    Args:
        pacs: the PACS.
        ohif: folder of the built OHIF.
        port: 0 takes a free one.

    Attributes:
        names: under which browsers know it.
    """

    def __init__(self, pacs: Connection, ohif: Path, port: int) -> None:
        self.pacs, self.ohif = pacs, ohif
        super().__init__(("127.0.0.1", port), Handler)
        self.names = {f"{host}:{self.server_port}" for host in ("127.0.0.1", "localhost")}

    def finish_request(self, request: Any, client_address: Any) -> None:
        Handler(request, client_address, self, directory=str(self.ohif))

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # browsers break off what they no longer need
            super().handle_error(request, client_address)


def main(
    url: str,
    port: Annotated[int, Whole(0, 65535)] = 3000,
    ohif: str = str(OHIF),
    timeout: Annotated[float, Number(above=0)] = 60.0,
) -> None:
    """Serve the viewer OHIF, with the studies of a PACS, to the browsers of this machine, until Ctrl-C.

    It reads alone: nothing is stored or changed in the PACS. Log-in and certificate stand in the environment, as for
    pacs.py; whoever works on this machine meanwhile sees what that log-in sees.

    Args:
        url: where the server's DICOMweb services begin, as in http://127.0.0.1:8042/dicom-web.
        port: of the viewer, http://127.0.0.1:PORT; 0 takes a free one.
        ohif: folder of the built viewer, by default where `install_pacs_programs.sh viewer` puts it.
        timeout: seconds after which a PACS that says nothing is away.
    """
    folder = Path(ohif).resolve()
    if not (folder / "index.html").is_file():
        raise DataError(f"{ohif}: there is no OHIF. `{INSTALLS}` puts it where it is looked for; or name it by --ohif.")
    DicomWeb(url, timeout).studies(since=datetime.date.today())  # an address that is none is said at once
    try:
        server = Server(Connection(url, timeout, attempts=1, wait=0.0), folder, port)
    except OSError as e:
        raise DataError(f"port {port} cannot be had ({e.strerror}). Choose another one by --port.") from None
    with server:
        print(f"{url} is shown at http://127.0.0.1:{server.server_port}; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")


if __name__ == "__main__":
    run_command(main)
