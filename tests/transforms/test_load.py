from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

from shared.data import cached_dataset
from shared.transforms import LoadVolumed
from shared.utils import DataError

LABELS = {"spleen": 1, "liver": 2}
AFFINE = np.array([[-0.8, 0, 0, 10], [0, 0.9, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])


def save_nifti(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, **header: object) -> Path:
    image = nib.Nifti1Image(data, affine)
    for key, value in header.items():
        image.header[key] = value
    image.header["vox_offset"] = 352
    # not nib.save: it corrects the header
    with nib.openers.ImageOpener(path, "wb") as file:
        file.write(image.header.binaryblock + b"\0" * 4)
        file.write(np.asfortranarray(data).tobytes(order="F"))
    return path


def save_mha(path: Path, spacing: str = "1 1 1", size: tuple[int, ...] = (4, 5, 6), cut: int = 0) -> Path:
    n = len(size)
    header = {
        "ObjectType": "Image",
        "NDims": n,
        "BinaryData": True,
        "TransformMatrix": " ".join(str(int(i == j)) for i in range(n) for j in range(n)),
        "Offset": " ".join("0" * n),
        "ElementSpacing": spacing,
        "DimSize": " ".join(map(str, size)),
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    }
    lines = "".join(f"{key} = {value}\n" for key, value in header.items())
    path.write_bytes(lines.encode() + bytes(2 * int(np.prod(size)) - cut))
    return path


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(-3024, 3000, (6, 7, 8)).astype(np.int32)


@pytest.mark.parametrize("name", ["ct.1.nii", "ct.1.nii.gz", "ct.1.nrrd", "ct.1.mha"])
def test_formats_agree(tmp_path: Path, volume: np.ndarray, name: str) -> None:
    path = tmp_path / name
    if ".nii" in name:
        nib.save(nib.Nifti1Image(volume, AFFINE), path)
    else:
        image = itk.image_from_array(np.ascontiguousarray(volume.T))
        image.SetSpacing([0.8, 0.9, 2.5])
        image.SetDirection(np.diag([1.0, -1, 1]))  # ITK's axes point to the left and back
        image.SetOrigin([-10, 20, 30])
        itk.imwrite(image, str(path))
    d = LoadVolumed("image")({"image": path, "other": 3})
    assert d["image"].dtype == torch.float32
    assert np.array_equal(d["image"].numpy(), volume[None])
    np.testing.assert_allclose(d["image"].affine, AFFINE, atol=1e-5)
    np.testing.assert_allclose(d["image"].meta["original_affine"], AFFINE, atol=1e-5)
    assert d["image"].meta["spatial_shape"].tolist() == [6, 7, 8]
    assert d["case"] == "ct.1"
    assert d["other"] == 3


def test_a_loader_that_is_told_to_give_the_metadata_too(tmp_path: Path, volume: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(volume, AFFINE), tmp_path / "ct.nii")
    load = LoadVolumed("image")
    load._loader.image_only = False  # as MONAI Label does with every loader of a bundle
    assert np.array_equal(load({"image": tmp_path / "ct.nii"})["image"].numpy(), volume[None])


def test_case_name_that_is_there_stays_and_a_fourth_axis_of_one_is_dropped(tmp_path: Path, volume: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(volume[..., None], AFFINE), tmp_path / "ct.nii")
    d = LoadVolumed("image")({"image": tmp_path / "ct.nii", "case": "p1_ct"})
    assert d["case"] == "p1_ct"
    assert d["image"].shape == (1, 6, 7, 8)


def test_rounded_sform_is_not_exchanged_for_a_qform_that_is_none(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "x.nii", NOISE, pixdim=[1, 0.8003, 0.9, 2.5, 0, 0, 0, 0], qform_code=0, sform_code=1)
    np.testing.assert_allclose(LoadVolumed("image")({"image": path})["image"].affine, AFFINE, atol=1e-6)


def rgb_nifti(path: Path) -> Path:
    data = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    return path


def png(path: Path, channels: int = 3) -> Path:
    data = np.zeros((8, 9, channels) if channels > 1 else (8, 9), np.uint8)
    itk.imwrite(itk.image_from_array(data, is_vector=channels > 1), str(path))
    return path


def cut(path: Path, data: np.ndarray, count: int = 60) -> Path:
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    path.write_bytes(path.read_bytes()[:-count])
    return path


def flipped(path: Path) -> Path:
    content = bytearray(gzip.compress(nib.Nifti1Image(NOISE, AFFINE).to_bytes(), 0))  # stored as they are: the bits
    content[len(content) // 2] ^= 0xFF  # are those of a voxel, and gzip's checksum alone tells
    path.write_bytes(content)
    return path


def huge_nifti(path: Path) -> Path:
    header = save_nifti(path.with_name("h.nii"), ZEROS).read_bytes()
    content = header[:42] + np.array([30_000] * 3, "<i2").tobytes() + header[48:]
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def with_value(path: Path, value: float) -> Path:
    data = np.zeros((4, 5, 8), np.float32)
    data[1, 2, 3] = value
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    return path


def linked(path: Path) -> Path:
    path.symlink_to("gone/y.nii")
    return path


def text(path: Path) -> Path:
    path.write_text("no volume")
    return path


def folder(path: Path, file: str | None = None) -> Path:
    path.mkdir()
    if file:
        text(path / file)
    return path


ZEROS = np.zeros((4, 5, 6), np.int16)
NOISE = np.random.default_rng(0).integers(-99, 99, (20, 20, 20)).astype(np.int16)
SHEARED = AFFINE + np.array([[0, 0, 0.5, 0], *np.zeros((3, 4))])

BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a link that leads nowhere": (lambda d: linked(d / "x.nii"), r"x\.nii: a link to gone/y\.nii, which is not there"),
    "missing": (lambda d: d / "x.nii.gz", r"x\.nii\.gz: there is no such file"),
    "truncated gzip": (lambda d: cut(d / "x.nii.gz", NOISE), r"x\.nii\.gz: cannot be read \(.*cut short"),
    "truncated NIfTI": (lambda d: cut(d / "x.nii", NOISE), r"x\.nii: its header claims 16,352 bytes.*cut short"),
    "header of another": (lambda d: huge_nifti(d / "x.nii"), r"x\.nii: its header claims 54,000,000,000,352"),
    "header of another, gzip": (lambda d: huge_nifti(d / "x.nii.gz"), r"its header claims 54,000,000,000,352"),
    "header of another MHA": (lambda d: save_mha(d / "x.mha", size=(9999,) * 3, cut=2 * 9999**3 - 9), r"claims 1,99"),
    "flipped bits": (lambda d: flipped(d / "x.nii.gz"), r"x\.nii\.gz: cannot be read \(.*CRC.*damaged"),
    "a checksum cut short": (lambda d: cut(d / "x.nii.gz", NOISE, 4), r"x\.nii\.gz: cannot be read \(EOFError"),
    "packed, by another name": (
        lambda d: save_nifti(d / "x.nii.gz", ZEROS).rename(d / "x.nii"),
        r"x\.nii: is compressed by gzip, which its name does not say\. Rename it",
    ),
    "unpacked, by another name": (
        lambda d: save_nifti(d / "x.nii", ZEROS).rename(d / "x.nii.gz"),
        r"x\.nii\.gz: is not compressed, and its name says \.gz\. Rename it",
    ),
    "complex NIfTI": (lambda d: save_nifti(d / "x.nii", ZEROS.astype("c8")), r"voxels are complex numbers \(complex64"),
    "truncated MHA": (lambda d: save_mha(d / "x.mha", cut=50), r"x\.mha: cannot be read"),
    "text as NIfTI": (lambda d: text(d / "x.nii.gz"), r"x\.nii\.gz: cannot be read"),
    "text": (lambda d: text(d / "x.txt"), r"x\.txt: no known format of volumes\. Expected NIfTI"),
    "RGB NIfTI": (lambda d: rgb_nifti(d / "x.nii"), r"colour or multi-channel picture \(4 × 5 × 6, 3 values"),
    "RGB PNG": (lambda d: png(d / "x.png"), r"colour or multi-channel picture \(9 × 8, 3 values"),
    "grey PNG": (lambda d: png(d / "x.png", 1), r"a 2D picture \(9 × 8\), expected a 3D volume"),
    "2D NIfTI": (lambda d: save_nifti(d / "x.nii", ZEROS[0]), r"a 2D picture \(5 × 6\)"),
    "4D NIfTI": (lambda d: save_nifti(d / "x.nii", np.zeros((4, 5, 6, 2), "i2")), r"a 4D volume \(4 × 5 × 6 × 2\)"),
    "4D MHA": (lambda d: save_mha(d / "x.mha", "1 1 1 1", (4, 5, 6, 2)), r"a 4D volume \(4 × 5 × 6 × 2\)"),
    "empty NIfTI axis": (lambda d: save_nifti(d / "x.nii", ZEROS[:, :0]), r"an axis is empty \(4 × 0 × 6 voxels"),
    "empty MHA axis": (lambda d: save_mha(d / "x.mha", size=(4, 0, 6)), r"an axis is empty \(4 × 0 × 6 voxels"),
    "zero spacing": (lambda d: save_nifti(d / "x.nii", ZEROS, pixdim=[1, 1, 0, 1, 0, 0, 0, 0]), r"1 × 0 × 1 mm"),
    "zero spacing, gzip": (
        lambda d: save_nifti(d / "x.nii.gz", ZEROS, pixdim=[1, 1, 0, 1, 0, 0, 0, 0], sform_code=0),
        r"the spacing in its header is 1 × 0 × 1 mm, expected three positive numbers",
    ),
    "negative spacing": (lambda d: save_nifti(d / "x.nii", ZEROS, pixdim=[1, 1, 1, -2, 0, 0, 0, 0]), r"1 × 1 × -2 mm"),
    "NaN spacing": (lambda d: save_nifti(d / "x.nii", ZEROS, pixdim=[1, 1, np.nan, 1, 0, 0, 0, 0]), r"1 × nan × 1 mm"),
    "zero MHA spacing": (lambda d: save_mha(d / "x.mha", "1 0 1"), r"1 × 0 × 1 mm"),
    "negative MHA spacing": (lambda d: save_mha(d / "x.mha", "1 -1 1"), r"1 × -1 × 1 mm"),
    "singular affine": (
        lambda d: save_nifti(d / "x.nii", ZEROS, srow_y=[0, 0, 0, 0], pixdim=[1, 1, 1, 1, 0, 0, 0, 0]),
        r"the spacing in its header is .*expected three positive",
    ),
    "sheared": (lambda d: save_nifti(d / "x.nii", ZEROS, SHEARED), r"axes of its grid are not perpendicular"),
    "NaN": (lambda d: with_value(d / "x.nii.gz", np.nan), r"1 of 160 voxels are NaN or infinite"),
    "infinity": (lambda d: with_value(d / "x.nii.gz", -np.inf), r"1 of 160 voxels are NaN or infinite"),
    "empty folder": (lambda d: folder(d / "x"), r"holds no readable DICOM series"),
    "folder without DICOM": (lambda d: folder(d / "x", "01.dcm"), r"cannot be read(.|\n)*01\.dcm: no DICOM file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_volumes(tmp_path: Path, kind: str) -> None:
    make, message = BAD[kind]
    path = make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        LoadVolumed("image")({"image": path})
    assert str(caught.value).startswith(str(path))


def test_voxels_without_a_number_are_taken_for_what_the_user_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = with_value(tmp_path / "x.nii.gz", -np.inf)
    image = LoadVolumed("image", nan_as=-1024)({"image": path})["image"]
    assert image[0, 1, 2, 3] == -1024
    assert (image == 0).sum() == 159
    assert f"{path}: 1 of 160 voxels are NaN or infinite, taken for -1024 HU" in caplog.text
    with pytest.raises(DataError, match="1 of 160 voxels are NaN"):  # of a label map nothing stands for it
        LoadVolumed("label", "label", nan_as=-1024)({"label": path})


@pytest.mark.parametrize("ending", [".hdr", ".img"])
def test_pairs_of_header_and_voxels(tmp_path: Path, volume: np.ndarray, ending: str) -> None:
    nib.save(nib.Nifti1Pair(volume, AFFINE), tmp_path / "ct.img")
    image = LoadVolumed("image", labels={"kidney_left": 1})({"image": tmp_path / f"ct{ending}"})["image"]
    assert np.array_equal(image[0].numpy(), volume)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    analyze = nib.AnalyzeImage(volume, np.diag([0.8, 0.9, 2.5, 1]))
    nib.save(analyze, tmp_path / "old.img")
    path = tmp_path / f"old{ending}"
    with pytest.raises(DataError, match=r"left and right of kidney_left cannot be told"):
        LoadVolumed("image", labels={"kidney_left": 1})({"image": path})
    image = LoadVolumed("image", assume_orientation="LAS")({"image": path})["image"]
    assert np.array_equal(image[0].numpy(), volume)
    assert nib.aff2axcodes(image.affine.numpy()) == tuple("LAS")
    (tmp_path / "ct.img").write_bytes((tmp_path / "ct.img").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"its header claims 1,344 bytes, a file of 1,343"):
        LoadVolumed("image")({"image": tmp_path / f"ct{ending}"})


def test_a_volume_that_no_memory_holds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_nifti(tmp_path / "x.nii.gz", ZEROS)
    with monkeypatch.context() as patch:
        patch.setattr("shared.data.geometry.os.sysconf", lambda name: 20)  # bytes a page, and pages
        with pytest.raises(DataError, match=r"x\.nii\.gz: a grid of 4 × 5 × 6 voxels needs 0 GB of memory, and this"):
            LoadVolumed("image")({"image": path})

    def no_memory(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(nib.Nifti1Image, "from_bytes", no_memory)
    with pytest.raises(DataError, match=r"x\.nii\.gz: there is not enough memory to read it"):
        LoadVolumed("image")({"image": path})


def load_pair(folder: Path, label: np.ndarray, affine: np.ndarray = AFFINE) -> dict:
    nib.save(nib.Nifti1Image(NOISE, AFFINE), folder / "ct.nii")
    nib.save(nib.Nifti1Image(label, affine), folder / "label.nii")
    load = LoadVolumed(["image", "label"], label_key="label", labels=LABELS)
    return load({"image": folder / "ct.nii", "label": folder / "label.nii"})


def test_label(tmp_path: Path) -> None:
    label = (NOISE % 3).astype(np.float32)
    slightly_off = AFFINE + 5e-4
    slightly_off[3] = AFFINE[3]
    d = load_pair(tmp_path, label, slightly_off)
    assert d["label"].dtype == torch.uint8
    assert np.array_equal(d["label"][0].numpy(), label)
    assert d["case"] == "ct"


def test_label_of_another_shape(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"label\.nii: a grid of 20 × 20 × 19 voxels, expected 20 × 20 × 20 as in"):
        load_pair(tmp_path, np.zeros((20, 20, 19), np.uint8))


def test_label_of_another_affine(tmp_path: Path) -> None:
    shifted = AFFINE.copy()
    shifted[0, 3] += 0.1
    with pytest.raises(DataError, match=r"(?s)label\.nii: its affine is.*10\.1.*expected that of .*ct\.nii.*10\. "):
        load_pair(tmp_path, np.zeros((20, 20, 20), np.uint8), shifted)


@pytest.mark.parametrize(
    ("value", "shown"), [(3, "3"), (1.5, "1.5"), (-1, "-1"), (0.9989, r"0\.9989"), (1.002, r"1\.002")]
)
def test_label_of_other_values(tmp_path: Path, value: float, shown: str) -> None:
    label = np.zeros((20, 20, 20), np.float32)
    label[4, 4, 4:6] = value
    with pytest.raises(DataError, match=rf"holds the label values {value} in 2 voxels, expected .* from 0 to 2\."):
        load_pair(tmp_path, label)


def test_ids_of_the_files_become_those_of_the_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    held = np.random.default_rng(0).choice([0, 1, 2, 300, 65535, 70], (20, 20, 20)).astype(np.uint16)
    for i in range(2):
        nib.save(nib.Nifti1Image(held, AFFINE), tmp_path / f"{i}.nii.gz")
    load = LoadVolumed("label", label_key="label", labels=LABELS, label_ids={"liver": [300, 1], "spleen": 65535})
    for i in range(2):
        label = load({"label": tmp_path / f"{i}.nii.gz"})["label"]
        assert label.dtype == torch.uint8
        assert np.allclose(label.affine, AFFINE)
        expected = np.select([held == 65535, (held == 300) | (held == 1)], [1, 2])
        assert np.array_equal(label[0].numpy(), expected)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/0.nii.gz: the values 2, 70 are not in label_ids and become background, here and in other files "
        "(said once)"
    ]
    nib.save(nib.Nifti1Image(held + 0.5, AFFINE), tmp_path / "half.nii.gz")
    with pytest.raises(DataError, match=r"holds the label values 0\.5, .* expected whole numbers from 0 to 65535"):
        load({"label": tmp_path / "half.nii.gz"})


def test_the_cache_goes_by_the_ids_of_the_files(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image((NOISE % 3).astype(np.uint8), AFFINE), tmp_path / "label.nii.gz")

    def kept(**options: Any) -> list[int]:
        load = LoadVolumed("label", label_key="label", labels=LABELS, **options)
        case = [{"label": str(tmp_path / "label.nii.gz"), "case": "a"}]
        return torch.bincount(cached_dataset(case, [load], cache_dir=tmp_path / "cache")[0]["label"].ravel()).tolist()

    plain = kept()
    assert kept(label_ids={"spleen": 2, "liver": 1}) == [plain[0], plain[2], plain[1]]
    assert kept() == plain
    assert len(list((tmp_path / "cache").glob("*.pt"))) == 2
