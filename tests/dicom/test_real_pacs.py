"""Our objects and our client with programs of others: Orthanc, dciodvfy, dcmqi and plastimatch."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from commands import PYTHON, run
from ct_phantom import METADATA, ORIGIN, structures
from dicom_slide import write_slide
from orthanc import INSTALLS, Orthanc, make_certificate, missing, program, tls_before
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless
from workflows import parsed

from shared.data.sources import weights_digest
from shared.datasets.dicom_ct import write_ct_series
from shared.dicom import (
    DicomWeb,
    Origin,
    ServerAwayError,
    SourceSeries,
    identify,
    make_annotations,
    make_report,
    make_segmentation,
    make_structure_set,
    read_codes,
    read_source,
    store,
)
from shared.dicom.annotations import read_slide
from shared.reports.organs import measure_organs
from shared.utils import DataError

pytestmark = [
    pytest.mark.pacs,
    pytest.mark.skipif(bool(missing()), reason=f"{', '.join(missing())} missing: `{INSTALLS}` installs them"),
]

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "abdominal_unetr_cbs"
CODES = structures()
SHAPE, SPACING = (60, 48, 14), (1.5, 2.0, 2.5)  # mm, to the right, the front and the head
BALLS = {2: (15, 14, 6), 3: (45, 20, 7), 6: (28, 30, 6), 10: (40, 38, 8), 13: (14, 36, 5)}  # label: centre in voxels
PATIENT = "OTTER-1"


class Case(NamedTuple):
    """A CT series and what was found in it."""

    folder: Path
    label_map: np.ndarray
    affine: np.ndarray
    source: SourceSeries


def make_objects(case: Case, origin: Origin = ORIGIN) -> dict[str, Dataset]:
    placed = case.source.place(case.label_map, case.affine, range(1, 14))
    about = (CODES, origin, identify(case.source, placed, CODES, origin))
    segmentation = make_segmentation(case.source, placed, *about)
    measures = measure_organs(case.label_map, {c.name: c.label for c in CODES}, float(np.prod(SPACING)))
    report = make_report(case.source, measures, *about, segmentation)
    return {"seg": segmentation, "rtstruct": make_structure_set(case.source, placed, *about), "sr": report}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Organs as balls of 8 to 12 mm, one with a hole."""
    folder = tmp_path_factory.mktemp("case") / "ct"
    grid = np.moveaxis(np.indices(SHAPE), 0, -1)
    label_map = np.zeros(SHAPE, np.uint8)
    for label, centre in BALLS.items():
        distance = np.linalg.norm((grid - centre) * SPACING, axis=-1)
        label_map[(distance < 8 + label / 3) & (distance > (3 if label == 6 else -1))] = label
    affine = np.diag([*SPACING, 1.0])
    hu = np.random.default_rng(0).integers(-200, 200, SHAPE)
    # DICOM's own order: rows towards the back, columns to the left
    stored, turned = hu[::-1, ::-1], affine @ np.diag([-1.0, -1.0, 1.0, 1.0])
    turned[:2, 3] = (np.array(SHAPE[:2]) - 1) * SPACING[:2]
    write_ct_series(folder, stored, turned, PATIENT)
    return Case(folder, label_map, affine, read_source(folder))


@pytest.fixture(scope="module")
def files(case: Case, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The objects of the case."""
    found = {}
    for name, dataset in make_objects(case).items():
        found[name] = tmp_path_factory.mktemp("objects") / f"{name}.dcm"
        pydicom.dcmwrite(found[name], dataset, enforce_file_format=True)
    return found


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    server = Orthanc(tmp_path_factory.mktemp("orthanc") / "server").start()
    yield server
    server.kill()


def tool(name: str, *arguments: object) -> str:
    """What a program prints."""
    done = subprocess.run([program(name), *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def verified(path: Path) -> list[str]:
    """The lines of dciodvfy on a file."""
    done = subprocess.run([program("dciodvfy"), "-new", path], capture_output=True, text=True)
    return (done.stdout + done.stderr).splitlines()


def errors_of(path: Path) -> list[str]:
    return [line for line in verified(path) if line.startswith("Error")]


@pytest.mark.parametrize("name", ["ct", "seg", "rtstruct", "sr"])
def test_dciodvfy_finds_no_error(case: Case, files: dict[str, Path], name: str, tmp_path: Path) -> None:
    path = files.get(name) or sorted(case.folder.iterdir())[0]
    kinds = {"ct": "CTImage", "seg": "Segmentation", "rtstruct": "RTStructureSet", "sr": "ComprehensiveSR"}
    assert errors_of(path) == []
    assert kinds[name] in verified(path)
    broken = pydicom.dcmread(path)
    del broken.StudyInstanceUID
    broken.save_as(tmp_path / "broken.dcm")
    assert errors_of(tmp_path / "broken.dcm") != []


def test_dciodvfy_finds_no_error_in_annotations(tmp_path: Path) -> None:
    """But one, of an attribute that is not there: it looks for the coordinates' type in the groups, not above them."""
    table = json.loads((METADATA.parents[2] / "mitosis_retinanet_fusestyle" / "configs" / "metadata.json").read_text())
    classes = read_codes(table["dicom_codes"], {"non_mitotic": 0, "mitotic": 1})
    slide = read_slide(write_slide(tmp_path / "slide", np.full((512, 1024, 3), 230, np.uint8)))
    boxes = np.array([[10, 20, 60, 70.5], [300, 5, 350, 55]], np.float32)
    made = make_annotations(slide, boxes, np.array([0.9, 0.7]), np.array([1, 0]), classes, ORIGIN)
    pydicom.dcmwrite(tmp_path / "ann.dcm", made, enforce_file_format=True)
    assert not [element for element in made.iterall() if element.keyword == "CommonZCoordinateValue"]
    assert [line for line in errors_of(tmp_path / "ann.dcm") if "/CommonZCoordinateValue" not in line] == []
    assert "MicroscopyBulkSimpleAnnotations" in verified(tmp_path / "ann.dcm")


def test_dcmqi_reads_the_segments(case: Case, files: dict[str, Path], tmp_path: Path) -> None:
    tool("segimage2itkimage", "--inputDICOM", files["seg"], "--outputDirectory", tmp_path, "-t", "nii")
    (described,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    segments = [segment for group in described["segmentAttributes"] for segment in group]
    assert [segment["SegmentedPropertyTypeCodeSequence"]["CodeValue"] for segment in segments] == [
        CODES[label - 1].concept.value for label in BALLS
    ]
    for segment, label in zip(segments, BALLS, strict=True):
        image = nib.load(tmp_path / f"{segment['labelID']}.nii.gz")
        found = np.argwhere(np.asanyarray(image.dataobj) > 0) @ image.affine[:3, :3].T + image.affine[:3, 3]
        expected = np.argwhere(case.label_map == label) * SPACING
        assert {tuple(point) for point in found.round(3)} == {tuple(point) for point in expected.round(3)}


def test_dcmqi_reads_the_report(case: Case, files: dict[str, Path], tmp_path: Path) -> None:
    tool("tid1500reader", "--inputDICOM", files["sr"], "--outputMetadata", tmp_path / "sr.json")
    groups = json.loads((tmp_path / "sr.json").read_text())["Measurements"]
    volumes = {
        group["TrackingIdentifier"]: float(item["value"])
        for group in groups
        for item in group.get("measurementItems", [])
        if item["quantity"]["CodeMeaning"] == "Volume"
    }
    voxel = np.prod(SPACING) / 1000
    expected = {CODES[label - 1].name: (case.label_map == label).sum() * voxel for label in BALLS}
    assert volumes == pytest.approx(expected, abs=1e-3)


def test_plastimatch_fills_the_contours(case: Case, files: dict[str, Path], tmp_path: Path) -> None:
    options = ["--input", files["rtstruct"], "--referenced-ct", case.folder]
    tool("plastimatch", "convert", *options, "--output-prefix", tmp_path / "organs", "--prefix-format", "nii")
    found = {path.name.removesuffix(".nii"): nib.load(path) for path in (tmp_path / "organs").iterdir()}
    assert sorted(found) == sorted(CODES[label - 1].title for label in BALLS)
    for label in BALLS:
        image = nib.as_closest_canonical(found[CODES[label - 1].title])
        inside, expected = np.asanyarray(image.dataobj) > 0, case.label_map == label
        np.testing.assert_allclose(image.affine, case.affine, atol=1e-3)
        dice = 2 * (inside & expected).sum() / (inside.sum() + expected.sum())
        assert dice >= 0.99, CODES[label - 1].name


def test_a_study_goes_to_orthanc_and_comes_back(case: Case, files: dict[str, Path], orthanc: Orthanc) -> None:
    images = sorted(case.folder.iterdir())
    assert {o.state for o in store(orthanc.url, [*images, *files.values()])} == {"stored"}
    assert orthanc.count() == SHAPE[2] + 3
    assert {o.state for o in store(orthanc.url, [*images, *files.values()])} == {"already there"}
    web, source = DicomWeb(orthanc.url), case.source.images[0]
    assert web.studies(PATIENT) == [source.StudyInstanceUID]
    found = {entry.modality: entry.instances for entry in web.series(source.StudyInstanceUID)}
    assert found == {"CT": SHAPE[2], "SEG": 1, "RTSTRUCT": 1, "SR": 1}
    made_by = {"Manufacturer": "MONAI bundle collection", "DeviceSerialNumber": ORIGIN.weights}
    where = (source.StudyInstanceUID, source.SeriesInstanceUID)
    assert web.results(*where, made_by, SHAPE[2]) == {"SEG", "RTSTRUCT", "SR"}
    assert web.results(*where, made_by, SHAPE[2] + 1) == set()  # as if images had come since
    assert web.results(*where, made_by | {"DeviceSerialNumber": "other weights"}) == set()


def test_new_results_replace_earlier_ones_in_orthanc(case: Case, orthanc: Orthanc) -> None:
    store(orthanc.url, [*sorted(case.folder.iterdir()), *make_objects(case).values()])
    before = orthanc.count()
    other = Origin(ORIGIN.algorithm, ORIGIN.version, {"weights": "cd" * 32}, ORIGIN.record)
    outcomes = store(orthanc.url, [*make_objects(case, other).values()], replace=True)
    assert [(o.state, len(o.removed), o.reason) for o in outcomes] == [("stored", 1, "")] * 3
    assert orthanc.count() == before


def compressed(folder: Path, case: Case) -> list[Path]:
    """The case's images as JPEG 2000, without loss, as another study."""
    folder.mkdir()
    for path in case.folder.iterdir():
        image, code = pydicom.dcmread(path), BytesIO()
        Image.fromarray(image.pixel_array).save(code, "JPEG2000", irreversible=False, no_jp2=True)
        image.PixelData = encapsulate([code.getvalue()])
        image["PixelData"].VR = "OB"
        image.file_meta.TransferSyntaxUID = JPEG2000Lossless
        image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{image.SOPInstanceUID[:50]}.9"
        image.save_as(folder / path.name)
    return sorted(folder.iterdir())


def test_jpeg_2000_comes_back_as_it_was_stored(case: Case, orthanc: Orthanc, tmp_path: Path) -> None:
    images = compressed(tmp_path / "jpeg", case)
    store(orthanc.url, images)
    (tmp_path / "came").mkdir()
    found = DicomWeb(orthanc.url).fetch("1.2.3.1", "1.2.3.2", tmp_path / "came")
    assert sorted(path.read_bytes() for path in found) == sorted(path.read_bytes() for path in images)
    assert {pydicom.dcmread(path).file_meta.TransferSyntaxUID for path in found} == {JPEG2000Lossless}


def test_orthanc_with_a_log_in_and_a_certificate_of_its_own(
    case: Case, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, public = make_certificate(tmp_path)
    server = Orthanc(tmp_path / "orthanc", "ida").start()
    try:
        with tls_before(server.port, both) as url:
            with pytest.raises(DataError, match="certificate is not trusted"):
                store(url, [files["seg"]])
            monkeypatch.setenv("DICOMWEB_CA_FILE", str(public))
            with pytest.raises(DataError, match="refuses the log-in"):
                store(url, [files["seg"]])
            monkeypatch.setenv("DICOMWEB_USER", "ida")
            monkeypatch.setenv("DICOMWEB_PASSWORD", "secret")
            assert [o.state for o in store(url, [files["seg"], files["sr"]])] == ["stored", "stored"]
    finally:
        server.kill()


def test_orthanc_is_killed_in_the_middle(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And starts again a second later: what was asked for comes whole, and what was to be stored is."""
    server = Orthanc(tmp_path / "orthanc").start()
    try:
        images, source = sorted(case.folder.iterdir()), case.source.images[0]
        store(server.url, images[:5])
        server.kill()
        with pytest.raises(ServerAwayError, match="cannot be reached, or breaks off"):
            DicomWeb(server.url, attempts=2, wait=0.01).store(images)
        back = threading.Timer(1.0, server.start)
        back.start()
        outcomes = DicomWeb(server.url, attempts=10, wait=0.1).store(images)
        back.join()
        assert [o.state for o in outcomes] == ["already there"] * 5 + ["stored"] * (SHAPE[2] - 5)
        (tmp_path / "came").mkdir()
        listed, web = DicomWeb.instances, DicomWeb(server.url, attempts=10, wait=0.1)

        def killed_then(self: DicomWeb, *where: str) -> list[str]:
            found = listed(self, *where)
            server.kill()
            threading.Timer(1.0, server.start).start()
            return found

        monkeypatch.setattr(DicomWeb, "instances", killed_then)
        found = web.fetch(source.StudyInstanceUID, source.SeriesInstanceUID, tmp_path / "came")
        assert sorted(path.read_bytes() for path in found) == sorted(path.read_bytes() for path in images)
    finally:
        server.kill()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that has learned nothing, and finds organs all the same."""
    torch.manual_seed(0)
    network = parsed(BUNDLE, "inference", "variants/demo").get_parsed_content("network_def")
    last = network.out.conv.conv  # which organ a voxel is of, by how its features differ and not by how large they are
    last.weight.data -= last.weight.data.mean(1, keepdim=True)
    last.bias.data.zero_()
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


def options_of(server: Orthanc, weights: Path) -> list[str]:
    return ["--url", server.url, "--weights", str(weights), "--variants", "demo", "--device", "cpu"]


def stored_results(web: DicomWeb, study: str, weights: Path, folder: Path) -> dict[str, Path]:
    """The objects of a study that these weights have made, by modality; other tests leave theirs there."""
    folder.mkdir()
    series = [entry for entry in web.series(study) if entry.modality != "CT"]
    files = {entry: web.fetch(study, entry.series, folder)[0] for entry in series}
    made = weights_digest(weights)
    return {entry.modality: file for entry, file in files.items() if pydicom.dcmread(file).DeviceSerialNumber == made}


@pytest.mark.slow
def test_from_the_pacs_and_back(case: Case, weights: Path, orthanc: Orthanc, tmp_path: Path) -> None:
    """A patient with a study as it is, and one as JPEG 2000: what is found in both is the same."""
    store(orthanc.url, [*sorted(case.folder.iterdir()), *compressed(tmp_path / "jpeg", case)])
    before = orthanc.count()
    command = (ROOT / "scripts/pacs.py", *options_of(orthanc, weights), "--patient", PATIENT)
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[3] for line in done.stdout.splitlines()[-2:]] == ["stored"] * 2
    assert orthanc.count() == before + 6
    web, studies = DicomWeb(orthanc.url), (case.source.images[0].StudyInstanceUID, "1.2.3.1")
    entries = [e.series for study in studies for e in web.series(study) if e.modality == "CT"]
    found = [stored_results(web, study, weights, tmp_path / study) for study in studies]
    segments = [pydicom.dcmread(each["SEG"]) for each in found]
    assert len(segments[0].SegmentSequence) > 1
    assert segments[0].PixelData == segments[1].PixelData
    for series, each in zip(entries, found, strict=True):
        assert pydicom.dcmread(each["SEG"]).ReferencedSeriesSequence[0].SeriesInstanceUID == series
        assert {modality: errors_of(path) for modality, path in each.items()} == {"SEG": [], "SR": [], "RTSTRUCT": []}
    again = run(*command)
    assert again.stdout.count("there before") == 4, again.stdout + again.stderr  # as it goes, and in the table
    assert orthanc.count() == before + 6
    assert "OTTER" not in done.stdout + done.stderr + again.stdout + again.stderr


@pytest.mark.slow
def test_watching_survives_the_absence_of_the_server(case: Case, weights: Path, tmp_path: Path) -> None:
    server = Orthanc(tmp_path / "orthanc")
    command = [PYTHON, str(ROOT / "scripts/pacs.py"), *options_of(server, weights), "--watch", "--interval", "0.5"]
    command += ["--patient", PATIENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert "Attempt 2 of 4" in process.stderr.readline()  # there is no server yet
            server.start()
            store(server.url, sorted(case.folder.iterdir()))
            assert process.stdout.readline().startswith("watching")
            assert "stored, Comprehensive SR stored" in process.stdout.readline()
            server.kill()
            while "Waiting for it." not in process.stderr.readline():
                pass
            server.start()
            while "is back." not in process.stderr.readline():
                pass
            assert server.count() == SHAPE[2] + 3
        finally:
            process.terminate()
            out, _ = process.communicate(timeout=60)
            server.kill()
    assert (process.returncode, out) == (0, "stopped: 1 series, 0 of them failed\n")
