"""Anchors of a dense detector, their matching with boxes, and the boxes that its output stands for.

A box is (x1, y1, x2, y2) in pixels, pixel i reaching from i to i + 1. A box has the offsets (dx, dy, dw, dh) from an
anchor: those of its centre in widths and heights of the anchor, and the logarithms of the ratios of width and height.

Axes: A anchors, N boxes, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.apps.detection.utils.anchor_utils import AnchorGenerator
from monai.apps.detection.utils.ATSS_matcher import Matcher
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.data.box_utils import box_iou
from torch import Tensor

BACKGROUND = Matcher.BELOW_LOW_THRESHOLD
BETWEEN = Matcher.BETWEEN_THRESHOLDS
BOX_CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))  # exp(dw) and exp(dh) are at most 62.5


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

    def forward(self, image_size: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """The anchors (A, 4) of images of the size (height, width), in the order of the network's output."""
        self.set_cell_anchors(torch.float32, torch.device(device))
        grids = [[-(-size // stride) for size in image_size] for stride in self.strides]
        return torch.cat(self.grid_anchors(grids, [[stride, stride] for stride in self.strides]))


def match_anchors(anchors: Tensor, boxes: Tensor, positive_iou: float = 0.5, negative_iou: float = 0.4) -> Tensor:
    """Which box each anchor is to find: the one it meets with the greatest IoU, if that is great enough.

    The anchor that meets a box best belongs to that box whatever the IoU, so that no box is left without one; of
    several boxes with the same best anchor, the one with the greatest IoU gets it.

    Args:
        anchors: (A, 4).
        boxes: (N, 4); none is fine.
        positive_iou: from here on, an anchor is to find the box.
        negative_iou: below, an anchor is background; between the two it is neither.

    Returns:
        int64 tensor (A,): the index of a box, `BACKGROUND` (-1), or `BETWEEN` (-2).
    """
    if not len(boxes):
        return torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    iou_NA = box_iou(boxes, anchors)
    best, match = iou_NA.max(dim=0)
    match[best < positive_iou] = BETWEEN
    match[best < negative_iou] = BACKGROUND
    own_NA = torch.zeros_like(iou_NA).scatter_(1, iou_NA.argmax(dim=1, keepdim=True), 1.0)
    kept, box = (iou_NA * own_NA).max(dim=0)
    return torch.where(kept > 0, box, match)


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
    if output.ndim != 2 or output.shape[1] != len(anchors):
        raise ValueError(f"the output has the shape {tuple(output.shape)}, expected (classes + 4, {len(anchors)})")
    if not output.isfinite().all():
        raise ValueError("the network's output holds values that are not finite; try it without mixed precision")
    output = output.float()
    scores, classes = output[:-4].sigmoid().max(dim=0)
    scores, best = scores.topk(min(top_k, len(scores)))
    best, scores = best[scores >= score_threshold], scores[scores >= score_threshold]
    return BOX_CODER.decode_single(output[-4:, best].T, anchors[best]), scores, classes[best]
