from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.losses import RetinaNetLoss
from shared.networks import PyramidAnchors, match_anchors
from shared.utils import DataError

SIZE = (64, 96)
ANCHORS = PyramidAnchors()
COUNT = 8 * 12
EMPTY = torch.zeros(0, 4)
NONE = torch.zeros(0, dtype=torch.int64)


def batch(seed: int = 0) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Three images: two figures, none, and one that reaches beyond the image."""
    output = torch.randn(3, 6, COUNT, generator=torch.Generator().manual_seed(seed))
    boxes = [torch.tensor([[3.0, 6, 53, 58], [40, 10, 92, 57]]), EMPTY, torch.tensor([[70.0, 30, 120, 80]])]
    return output, boxes, [torch.tensor([1, 0]), NONE, torch.tensor([1])]


def slow_focal(x: Tensor, there: bool) -> Tensor:
    p = 1 / (1 + torch.exp(-x))
    p_t, alpha_t = (p, 0.25) if there else (1 - p, 0.75)
    return -alpha_t * (1 - p_t) ** 2 * torch.log(p_t)


def slow_smooth_l1(found: Tensor, wanted: float) -> Tensor:
    d = (found - wanted).abs()
    return d**2 / (2 / 9) if d < 1 / 9 else d - 1 / 18


def slow_giou(offsets: Tensor, box: list[float], anchor: list[float]) -> Tensor:
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + offsets[0] * width
    y = (anchor[1] + anchor[3]) / 2 + offsets[1] * height
    w, h = torch.exp(offsets[2]) * width, torch.exp(offsets[3]) * height
    found = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    target = [torch.tensor(v, dtype=offsets.dtype) for v in box]
    inter = torch.ones(())
    hull = torch.ones(())
    for low, high in ((0, 2), (1, 3)):
        inter = inter * (torch.min(found[high], target[high]) - torch.max(found[low], target[low])).clamp(min=0)
        hull = hull * (torch.max(found[high], target[high]) - torch.min(found[low], target[low]))
    union = w * h + (box[2] - box[0]) * (box[3] - box[1]) - inter
    return 1 - (inter / union - (hull - union) / hull)


def slow_loss(output: Tensor, boxes: list[Tensor], labels: list[Tensor], box_loss: str) -> tuple[Tensor, Tensor]:
    anchors = ANCHORS(SIZE)
    classification, regression = torch.zeros(()), torch.zeros(())
    for image in range(len(output)):
        match = match_anchors(anchors, boxes[image]).tolist()
        positive = [a for a in range(COUNT) if match[a] >= 0]
        for a in range(COUNT):
            for k in range(2):
                if match[a] != -2:
                    there = match[a] >= 0 and int(labels[image][match[a]]) == k
                    classification = classification + slow_focal(output[image, k, a], there) / max(1, len(positive))
        for a in positive:
            box, anchor = boxes[image][match[a]].tolist(), anchors[a].tolist()
            if box_loss == "giou":
                term = slow_giou(output[image, 2:, a], box, anchor)
            else:
                term = torch.zeros(())
                for axis in range(2):
                    size, wanted = anchor[axis + 2] - anchor[axis], box[axis + 2] - box[axis]
                    shift = (box[axis] + box[axis + 2] - anchor[axis] - anchor[axis + 2]) / 2 / size
                    term = term + slow_smooth_l1(output[image, 2 + axis, a], shift)
                    term = term + slow_smooth_l1(output[image, 4 + axis, a], math.log(wanted / size))
            regression = regression + term / len(positive)
    return classification / len(output), regression / len(output)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_values_and_gradients_are_the_literal_ones(box_loss: str, dtype: torch.dtype, tolerance: float) -> None:
    output, boxes, labels = batch()
    output, close = output.to(dtype), {"rtol": tolerance, "atol": tolerance}
    found_from, wanted_from = output.clone().requires_grad_(), output.clone().requires_grad_()
    found = RetinaNetLoss(ANCHORS, box_loss).terms(found_from, boxes, labels, SIZE)
    wanted = slow_loss(wanted_from, boxes, labels, box_loss)
    torch.testing.assert_close(found, wanted, **close)
    (found[0] + 2 * found[1]).backward()
    (wanted[0] + 2 * wanted[1]).backward()
    torch.testing.assert_close(found_from.grad, wanted_from.grad, **close)
    total = RetinaNetLoss(ANCHORS, box_loss, box_weight=2.0)(output, boxes, labels, SIZE)
    torch.testing.assert_close(total, wanted[0] + 2 * wanted[1], **close)


def test_anchors_between_the_thresholds_do_not_count() -> None:
    output, boxes, labels = batch()
    match = match_anchors(ANCHORS(SIZE), boxes[0])
    changed = output.clone()
    changed[0][:, match == -2] += 5
    loss = RetinaNetLoss(ANCHORS)
    assert (match == -2).any()
    torch.testing.assert_close(loss(changed, boxes, labels, SIZE), loss(output, boxes, labels, SIZE))
    changed[0][:, match == -1] += 5
    assert loss(changed, boxes, labels, SIZE) > loss(output, boxes, labels, SIZE) + 1


def test_an_image_without_boxes_is_all_background() -> None:
    output = torch.zeros(1, 6, COUNT, requires_grad=True)
    classification, regression = RetinaNetLoss(ANCHORS).terms(output, [EMPTY], [NONE], SIZE)
    assert classification.item() == pytest.approx(2 * COUNT * 0.75 * 0.25 * math.log(2), rel=1e-5)
    assert regression.item() == 0
    (classification + regression).backward()
    assert (output.grad[0, :2] > 0).all()
    assert not output.grad[0, 2:].any()


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [-1e4, 1e4, 0.0])
def test_finite_at_extremes_of_half_precision(box_loss: str, dtype: torch.dtype, value: float) -> None:
    """No box, hundreds, boxes at and past the border, tiny and huge ones."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=generator) * 120 - 30
    many = torch.cat([corner, corner + 50], dim=1)
    odd = torch.tensor(
        [[-49.0, -49, 1, 1], [95.5, 63.5, 96, 64], [-500, -500, 900, 900], [0, 0, 96, 64], [500, 5, 550, 55]]
    )
    boxes = [EMPTY, many, odd]
    labels = [NONE, torch.arange(300) % 2, torch.arange(5) % 2]
    output = torch.full((3, 6, COUNT), value, dtype=dtype, requires_grad=True)
    loss = RetinaNetLoss(ANCHORS, box_loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(output, boxes, labels, SIZE)
    found.backward()
    assert found.dtype == torch.float32
    assert found.isfinite()
    assert output.grad.isfinite().all()


def test_every_image_weighs_the_same() -> None:
    output, boxes, labels = batch()
    loss = RetinaNetLoss(ANCHORS)
    single = [loss(output[i : i + 1], boxes[i : i + 1], labels[i : i + 1], SIZE) for i in range(3)]
    torch.testing.assert_close(loss(output, boxes, labels, SIZE), torch.stack(single).mean())
    torch.testing.assert_close(loss.image_losses(output, boxes, labels, SIZE), torch.stack(single))


def test_what_an_anchor_without_a_box_says_of_one_is_not_asked() -> None:
    output, boxes, labels = batch()
    match = match_anchors(ANCHORS(SIZE), boxes[0])
    output[0][2:, match < 0] = torch.nan
    output.requires_grad_()
    for box_loss in ("smooth_l1", "giou"):
        loss = RetinaNetLoss(ANCHORS, box_loss)(output, boxes, labels, SIZE)
        (gradient,) = torch.autograd.grad(loss, output)
        assert loss.isfinite()
        assert not gradient[0][2:, match < 0].any()
        assert gradient[0][2:, match >= 0].any(dim=0).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"size": (96, 96)}, ValueError, r"shape \(3, 6, 96\), .* 144 anchors for images of the size \[96, 96\]"),
        ({"boxes": [EMPTY]}, ValueError, r"with 1 lists of boxes, 3 of labels"),
        ({"box": torch.zeros(1, 5)}, DataError, r"image 2 of the batch has boxes of the shape \(1, 5\)"),
        ({"box": EMPTY}, DataError, r"boxes of the shape \(0, 4\) and labels of the shape \(1,\)"),
        ({"box": torch.tensor([[5.0, 5, 5, 9]])}, DataError, r"image 2 .* the box \[5.0, 5.0, 5.0, 9.0\], expected"),
        ({"box": torch.tensor([[5.0, 5, 50, math.nan]])}, DataError, r"the box .*nan\], expected finite"),
        ({"label": torch.tensor([2])}, DataError, r"image 2 of the batch has the label 2, expected 0 to 1"),
        ({"label": torch.tensor([-1])}, DataError, r"the label -1, expected 0 to 1"),
    ],
)
def test_wrong_targets_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    output, boxes, labels = batch()
    boxes[2], labels[2] = change.get("box", boxes[2]), change.get("label", labels[2])
    with pytest.raises(error, match=message):
        RetinaNetLoss(ANCHORS)(output, change.get("boxes", boxes), labels, change.get("size", SIZE))


def test_another_box_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="box_loss must be one of smooth_l1, giou, got 'l2'"):
        RetinaNetLoss(ANCHORS, "l2")
