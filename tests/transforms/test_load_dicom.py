"""DICOM: what makes one volume of CT, and what is said of what does not."""

from __future__ import annotations

import io
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dicom_files import (
    CAPTURE,
    IMPLICIT,
    JPEG_2000,
    SIDEWAYS,
    SPACING,
    slice_values,
    stored,
    write_dicom,
    write_enhanced,
    write_series,
    write_slice,
)
from PIL import Image

from shared.transforms import LoadVolumed
from shared.utils import DataError

GE = Path(__file__).resolve().parents[2] / "../shared/data/ct_dicom/ct-3slice"
needs_ge = pytest.mark.skipif(not GE.is_dir(), reason="../shared/data is not here")
LOAD = LoadVolumed("image")
AFFINE = np.array([[-SPACING[1], 0, 0, 100], [0, -SPACING[0], 0, 80], [0, 0, 5, 0], [0, 0, 0, 1.0]])


def load(path: Path, **more: str) -> Any:
    return LOAD({"image": path, **more})["image"]


def expected(count: int = 4) -> np.ndarray:
    return np.stack([stored(k).T for k in range(count)], -1)[None] - 1024.0


def check(image: Any, count: int = 4) -> None:
    """The voxels of the series and its place."""
    assert image.dtype == torch.float32
    assert np.array_equal(image.numpy(), expected(count))
    np.testing.assert_allclose(image.affine, AFFINE)


def changed(path: Path, edit: Callable[[bytes], bytes]) -> None:
    path.write_bytes(edit(path.read_bytes()))


def test_a_series_in_any_order_of_names(tmp_path: Path) -> None:
    for k in range(4):
        write_slice(
            tmp_path / "ct" / f"IM{9 - k}", k, SliceThickness=("5", "5.000")[k % 2], SeriesDate=f"2020010{k % 2}"
        )
    image = load(tmp_path / "ct")
    check(image)
    assert (image.meta["study_uid"], image.meta["series_uid"]) == ("1.2.0", "1.2.3")


@pytest.mark.parametrize("values", [{"syntax": IMPLICIT}, {"preamble": False}, {"syntax": IMPLICIT, "preamble": False}])
def test_files_in_other_forms(tmp_path: Path, values: dict[str, Any]) -> None:
    check(load(write_series(tmp_path / "ct", name="IM{}", **values)))


def jpeg_2000(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint16)).save(file, "JPEG2000", no_jp2=True, irreversible=False)
    return file.getvalue() + b"\0" * (len(file.getvalue()) % 2)


def test_compressed_slices(tmp_path: Path) -> None:
    """JPEG 2000: whole, cut in the file, and cut before it was put into it."""
    codes = [jpeg_2000(stored(k, (32, 32))) for k in range(3)]
    for k, code in enumerate(codes):
        write_slice(tmp_path / "ct" / f"{k}.dcm", k, syntax=JPEG_2000, fragments=[code], Rows=32, Columns=32)
    whole = np.stack([stored(k, (32, 32)).T for k in range(3)], -1) - 1024
    assert np.array_equal(load(tmp_path / "ct")[0].numpy(), whole)
    last = write_slice(tmp_path / "ct" / "2.dcm", 2, syntax=JPEG_2000, fragments=[codes[2][:40]], Rows=32, Columns=32)
    with pytest.raises(DataError, match=r"the pixels of 1 of 3 files cannot be read: 2\.dcm"):
        load(tmp_path / "ct")
    write_slice(last, 2, syntax=JPEG_2000, fragments=[codes[2]], Rows=32, Columns=32)
    changed(last, lambda content: content[:-200])
    with pytest.raises(DataError, match=r"2\.dcm: it is cut short: its compressed pixels do not end"):
        load(tmp_path / "ct")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut pixels": lambda content: content[:-10],
    "cut header": lambda content: content[:300],
    "hardly begun": lambda content: content[:140],
    "empty": lambda content: b"",
    "a web page": lambda content: b"<html>403 Forbidden</html>" * 20,
}


@pytest.mark.parametrize("name", ["{}.dcm", "IM{}", "{}.ima"])
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("k", [0, 3])
def test_a_slice_that_cannot_be_read_is_never_left_out(tmp_path: Path, name: str, kind: str, k: int) -> None:
    folder = write_series(tmp_path / "ct", name=name)
    changed(folder / name.format(k), DAMAGE[kind])
    with pytest.raises(DataError, match=rf"1 of 4 files may be slices .* cannot be read(.|\n)*{name.format(k)}: "):
        load(folder)


def test_other_names_are_passed_over_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = write_series(tmp_path / "ct", name="IM00000{}")
    write_dicom(folder / "DICOMDIR", None, SOPClassUID="1.2.840.10008.1.3.10")
    for name in ("LOCKFILE", "notes.txt", "preview.jpg", ".DS_Store"):
        (folder / name).write_text("none")
    check(load(folder))
    assert "ct: passed over what is no DICOM file: LOCKFILE, notes.txt, preview.jpg" in caplog.messages[0]


@pytest.mark.parametrize(
    "names", [("1.2.7.11", "1.2.7.9"), ("3f2a", "9b1c"), ("I10", "I9"), ("0f3a9b1c77.x", "1f3b2b8c70.x")]
)
def test_names_that_are_like_those_of_slices(tmp_path: Path, names: tuple[str, str]) -> None:
    for k, name in enumerate(names):
        write_slice(tmp_path / "ct" / name, k)
    (tmp_path / "ct" / names[1]).write_text("none")
    with pytest.raises(DataError, match=f"1 of 2 files(.|\n)*{names[1]}: no DICOM file .4 bytes"):
        load(tmp_path / "ct")


@pytest.mark.parametrize("ending", [".gz", ".part", ".TMP"])
def test_a_slice_that_was_not_unpacked_or_copied_to_its_end_is_named(tmp_path: Path, ending: str) -> None:
    folder = write_series(tmp_path / "ct")
    last = folder / "3.dcm"
    (folder / f"3.dcm{ending}").write_bytes(b"a copy beside it")
    check(load(folder))
    last.unlink()
    with pytest.raises(DataError, match=rf"1 of 4 files(.|\n)*3\.dcm{ending}: no DICOM file \(16 bytes\)"):
        load(folder)


def test_a_file_stands_for_its_series(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    write_slice(folder / "other.dcm", 0, SeriesInstanceUID="1.2.4")
    check(load(folder / "2.dcm"))


def test_several_series_in_a_folder(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct", SeriesDescription="venous")
    write_series(folder, 3, name="b{}.dcm", SeriesInstanceUID="1.2.4", SeriesNumber="3")
    with pytest.raises(
        DataError, match=r"holds 2 DICOM series, expected one: 1\.2\.3 with 4 slices \(number 2, venous\); "
    ):
        load(folder)
    check(load(folder, series="1.2.3"))
    check(load(folder, series="1.2.4"), 3)
    with pytest.raises(DataError, match=r"holds no readable DICOM series 1\.2\.5"):
        load(folder, series="1.2.5")


def test_a_series_that_lies_in_several_folders(tmp_path: Path) -> None:
    """Some writers put so many files into a folder, others the same patient twice."""
    for k in range(4):
        write_slice(tmp_path / "cd" / f"DIR{k // 2}" / f"IM{k}", k)
    check(load(tmp_path / "cd"))
    shutil.copytree(tmp_path / "cd", tmp_path / "copies" / "a")
    shutil.copytree(tmp_path / "cd", tmp_path / "copies" / "b")
    with pytest.raises(DataError, match=r"holds [234] DICOM series, expected one: 1\.2\.3 with . slices .* in a"):
        load(tmp_path / "copies")


def test_what_is_no_ct_beside_it_is_passed_over(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    write_slice(folder / "scout.dcm", 0, SeriesInstanceUID="1.2.4", ImageType="ORIGINAL\\PRIMARY\\LOCALIZER")
    write_dicom(folder / "report.dcm", None, Modality="SR", SeriesInstanceUID="1.2.5")
    check(load(folder))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"Modality": "MR"}, r"an MR \(modality MR\), expected a CT"),
        ({"Modality": "PT"}, r"a PET \(modality PT\), expected a CT"),
        ({"Modality": "SEG"}, r"a segmentation \(modality SEG\)"),
        ({"SOPClassUID": CAPTURE}, r"no CT image but Secondary Capture Image Storage"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER"}, r"a scout \(localizer\)"),
        ({"SamplesPerPixel": 3}, r"a colour picture"),
    ],
)
def test_what_is_no_ct_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    for path in (write_series(tmp_path / "x", **values), tmp_path / "x" / "1.dcm"):
        with pytest.raises(DataError, match=message):
            load(path)


def again(folder: Path) -> None:
    write_slice(folder / "again.dcm", 2)


def twice(folder: Path) -> None:
    write_series(folder, name="b{}.dcm", AcquisitionNumber="2")


def thick(folder: Path) -> None:
    write_slice(folder / "thick.dcm", 1, z=7.0, SliceThickness="7")


ODD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "duplicate": (again, r"1 of 5 slices are duplicates.*: 2\.dcm and again\.dcm at 10 mm"),
    "phases": (twice, r"holds 2 slices at each of 4 positions.*phases"),
    "thicknesses": (thick, r"slices of several thicknesses .* \(4 of 5 mm and 1 of 7 mm\)"),
    "scout": (
        lambda d: write_slice(d / "s.dcm", 9, ImageType="ORIGINAL\\PRIMARY\\LOCALIZER"),
        r"a scout \(localizer\) lies among the slices of the series: s\.dcm",
    ),
    "sideways": (
        lambda d: write_slice(d / "s.dcm", 9, ImageOrientationPatient=SIDEWAYS),
        r"1 of 5 slices have another orientation .*: s\.dcm",
    ),
    "spacing": (lambda d: write_slice(d / "4.dcm", 4, PixelSpacing="1\\1"), r"another size of a pixel .*: 4\.dcm"),
    "size": (lambda d: write_slice(d / "4.dcm", 4, Rows=4), r"different sizes \(4 of 5 × 4, 1 of 4 × 4 pixels\): 4"),
    "position": (
        lambda d: write_slice(d / "1.dcm", 1, ImagePositionPatient=None),
        r"1 of 4 slices have no position or orientation .*: 1\.dcm",
    ),
    "rescale": (
        lambda d: write_slice(d / "3.dcm", 3, RescaleSlope=None),
        r"1 of 4 slices have no RescaleSlope and RescaleIntercept, which the others have: 3\.dcm",
    ),
    "missing": (
        lambda d: (d / "2.dcm").unlink() or write_slice(d / "4.dcm", 4),
        r"slices are missing or unevenly spaced.*\(1\.dcm and 3\.dcm: 10 mm\)",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_series_that_makes_no_volume_is_refused_for_its_own_reason(tmp_path: Path, kind: str) -> None:
    make, message = ODD[kind]
    make(write_series(tmp_path / "ct"))
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "ct")
    assert str(caught.value).startswith(str(tmp_path / "ct"))


def at(folder: Path, zs: list[float], tilt: float = 0.0) -> Path:
    for k, z in enumerate(zs):
        write_slice(folder / f"{k}.dcm", k, ImagePositionPatient=f"0\\{tilt * z}\\{z}")
    return folder


def test_distances_of_slices(tmp_path: Path) -> None:
    """Rounded ones are even, a missing slice is not."""
    assert load(at(tmp_path / "whole", [0, 2, 4.02, 6, 8, 10])).shape == (1, 4, 5, 6)
    assert load(at(tmp_path / "thin", [round(0.625 * i, 1) for i in range(9)])).shape == (1, 4, 5, 9)
    with pytest.raises(DataError, match=r"of 5 slices, 2.5 mm apart on average, two are 1.5 mm off that distance"):
        load(at(tmp_path / "gap", [0, 2, 4, 8, 10]))


def test_a_tilted_gantry_is_refused(tmp_path: Path) -> None:
    message = r"shifted against each other \(a tilted gantry\?\): the last of 6 lies 3.0 mm beside"
    with pytest.raises(DataError, match=message):
        load(at(tmp_path / "tilted", [0, 2, 4, 6, 8, 10], tilt=0.3))


def test_one_slice_has_the_thickness_of_its_header(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check(load(write_series(tmp_path / "ct", 1)), 1)
    assert "ct: one slice alone, 5 mm thick by its header" in caplog.text
    assert load(write_series(tmp_path / "b", 1, SliceThickness=None)).pixdim[2] == 1
    assert "b: one slice, whose header has no thickness: 1 mm is taken" in caplog.text


def test_slices_stored_in_several_ways(tmp_path: Path) -> None:
    """Each with its own slope, and the first of a type that cannot hold the others' HU."""
    folder = write_series(tmp_path / "ct", 3, RescaleIntercept="-1024")
    write_slice(folder / "0.dcm", 0, pixels=stored(0) - 1000, RescaleIntercept="0")
    write_slice(folder / "2.dcm", 2, RescaleSlope="0.5")
    image = load(folder)[0].numpy()
    assert np.array_equal(image[..., 0].T, stored(0) - 1000)
    assert np.array_equal(image[..., 1].T, stored(1) - 1024)
    assert np.array_equal(image[..., 2].T, stored(2) * 0.5 - 1024)


def test_values_without_rescale_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = load(write_series(tmp_path / "ct", RescaleSlope=None, RescaleIntercept=None))
    assert np.array_equal(image.numpy(), expected() + 1024)
    assert "no slice has a RescaleSlope and RescaleIntercept: what is stored is taken for HU" in caplog.text


def test_even_slices_of_several_thicknesses_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_series(tmp_path / "ct")
    write_slice(folder / "3.dcm", 3, SliceThickness="7")
    check(load(folder))
    assert "slices of several thicknesses (3 of 5 mm and 1 of 7 mm) at even distances" in caplog.text


def test_a_character_set_that_is_unknown_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    folder = write_series(tmp_path / "ct", SpecificCharacterSet="ISO_IR 999", SeriesDescription="K\xf6rper")
    check(load(folder))
    assert not [record for record in caplog.records if record.name.startswith("pydicom")]


def test_empty_character_sets_and_uids_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = {"SpecificCharacterSet": "", "StudyInstanceUID": "", "SeriesInstanceUID": "", "SOPInstanceUID": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load(write_series(tmp_path / "ct", **values, SeriesDescription="Bauch nativ, \xe4"))
    check(image)
    assert "ct: has no StudyInstanceUID and SeriesInstanceUID: nothing can be stored for it" in caplog.text


@pytest.mark.parametrize("as_folder", [False, True])
def test_an_enhanced_ct(tmp_path: Path, as_folder: bool) -> None:
    file = write_enhanced(tmp_path / "ct" / "e.dcm", [0, 5, 10, 15])
    check(load(file.parent if as_folder else file))


def test_an_enhanced_ct_from_head_to_feet_with_values_of_its_own(tmp_path: Path) -> None:
    ways = [(1.0, -1024.0), (2.0, -1000.0), (0.5, -1024.0)]
    image = load(write_enhanced(tmp_path / "e.dcm", [0, -5, -10], ways))
    frames = [stored(i) * slope + intercept for i, (slope, intercept) in enumerate(ways)]
    assert np.array_equal(image[0].numpy(), np.stack([frame.T for frame in reversed(frames)], -1))
    assert image.affine[2].tolist() == [0, 0, 5, -10]


def test_an_enhanced_ct_that_makes_no_volume(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds 2 slices at each of 2 positions.*phases"):
        load(write_enhanced(tmp_path / "phases.dcm", [0, 5, 0, 5]))
    with pytest.raises(DataError, match=r"missing or unevenly spaced.*\(frame 2 and frame 3: 15 mm\)"):
        load(write_enhanced(tmp_path / "gap.dcm", [0, 5, 20]))
    file = write_enhanced(tmp_path / "cut.dcm", [0, 5, 10])
    changed(file, lambda content: content[:-30])
    with pytest.raises(DataError, match=r"cut\.dcm: it is cut short: 90 of 120 bytes of pixels"):
        load(file)


GARBLED: dict[str, tuple[dict[str, Any], str]] = {
    "no UID": ({"SeriesInstanceUID": ""}, "its SeriesInstanceUID is damaged"),
    "no text": ({"SeriesInstanceUID": "1.2.3\1"}, "its SeriesInstanceUID is damaged"),
    "no bits": ({"BitsAllocated": None, "SeriesInstanceUID": "1.7.3"}, "its header has no BitsAllocated"),
    "too small": ({"Rows": 2}, "40 bytes of pixels, and by its sizes 16"),
}


@pytest.mark.parametrize("kind", GARBLED)
def test_a_slice_with_a_damaged_header_is_no_series_of_its_own(tmp_path: Path, kind: str) -> None:
    values, message = GARBLED[kind]
    folder = write_series(tmp_path / "ct")
    write_slice(folder / "3.dcm", 3, **values)
    with pytest.raises(DataError, match=rf"1 of 4 files may be slices(.|\n)*3\.dcm: .*{message}"):
        load(folder, series="1.2.3")


def test_an_enhanced_ct_with_another_number_of_frames(tmp_path: Path) -> None:
    file = write_enhanced(tmp_path / "e.dcm", [0, 5, 10])
    changed(file, lambda content: content.replace(b"IS\2\0003 ", b"IS\2\0002 "))
    with pytest.raises(DataError, match=r"e\.dcm: its header tells of 2 frames and of where 3 lie"):
        load(file)
    changed(file, lambda content: content.replace(b"IS\2\0002 (", b"IS\2\0001 ("))
    with pytest.raises(DataError, match=r"e\.dcm: its header is damaged: 120 bytes of pixels, and by its sizes 40"):
        load(file)


@needs_ge
def test_a_real_series() -> None:
    image = load(GE)
    assert image.shape == (1, 512, 512, 3)
    assert image.min() == -3024
    assert LOAD({"image": GE})["case"] == "ct-3slice"
    assert np.array_equal(load(GE / "02.dcm").numpy(), image.numpy())


def test_a_header_is_read_anew_when_its_file_changes(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    check(load(folder))
    write_dicom(folder / "3.dcm", stored(3), **slice_values(folder / "3.dcm", 15.0, 4, Modality="MR"))
    write_series(tmp_path / "ct", 3, Modality="MR")
    with pytest.raises(DataError, match="modality MR"):
        load(folder)
