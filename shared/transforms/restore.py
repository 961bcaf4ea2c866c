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

    See `restore_label_map` for what is computed and what memory it takes. What is labels already, as a
    `SlidingWindowLabelInferer` makes them, passes through.

    Args:
        keys: logits (N + 1, …) on the grid of the preprocessed image, or integer labels (1, …) on the grid of the
            result; become a uint8 `MetaTensor` (1, …) on the CPU, or, if not `native`, a plain tensor
            where they are.
        ref_key: the preprocessed image; where the result is `native`, a `MetaTensor` that still knows the affine and
            shape of its file. Any chain of reorienting, resampling and cropping may lie between.
        native: False keeps to the grid of the preprocessed image: argmax over the classes alone.

    Raises:
        ValueError: when called, for logits or labels on another grid.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        ref_key: str = "image",
        allow_missing_keys: bool = False,
        native: bool = True,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ref_key = ref_key
        self.native = native

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.ref_key]
        shape, known = list(image.shape[1:]), {}
        if self.native:
            affine = torch.from_numpy(np.asarray(image.meta["original_affine"], dtype=float))
            shape = [int(n) for n in image.meta["spatial_shape"]]
            meta = {"filename_or_obj": image.meta.get("filename_or_obj", ""), "spatial_shape": shape}
            known = {"affine": affine, "meta": meta}
        for key in self.key_iterator(d):
            pred = d[key].as_tensor() if isinstance(d[key], MetaTensor) else d[key]
            is_labels = not pred.is_floating_point()
            expected = shape if is_labels else list(image.shape[1:])
            if list(pred.shape[1:]) != expected or (is_labels and len(pred) != 1):
                raise ValueError(
                    f"'{key}' has {'labels' if is_labels else 'logits'} of shape {tuple(pred.shape)}, expected the "
                    f"grid {tuple(expected)} of '{self.ref_key}'{'' if not is_labels else ' and one channel'}."
                )
            if not is_labels:
                pred = self._labels(pred, image)
            d[key] = MetaTensor(pred.to("cpu", torch.uint8), **known) if known else pred.to(torch.uint8)
        return d

    def _labels(self, logits: torch.Tensor, image: MetaTensor) -> torch.Tensor:
        if not self.native:
            return logits.argmax(0, keepdim=True)
        affine, native_affine = image.affine.cpu().numpy(), np.asarray(image.meta["original_affine"], dtype=float)
        return restore_label_map(logits, affine, native_affine, [int(n) for n in image.meta["spatial_shape"]])[None]
