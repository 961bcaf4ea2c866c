"""MONAI's transforms of volumes, with what they lack."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import CropForegroundd, FgBgToIndicesd, RandCropByLabelClassesd, RandRotated, Spacingd
from monai.transforms.utils import create_rotate, generate_label_classes_crop_centers
from monai.utils import convert_to_tensor
from torch.nn.functional import grid_sample

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


class CropCentresd(FgBgToIndicesd):
    """MONAI's `FgBgToIndicesd`: finds once, and not for each crop, around what `RandCropByPosNegLabeld` may centre it.

    All voxels of a volume would take more memory than the volume does. Of more than `most`, so many are drawn, evenly
    and always the same.

    Args:
        keys: the labels.
        most: voxels of the foreground, and of the background, that are kept, 8 bytes each.
        options: as for `FgBgToIndicesd`.
    """

    def __init__(self, keys: KeysCollection, most: int = 2**18, **options: Any) -> None:
        super().__init__(keys, **options)
        self.most = most

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        result = super().__call__(data)
        for key in self.key_iterator(data):
            for name in (f"{key}{self.fg_postfix}", f"{key}{self.bg_postfix}"):
                indices = convert_to_tensor(result[name], track_meta=False)
                if len(indices) > self.most:
                    indices = indices[np.random.default_rng(0).choice(len(indices), self.most, replace=False)]
                result[name] = indices
        return result


class CropAroundClassesd(RandCropByLabelClassesd):
    """MONAI's `RandCropByLabelClassesd`, each of whose crops is around a voxel of a class that it is told.

    `asked_classes` are these classes, one a crop. `SeededDataset` sets them for each case, as a `RuleSampler` has it.
    Where a voxel lies near the volume's border its crop is moved inwards, as MONAI does.

    Args:
        keys: what is cropped.
        label_key: the label map among them.
        spatial_size: of a crop, voxels.
        num_classes: number of classes, background included.
        num_samples: crops of a case.
        indices_key: the voxels of each class, as `ClassesToIndicesd` finds them.

    Raises:
        DataError: when called with another number of classes than crops, or with one that the case lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        spatial_size: Sequence[int] | int,
        num_classes: int,
        num_samples: int = 1,
        indices_key: str = "label_cls_indices",
    ) -> None:
        options = {"num_classes": num_classes, "num_samples": num_samples, "indices_key": indices_key}
        super().__init__(keys, label_key, spatial_size, warn=False, **options)
        self.asked_classes: tuple[int, ...] = ()

    def randomize(
        self, label: torch.Tensor, indices: Sequence[torch.Tensor] | None = None, image: torch.Tensor | None = None
    ) -> None:
        if len(self.asked_classes) != self.cropper.num_samples:
            raise DataError(
                f"{len(self.asked_classes)} classes for {self.cropper.num_samples} crops of a case, expected one for "
                "each: the sampler's `crops` and the `num_samples` of CropAroundClassesd are to be the same."
            )
        self.cropper.centers = [self._centre(label.shape[1:], indices or (), value) for value in self.asked_classes]

    def _centre(self, shape: Sequence[int], indices: Sequence[torch.Tensor], value: int) -> tuple[int, ...]:
        if value >= len(indices) or not len(indices[value]):
            raise DataError(f"A crop around class {value} was asked of a case without a voxel of it.")
        (centre,) = generate_label_classes_crop_centers(
            self.cropper.spatial_size, 1, shape, [indices[value]], rand_state=self.cropper.R
        )
        return centre


class RandRotateVolumesd(RandRotated):
    """MONAI's `RandRotated` of 3D volumes in half the time: the places that are read are worked out once for all keys.

    Nothing is noted for an inverse, and what is not rotated stays as it is.

    Args:
        keys: volumes of the same shape; those that are rotated become plain tensors of float32.
        options: as for `RandRotated`, but for `keep_size`, `align_corners` and `dtype`, which are its defaults.
    """

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        result = dict(data)
        self.randomize(None)
        self.rand_rotate.randomize()
        if not self._do_transform:
            return result
        angles = (self.rand_rotate.x, self.rand_rotate.y, self.rand_rotate.z)
        grid = rotated_grid(result[self.first_key(result)].shape[1:], angles)
        for key, mode, padding_mode in self.key_iterator(result, self.mode, self.padding_mode):
            volume = convert_to_tensor(result[key], dtype=torch.float32, track_meta=False)[None]
            result[key] = grid_sample(volume, grid, mode, padding_mode, align_corners=False)[0]
        return result


def rotated_grid(shape: Sequence[int], angles: Sequence[float]) -> torch.Tensor:
    """Where `grid_sample` finds the voxels of a volume that is rotated about its middle; torch's `affine_grid`, faster.

    Args:
        shape: (D, H, W).
        angles: about the axes, in radians.

    Returns:
        (1, D, H, W, 3), of places in W, H, D, each from -1 to 1.
    """
    matrix = torch.as_tensor(create_rotate(3, angles), dtype=torch.float32)[:3, :3]
    size, grid = torch.tensor(shape), torch.zeros(3)
    for i, count in enumerate(shape):
        places = (torch.arange(count) - (count - 1) / 2) * 2  # from the middle, in half voxels
        grid = grid + (places[:, None] * (matrix[:, i] / size).flip(0)).view(-1, *[1] * (2 - i), 3)
    return grid[None]


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
