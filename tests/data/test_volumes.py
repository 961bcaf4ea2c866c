from __future__ import annotations

from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from shared.data.volumes import read_grid, read_volume, sided_organs
from shared.transforms import LoadVolumed, SaveSegmentationd
from shared.utils import DataError

SHAPE = (6, 5, 4)
AFFINE = np.array([[0, -5.0, 0, -100], [4, 0, 0, 31], [0, 0, 6, 900], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(-1000, 900, SHAPE).astype(np.int16)
SIDED = {"kidney_left": 1, "liver": 2}


def nifti(path: Path, unit: str = "mm", scale: float = 1, forms: bool = True) -> Path:
    image = nib.Nifti1Image(VOXELS, np.diag([scale, scale, scale, 1]) @ AFFINE)
    image.header.set_xyzt_units(unit)
    if not forms:
        image.set_sform(None, 0)
        image.set_qform(None, 0)
    nib.save(image, path)
    return path


def nrrd(path: Path, space: str) -> Path:
    head = f"NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nendian: little\nencoding: raw\n{space}\n\n"
    path.write_bytes(head.encode() + VOXELS.tobytes(order="F"))
    return path


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1), ("meter", 1e-3), ("micron", 1e3), ("unknown", 1), ("meter", 1)])
def test_units_come_to_the_same_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, unit: str, scale: float
) -> None:
    path = nifti(tmp_path / "x.nii.gz", unit, scale)
    for affine in (LoadVolumed("image")({"image": path})["image"].affine, read_grid(path).affine):
        np.testing.assert_allclose(affine, AFFINE, atol=1e-4)
    np.testing.assert_allclose(read_volume(path)[1].affine, AFFINE, atol=1e-4)
    doubt = "its header says metres, in which its longest side would be 2.5e+04 mm: taken for mm"
    assert [doubt in record.getMessage() for record in caplog.records] == [True] * 2 * ((unit, scale) == ("meter", 1))


@pytest.mark.parametrize("code", [4, 7, 255])
def test_a_unit_that_does_not_exist_is_mm(tmp_path: Path, code: int) -> None:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.header["xyzt_units"] = code
    nib.save(image, path := tmp_path / "x.nii")
    for affine in (LoadVolumed("image")({"image": path})["image"].affine, read_grid(path).affine):
        np.testing.assert_allclose(affine, AFFINE, atol=1e-4)


@pytest.mark.parametrize(
    ("scale", "shown"), [(1e-3, "0.025 mm"), (1e3, r"2.5e\+04 mm"), (0.6, "15 mm"), (101, "2525 mm")]
)
def test_the_size_of_no_ct_is_refused(tmp_path: Path, scale: float, shown: str) -> None:
    path = nifti(tmp_path / "x.nii", scale=scale)
    for read in (read_grid, read_volume, lambda path: LoadVolumed("image")({"image": path})):
        with pytest.raises(DataError, match=rf"x\.nii: its longest side is {shown}, expected 20 to 2500 mm"):
            read(path)


SPACELESS = "spacings: 5 5 6"
DIRECTIONS = "space directions: (5,0,0) (0,5,0) (0,0,6)\nspace origin: (0,0,0)"


@pytest.mark.parametrize("kind", ["NIfTI", "NRRD", "NRRD of a dimension alone"])
def test_what_says_nothing_of_sides(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """Warned of, or refused where organs have sides; or taken for what the user says."""
    if kind == "NIfTI":
        path, spacing = nifti(tmp_path / "x.nii.gz", forms=False), (4, 5, 6)
    else:
        space = SPACELESS if kind == "NRRD" else f"space dimension: 3\n{DIRECTIONS}"
        path, spacing = nrrd(tmp_path / "x.nrrd", space), (5, 5, 6)
    image = LoadVolumed("image", labels={"liver": 1})({"image": path})["image"]
    assert "its header says nothing of its orientation" in caplog.records[0].getMessage()
    assert caplog.records[0].getMessage() == image.meta["remarks"]
    with pytest.raises(DataError, match=r"left and right of kidney_left cannot be told.*--assume_orientation RAS"):
        LoadVolumed("image", labels=SIDED)({"image": path})
    caplog.clear()
    for codes in ("RAS", "LPS", "SAR"):
        image = LoadVolumed("image", labels=SIDED, assume_orientation=codes)({"image": path})["image"]
        assert "".join(nib.aff2axcodes(image.affine.numpy())) == codes
        assert np.linalg.norm(image.affine[:3, :3], axis=0).tolist() == list(spacing)
        assert np.array_equal(image[0].numpy(), VOXELS)
    assert not caplog.records


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", "LPS"])
def test_what_says_its_sides_is_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture, space: str) -> None:
    path = nrrd(tmp_path / "x.nrrd", f"space: {space}\n{DIRECTIONS}")
    expected = LoadVolumed("image", labels=SIDED)({"image": path})["image"].affine
    assumed = LoadVolumed("image", labels=SIDED, assume_orientation="ASL")({"image": path})["image"].affine
    assert np.array_equal(expected, assumed)
    np.testing.assert_allclose(read_grid(path).affine, expected)
    assert not caplog.records


def test_organs_with_sides() -> None:
    sided = ("kidney_left", "Right Kidney", "LeftKidney", "adrenal gland (L)", "r_lung")
    assert sided_organs([*sided, "liver", "gallbladder", "pancreas", "portal_vein", "colon"]) == sided


@pytest.mark.parametrize("shear", [1e-4, 3e-4, 9e-4])
@pytest.mark.parametrize("forms", ["sform", "both"])
def test_the_result_of_a_sheared_scan_opens_in_itk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shear: float, forms: str
) -> None:
    caplog.set_level("INFO")
    affine = AFFINE.copy()
    affine[1, 1] = 5 * shear
    image = nib.Nifti1Image(VOXELS, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, int(forms == "both"))
    nib.save(image, tmp_path / "ct.nii.gz")
    d = LoadVolumed("image")({"image": tmp_path / "ct.nii.gz"})
    pred = d["image"].clone().clip(0, 1)
    d["image"] = d["image"].clip(0, 1)
    SaveSegmentationd(output_dir=tmp_path / "out", labels={"liver": 1})({**d, "pred": pred})
    result = tmp_path / "out/ct/ct_seg.nii.gz"
    assert itk.array_from_image(itk.imread(str(result))).shape == SHAPE[::-1]
    np.testing.assert_allclose(nib.load(result).affine, affine, atol=1e-5)
    assert any("the axes of its sform are sheared by" in r.getMessage() for r in caplog.records) is (forms == "sform")


def test_the_result_of_a_scan_without_sides_lies_on_it_in_every_program(tmp_path: Path) -> None:
    path = nifti(tmp_path / "ct.nii.gz", forms=False)
    d = LoadVolumed("image", assume_orientation="LPS")({"image": path})
    SaveSegmentationd(output_dir=tmp_path / "out", labels={"liver": 1})({**d, "pred": d["image"].clip(0, 1)})
    for read in (nib.load, lambda p: nib.load(p).header):
        assert read(tmp_path / "out/ct/ct_seg.nii.gz").get_sform(coded=True) == (None, 0)
    seg, ct = (itk.imread(str(p)) for p in (tmp_path / "out/ct/ct_seg.nii.gz", path))
    assert np.allclose(seg.GetSpacing(), ct.GetSpacing())
    assert itk.array_from_matrix(seg.GetDirection()).tolist() == itk.array_from_matrix(ct.GetDirection()).tolist()
