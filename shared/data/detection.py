from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def collate_detections(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch for a detector: images in one tensor, everything else in lists.

    Args:
        items: each with `image` (channels, height, width), `box` (N, 4) and `label` (N,), N being 0 for an image
            without a box.

    Returns:
        `image` (B, channels, height, width), lists of B float32 tensors `box` (N, 4) and int64 tensors `label` (N,),
        and lists of what else the items hold.

    Raises:
        ValueError: when the images differ in shape.
    """
    shapes = [tuple(item["image"].shape) for item in items]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"the images of a batch differ in shape: {', '.join(map(str, dict.fromkeys(shapes)))}. Crop or pad them "
            "to one size first, or set batch_size to 1."
        )
    batch: dict[str, Any] = {key: [item[key] for item in items] for key in items[0]}
    batch["image"] = torch.stack([torch.as_tensor(image) for image in batch["image"]])
    batch["box"] = [torch.as_tensor(box, dtype=torch.float32).reshape(-1, 4) for box in batch["box"]]
    batch["label"] = [torch.as_tensor(label, dtype=torch.int64).reshape(-1) for label in batch["label"]]
    return batch
