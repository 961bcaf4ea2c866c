"""What a browser gets from the viewer's server; OHIF and the PACS are pretended.

`tests/dicom/test_viewer.py` has the real ones.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
import requests
from commands import run
from dicom_files import write_series
from dicomweb_server import PATIENT, STUDY, Pacs, pacs_server
from view_ohif import Server

from shared.dicom import store
from shared.dicom.connection import Connection

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "view_ohif.py"


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Pacs]:
    with pacs_server() as found:
        store(found.url, sorted(write_series(tmp_path / "series", **PATIENT).iterdir()))
        found.asked.clear()
        yield found


@pytest.fixture
def ohif(tmp_path: Path) -> Path:
    (tmp_path / "dist" / "assets").mkdir(parents=True)
    (tmp_path / "dist" / "index.html").write_text("the viewer")
    (tmp_path / "dist" / "app-config.js").write_text("settings of others")
    (tmp_path / "dist" / "assets" / "part.js").write_text("part")
    return tmp_path / "dist"


@pytest.fixture
def served(pacs: Pacs, ohif: Path) -> Iterator[str]:
    with Server(Connection(pacs.url, timeout=20.0, attempts=1, wait=0.0), ohif, 0) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "text"),
    [("/", "the viewer"), ("/viewer?StudyInstanceUIDs=1.2", "the viewer"), ("/assets/part.js?v=1", "part")],
)
def test_each_address_without_a_file_is_a_page_of_the_viewer(served: str, path: str, text: str) -> None:
    assert requests.get(served + path, timeout=20).text == text


def test_the_viewer_is_told_to_ask_the_address_that_it_comes_from(served: str) -> None:
    answer = requests.get(f"{served}/app-config.js", timeout=20)
    assert answer.headers["Content-Type"] == "text/javascript"
    assert answer.text.startswith("window.config = {")
    assert '"qidoRoot": "/dicom-web", "wadoRoot": "/dicom-web"' in answer.text


def test_answers_of_the_pacs_are_handed_on(served: str, pacs: Pacs) -> None:
    path, kind = f"/studies/{STUDY}/series?Modality=CT", {"Accept": "application/dicom+json"}
    answer = requests.get(f"{served}/dicom-web{path}", headers=kind, timeout=20)
    assert answer.content == requests.get(f"{pacs.url}{path}", headers=kind, timeout=20).content
    assert answer.headers["Content-Type"] == "application/dicom+json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert pacs.asked == [f"GET /dicom-web{path}"] * 2
    assert pacs.accepted[-2:] == [kind["Accept"]] * 2
    pacs.faults.append(404)
    assert requests.get(f"{served}/dicom-web/studies", timeout=20).status_code == 404


def test_nothing_is_changed_in_the_pacs(served: str, pacs: Pacs) -> None:
    for method in ("post", "put", "delete"):
        answer = requests.request(method, f"{served}/dicom-web/studies/{STUDY}", timeout=20)
        assert answer.status_code == 501
    assert pacs.asked == []


def test_the_log_in_is_that_of_the_environment(
    pacs: Pacs, ohif: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("DICOMWEB_TOKEN", "secret")
    pacs.credentials = "Bearer secret"
    served = request.getfixturevalue("served")
    assert requests.get(f"{served}/dicom-web/studies", timeout=20).status_code == 200


def test_pages_of_other_names_see_nothing(served: str, pacs: Pacs) -> None:
    """Of a name that leads to this machine all the same, as who has the name may order."""
    for path in ("/dicom-web/studies", "/"):
        answer = requests.get(served + path, headers={"Host": "elsewhere.example:3000"}, timeout=20)
        assert answer.status_code == 403
    assert pacs.asked == []
    assert requests.get(served.replace("127.0.0.1", "localhost"), timeout=20).text == "the viewer"


def test_a_pacs_that_is_away_is_said_and_no_patient(served: str, pacs: Pacs, capfd: pytest.CaptureFixture) -> None:
    pacs.faults.append("hang up")
    answer = requests.get(f"{served}/dicom-web/studies?PatientID=OTTER-1", timeout=20)
    assert (answer.status_code, f"{pacs.url}: cannot be reached" in answer.text) == (502, True)
    assert "OTTER" not in answer.text + "".join(capfd.readouterr())


def test_the_command_serves_until_it_is_ended(pacs: Pacs, ohif: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--url", pacs.url, "--ohif", str(ohif), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline()
            address = said.removeprefix(f"{pacs.url} is shown at ").partition(";")[0]
            assert requests.get(address, timeout=20).text == "the viewer"
        finally:
            process.send_signal(signal.SIGTERM)
            rest, _ = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "ended\n")


def test_what_is_wrong_is_said_at_once(pacs: Pacs, ohif: Path, served: str, tmp_path: Path) -> None:
    def error(**options: object) -> str:
        flags = [f"--{name}={value}" for name, value in ({"url": pacs.url, "ohif": ohif, "port": 0} | options).items()]
        done = run(SCRIPT, *flags)
        assert done.returncode == 1
        return done.stderr

    assert "there is no OHIF. `bash scripts/install_pacs_programs.sh viewer` puts it" in error(ohif=tmp_path)
    assert f"{served}: answers status 403, Forbidden." in error(url=served)
    port = served.rpartition(":")[2]
    assert f"port {port} cannot be had (Address already in use). Choose another" in error(port=port)
