from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd

from shared.transforms import ResampleVolumed


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
