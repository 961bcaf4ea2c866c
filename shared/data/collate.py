"""Batches of detections, of regions, and of what could be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import list_data_collate
from monai.utils import CommonKeys


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
    batch: dict[str, Any] = collate_regions(items)
    batch["image"] = torch.stack([torch.as_tensor(image) for image in batch["image"]])
    batch["box"] = [torch.as_tensor(box, dtype=torch.float32).reshape(-1, 4) for box in batch["box"]]
    batch["label"] = [torch.as_tensor(label, dtype=torch.int64).reshape(-1) for label in batch["label"]]
    return batch


def collate_readable(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of what a `FaultTolerantDataset` could load, and `failures`: (case, reason) of what it could not.

    `stain_fit`, where the items have it, is a list. Where nothing could be loaded, `case` is an empty list and `image`
    one black image (1, 3, 64, 64), of no case: MONAI's ResNet cannot take an empty batch.
    """
    failures = [(item["case"], item["failure"]) for item in items if "failure" in item]
    loaded = [item for item in items if "failure" not in item]
    fits = [item["stain_fit"] for item in loaded if "stain_fit" in item]
    loaded = [{key: value for key, value in item.items() if key != "stain_fit"} for item in loaded]
    batch = list_data_collate(loaded) if loaded else {CommonKeys.IMAGE: torch.zeros(1, 3, 64, 64), "case": []}
    return {**batch, "failures": failures} | ({"stain_fit": fits} if fits else {})


def collate_regions(items: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A batch of what a `FaultTolerantDataset` gives of regions, which no tensor can hold: a list for each key."""
    return {key: [item[key] for item in items] for key in items[0]}
