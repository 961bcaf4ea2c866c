from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ..inferers import restore_label_map


class RestoreLabelMapd(MapTransform):
    """Turn the logits of one case into a label map on the grid of its image file.

    See `restore_label_map` for what is computed and what memory it takes.

    Args:
        keys: logits (N + 1, …) on the grid of the preprocessed image; become a uint8 `MetaTensor` (1, …) on the CPU.
        ref_key: the preprocessed image, a `MetaTensor` that still knows the affine and shape of its file. Any chain
            of reorienting, resampling and cropping may lie between.
    """

    def __init__(self, keys: KeysCollection = "pred", ref_key: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ref_key = ref_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.ref_key]
        native_affine = np.asarray(image.meta["original_affine"], dtype=float)
        native_shape = [int(n) for n in image.meta["spatial_shape"]]
        for key in self.key_iterator(d):
            logits = d[key].as_tensor() if isinstance(d[key], MetaTensor) else d[key]
            if logits.shape[1:] != image.shape[1:]:
                raise ValueError(
                    f"'{key}' has the grid {tuple(logits.shape[1:])}, expected {tuple(image.shape[1:])} as "
                    f"'{self.ref_key}'."
                )
            labels = restore_label_map(logits, image.affine.cpu().numpy(), native_affine, native_shape)
            d[key] = MetaTensor(
                labels[None],
                affine=torch.from_numpy(native_affine),
                meta={"filename_or_obj": image.meta.get("filename_or_obj", ""), "spatial_shape": native_shape},
            )
        return d
