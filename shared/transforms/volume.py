"""MONAI's transforms of volumes, with what they lack."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import CropForegroundd, Spacingd

from ..utils import DataError


class CropBodyd(CropForegroundd):
    """MONAI's `CropForegroundd`, to the voxels above 0 of a CT scaled to its window, that refuses a scan without any.

    Args:
        as for `CropForegroundd`.

    Raises:
        DataError: when no voxel is above 0; MONAI would go on with a volume of no size.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        image = data[self.source_key]
        if not (image > 0).any():
            source = getattr(image, "meta", {}).get("filename_or_obj") or data.get("case", "a volume")
            raise DataError(
                f"{source}: no body in it: every voxel lies below the intensity window. Expected a CT in HU; check the "
                "rescale slope and intercept of the export."
            )
        return super().__call__(data, lazy)


class ResampleVolumed(Spacingd):
    """MONAI's `Spacingd`, also where a server keeps things of its own beside the volumes.

    Of a volume from a NIfTI file under the key `image`, MONAI updates all that stands under keys like `image_…`, as
    if it were metadata. MONAI Label puts the file's name there, as `image_path`, which is text.

    Args:
        as for `Spacingd`.
    """

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        other = {key: value for key, value in data.items() if key not in self.keys and not isinstance(value, dict)}
        return super().__call__({key: value for key, value in data.items() if key not in other}, lazy) | other
