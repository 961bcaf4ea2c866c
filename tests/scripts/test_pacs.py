"""The order of things between a PACS and a bundle, against a server inside this process; the bundle is pretended.

`tests/dicom/test_real_pacs.py` has the real ones.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pacs as script
import pydicom
import pytest
from commands import PYTHON, run
from dicom_files import write_series
from dicomweb_server import PATIENT, SERIES, STUDY, Pacs, pacs_server, result
from pacs import ROOT, Station, arrivals, do_once, keep_watching
from pydicom.uid import ComprehensiveSRStorage, SegmentationStorage

from shared.dicom import DicomWeb, SeriesEntry, store
from shared.utils import DataError


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    with pacs_server() as found:
        yield found


@pytest.fixture
def station(pacs: Pacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Station:
    """It finds a CT of four slices; temporary files go below the test's folder."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    store(pacs.url, sorted(write_series(tmp_path / "series", **PATIENT).iterdir()))
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    return Station(DicomWeb(pacs.url, wait=0.01), "abdominal_unetr_cbs", weights, ("seg", "sr"))


@pytest.fixture
def seen(station: Station, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the bundle saw, which answers with an SR and a SEG."""
    found: list[dict[str, Any]] = []

    def infer(self: Station, images: Path, results: Path, log: Path) -> None:
        slices, folder = [pydicom.dcmread(path) for path in images.iterdir()], images.parent
        uid = slices[0].SeriesInstanceUID
        mode = folder.stat().st_mode
        found.append({"files": len(slices), "series": uid, "folder": folder, "mode": mode})
        (results / "ct").mkdir(parents=True)
        for i, kind, modality in ((1, ComprehensiveSRStorage, "SR"), (2, SegmentationStorage, "SEG")):
            made = result(f"{uid}.{len(slices)}.{i}", uid, kind, len(slices), Modality=modality, **self.made_by)
            made.save_as(results / "ct" / f"{i}.dcm", enforce_file_format=True)

    monkeypatch.setattr(Station, "infer", infer)
    return found


def entry(series: str, images: int, number: str = "", description: str = "", modality: str = "CT") -> SeriesEntry:
    return SeriesEntry(STUDY, series, modality, number, description, images)


def test_results_are_stored_beside_the_images_once(
    station: Station, seen: list[dict[str, Any]], pacs: Pacs, capsys: pytest.CaptureFixture[str]
) -> None:
    do_once(station, [STUDY])
    assert [(each["files"], each["series"]) for each in seen] == [(4, SERIES)]
    assert list(pacs.files)[4:] == [f"{SERIES}.4.2.1", f"{SERIES}.4.1.1"]  # the SR last: it says that all is done
    assert seen[0]["mode"] & 0o077 == 0
    assert not seen[0]["folder"].exists()
    table = capsys.readouterr().out.splitlines()
    assert table[-1].split()[:4] == [SERIES, "2", "4", "stored"]
    assert "Segmentation stored, Comprehensive SR stored" in table[-1]
    do_once(station, [STUDY])
    assert len(seen) == 1
    assert capsys.readouterr().out.splitlines()[-1].split()[:5] == [SERIES, "2", "4", "there", "before"]
    station.again = True
    do_once(station, [STUDY])
    assert "Segmentation already there, Comprehensive SR already there" in capsys.readouterr().out


def test_results_of_other_weights_are_other_results(station: Station, seen: list[dict[str, Any]]) -> None:
    do_once(station, [STUDY])
    station.weights.write_bytes(b"other weights")
    station.__post_init__()
    do_once(station, [STUDY])
    assert len(seen) == 2


def test_without_a_report_all_objects_have_to_be_there(station: Station, pacs: Pacs) -> None:
    store(pacs.url, [result("1.2.4", **station.made_by)])
    (ct,) = station.choose(station.web.series(STUDY))
    station.objects = ("seg", "rtstruct")
    assert not station.is_done(ct)
    store(pacs.url, [result("1.2.5", **{"Modality": "RTSTRUCT", **station.made_by})])
    assert station.is_done(ct)


@pytest.mark.parametrize(
    ("chosen", "series"),
    [("", ["1.2.2"]), ("7", ["1.2.1"]), ("1.2.3", ["1.2.3"]), ("PORTAL", ["1.2.1", "1.2.2"]), ("bone", []), ("9", [])],
)
def test_the_series_that_are_meant(station: Station, chosen: str, series: list[str]) -> None:
    entries = [entry("1.2.1", 80, "7", "Portal"), entry("1.2.2", 99, "8", "Portal 1 mm"), entry("1.2.3", 3, "1")]
    station.chosen = chosen
    assert [e.series for e in station.choose([*entries, entry("1.2.4", 500, "9", modality="MR")])] == series


def test_one_that_fails_does_not_end_the_others(
    station: Station, seen: list[dict[str, Any]], pacs: Pacs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"SeriesInstanceUID": "1.2.1", "Modality": "CT", "ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER"}
    store(pacs.url, sorted(write_series(tmp_path / "scout", StudyInstanceUID="1.2.9", **values).iterdir()))
    with pytest.raises(DataError, match=r"1 of 2 series failed:\n  1\.2\.1: .*a scout .localizer.*expected a CT"):
        do_once(station, ["1.2.9", STUDY])
    assert len(seen) == 1
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert [row.split()[3] for row in rows] == ["failed", "stored"]
    assert not [*seen[0]["folder"].parent.iterdir()]


def test_an_object_that_is_refused_is_a_failure(station: Station, seen: list[dict[str, Any]], pacs: Pacs) -> None:
    pacs.refused = (SegmentationStorage,)
    with pytest.raises(DataError, match=r"1 of 1 series failed:\n  1\.2\.3: Segmentation Storage: it does not take"):
        do_once(station, [STUDY])
    assert list(pacs.files)[-1] == f"{SERIES}.4.1.1"


def test_nothing_to_do_is_said(station: Station) -> None:
    station.chosen = "arterial"
    with pytest.raises(DataError, match=r"there is no CT series that matches arterial, but CT 2\. Nothing is done"):
        do_once(station, [STUDY, "1.2.9"])
    with pytest.raises(DataError, match=r"there is no study 1\.2\.9\. Look at the id"):
        do_once(station, ["1.2.9"])
    with pytest.raises(DataError, match="there are no studies of this patient"):
        do_once(station, [])


def test_a_study_is_done_when_it_has_come_whole(station: Station, pacs: Pacs, tmp_path: Path) -> None:
    """Each look at the server is a query of studies; what comes between them is stored here."""
    looks: list[int] = []
    later = sorted(write_series(tmp_path / "later", 6, SeriesInstanceUID="1.2.8").iterdir())
    station.patience = 0.001

    def studies() -> list[str]:
        looks.append(len(pacs.files))
        store(pacs.url, later[: len(looks) - 1 if len(looks) < 8 else 6])
        return [STUDY]

    found = [(e.series, e.instances, len(looks)) for e in islice(arrivals(station, studies), 1)]
    assert found == [("1.2.8", 6, 8)]


def test_what_was_done_is_not_done_again(station: Station, pacs: Pacs, tmp_path: Path) -> None:
    looks: list[int] = []
    station.patience = 0.001
    more = sorted(write_series(tmp_path / "more", 6, SeriesInstanceUID="1.2.8").iterdir())

    def studies() -> list[str]:
        looks.append(1)
        store(pacs.url, more if len(looks) == 4 else [])
        return [STUDY]

    assert [(e.series, len(looks)) for e in islice(arrivals(station, studies), 2)] == [(SERIES, 2), ("1.2.8", 5)]


def test_a_series_that_grows_later_is_done_again(
    station: Station, seen: list[dict[str, Any]], pacs: Pacs, tmp_path: Path
) -> None:
    looks: list[int] = []
    station.patience = 0.001
    six_more = sorted(write_series(tmp_path / "more", 6, **PATIENT).iterdir())

    def studies() -> list[str]:
        looks.append(1)
        store(pacs.url, six_more if len(looks) == 4 else [])
        return [STUDY]

    rows = [station.handle(each) for each in islice(arrivals(station, studies), 2)]
    assert [(row["images"], row["state"]) for row in rows] == [(4, "stored"), (10, "stored")]
    assert [each["files"] for each in seen] == [4, 10]


def test_a_server_that_is_away_is_waited_for(
    station: Station, seen: list[dict[str, Any]], pacs: Pacs, caplog: pytest.LogCaptureFixture
) -> None:
    pacs.faults = ["hang up"] * 9
    with pytest.raises(DataError, match="cannot be reached"):
        do_once(station, [STUDY])
    assert len(pacs.faults) == 5
    station.patience = 0.001
    (ct,) = station.patiently(lambda: station.choose(station.web.series(STUDY)))
    pacs.faults = [0] * 8 + [503] * 20  # while the results are stored
    assert station.handle(ct)["state"] == "stored"
    assert len(seen) == 1
    told = [text.removeprefix(pacs.url) for text in caplog.messages if "Attempt" not in text]
    assert [text.split(".")[0] for text in told] == [": cannot be reached, or breaks off", ": is back"] + [
        ": answers status 503, Service Unavailable",
        ": is back",
    ]


def test_watching_ends_with_an_interrupt(station: Station, capsys: pytest.CaptureFixture[str]) -> None:
    def studies() -> list[str]:
        raise KeyboardInterrupt

    keep_watching(station, studies)
    assert capsys.readouterr().out.splitlines()[-1] == "stopped: 0 series, 0 of them failed"


def test_sigterm_ends_it_cleanly(pacs: Pacs, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    command = [
        PYTHON,
        str(ROOT / "scripts/pacs.py"),
        "--url",
        pacs.url,
        "--weights",
        str(tmp_path / "model.pt"),
        "--watch",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == f"watching {pacs.url}\n"
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (0, "stopped: 0 series, 0 of them failed\n", "")


def write_program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_bundle_runs_in_a_process_of_its_own(
    station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = write_program(tmp_path / "python", f'printf "%s\\n" "$PWD" "$@" > {tmp_path}/said')
    monkeypatch.setattr(script.sys, "executable", program)
    station.variants, station.device = ("demo",), "cpu"
    station.infer(tmp_path / "images", tmp_path / "results", tmp_path / "log")
    place, *words = (tmp_path / "said").read_text().splitlines()
    assert Path(place) == ROOT / "bundles" / "abdominal_unetr_cbs"
    configs = ["configs/inference.json", "configs/variants/demo.json", "configs/variants/dicom.json"]
    assert words[:4] == ["-m", "monai.bundle", "run", "--config_file"]
    assert json.loads(words[4].replace("'", '"')) == configs
    assert dict(zip(words[5::2], words[6::2], strict=True)) == {
        "--input": str(tmp_path / "images"),
        "--output_dir": str(tmp_path / "results"),
        "--ckpt_path": str(station.weights),
        "--keep_going": "false",
        "--dicom": "['seg', 'sr']",
        "--device": "cpu",
    }


def test_what_the_bundle_says_of_its_failure_is_told(
    station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = write_program(tmp_path / "python", 'printf "loading\\n\\nError: the scan is\\n  a cube\\n"; exit 3')
    monkeypatch.setattr(script.sys, "executable", program)
    with pytest.raises(DataError, match=r"abdominal_unetr_cbs fails \(status 3\): the scan is a cube$"):
        station.infer(tmp_path, tmp_path / "results", tmp_path / "log")


def test_an_interrupt_ends_the_bundle_too(station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.sys, "executable", write_program(tmp_path / "python", "exec sleep 60"))
    wait, started = subprocess.Popen.wait, []

    def interrupted(process: subprocess.Popen, timeout: float | None = None) -> int:
        if not started:
            started.append(process)
            raise KeyboardInterrupt
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        station.infer(tmp_path, tmp_path / "results", tmp_path / "log")
    assert started[0].returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --study or --patient"),
        (["--study", "1.2", "--patient", "x"], "give --study or --patient"),
        (["--watch", "--study", "1.2", "--patient", "x"], "give --study or --patient"),
        (["--study", "1.2", "--weights", "gone.pt"], "gone.pt: there is no such file of weights"),
        (["--study", "1.2", "--objects", "seg,png"], "seg, sr or rtstruct"),
        (["--study", "1.2", "--bundle", "other"], "abdominal_unetr_cbs or abdominal_lambda3d_cbs"),
        (["--study", "1.2", "--url", "here"], "here: no address of a server"),
    ],
)
def test_wrong_options(options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    given = {"--url": "http://127.0.0.1:9/dicom-web", "--weights": str(tmp_path / "model.pt")}
    words = [word for name, value in given.items() if name not in options for word in (name, value)]
    monkeypatch.setattr(script.sys, "argv", ["pacs.py", *words, *options])
    with pytest.raises(DataError) as error:
        script.run_command(script.main)
    assert message in str(error.value)


def test_a_command_of_its_own(tmp_path: Path) -> None:
    done = run(ROOT / "scripts/pacs.py", "--help", python=script.sys.executable)
    assert done.returncode == 0
    assert "DICOMWEB_PASSWORD" in done.stdout
