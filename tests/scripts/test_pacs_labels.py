"""The labels that people submit to a PACS, against a server inside this process, and against a real Orthanc."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from ct_phantom import ORIGIN, Phantom, structures, write_phantom
from dicomweb_server import Pacs, pacs_server, result
from monai_label import pacs_labels
from monai_label.pacs_labels import PacsLabels, named_ids
from orthanc import INSTALLS, Orthanc, missing, program
from pydicom.uid import SegmentationStorage

from shared.dicom import DicomWeb, identify, make_segmentation, read_source, store
from shared.utils import DataError

NAMES = {"liver": 3, "spleen": 7, "my tumour": 1, "left_kidney": 200, "aorta": 9}  # no aorta was drawn
CODES = {
    "liver": {"code": "10200004", "meaning": "Liver"},
    "spleen": {"code": "78961009", "meaning": "Spleen"},
    "left_kidney": {"code": "64033007", "meaning": "Kidney", "laterality": "left"},
    "right_kidney": {"code": "64033007", "meaning": "Kidney", "laterality": "right"},
    "aorta": {"code": "15825003", "meaning": "Aorta"},
}


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    with pacs_server() as found:
        yield found


@pytest.fixture
def ct(pacs: Pacs, tmp_path: Path) -> Phantom:
    phantom = write_phantom(tmp_path / "ct")
    store(pacs.url, sorted(phantom.folder.iterdir()))
    return phantom


@pytest.fixture
def place(pacs: Pacs, ct: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PacsLabels:
    """A server that has just started."""
    monkeypatch.setattr(pacs_labels, "FRESH", 0.0)
    return start(pacs.url, tmp_path / "one")


def start(url: str, folder: Path) -> PacsLabels:
    return PacsLabels(DicomWeb(url, wait=0.01), folder, CODES, {"liver": 1})


def uid(ct: Phantom) -> str:
    return pydicom.dcmread(next(ct.folder.iterdir()), stop_before_pixels=True).SeriesInstanceUID


def drawn(ct: Phantom, *ids: int) -> np.ndarray:
    """Of the phantom's organs the first ones, with these ids."""
    label_map = np.zeros(ct.label_map.shape, np.uint8)
    for organ, i in enumerate(ids, 1):
        label_map[ct.label_map == organ] = i
    return label_map


def label_file(ct: Phantom, *ids: int, shift: float = 0.0) -> Path:
    """These as a file, whose grid lies `shift` mm farther to the right."""
    path = ct.folder.parent / "label.nii.gz"
    nib.save(nib.Nifti1Image(drawn(ct, *ids), ct.affine + np.eye(4, k=3) * shift), path)
    return path


def turned(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    """The same label map with its axes in another order, as programs write it."""
    image = nib.Nifti1Image(voxels, affine)
    nib.save(image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]])), path)
    return path


def read_back(place: PacsLabels, ct: Phantom) -> tuple[np.ndarray, dict[str, int]]:
    """The label on the voxels of the phantom, and its names."""
    label = place.labels()[uid(ct)]
    image = nib.load(place.label(label))
    np.testing.assert_allclose(image.affine, read_source(ct.folder).grid.affine, atol=1e-5)
    return np.asanyarray(nib.as_closest_canonical(image).dataobj), dict(label.names)


@pytest.mark.parametrize("orientation", ["LPS", "LPI", "PIL", "oblique", "enhanced"])
def test_a_label_comes_back_with_the_ids_submitted_wherever_it_is_read(
    place: PacsLabels, pacs: Pacs, orientation: str, tmp_path: Path
) -> None:
    ct = write_phantom(tmp_path / orientation, orientation, patient="P2")
    store(pacs.url, sorted(ct.folder.iterdir()))
    expected = drawn(ct, 7, 3, 200, 1)
    place.submit(uid(ct), turned(tmp_path / "label.nii.gz", expected, ct.affine), NAMES)
    for folder in ("one", "two"):  # another server, which is the same one after it has lost its files
        label_map, names = read_back(start(pacs.url, tmp_path / folder), ct)
        if orientation != "oblique":
            np.testing.assert_array_equal(label_map, expected)
        np.testing.assert_array_equal(np.unique(label_map, return_counts=True), np.unique(expected, return_counts=True))
        assert names == {name: i for name, i in NAMES.items() if name != "aorta"}


def test_organs_have_their_names_and_codes_in_the_pacs(
    place: PacsLabels, pacs: Pacs, ct: Phantom, tmp_path: Path
) -> None:
    place.submit(uid(ct), label_file(ct, 7, 3, 200, 1), NAMES)
    (found,) = (pydicom.dcmread(pydicom.filebase.DicomBytesIO(content)) for content in list(pacs.files.values())[8:])
    segments = {item.SegmentLabel: item for item in found.SegmentSequence}
    codes = {name: item.SegmentedPropertyTypeCodeSequence[0] for name, item in segments.items()}
    assert {name: (code.CodingSchemeDesignator, code.CodeValue) for name, code in codes.items()} == {
        "liver": ("SCT", "10200004"),
        "spleen": ("SCT", "78961009"),
        "left kidney": ("SCT", "64033007"),
        "my tumour": ("99MBC", "MY_TUMOUR"),
    }
    assert codes["left kidney"].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert {item.SegmentAlgorithmType for item in segments.values()} == {"SEMIAUTOMATIC"}
    assert found.SeriesDescription == "Label submitted in MONAI Label"


def test_neither_a_network_nor_another_program_submits(
    place: PacsLabels, pacs: Pacs, ct: Phantom, tmp_path: Path
) -> None:
    source = read_source(ct.folder)
    placed = source.place(ct.label_map, ct.affine, range(1, 14))
    ours = make_segmentation(source, placed, structures(), ORIGIN, identify(source, placed, structures(), ORIGIN))
    study = source.images[0].StudyInstanceUID
    theirs = result(
        "1.2.77", uid(ct), count=0, StudyInstanceUID=study, **pacs_labels.MARK
    )  # with our mark, and nothing else
    store(pacs.url, [ours, theirs])
    assert place.labels() == {}
    place.submit(uid(ct), label_file(ct, 1))
    assert read_back(place, ct)[1] == {"liver": 1}


def test_the_last_label_counts_also_where_it_is_the_same_as_an_earlier_one(
    place: PacsLabels, pacs: Pacs, ct: Phantom, tmp_path: Path
) -> None:
    other = start(pacs.url, tmp_path / "two")
    for number, server in ((1, place), (2, other), (1, place)):
        server.submit(uid(ct), label_file(ct, *[1] * number))
        for each in (place, other):
            np.testing.assert_array_equal(read_back(each, ct)[0], drawn(ct, *[1] * number))
    assert len(pacs.files) == 8 + 3


@pytest.mark.parametrize("deletes", ["dicomweb", "orthanc", ""])
def test_a_label_is_withdrawn_with_the_earlier_ones(
    place: PacsLabels, pacs: Pacs, ct: Phantom, deletes: str, tmp_path: Path
) -> None:
    pacs.deletes = deletes
    for number in (1, 2):
        place.submit(uid(ct), label_file(ct, *[1] * number))
    if deletes:
        place.withdraw(uid(ct))
        assert place.labels() == {}
        assert len(pacs.files) == 8
    else:
        with pytest.raises(DataError, match=r"does not delete: series [\d.]+ stays the label of"):
            place.withdraw(uid(ct))


def test_images_are_kept_and_fetched_again_when_they_change(
    place: PacsLabels, pacs: Pacs, ct: Phantom, tmp_path: Path
) -> None:
    (image,) = place.images().values()
    found = nib.as_closest_canonical(nib.load(place.volume(image)))
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), ct.hu)
    np.testing.assert_allclose(found.affine, ct.affine, atol=1e-5)
    assert (tmp_path / "one").stat().st_mode & 0o077 == 0
    pacs.asked.clear()
    place.volume(image)
    assert [each.partition("?")[0].rpartition("/")[2] for each in pacs.asked] == ["instances"] * len(pacs.asked)
    last = pydicom.dcmread(sorted(ct.folder.iterdir())[-1])
    last.SOPInstanceUID = last.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    last.ImagePositionPatient[2] += 2.5
    store(pacs.url, [last])
    assert nib.load(place.volume(image)).shape == (24, 16, 9)


def test_images_that_are_new_or_unknown(place: PacsLabels, pacs: Pacs, ct: Phantom, tmp_path: Path) -> None:
    place.images()
    new = write_phantom(tmp_path / "new", patient="P2")
    store(pacs.url, sorted(new.folder.iterdir()))
    assert place.image(uid(new)).series == uid(new)
    assert place.image("1.2.3") is None
    assert place.image("../etc") is None
    pacs_of_one = PacsLabels(place.web, tmp_path / "three", CODES, asked={"PatientID": "P2"})
    assert [*pacs_of_one.images()] == [uid(new)]
    assert pacs_of_one.image(uid(ct)) is None


def test_a_label_of_a_new_image_counts_at_once(
    place: PacsLabels, pacs: Pacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacs_labels, "FRESH", 1000.0)
    place.images()
    new = write_phantom(tmp_path / "new", patient="P2")
    store(pacs.url, sorted(new.folder.iterdir()))
    place.submit(uid(new), label_file(new, 1))
    assert uid(new) in place.images()
    assert uid(new) in place.labels()


def test_raw_voxels_are_in_the_order_of_the_image(place: PacsLabels, ct: Phantom, tmp_path: Path) -> None:
    expected = np.zeros((24, 16, 8), np.uint8)
    expected[3:5, 2:9, 6] = 1
    (tmp_path / "label.bin").write_bytes(expected.tobytes(order="F"))
    place.submit(uid(ct), tmp_path / "label.bin")
    image = nib.load(place.label(place.labels()[uid(ct)]))
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), expected)
    (tmp_path / "label.bin").write_bytes(b"\0" * 5)
    with pytest.raises(DataError, match="has 5 bytes, expected one for each of 24 × 16 × 8 voxels"):
        place.submit(uid(ct), tmp_path / "label.bin")


@pytest.mark.parametrize(
    ("ids", "shift", "names", "message"),
    [
        ((1, 5), 0, {"liver": 1}, "holds the label values 5 in"),
        ((1,), 2, {"liver": 1}, "expected that of"),
        ((), 0, {"liver": 1}, "holds nothing but background"),
    ],
)
def test_labels_that_cannot_be_submitted(
    place: PacsLabels, pacs: Pacs, ct: Phantom, ids: tuple[int, ...], shift: float, names: dict, message: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    file = label_file(ct, *ids, shift=shift)
    with pytest.raises(DataError, match=message):
        place.submit(uid(ct), file, names)
    with pytest.raises(DataError, match=r"1\.2\.3: the PACS has no such CT series"):
        place.submit("1.2.3", file, names)
    assert len(pacs.files) == 8


def test_a_label_that_the_pacs_refuses_is_not_submitted(
    place: PacsLabels, pacs: Pacs, ct: Phantom, tmp_path: Path
) -> None:
    pacs.refused = (SegmentationStorage,)
    with pytest.raises(DataError, match=r"does not take the label .*It is not submitted"):
        place.submit(uid(ct), label_file(ct, 1))
    assert place.labels() == {}


def test_names_without_ids_need_those_of_the_bundles(place: PacsLabels, ct: Phantom, tmp_path: Path) -> None:
    place.classes = {}
    with pytest.raises(DataError, match="label_info is missing"):
        place.submit(uid(ct), label_file(ct, 1))


def test_an_organ_whose_code_has_changed_is_not_left_out(place: PacsLabels, ct: Phantom, tmp_path: Path) -> None:
    place.submit(uid(ct), label_file(ct, 3, 7), NAMES)
    place.codes = {**CODES, "spleen": {"code": "181279003", "meaning": "Entire spleen"}}
    with pytest.raises(DataError, match="has other DICOM codes of spleen"):
        place.label(place.labels()[uid(ct)])


def test_names_and_ids_as_clients_send_them() -> None:
    assert named_ids(None) is None
    assert named_ids([{"name": "liver", "idx": 6, "color": [1, 2, 3]}, {"name": "a", "idx": 1}]) == {"liver": 6, "a": 1}
    for wrong in ("liver", ["liver"], [{"name": "liver"}], [{"name": "", "idx": 1}], [{"name": "a\\b", "idx": 1}]):
        with pytest.raises(DataError, match=r"label_info has .*expected for each organ"):
            named_ids(wrong)
    for wrong in ([{"name": "a", "idx": 256}], [{"name": "a", "idx": 1}] * 2):
        with pytest.raises(DataError, match="ids from 1 to 255, each of them once"):
            named_ids(wrong)


@pytest.mark.pacs
@pytest.mark.skipif(bool(missing()), reason=f"{', '.join(missing())} missing: `{INSTALLS}` installs them")
def test_labels_in_orthanc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacs_labels, "FRESH", 0.0)
    for name in [name for name in os.environ if name.startswith("DICOMWEB_")]:
        monkeypatch.delenv(name)
    ct = write_phantom(tmp_path / "ct", "LPI")
    orthanc = Orthanc(tmp_path / "orthanc").start()
    try:
        store(orthanc.url, sorted(ct.folder.iterdir()))
        store(orthanc.url, [result("1.2.77", uid(ct), count=0)])
        expected = drawn(ct, 7, 3, 200, 1)
        place = start(orthanc.url, tmp_path / "one")
        place.submit(uid(ct), turned(tmp_path / "label.nii.gz", drawn(ct, 3), ct.affine), NAMES)
        place.submit(uid(ct), turned(tmp_path / "label.nii.gz", expected, ct.affine), NAMES)
        other = start(orthanc.url, tmp_path / "two")
        assert [*other.images()] == [uid(ct)]
        label_map, names = read_back(other, ct)
        np.testing.assert_array_equal(label_map, expected)
        assert names == {name: i for name, i in NAMES.items() if name != "aorta"}
        label = other.labels()[uid(ct)]
        (tmp_path / "seg").mkdir()
        (file,) = other.web.fetch(label.study, label.series, tmp_path / "seg")
        said = subprocess.run([program("dciodvfy"), "-new", file], capture_output=True, text=True)
        assert [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")] == []
        other.withdraw(uid(ct))
        assert place.labels() == {}
        assert orthanc.count() == 8 + 1
    finally:
        orthanc.kill()
