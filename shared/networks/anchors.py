"""Anchors of a dense detector, their matching with boxes, and the boxes that its output stands for.

A box is (x1, y1, x2, y2) in pixels, pixel i reaching from i to i + 1. A box has the offsets (dx, dy, dw, dh) from an
anchor: those of its centre in widths and heights of the anchor, and the logarithms of the ratios of width and height.

Nothing here but `decode_detections` makes the host wait for a GPU: results have the same shape whatever is found.

Axes: B images, A anchors, N boxes, K classes, D detections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.apps.detection.utils.anchor_utils import AnchorGenerator
from monai.apps.detection.utils.ATSS_matcher import Matcher
from torch import Tensor

BACKGROUND = Matcher.BELOW_LOW_THRESHOLD
BETWEEN = Matcher.BETWEEN_THRESHOLDS

_LARGEST = math.log(1000 / 16)  # of dw and dh, as MONAI's BoxCoder has it: a box is at most 62.5 times its anchor
_SIZES_KEPT = 8  # of images, whose anchors a `PyramidAnchors` remembers


class PyramidAnchors(AnchorGenerator):
    """The anchors of an image: at every position of every level, one of each size and aspect ratio.

    MONAI's generator, for x before y, and with the true strides for images that these do not divide.

    Args:
        sizes: square roots of the anchors' areas in pixels, a list for each level.
        aspect_ratios: heights divided by widths, at every level. Corners are rounded to half pixels from the centre.
        levels: of the pyramid, as in the network; level n has the stride 2^n.

    Raises:
        ValueError: when the levels are not as many as the lists of sizes, or those have different lengths.

    Example:
        >>> anchors = PyramidAnchors(sizes=[[50]], levels=[3])
        >>> anchors([512, 512]).shape
        torch.Size([4096, 4])
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]] = ((50.0,),),
        aspect_ratios: Sequence[float] = (1.0,),
        levels: Sequence[int] = (3,),
    ) -> None:
        if len(sizes) != len(levels) or len({len(s) for s in sizes}) != 1:
            raise ValueError(f"sizes must be a list of the same length for each of {len(levels)} levels, got {sizes}")
        super().__init__(tuple(map(tuple, sizes)), (tuple(aspect_ratios),) * len(sizes), indexing="xy")
        self.strides = [2**level for level in levels]
        self._made: dict[tuple, Tensor] = {}

    def forward(self, image_size: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """The anchors (A, 4) of images of the size (height, width), in the order of the network's output.

        They are remembered: not to be changed in place.
        """
        key = (*map(int, image_size), torch.device(device))
        if key not in self._made:
            if len(self._made) == _SIZES_KEPT:
                self._made.clear()
            grids = [[-(-size // stride) for size in key[:2]] for stride in self.strides]
            with torch.inference_mode(False):  # a training may use them later
                made = torch.cat(self.grid_anchors(grids, [[stride, stride] for stride in self.strides]))
                self._made[key] = made.to(device, non_blocking=True)
        return self._made[key]


def box_overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The areas of intersection and of union of boxes with boxes, (..., 4) each, whose shapes broadcast."""
    ax1, ay1, ax2, ay2 = a.unbind(-1)
    bx1, by1, bx2, by2 = b.unbind(-1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    inter = width * (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    return inter, (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter


def box_giou(a: Tensor, b: Tensor) -> Tensor:
    """The generalised IoU, from -1 to 1, of boxes with boxes, (..., 4) each; Rezatofighi et al., arXiv 1902.09630."""
    inter, union = box_overlap(a, b)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull = hull[..., 0] * hull[..., 1]
    eps = torch.finfo(a.dtype).eps
    return inter / (union + eps) - (hull - union) / (hull + eps)


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """The offsets (..., 4) of boxes from anchors, (..., 4) each."""
    size, anchor_size = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., 2:] + boxes[..., :2]) / 2 - (anchors[..., 2:] + anchors[..., :2]) / 2
    return torch.cat([shift / anchor_size, torch.log(size / anchor_size)], dim=-1)


def decode_boxes(offsets: Tensor, anchors: Tensor) -> Tensor:
    """The boxes (..., 4) at offsets from anchors, (..., 4) each."""
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = offsets[..., :2] * anchor_size + (anchors[..., 2:] + anchors[..., :2]) / 2
    half = 0.5 * (offsets[..., 2:].clamp(max=_LARGEST).exp() * anchor_size)
    return torch.cat([centre - half, centre + half], dim=-1)


def match_anchors(
    anchors: Tensor,
    boxes: Tensor,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    counts: Sequence[int] | None = None,
) -> Tensor:
    """Which box each anchor is to find: the one it meets with the greatest IoU, if that is great enough.

    The anchor that meets a box best belongs to that box whatever the IoU, so that no box is left without one; of
    several boxes with the same best anchor, the one with the greatest IoU gets it.

    Args:
        anchors: (A, 4).
        boxes: (N, 4); none is fine.
        positive_iou: from here on, an anchor is to find the box.
        negative_iou: below, an anchor is background; between the two it is neither.
        counts: how many of the boxes each image has, for those of B images one after the other.

    Returns:
        int64 tensor (A,), or (B, A) with `counts`: the index of a box of the image, `BACKGROUND` (-1), or `BETWEEN`
        (-2).
    """
    inter, union = box_overlap(boxes[:, None], anchors)
    iou_NA = inter / (union + torch.finfo(inter.dtype).eps)
    own_NA = torch.zeros_like(iou_NA)
    if len(boxes):
        own_NA.scatter_(1, iou_NA.argmax(dim=1, keepdim=True), 1.0)

    def best_of_each(scores_NA: Tensor) -> tuple[Tensor, Tensor]:
        parts = scores_NA.split([len(boxes)] if counts is None else list(counts))
        found = [part.max(dim=0) if len(part) else (nothing, nothing.long()) for part in parts]
        return torch.stack([value for value, _ in found]), torch.stack([box for _, box in found])

    nothing = torch.zeros_like(anchors[:, 0])
    best, match = best_of_each(iou_NA)
    match = match.masked_fill(best < positive_iou, BETWEEN).masked_fill(best < negative_iou, BACKGROUND)
    kept, box = best_of_each(iou_NA * own_NA)
    match = torch.where(kept > 0, box, match)
    return match[0] if counts is None else match


def decode_batch(output: Tensor, anchors: Tensor, top_k: int, class_id: int | None = None) -> Tensor:
    """The best detections in the network's output for each image, those of the lowest scores too.

    Args:
        output: (B, K + 4, A), of any precision.
        anchors: (A, 4).
        top_k: D, as many as there are anchors at most.
        class_id: one of the classes, whose probability is wanted of each detection, whatever its likeliest class is.

    Returns:
        float32 tensor (B, D, 6): x1, y1, x2, y2, score and class, by descending score; with `class_id` (B, D, 7), the
        probability of that class last. All scores of an image with a value that is not finite are NaN.

    Raises:
        ValueError: when the number of anchors differs.
    """
    if output.ndim != 3 or output.shape[2] != len(anchors):
        raise ValueError(f"the output has the shape {tuple(output.shape)}, expected (B, classes + 4, {len(anchors)})")
    output = output.float()
    scores, classes = output[:, :-4].sigmoid().max(dim=1)
    scores, best = scores.topk(min(top_k, len(anchors)))
    offsets = output[:, -4:].gather(2, best[:, None].expand(-1, 4, -1)).transpose(1, 2)
    scores = scores.masked_fill(~output.isfinite().flatten(1).all(dim=1, keepdim=True), torch.nan)
    labels = classes.gather(1, best).float()
    columns = [decode_boxes(offsets, anchors[best]), scores[..., None], labels[..., None]]
    if class_id is not None:
        columns.append(output[:, class_id].sigmoid().gather(1, best)[..., None])
    return torch.cat(columns, dim=2)


def decode_detections(
    output: Tensor, anchors: Tensor, score_threshold: float = 0.05, top_k: int = 1000
) -> tuple[Tensor, Tensor, Tensor]:
    """The detections in the network's output for one image: one at most for an anchor, of its likeliest class.

    Args:
        output: (K + 4, A), of any precision.
        anchors: (A, 4).
        score_threshold: detections with a score below it are left out.
        top_k: how many are kept at most, the best.

    Returns:
        The boxes (n, 4), the scores (n,), in descending order, and the classes (n,). They overlap, and may reach
        beyond the image.

    Raises:
        ValueError: when the number of anchors differs, or a value is not finite.
    """
    (found,) = decode_batch(output[None], anchors, top_k)
    scores = found[:, 4]
    if scores.isnan().any():
        raise ValueError("the network's output holds values that are not finite; try it without mixed precision")
    found = found[scores >= score_threshold]
    return found[:, :4], found[:, 4], found[:, 5].long()
