from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from shared.transforms import CropBodyd
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
