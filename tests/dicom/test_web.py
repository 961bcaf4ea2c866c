"""The DICOMweb client, against a server inside this process that behaves as servers do, and as they should not."""

from __future__ import annotations

import base64
import datetime
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from dicom_files import JPEG_2000, write_series
from dicomweb_server import PATIENT, SERIES, STUDY, Pacs, pacs_server, result
from orthanc import make_certificate
from pydicom.uid import BasicTextSRStorage, SegmentationStorage

from shared.dicom import DicomWeb, ServerAwayError, store
from shared.utils import DataError


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    with pacs_server() as found:
        yield found


@pytest.fixture
def slices(tmp_path: Path) -> list[Path]:
    """A series that was compressed as JPEG 2000: pixels that nothing here can, or has to, read."""
    pixels = {"syntax": JPEG_2000, "fragments": [bytes(range(200)) * 2]}
    return sorted(write_series(tmp_path / "series", **PATIENT, **pixels).iterdir())


def client(pacs: Pacs, **options: float) -> DicomWeb:
    return DicomWeb(pacs.url, **{"wait": 0.01, **options})


def test_files_come_back_as_they_were_stored(pacs: Pacs, slices: list[Path], tmp_path: Path) -> None:
    outcomes = store(pacs.url, [slices[0], *map(pydicom.dcmread, slices[1:])])
    assert [(o.state, o.kind, o.series) for o in outcomes] == [("stored", "CT Image Storage", SERIES)] * 4
    (tmp_path / "came").mkdir()
    found = client(pacs).fetch(STUDY, SERIES, tmp_path / "came")
    assert [path.read_bytes() for path in found] == list(pacs.files.values())
    assert [path.read_bytes()[-400:] for path in found] == [path.read_bytes()[-400:] for path in slices]
    assert found[0].read_bytes() == slices[0].read_bytes()
    assert [path.name for path in found] == [f"{o.uid}.dcm" for o in outcomes]
    assert 'multipart/related; type="application/dicom"; transfer-syntax=*' in pacs.accepted


def test_what_is_there_is_not_sent_again(pacs: Pacs, slices: list[Path]) -> None:
    store(pacs.url, slices[:2])
    pacs.asked.clear()
    assert [o.state for o in store(pacs.url, slices)] == ["already there"] * 2 + ["stored"] * 2
    assert sum(asked.startswith("POST") for asked in pacs.asked) == 2


@pytest.mark.parametrize("page", [0, 3])
def test_a_query_goes_on_until_all_has_come(pacs: Pacs, slices: list[Path], page: int) -> None:
    """Also from a server that knows no offset, and answers the same for ever."""
    store(pacs.url, slices)
    pacs.page = page
    assert len(client(pacs).instances(STUDY, SERIES)) == 4


def test_studies_and_series_are_found(pacs: Pacs, slices: list[Path]) -> None:
    store(pacs.url, [*slices, result("1.2.4")])
    web = client(pacs)
    assert web.studies() == web.studies(PATIENT["PatientID"]) == [STUDY]
    assert web.studies("OTTER-2") == []
    found = [(e.series, e.modality, e.number, e.instances) for e in web.series(STUDY)]
    assert found == [(SERIES, "CT", "2", 4), ("1.2.4", "SEG", "", 1)]
    assert [e.series for e in web.series(STUDY, "SEG")] == ["1.2.4"]
    web.studies(since=datetime.date(2026, 3, 1))
    assert "StudyDate=20260301-" in pacs.asked[-1]


@pytest.mark.parametrize("patient", ["", " ", "OTTER*", "OTTER-?", "OTTER-1\\OTTER-2"])
def test_an_id_that_means_several_patients_is_refused(pacs: Pacs, patient: str) -> None:
    with pytest.raises(DataError, match="Expected one id") as error:
        client(pacs).studies(patient)
    assert "OTTER" not in str(error.value)
    assert pacs.asked == []


def test_a_series_of_no_files_is_named(pacs: Pacs, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no series 1\.2\.3 in study 1\.2\.0"):
        client(pacs).fetch(STUDY, SERIES, tmp_path)
    with pytest.raises(DataError, match="is no UID"):
        client(pacs).series("../patients")


def test_a_busy_server_is_asked_again(pacs: Pacs, slices: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shared")
    pacs.faults = [503, 429]
    assert client(pacs).studies() == []
    assert len(pacs.asked) == 3
    assert "answers status 503, Service Unavailable. Attempt 2 of 4 in 0.01 s." in caplog.messages[0]
    pacs.faults = ["hang up", 503]  # the query, and then what is sent
    assert [o.state for o in client(pacs).store(slices[:1])] == ["stored"]
    assert list(pacs.files.values()) == [slices[0].read_bytes()]


def test_a_silent_server_is_away(pacs: Pacs) -> None:
    pacs.faults = ["silence"] * 4
    start = time.monotonic()
    with pytest.raises(ServerAwayError, match=r"does not answer within 0\.1 s"):
        client(pacs, timeout=0.1).studies()
    assert time.monotonic() - start < 2
    assert len(pacs.asked) == 4


def test_no_server_is_away() -> None:
    with pytest.raises(ServerAwayError, match=r"127\.0\.0\.1:9/dicom-web: cannot be reached"):
        DicomWeb("http://127.0.0.1:9/dicom-web", wait=0.01).studies()


@pytest.mark.parametrize("broken_after", [40, 700, 1100])
def test_files_that_did_not_come_are_asked_for_one_by_one(
    pacs: Pacs, slices: list[Path], tmp_path: Path, broken_after: int
) -> None:
    store(pacs.url, slices)
    pacs.broken_after = broken_after
    found = client(pacs).fetch(STUDY, SERIES, tmp_path)
    assert [path.read_bytes() for path in found] == [path.read_bytes() for path in slices]


def test_a_server_that_goes_away_in_the_middle(pacs: Pacs, slices: list[Path], tmp_path: Path) -> None:
    store(pacs.url, slices)
    pacs.broken_after, pacs.faults = 1100, [0] * 3 + ["hang up"] * 4  # after two queries and the series
    with pytest.raises(ServerAwayError, match="cannot be reached, or breaks off"):
        client(pacs).fetch(STUDY, SERIES, tmp_path)


def test_a_file_that_never_comes_whole_is_named(pacs: Pacs, slices: list[Path], tmp_path: Path) -> None:
    store(pacs.url, slices)
    uid = list(pacs.files)[2]
    pacs.files[uid] = pacs.files[uid][:-100]
    with pytest.raises(DataError, match=rf"of 4 files of series 1\.2\.3, 1 do not come whole, such as {uid}"):
        client(pacs).fetch(STUDY, SERIES, tmp_path)


def test_a_refused_class_keeps_back_no_other(pacs: Pacs, slices: list[Path]) -> None:
    pacs.refused = (SegmentationStorage,)
    outcomes = store(pacs.url, [slices[0], result("1.2.4"), result("1.2.5", kind=BasicTextSRStorage)])
    assert [(o.state, o.is_there) for o in outcomes] == [("stored", True), ("refused", False), ("stored", True)]
    assert outcomes[1].reason == "it does not take objects of this SOP class (failure reason 0122)"
    assert outcomes[1].kind == "Segmentation Storage"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(413, "it answers status 413, Request Entity Too Large"), (409, "it answers status 409, Conflict")],
)
def test_an_answer_about_one_object_concerns_it_alone(pacs: Pacs, fault: int, reason: str) -> None:
    pacs.faults = [0, fault]  # the query whether it is there, and what is sent
    first, second = client(pacs).store([result("1.2.4"), result("1.2.5")])
    assert (first.state, first.reason, second.state) == ("refused", reason, "stored")


def test_what_cannot_be_stored_is_named(pacs: Pacs, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("Otter^Ophelia")
    with pytest.raises(DataError, match=r"note\.txt: no DICOM file"):
        store(pacs.url, [tmp_path / "note.txt"])
    with pytest.raises(DataError, match=r"gone\.dcm: cannot be opened"):
        store(pacs.url, [tmp_path / "gone.dcm"])


@pytest.mark.parametrize(
    ("given", "header"),
    [
        ({"USER": "ida", "PASSWORD": "müde"}, "Basic " + base64.b64encode("ida:müde".encode("latin-1")).decode()),
        ({"TOKEN": "abc"}, "Bearer abc"),
    ],
)
def test_the_log_in_stands_in_the_environment(
    pacs: Pacs, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], header: str
) -> None:
    pacs.credentials = header
    with pytest.raises(DataError, match=r"refuses the log-in .status 401.*DICOMWEB_USER and DICOMWEB_PASSWORD"):
        client(pacs).studies()
    assert len(pacs.asked) == 1  # many servers lock who tries again
    for name, value in given.items():
        monkeypatch.setenv(f"DICOMWEB_{name}", value)
    assert client(pacs).studies() == []


@pytest.mark.parametrize(
    "given", [{"USER": "ida"}, {"PASSWORD": "x"}, {"USER": "ida", "PASSWORD": "x", "TOKEN": "y"}, {"CA_FILE": "gone"}]
)
def test_half_a_log_in_is_refused(pacs: Pacs, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"DICOMWEB_{name}", value)
    with pytest.raises(DataError, match="DICOMWEB_"):
        client(pacs)


@pytest.mark.parametrize(
    "url", ["pacs.example/dicom-web", "ftp://pacs", "http://", "http://x/?PatientID=1", "http://[x", "http://a:b@x"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(DataError, match=r"no address of a server|has a log-in in it") as error:
        DicomWeb(url)
    assert "a:b" not in str(error.value)


def test_a_certificate_has_to_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl, which makes the certificate")
    certificate, public = make_certificate(tmp_path)
    with pacs_server(os.fspath(certificate)) as pacs:
        with pytest.raises(DataError, match=r"certificate is not trusted.*DICOMWEB_CA_FILE") as error:
            client(pacs).studies()
        assert not isinstance(error.value, ServerAwayError)
        monkeypatch.setenv("DICOMWEB_CA_FILE", os.fspath(public))
        assert client(pacs).studies() == []


def test_a_web_page_is_no_answer(pacs: Pacs, tmp_path: Path) -> None:
    pacs.faults = [200]
    with pytest.raises(DataError, match="not that of a DICOMweb server") as error:
        client(pacs).studies()
    assert not isinstance(error.value, ServerAwayError)
    with pytest.raises(DataError, match=r"knows no such address.*dicom-web"):
        DicomWeb(f"{pacs.url[:-4]}/studies/1/nothing").store([result("1.2.4")])


@pytest.mark.parametrize("deletes", ["dicomweb", "orthanc"])
def test_a_new_result_replaces_our_earlier_one_of_the_same_images(pacs: Pacs, deletes: str) -> None:
    kept = [
        result("1.2.5", images="1.2.9"),
        result("1.2.6", ManufacturerModelName="another network"),
        result("1.2.7", ManufacturerModelName=""),
    ]
    store(pacs.url, [result("1.2.4"), *kept])
    pacs.deletes = deletes
    (outcome,) = store(pacs.url, [result("1.2.8")], replace=True)
    assert (outcome.state, outcome.removed, outcome.reason) == ("stored", ("1.2.4",), "")
    assert sorted(pacs.files) == [f"1.2.{i}.1" for i in (5, 6, 7, 8)]


def test_results_are_those_of_the_same_software_and_images(pacs: Pacs) -> None:
    other = result("1.2.6", kind=BasicTextSRStorage, Modality="SR")
    store(pacs.url, [result("1.2.4"), result("1.2.5", images="1.2.9"), other])
    assert client(pacs).results(STUDY, SERIES, {"Manufacturer": "we"}) == {"SEG", "SR"}
    assert client(pacs).results(STUDY, "1.2.9", {"Manufacturer": "we"}) == {"SEG"}
    assert client(pacs).results(STUDY, SERIES, {"Manufacturer": "we", "DeviceSerialNumber": "7"}) == set()


def test_results_of_a_series_that_has_grown_since_do_not_count(pacs: Pacs) -> None:
    store(pacs.url, [result("1.2.4", count=4), result("1.2.5", count=6, Modality="RTSTRUCT")])
    assert client(pacs).results(STUDY, SERIES, {"Manufacturer": "we"}, 4) == {"SEG", "RTSTRUCT"}
    assert client(pacs).results(STUDY, SERIES, {"Manufacturer": "we"}, 6) == {"RTSTRUCT"}


def test_what_names_no_maker_replaces_nothing(pacs: Pacs) -> None:
    store(pacs.url, [result("1.2.4", ManufacturerModelName="")])
    pacs.deletes = "dicomweb"
    (outcome,) = store(pacs.url, [result("1.2.8", ManufacturerModelName="")], replace=True)
    assert (outcome.removed, len(pacs.files)) == ((), 2)


def test_what_the_server_keeps_is_said(pacs: Pacs) -> None:
    store(pacs.url, [result("1.2.4")])
    (outcome,) = store(pacs.url, [result("1.2.8")], replace=True)
    assert (outcome.state, outcome.removed) == ("stored", ())
    assert outcome.reason == f"{pacs.url} does not delete: 1.2.4 stays"


def test_no_message_names_a_patient(pacs: Pacs, slices: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store(pacs.url, slices)
    messages = []
    for faults in ([500], [404], [401], [200], [503] * 4, ["hang up"] * 4, ["silence"] * 4, [500, 500]):
        pacs.faults = list(faults)
        with pytest.raises(DataError) as error:
            client(pacs, timeout=0.2).studies(PATIENT["PatientID"])
        messages.append(str(error.value))
    pacs.faults = [0, 409]
    messages += [str(each) for each in client(pacs).store([result("1.2.4")])]
    assert f"PatientID={PATIENT['PatientID']}" in pacs.asked[-3] + pacs.asked[-4]
    assert not [text for text in messages + caplog.messages if "otter" in text.lower()]
