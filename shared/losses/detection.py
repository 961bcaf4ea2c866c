"""The loss of RetinaNet: Lin et al., *Focal Loss for Dense Object Detection*, arXiv 1708.02002.

Axes: B batch, K classes, A anchors, N boxes of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from monai.losses.focal_loss import sigmoid_focal_loss
from torch import Tensor, nn

from ..networks import PyramidAnchors, match_anchors
from ..networks.anchors import BETWEEN, box_giou, decode_boxes, encode_boxes
from ..utils import DataError

BOX_LOSSES = ("smooth_l1", "giou")


class RetinaNetLoss(nn.Module):
    """Focal loss on the classes and a loss on the boxes, each the sum over an image's anchors by its positive ones.

        FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t)

    for every class at every anchor but those that meet a box neither well nor badly (`match_anchors`), in float32 or,
    for an output in float64, in that, whatever the precision of the network. An image without a positive anchor is
    divided by 1; the batch's loss is the mean over its images.

    Boxes and labels belong in main memory, also where the network is on a GPU: they are checked there, and brought to
    the output's device together, so that the host never waits for a GPU. From another device they are fetched first.

    Args:
        anchors: as the network has them.
        box_loss: `"smooth_l1"`, of the offsets from the anchor, or `"giou"`, of the boxes.
        alpha: weight of the class that is there; 1 - alpha is that of one that is not.
        gamma: how much what is easy counts less.
        beta: where smooth L1 turns from a parabola to a line.
        box_weight: of the loss on the boxes.
        positive_iou: see `match_anchors`.
        negative_iou: see `match_anchors`.

    Raises:
        ValueError: for another `box_loss`; when called, if the output does not belong to such a batch or has other
            anchors.
        DataError: when called, if boxes are no boxes, or labels no classes.
    """

    def __init__(
        self,
        anchors: PyramidAnchors,
        box_loss: str = "smooth_l1",
        alpha: float = 0.25,
        gamma: float = 2.0,
        beta: float = 1 / 9,
        box_weight: float = 1.0,
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
    ) -> None:
        super().__init__()
        if box_loss not in BOX_LOSSES:
            raise ValueError(f"box_loss must be one of {', '.join(BOX_LOSSES)}, got {box_loss!r}")
        self.anchors = anchors
        self.box_loss = box_loss
        self.alpha = alpha
        self.gamma = gamma
        self.beta = beta
        self.box_weight = box_weight
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou

    def forward(
        self, output: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor], image_size: Sequence[int]
    ) -> Tensor:
        """
        Args:
            output: (B, K + 4, A), of the network.
            boxes: (N, 4) for each image: x1, y1, x2, y2 in pixels; they may reach beyond the image.
            labels: (N,) for each image, classes from 0 to K - 1.
            image_size: height and width of the images.

        Returns:
            The loss, a scalar.
        """
        classification, regression = self.terms(output, boxes, labels, image_size)
        return classification + self.box_weight * regression

    def terms(
        self, output: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor], image_size: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The losses on the classes and on the boxes, the latter without its weight. Arguments: see `forward`."""
        classification_B, regression_B = self._image_terms(output, boxes, labels, image_size)
        return classification_B.mean(), regression_B.mean()

    def image_losses(
        self, output: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor], image_size: Sequence[int]
    ) -> Tensor:
        """The loss of each image, (B,). Arguments: see `forward`."""
        classification_B, regression_B = self._image_terms(output, boxes, labels, image_size)
        return classification_B + self.box_weight * regression_B

    def _image_terms(
        self, output: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor], image_size: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        anchors = self.anchors(image_size, output.device)
        if output.ndim != 3 or output.shape[2] != len(anchors) or not len(output) == len(boxes) == len(labels):
            raise ValueError(
                f"the output has the shape {tuple(output.shape)}, expected (images, classes + 4, anchors) with "
                f"{len(boxes)} lists of boxes, {len(labels)} of labels, and {len(anchors)} anchors for images of the "
                f"size {list(image_size)}. Give the network and the anchors of the loss the same levels and kinds."
            )
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        num_classes, counts = output.shape[1] - 4, [len(own) for own in boxes]
        rows_N5 = _checked_rows(boxes, labels, num_classes).to(output.dtype)
        rows_N5 = nn.functional.pad(rows_N5, (0, 0, 0, 1), value=-1.0)  # the last: of anchors without a box
        first_B1 = torch.tensor([0, *accumulate(counts)])[:-1, None]
        rows_N5, first_B1 = (x.to(output.device, non_blocking=True) for x in (rows_N5, first_B1))
        match_BA = match_anchors(anchors, rows_N5[:-1, :4].float(), self.positive_iou, self.negative_iou, counts)
        positive_BA = match_BA >= 0
        target_BA5 = rows_N5[(match_BA + first_B1).masked_fill(~positive_BA, len(rows_N5) - 1)]

        there_BKA = target_BA5[:, None, :, 4] == torch.arange(num_classes, device=output.device)[:, None]
        focal_BKA = self._focal(output[:, :-4], there_BKA.to(output))
        classification_B = (focal_BKA * (match_BA != BETWEEN)[:, None]).sum(dim=(1, 2))

        # Elsewhere an anchor is to find itself, and does: a term of 0, whose gradient is 0.
        box_BA4 = torch.where(positive_BA[..., None], target_BA5[..., :4], anchors)
        offsets_BA4 = output[:, -4:].transpose(1, 2).masked_fill(~positive_BA[..., None], 0)
        regression_B = self._box_terms(offsets_BA4, box_BA4, anchors.to(output)).sum(dim=1)
        count_B = positive_BA.sum(dim=1).clamp(min=1)
        return classification_B / count_B, regression_B / count_B

    def _focal(self, logits: Tensor, there: Tensor) -> Tensor:
        # With its alpha, MONAI's function copies a number to the device, for which the host waits.
        return sigmoid_focal_loss(logits, there, self.gamma) * (there * (2 * self.alpha - 1) + (1 - self.alpha))

    def _box_terms(self, offsets: Tensor, boxes: Tensor, anchors: Tensor) -> Tensor:
        if self.box_loss == "giou":
            return 1 - box_giou(boxes, decode_boxes(offsets, anchors))
        wanted = encode_boxes(boxes, anchors)
        return nn.functional.smooth_l1_loss(offsets, wanted, reduction="none", beta=self.beta).sum(dim=-1)


def _checked_rows(boxes: Sequence[Tensor], labels: Sequence[Tensor], num_classes: int) -> Tensor:
    """The boxes and labels of all images, (N, 5), in main memory."""
    for i, (own, classes) in enumerate(zip(boxes, labels, strict=True)):
        if own.ndim != 2 or own.shape[1] != 4 or classes.shape != (len(own),):
            raise DataError(
                f"image {i} of the batch has boxes of the shape {tuple(own.shape)} and labels of the shape "
                f"{tuple(classes.shape)}, expected (N, 4) and (N,), also for no box."
            )
    rows = torch.cat([torch.cat(tuple(boxes)), torch.cat(tuple(labels))[:, None]], dim=1).cpu()
    no_box = ~(rows.isfinite().all(dim=1) & (rows[:, :2] < rows[:, 2:4]).all(dim=1))
    no_class = (rows[:, 4] < 0) | (rows[:, 4] >= num_classes)
    if (no_box | no_class).any():
        row = int((no_box | no_class).nonzero()[0])
        image = next(i for i in range(len(boxes)) if sum(map(len, boxes[: i + 1])) > row)
        if no_box[row]:
            raise DataError(
                f"image {image} of the batch has the box {rows[row, :4].tolist()}, expected finite x1 < x2 and "
                "y1 < y2. Clip boxes to the image, and drop those of which nothing is left."
            )
        raise DataError(
            f"image {image} of the batch has the label {int(rows[row, 4])}, expected 0 to {num_classes - 1}."
        )
    return rows
