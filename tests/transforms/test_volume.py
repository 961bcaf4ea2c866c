from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd

from shared.transforms import CropBodyd, ResampleVolumed
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
