"""Volumes in memory: taken as the same volume in a file is, and refused as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from shared.inferers import restore_label_map
from shared.transforms import LoadVolumed, RestoreLabelMapd, SaveSegmentationd
from shared.utils import DataError

AFFINE = np.array([[-8.0, 0, 0, 10], [0, 9, 0, -20], [0, 0, 12.5, 30], [0, 0, 0, 1.0]])
LPS = np.diag([-1.0, -1, 1, 1]) @ AFFINE
VOXELS = np.random.default_rng(0).integers(-1024, 1500, (6, 7, 8)).astype(np.int16)
LABELS = {"spleen": 1, "liver": 2}
LACKING = VOXELS.astype(float)
LACKING[1, 2, 3] = np.nan


def meta_tensor(voxels: np.ndarray, affine: np.ndarray = AFFINE, **meta: Any) -> MetaTensor:
    return MetaTensor(torch.from_numpy(voxels), affine=torch.from_numpy(affine), meta=meta)


GIVEN = {
    "without channel": meta_tensor(VOXELS),
    "channel first": meta_tensor(VOXELS[None].astype(np.float64)),
    "channel last": meta_tensor(VOXELS[..., None]),
    "LPS": meta_tensor(VOXELS, LPS, space="LPS"),
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_a_volume_in_memory_is_that_of_the_file(tmp_path: Path, given: MetaTensor) -> None:
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "ct.nii")
    before, load = given.clone(), LoadVolumed("image", hu_key="hu", labels={"left_kidney": 1})
    file, memory = load({"image": tmp_path / "ct.nii"}), load({"image": given})
    assert torch.equal(file["image"].as_tensor(), memory["image"].as_tensor())
    assert memory["image"].dtype == torch.float32
    np.testing.assert_allclose(memory["image"].affine, file["image"].affine)
    for key in ("original_affine", "spatial_shape"):
        np.testing.assert_allclose(memory["image"].meta[key], file["image"].meta[key])
    assert memory["image"].meta["space"] == file["image"].meta["space"]
    assert np.array_equal(memory["hu"], file["hu"])
    assert not isinstance(memory["hu"], torch.Tensor)
    assert "case" not in memory
    assert file["case"] == "ct"
    assert torch.equal(given, before)


@pytest.mark.parametrize("voxels", [VOXELS, torch.from_numpy(VOXELS)])
def test_an_array_has_voxels_of_a_millimetre_and_may_have_no_sides(
    voxels: Any, caplog: pytest.LogCaptureFixture
) -> None:
    voxels = voxels.repeat(4, 0) if isinstance(voxels, np.ndarray) else voxels.repeat_interleave(4, 0)
    image = LoadVolumed("image")({"image": voxels})["image"]
    np.testing.assert_array_equal(image.affine, np.eye(4))
    assert "image (in memory): an array, without a MetaTensor's affine: left and right may be exch" in caplog.text
    assert "its voxels are taken for 1 mm" in image.meta["remarks"]
    with pytest.raises(DataError, match="left and right of left_kidney cannot be told"):
        LoadVolumed("image", labels={"left_kidney": 1})({"image": voxels})
    assumed = LoadVolumed("image", labels={"left_kidney": 1}, assume_orientation="LPS")({"image": voxels})["image"]
    np.testing.assert_array_equal(assumed.affine, np.diag([-1, -1, 1, 1]))


BAD = {
    "NaN": (meta_tensor(LACKING), "1 of 336 voxels are NaN or infinite"),
    "two channels": (meta_tensor(np.stack([VOXELS] * 2)), r"an array of 4 axes \(2 × 6 × 7 × 8\), expected x × y × z"),
    "2D": (meta_tensor(VOXELS[0]), r"an array of 2 axes \(7 × 8\), expected x × y × z"),
    "5D": (meta_tensor(VOXELS[None, None]), "an array of 5 axes"),
    "empty": (meta_tensor(VOXELS[:0]), r"an axis is empty \(0 × 7 × 8 voxels\)"),
    "no spacing": (meta_tensor(VOXELS, np.diag([0.0, 1, 1, 1])), "spacing in its header is 0 × 1 × 1 mm, expected thr"),
    "metres": (meta_tensor(VOXELS, np.diag([1e-3, 1e-3, 1e-3, 1])), "longest side is 0.008 mm, expected 20 to 2500 mm"),
    "sheared": (meta_tensor(VOXELS, AFFINE + np.eye(4, k=1) * 3), "not perpendicular"),
    "affine": (meta_tensor(VOXELS, np.full((4, 4), np.nan)), "its affine is .*expected 4 × 4 finite numbers"),
    "complex": (meta_tensor(VOXELS.astype(complex)), "its voxels are torch.complex128, expected real numbers"),
    "complex array": (VOXELS.astype(complex), "its voxels are complex128, expected real numbers"),
    "text": (np.array([[["a"]]]), "its voxels are <U1, expected real numbers"),
}


@pytest.mark.parametrize(("given", "said"), BAD.values(), ids=BAD)
def test_bad_volumes(given: Any, said: str) -> None:
    with pytest.raises(DataError, match=rf"^image \(in memory\): .*{said}"):
        LoadVolumed("image")({"image": given})


def test_voxels_without_a_number_and_those_that_are_no_hu(caplog: pytest.LogCaptureFixture) -> None:
    given = meta_tensor(np.where(VOXELS < 0, np.nan, VOXELS).astype(np.float32))
    image = LoadVolumed("image", nan_as=-1024)({"image": given})["image"]
    assert image.min() == -1024
    assert given.isnan().any()
    with pytest.raises(DataError, match=r"image \(in memory\): this may be no CT"):
        LoadVolumed("image", check_intensity="error")({"image": meta_tensor(np.zeros((6, 7, 8), np.float32))})


def test_a_label_map_in_memory_beside_an_image_in_a_file(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "ct.nii")
    label_map = (VOXELS > 0).astype(np.uint8)
    load = LoadVolumed(["image", "label"], label_key="label", labels={"spleen": 1})
    d = load({"image": tmp_path / "ct.nii", "label": meta_tensor(label_map)})
    assert d["label"].dtype == torch.uint8
    assert np.array_equal(d["label"][0], label_map)
    with pytest.raises(DataError, match=r"label \(in memory\): "):
        load({"image": tmp_path / "ct.nii", "label": meta_tensor(label_map, AFFINE * 1.5)})


def test_a_named_volume_is_saved_and_another_is_left_to_the_program(tmp_path: Path) -> None:
    chain = [
        LoadVolumed("image", hu_key="hu"),
        RestoreLabelMapd(),
        SaveSegmentationd(output_dir=tmp_path, labels=LABELS),
    ]
    logits = torch.randn(3, 6, 7, 8)
    expected = restore_label_map(logits, AFFINE, AFFINE, (6, 7, 8))
    for names, files in (({}, []), ({"case": "p1"}, ["p1"])):
        d = chain[0]({"image": meta_tensor(VOXELS), **names})
        d = {**d, "pred": logits}
        for step in chain[1:]:
            d = step(d)
        assert torch.equal(d["pred"][0].as_tensor(), expected)
        assert [path.name for path in tmp_path.iterdir()] == files
