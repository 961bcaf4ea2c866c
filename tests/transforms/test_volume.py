from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import FgBgToIndicesd, RandCropByPosNegLabeld, RandRotated, Spacingd

from shared.transforms import CropBodyd, CropCentresd, RandRotateVolumesd, ResampleVolumed
from shared.utils import DataError


def test_it_crops_to_what_is_above_zero() -> None:
    image = MetaTensor(torch.zeros(1, 6, 6, 6))
    image[0, 1:3, 2:5, 4] = 0.5
    label = torch.arange(216.0).reshape(1, 6, 6, 6)
    cropped = CropBodyd(["image", "label"], source_key="image")({"image": image, "label": label})
    assert cropped["image"].shape == (1, 2, 3, 1)
    assert torch.equal(torch.as_tensor(cropped["label"]), label[:, 1:3, 2:5, 4:5])
    assert cropped["image"].affine[:3, 3].tolist() == [1, 2, 4]


def test_a_scan_without_a_body_is_refused() -> None:
    image = MetaTensor(torch.zeros(1, 4, 4, 4), meta={"filename_or_obj": "air.nii.gz"})
    with pytest.raises(DataError, match=r"^air\.nii\.gz: no body in it: .*Expected a CT in HU"):
        CropBodyd("image", source_key="image")({"image": image})


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nrrd"])
def test_it_resamples_as_monai_does_beside_what_a_server_keeps(name: str) -> None:
    image = MetaTensor(torch.rand(1, 6, 5, 4), torch.diag(torch.tensor([1.0, 2, 3, 1])), {"filename_or_obj": name})
    data = {"image": image, "image_path": name, "image_meta_dict": {"here": 1}, "device": "cpu"}
    options = {"keys": "image", "pixdim": (2.0, 2.0, 2.0), "mode": "bilinear"}
    result = ResampleVolumed(**options)(data)
    expected = Spacingd(**options)({"image": image.clone()})["image"]
    assert torch.equal(result["image"].as_tensor(), expected.as_tensor())
    assert torch.equal(result["image"].affine, expected.affine)
    assert (result["image_path"], result["device"], result["image_meta_dict"]["here"]) == (name, "cpu", 1)


def test_it_resamples_an_image_and_its_label() -> None:
    data = {key: MetaTensor(torch.ones(1, 4, 4, 4)) for key in ("image", "label")}
    result = ResampleVolumed(["image", "label"], pixdim=(2.0, 2.0, 2.0), mode=["bilinear", "nearest"])(data)
    assert {key: tuple(value.shape) for key, value in result.items()} == dict.fromkeys(data, (1, 2, 2, 2))


def test_crops_are_centred_where_monai_would_centre_them() -> None:
    """With the voxels found beforehand as without, to the same draws."""
    label = torch.zeros(1, 9, 8, 7)
    label[0, 2:4, 3:5, 1:6] = torch.arange(5) % 3
    data = {"image": torch.arange(504.0).reshape(label.shape), "label": label}
    options = {"keys": ["image", "label"], "label_key": "label", "spatial_size": (3, 3, 3), "num_samples": 20}
    keys = {"fg_indices_key": "label_fg_indices", "bg_indices_key": "label_bg_indices"}
    plain = RandCropByPosNegLabeld(**options).set_random_state(1)(data)
    found = RandCropByPosNegLabeld(**options, **keys).set_random_state(1)(CropCentresd("label")(data))
    assert [crop.keys() for crop in found] == [data.keys()] * 20
    assert all(torch.equal(a[key], b[key]) for a, b in zip(plain, found, strict=True) for key in data)


def test_of_many_voxels_some_are_drawn_evenly_and_always_the_same() -> None:
    label = torch.zeros(1, 20, 30, 40)
    label[0, 5:7] = 3
    whole = FgBgToIndicesd("label")({"label": label})
    some, again = (CropCentresd("label", most=2500)({"label": MetaTensor(label)}) for _ in range(2))
    assert len(some["label_fg_indices"]) == 2400
    assert torch.equal(some["label_fg_indices"], whole["label_fg_indices"])
    drawn = some["label_bg_indices"]
    assert type(drawn) is torch.Tensor
    assert torch.equal(drawn, again["label_bg_indices"])
    assert len(set(drawn.tolist()) & set(whole["label_bg_indices"].tolist())) == 2500
    places = torch.stack(torch.unravel_index(drawn, label.shape[1:]), dim=1).float()
    expected = torch.stack(torch.unravel_index(whole["label_bg_indices"], label.shape[1:]), dim=1).float()
    torch.testing.assert_close(places.mean(0), expected.mean(0), rtol=0, atol=0.8)
    torch.testing.assert_close(places.std(0), expected.std(0), rtol=0.04, atol=0)


@pytest.mark.parametrize("shape", [(12, 12, 12), (10, 7, 15)])
def test_it_rotates_as_monai_does(shape: tuple[int, int, int]) -> None:
    data = {"image": torch.rand(2, *shape), "label": torch.randint(0, 9, (1, *shape), dtype=torch.uint8)}
    options = {"keys": ["image", "label"], "mode": ["bilinear", "nearest"], "prob": 0.5}
    options |= {"range_x": 0.5, "range_y": 0.3, "range_z": 0.4}
    monai = RandRotated(**options).set_random_state(3)
    own = RandRotateVolumesd(**options).set_random_state(3)
    rotated = 0
    for _ in range(10):
        expected, found = monai(data), own(data)
        torch.testing.assert_close(found["image"], expected["image"].as_tensor(), rtol=0, atol=1e-4)
        assert (found["label"] != expected["label"].as_tensor()).float().mean() < 2e-3  # halfway between two voxels
        rotated += found["image"] is not data["image"]
    assert 0 < rotated < 10
