"""A DICOMweb server inside the test's process, which can be slow, refuse, break off, ask for a log-in and go away."""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

PATIENT = {"PatientID": "OTTER-1", "PatientName": "Otter^Ophelia"}
STUDY, SERIES = "1.2.0", "1.2.3"  # of the slices that `dicom_files` writes
BOUNDARY = "here-is-the-next"
KEYS = {
    "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E",
    "SOPInstanceUID": "00080018",
    "Modality": "00080060",
    "PatientID": "00100020",
    "SeriesNumber": "00200011",
    "SeriesDescription": "0008103E",
}


@dataclass
class Pacs:
    """What it holds, how it behaves and what it was asked.

    Attributes:
        files: by SOP instance UID, as they came.
        asked: method and address of each request.
        faults: what is done in place of the next answers: a status, "silence" or "hang up".
        page: how many answers of a query it gives at a time; 0: all, whatever the offset.
        refused: SOP classes that it does not take.
        broken_after: bytes after which it breaks off when it sends a whole series, without having said how many.
        credentials: the header that it asks for.
        deletes: the interface by which it deletes, "dicomweb", "orthanc" or none.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    faults: list[int | str] = field(default_factory=list)
    page: int = 0
    refused: tuple[str, ...] = ()
    broken_after: int | None = None
    credentials: str = ""
    deletes: str = ""
    url: str = ""

    def matching(self, **wanted: str) -> list[dict[str, str]]:
        found = []
        for content in self.files.values():
            dataset = pydicom.dcmread(BytesIO(content), stop_before_pixels=True)
            values = {name: str(dataset.get(name, "")) for name in KEYS}
            if all(values.get(name, value) == value for name, value in wanted.items()):
                found.append(values)
        return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    pacs: Pacs

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = self.begin()
        if parts is None:
            return
        path, query = parts
        levels = dict(zip(("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"), path[1::2], strict=False))
        if path[-1] in ("studies", "series", "instances"):
            self.list_level(path[-1], levels, query)
        elif path[-1] == "metadata":
            self.send_json([self.header(values) for values in self.pacs.matching(**levels)])
        else:
            self.send_files([values["SOPInstanceUID"] for values in self.pacs.matching(**levels)], "instances" in path)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.begin()
        if parts is None:
            return
        if self.path == "/tools/lookup" and self.pacs.deletes == "orthanc":
            self.send_json([{"ID": f"id-{body.decode()}", "Type": "Series"}])
        elif parts[0] != ["studies"]:
            self.send_body(404, b"", "text/plain")
        else:
            self.take(body)

    def do_DELETE(self) -> None:
        parts = self.begin()
        if parts is None:
            return
        series = parts[0][-1]
        if {"dicomweb": "/dicom-web/", "orthanc": "/series/id-"}.get(self.pacs.deletes, "none") not in self.path:
            self.send_body(405, b"", "text/plain")
            return
        for values in self.pacs.matching(SeriesInstanceUID=series.removeprefix("id-")):
            del self.pacs.files[values["SOPInstanceUID"]]
        self.send_body(200, b"{}", "application/json")

    def begin(self) -> tuple[list[str], dict[str, str]] | None:
        """The parts of the address and its query, unless something else happens."""
        pacs, address = self.pacs, urlsplit(self.path)
        pacs.asked.append(f"{self.command} {self.path}")
        pacs.accepted.append(self.headers.get("Accept", ""))
        fault = pacs.faults.pop(0) if pacs.faults else None
        if pacs.credentials and self.headers.get("Authorization") != pacs.credentials:
            fault = 401
        if fault == "silence":
            time.sleep(0.4)
        if isinstance(fault, str):
            self.close_connection = True
        elif fault:
            self.send_body(fault, b"Otter^Ophelia is not for you", "text/plain")
        if fault:
            return None
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        return address.path.removeprefix("/dicom-web").strip("/").split("/"), query

    def list_level(self, level: str, levels: dict[str, str], query: dict[str, str]) -> None:
        key = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}[level]
        offset = int(query.pop("offset", 0)) if self.pacs.page else 0
        wanted = {name: value for name, value in query.items() if name in KEYS}
        found = list({values[key]: values for values in self.pacs.matching(**levels, **wanted)}.values())
        page = [self.header(values) for values in found[offset : offset + (self.pacs.page or len(found))]]
        if level == "series":
            for entry in page:
                count = len(self.pacs.matching(SeriesInstanceUID=entry[KEYS["SeriesInstanceUID"]]["Value"][0]))
                entry["00201209"] = {"vr": "IS", "Value": [count]}
        self.send_json(page)

    def header(self, values: dict[str, str]) -> dict[str, Any]:
        """All of a file but its pixels, in DICOM JSON."""
        return pydicom.dcmread(
            BytesIO(self.pacs.files[values["SOPInstanceUID"]]), stop_before_pixels=True
        ).to_json_dict()

    def take(self, body: bytes) -> None:
        message = message_from_bytes(b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + body)
        taken, failed = [], []
        for part in message.get_payload():
            content = part.get_payload(decode=True)
            dataset = pydicom.dcmread(BytesIO(content))
            item = {"00081155": {"vr": "UI", "Value": [dataset.SOPInstanceUID]}}
            if dataset.SOPClassUID in self.pacs.refused:
                failed.append(item | {"00081197": {"vr": "US", "Value": [0x0122]}})
            else:
                self.pacs.files[str(dataset.SOPInstanceUID)] = content
                taken.append(item)
        answer = {"00081198": {"vr": "SQ", "Value": failed}, "00081199": {"vr": "SQ", "Value": taken}}
        self.send_json(answer, 409 if failed and not taken else 200)

    def send_files(self, uids: list[str], single: bool) -> None:
        parts = [f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + self.pacs.files[u] for u in uids]
        body = b"\r\n".join([*parts, f"--{BOUNDARY}--".encode()])
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        if self.pacs.broken_after is None or single:
            self.send_body(200, body, kind)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body[: self.pacs.broken_after])
        self.close_connection = True

    def send_json(self, content: Any, status: int = 200) -> None:
        self.send_body(status, json.dumps(content).encode(), "application/dicom+json")

    def send_body(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def pacs_server(certificate: str = "") -> Iterator[Pacs]:
    """A server, at its address `url`; with the path of a certificate and its key, it speaks TLS.

    What the environment says of another server is set aside meanwhile.
    """
    pacs, names = Pacs(), [name for name in os.environ if name.startswith("DICOMWEB_")]
    theirs = {name: os.environ.pop(name) for name in names}
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"pacs": pacs})) as http:
        http.daemon_threads = True  # connections that are kept are not waited for
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            http.socket = context.wrap_socket(http.socket, server_side=True)
            http.handle_error = lambda *_: None  # of clients that do not trust it
        pacs.url = f"http{'s' * bool(certificate)}://127.0.0.1:{http.server_port}/dicom-web"
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield pacs
        finally:
            http.shutdown()
            thread.join()
            os.environ.update(theirs)


def result(uid: str, images: str = SERIES, kind: str = SegmentationStorage, count: int = 4, **values: str) -> Dataset:
    """What a network might have found in `count` images of a series; `values` replace its own."""
    dataset, item = Dataset(), Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = kind
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"{uid}.1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, item.SeriesInstanceUID = STUDY, uid, images
    item.ReferencedInstanceSequence = [Dataset() for _ in range(count)]
    for i, instance in enumerate(item.ReferencedInstanceSequence):
        instance.ReferencedSOPInstanceUID = f"{images}.{i + 1}"
    dataset.ReferencedSeriesSequence = [item]
    own = {"Modality": "SEG", "Manufacturer": "we", "ManufacturerModelName": "our network"}
    for keyword, value in {**PATIENT, **own, **values}.items():
        setattr(dataset, keyword, value)
    return dataset
