from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.transforms import Spacingd


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
