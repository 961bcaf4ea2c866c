from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from monai.data.box_utils import box_iou
from torch import Tensor

from shared.networks import PyramidAnchors, decode_batch, decode_detections, match_anchors
from shared.networks.anchors import BACKGROUND, BETWEEN, decode_boxes, encode_boxes


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union


def figures(count: int, seed: int, size: float = 128.0) -> Tensor:
    """Boxes of about 50 pixels with their centres in an image of the size given."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator) * size
    half = 15 + 20 * torch.rand(count, 2, generator=generator)
    return torch.cat([centre - half, centre + half], dim=1)


def test_anchors_stand_by_level_row_column_and_kind() -> None:
    found = PyramidAnchors([[50, 40], [100, 80]], [1, 4], levels=[3, 5])((40, 64)).tolist()
    literal = []
    for stride, sizes in ((8, (50, 40)), (32, (100, 80))):
        for row in range(math.ceil(40 / stride)):
            for column in range(math.ceil(64 / stride)):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                for ratio in (1, 4):
                    for size in sizes:
                        # half sizes are whole numbers here, but for 12.5, rounded to the even 12
                        w, h = round(size / math.sqrt(ratio) / 2), round(size * math.sqrt(ratio) / 2)
                        literal.append([x - w, y - h, x + w, y + h])
    assert found == literal


@pytest.mark.parametrize("size", [(512, 512), (100, 77), (8, 130)])
def test_anchors_reach_over_all_of_an_image_that_their_stride_does_not_divide(size: tuple[int, int]) -> None:
    anchors = PyramidAnchors()(size)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert len(anchors) == math.ceil(size[0] / 8) * math.ceil(size[1] / 8)
    assert centres.min().item() == 4
    for axis, length in ((0, size[1]), (1, size[0])):
        assert length - 4 <= centres[:, axis].max() < length + 4


def test_every_box_of_50_pixels_has_an_anchor() -> None:
    """With its centre anywhere in the image, so partly outside too."""
    anchors = PyramidAnchors()((64, 96))
    x, y = torch.meshgrid(torch.arange(0, 96.5, 0.5), torch.arange(0, 64.5, 0.5), indexing="xy")
    centres = torch.stack([x.flatten(), y.flatten()], dim=1)
    best = box_iou(torch.cat([centres - 25, centres + 25], dim=1), anchors).amax(dim=1)
    assert best.min() >= 0.7
    coarse = box_iou(torch.cat([centres - 25, centres + 25], dim=1), PyramidAnchors(levels=[4])((64, 96))).amax(dim=1)
    assert coarse.min() < 0.6


def literal_match(anchors: list[list[float]], boxes: list[list[float]]) -> list[int]:
    table = [[iou(box, anchor) for anchor in anchors] for box in boxes]
    match = []
    for a in range(len(anchors)):
        column = [row[a] for row in table]
        best = max(range(len(boxes)), key=column.__getitem__)
        match.append(best if column[best] >= 0.5 else BETWEEN if column[best] >= 0.4 else BACKGROUND)
    own: dict[int, int] = {}
    for n, row in enumerate(table):
        a = max(range(len(anchors)), key=row.__getitem__)
        if row[a] > 0 and (a not in own or row[a] > table[own[a]][a]):
            own[a] = n
    for a, n in own.items():
        match[a] = n
    return match


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (3, 1), (40, 2)])
def test_matching_is_the_literal_one(count: int, seed: int) -> None:
    anchors, boxes = PyramidAnchors()((128, 128)), figures(count, seed)
    found = match_anchors(anchors, boxes).tolist()
    assert found == literal_match(anchors.tolist(), boxes.tolist())
    assert {BACKGROUND, BETWEEN} < set(found)


def test_every_box_keeps_its_best_anchor() -> None:
    anchors = PyramidAnchors()((128, 128))
    boxes = torch.tensor([[60.0, 60, 63, 63], [-40, -40, 4, 4], [0, 0, 128, 128], [100, 100, 127, 127]])
    match = match_anchors(anchors, boxes)
    assert set(match.tolist()) == {BACKGROUND, 0, 1, 2, 3}
    for n in range(4):
        ious = torch.tensor([iou(boxes[n].tolist(), a) for a in anchors.tolist()])
        assert ious.max() < 0.5
        assert ious[match == n].tolist() == pytest.approx([ious.max().item()])


def test_of_boxes_with_one_best_anchor_the_better_one_gets_it() -> None:
    anchors = torch.tensor([[0.0, 0, 50, 50], [100, 100, 150, 150]])
    assert match_anchors(anchors, torch.tensor([[0.0, 0, 20, 20], [0, 0, 30, 30]])).tolist() == [1, BACKGROUND]
    assert match_anchors(anchors, torch.tensor([[0.0, 0, 30, 30], [0, 0, 20, 20]])).tolist() == [0, BACKGROUND]


def test_boxes_that_meet_no_anchor_and_no_boxes_leave_background() -> None:
    anchors = PyramidAnchors()((64, 64))
    far = torch.tensor([[1000.0, 1000, 1050, 1050]])
    for boxes in (far, torch.zeros(0, 4)):
        match = match_anchors(anchors, boxes)
        assert match.dtype == torch.int64
        assert match.tolist() == [BACKGROUND] * 64


def test_hundreds_of_boxes_each_get_an_anchor() -> None:
    anchors, boxes = PyramidAnchors()((512, 512)), figures(400, 3, size=512)
    found = match_anchors(anchors, boxes)
    best = box_iou(boxes, anchors).argmax(dim=1)
    alone = torch.bincount(best, minlength=len(anchors))[best] == 1
    assert alone.sum() > 300
    torch.testing.assert_close(found[best][alone], torch.arange(400)[alone])


def test_images_are_matched_together_as_each_by_itself() -> None:
    anchors, boxes, counts = PyramidAnchors()((128, 128)), figures(45, 5), [0, 3, 40, 0, 2]
    found = match_anchors(anchors, boxes, counts=counts)
    assert found.shape == (5, 256)
    for own, part in zip(found, boxes.split(counts), strict=True):
        assert torch.equal(own, match_anchors(anchors, part))
    assert match_anchors(anchors, boxes[:0], counts=[0, 0]).tolist() == [[BACKGROUND] * 256] * 2


def test_anchors_are_made_once_for_a_size_and_serve_where_gradients_are_asked_for() -> None:
    generator = PyramidAnchors()
    with torch.inference_mode():
        first = generator((64, 96))
    assert generator([64, 96]) is first
    assert not first.is_inference()
    assert all(len(generator((8 * n, 8))) == n for n in range(1, 20))
    assert torch.equal(generator((64, 96)), first)


def test_offsets_are_the_literal_ones_and_lead_back() -> None:
    anchors, boxes = PyramidAnchors()((128, 128))[:30], figures(30, 4)
    codes = encode_boxes(boxes, anchors)
    for code, box, anchor in zip(codes.tolist(), boxes.tolist(), anchors.tolist(), strict=True):
        width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
        literal = [
            ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / width,
            ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / height,
            math.log((box[2] - box[0]) / width),
            math.log((box[3] - box[1]) / height),
        ]
        assert code == pytest.approx(literal, abs=1e-5)
    torch.testing.assert_close(decode_boxes(codes, anchors), boxes, rtol=0, atol=1e-4)


def detections(logits: Any, offsets: Any, size: tuple[int, int] = (8, 16), **options: Any) -> Any:
    output = torch.cat([torch.tensor(logits), torch.tensor(offsets)]).float()
    return decode_detections(output, PyramidAnchors()(size), **options)


def test_decoding_by_hand() -> None:
    log2 = math.log(2)
    boxes, scores, classes = detections(
        [[0.0, -5.0], [-1.0, 3.0]], [[0.0, 0.1], [0.0, -0.2], [0.0, log2], [0.0, -log2]]
    )
    torch.testing.assert_close(scores, torch.tensor([1 / (1 + math.exp(-3)), 0.5]))
    assert classes.tolist() == [1, 0]
    # the second anchor has its centre at (12, 4): moved to (17, -6), twice as wide, half as high
    torch.testing.assert_close(boxes, torch.tensor([[-33.0, -18.5, 67, 6.5], [-21, -21, 29, 29]]))


def test_threshold_and_number_of_detections() -> None:
    logits, offsets = [[2.0, 0.0]], [[0.0, 0.0]] * 4
    assert detections(logits, offsets, score_threshold=0.5)[1].tolist() == pytest.approx([0.8808, 0.5], abs=1e-4)
    assert len(detections(logits, offsets, score_threshold=0.51)[1]) == 1
    assert len(detections(logits, offsets, top_k=1)[1]) == 1
    boxes, scores, classes = detections(logits, offsets, score_threshold=0.9)
    assert (boxes.shape, scores.shape, classes.shape) == ((0, 4), (0,), (0,))


def test_the_best_of_many_in_descending_order() -> None:
    anchors = PyramidAnchors()((128, 128))
    output = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
    boxes, scores, classes = decode_detections(output, anchors, score_threshold=0.6, top_k=20)
    table = sorted(((max(column[:2]), column) for column in output.T.tolist()), reverse=True)[:20]
    assert scores.tolist() == pytest.approx([1 / (1 + math.exp(-logit)) for logit, _ in table], abs=1e-6)
    assert classes.tolist() == [int(column[1] > column[0]) for _, column in table]
    assert boxes.shape == (20, 4)


def test_a_batch_is_decoded_as_each_of_its_images() -> None:
    anchors = PyramidAnchors()((128, 128))
    output = torch.randn(3, 6, 256, generator=torch.Generator().manual_seed(0))
    found = decode_batch(output, anchors, top_k=20)
    assert found.shape == (3, 20, 6)
    for own, values in zip(found, output, strict=True):
        boxes, scores, classes = decode_detections(values, anchors, score_threshold=0, top_k=20)
        assert torch.equal(own, torch.cat([boxes, scores[:, None], classes[:, None]], dim=1))
    more = decode_batch(output, anchors, 20, class_id=1)
    assert torch.equal(more[..., :6], found)
    own = torch.where(found[..., 5] == 1, found[..., 4], more[..., 6])
    assert torch.equal(more[..., 6], own)  # of those that class 1 is likeliest for it is the score
    for rows, values in zip(more, output, strict=True):
        best = values[:2].amax(dim=0).topk(20).indices
        torch.testing.assert_close(rows[:, 6], values[1, best].sigmoid())
    output[1, 5, 255] = torch.inf
    assert decode_batch(output, anchors, top_k=300)[:, :, 4].isnan().all(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_extreme_half_precision_decodes_to_finite_boxes(value: float) -> None:
    output = torch.full((6, 64), value, dtype=torch.float16)
    output[0] = 1e4
    boxes, scores, _ = decode_detections(output, PyramidAnchors()((64, 64)))
    assert boxes.dtype == torch.float32
    assert len(boxes) == 64
    assert boxes.isfinite().all()
    assert scores.tolist() == [1] * 64
    assert (boxes[:, 2:] - boxes[:, :2]).max() <= 50 * 62.6


def test_wrong_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 6, 63\), expected \(B, classes \+ 4, 64\)"):
        decode_detections(torch.zeros(6, 63), PyramidAnchors()((64, 64)))
    with pytest.raises(ValueError, match="values that are not finite"):
        decode_detections(torch.full((6, 64), torch.nan), PyramidAnchors()((64, 64)))
    with pytest.raises(ValueError, match=r"same length for each of 2 levels, got \[\[50\]\]"):
        PyramidAnchors([[50]], levels=[3, 4])
