from __future__ import annotations

from typing import Any

import pytest
import torch

from shared.data import collate_detections, collate_readable, collate_regions


def item(size: tuple[int, int], boxes: Any, labels: Any) -> dict[str, Any]:
    return {"image": torch.rand(3, *size), "box": boxes, "label": labels, "domain": "XR"}


def test_images_are_stacked_and_boxes_listed() -> None:
    items = [item((8, 9), [[0, 1, 2, 3], [1, 1, 4, 4]], [1, 0]), item((8, 9), [], [])]
    batch = collate_detections(items)
    assert torch.equal(batch["image"], torch.stack([i["image"] for i in items]))
    assert [box.tolist() for box in batch["box"]] == [[[0, 1, 2, 3], [1, 1, 4, 4]], []]
    assert [tuple(box.shape) for box in batch["box"]] == [(2, 4), (0, 4)]
    assert {box.dtype for box in batch["box"]} == {torch.float32}
    assert [label.tolist() for label in batch["label"]] == [[1, 0], []]
    assert {label.dtype for label in batch["label"]} == {torch.int64}
    assert batch["domain"] == ["XR", "XR"]


def test_images_of_different_sizes_are_refused() -> None:
    items = [item((8, 9), [], []), item((8, 9), [], []), item((9, 8), [], [])]
    with pytest.raises(ValueError, match=r"differ in shape: \(3, 8, 9\), \(3, 9, 8\). Crop or pad them"):
        collate_detections(items)


def test_what_could_not_be_read_is_told_beside_the_batch() -> None:
    items = [{"image": torch.ones(1, 2), "case": "a"}, {"failure": "cut off", "case": "b"}]
    batch = collate_readable(items)
    assert (batch["image"].shape, batch["case"], batch["failures"]) == ((1, 1, 2), ["a"], [("b", "cut off")])
    batch = collate_readable(items[1:])
    assert (batch["image"].shape, batch["case"], batch["failures"]) == ((1, 3, 64, 64), [], [("b", "cut off")])


def test_regions_come_as_lists() -> None:
    regions = [object(), object()]
    assert collate_regions([{"image": r, "case": "a"} for r in regions]) == {"image": regions, "case": ["a", "a"]}
