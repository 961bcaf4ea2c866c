"""The loss of RetinaNet: Lin et al., *Focal Loss for Dense Object Detection*, arXiv 1708.02002.

Axes: B batch, K classes, A anchors, N boxes, P positive anchors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses.focal_loss import sigmoid_focal_loss
from monai.losses.giou_loss import BoxGIoULoss
from torch import Tensor, nn

from ..networks import PyramidAnchors, match_anchors
from ..networks.anchors import BETWEEN, BOX_CODER
from ..utils import DataError

BOX_LOSSES = ("smooth_l1", "giou")


class RetinaNetLoss(nn.Module):
    """Focal loss on the classes and a loss on the boxes, each the sum over an image's anchors by its positive ones.

        FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t)

    for every class at every anchor but those that meet a box neither well nor badly (`match_anchors`), in float32
    whatever the precision of the network. An image without a positive anchor is divided by 1; the batch's loss is
    the mean over its images.

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
        self.giou = BoxGIoULoss(reduction="sum")

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
        anchors = self.anchors(image_size, output.device)
        if output.ndim != 3 or output.shape[2] != len(anchors) or not len(output) == len(boxes) == len(labels):
            raise ValueError(
                f"the output has the shape {tuple(output.shape)}, expected (images, classes + 4, anchors) with "
                f"{len(boxes)} lists of boxes, {len(labels)} of labels, and {len(anchors)} anchors for images of the "
                f"size {list(image_size)}. Give the network and the anchors of the loss the same levels and kinds."
            )
        images = []
        for i, item in enumerate(zip(output.float(), boxes, labels, strict=True)):
            _check_targets(i, item[1], item[2], num_classes=output.shape[1] - 4)
            images.append(self._image_terms(*item, anchors))
        classification, regression = torch.stack(images).mean(dim=0)
        return classification, regression

    def _image_terms(self, output: Tensor, boxes: Tensor, labels: Tensor, anchors: Tensor) -> Tensor:
        boxes = boxes.to(anchors)
        match = match_anchors(anchors, boxes, self.positive_iou, self.negative_iou)
        positive_P = (match >= 0).nonzero().flatten()
        box_P = match[positive_P]

        logits_KA, offsets_P4 = output[:-4], output[-4:, positive_P].T
        target_KA = torch.zeros_like(logits_KA)
        target_KA[labels.to(box_P)[box_P], positive_P] = 1
        focal_KA = sigmoid_focal_loss(logits_KA, target_KA, self.gamma, self.alpha)
        classification = (focal_KA * (match != BETWEEN)).sum()
        if self.box_loss == "giou":
            regression = self.giou(BOX_CODER.decode_single(offsets_P4, anchors[positive_P]), boxes[box_P])
        else:
            target_P4 = BOX_CODER.encode_single(boxes[box_P], anchors[positive_P])
            regression = nn.functional.smooth_l1_loss(offsets_P4, target_P4, reduction="sum", beta=self.beta)
        return torch.stack([classification, regression]) / max(1, len(positive_P))


def _check_targets(image: int, boxes: Tensor, labels: Tensor, num_classes: int) -> None:
    where = f"image {image} of the batch"
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != (len(boxes),):
        raise DataError(
            f"{where} has boxes of the shape {tuple(boxes.shape)} and labels of the shape {tuple(labels.shape)}, "
            "expected (N, 4) and (N,), also for no box."
        )
    wrong = ~(boxes.isfinite().all(dim=1) & (boxes[:, :2] < boxes[:, 2:]).all(dim=1))
    if wrong.any():
        raise DataError(
            f"{where} has the box {boxes[wrong][0].tolist()}, expected finite x1 < x2 and y1 < y2. Clip boxes to the "
            "image, and drop those of which nothing is left."
        )
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        raise DataError(f"{where} has the label {labels[wrong][0].item()}, expected 0 to {num_classes - 1}.")
