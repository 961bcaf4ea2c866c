from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from ..utils import DataError


def class_weight_buffers(loss: nn.Module) -> dict[str, Tensor]:
    """The buffers in which a loss, and the losses inside it, hold one weight for each class.

    These are the buffers `class_weight` of MONAI's losses and of `ClassWeightedLoss`, and `weight` of torch's
    `CrossEntropyLoss` and `NLLLoss`. Look them up each time: `.to()` and `copy.deepcopy` give a loss other buffers.
    `pos_weight` of `BCEWithLogitsLoss` is none of them: it broadcasts against the last axis, not the classes.

    Returns:
        the buffers by their names within the loss (`dice.class_weight`), without those that are None.
    """
    buffers = loss.named_buffers(remove_duplicate=False)
    return {name: buffer for name, buffer in buffers if name.split(".")[-1] in ("weight", "class_weight")}


class ClassWeightedLoss(nn.Module):
    """Give a loss that takes no class weights a weight for each class: mean over the classes of `w_i * L_i`.

    `L_i` is the wrapped loss's mean over everything that belongs to class i. The weights are the buffer
    `class_weight`, which the re-weighting handlers of `shared.handlers` write.

    Args:
        loss: called with what this loss is called with; returns a value for each class: shape (B, C) or
            (B, C, spatial...), as many losses do with `reduction="none"`.
        num_classes: number N of foreground classes.
        include_background: whether channel 0 of the loss's values is the background. Then C = N + 1, else C = N.
        weight: C weights; ones if None.

    Raises:
        ValueError: when the loss averages by itself or takes class weights by itself, or the number of weights is
            not C; when called, if the values have another shape than the one above.

    Example:
        >>> tversky = TverskyLoss(include_background=False, to_onehot_y=True, softmax=True, reduction="none")
        >>> loss = ClassWeightedLoss(tversky, num_classes=13)
    """

    class_weight: Tensor

    def __init__(
        self,
        loss: nn.Module,
        num_classes: int,
        include_background: bool = False,
        weight: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        name = type(loss).__name__
        if getattr(loss, "reduction", "none") != "none":
            raise ValueError(f'{name} has reduction="{loss.reduction}", expected "none": a value for each class.')
        if class_weight_buffers(loss):
            raise ValueError(f"{name} holds class weights already; use it without ClassWeightedLoss.")
        channels = num_classes + include_background
        if weight is not None and len(weight) != channels:
            raise ValueError(f"{len(weight)} weights for {channels} classes (include_background={include_background}).")
        self.loss = loss
        self.register_buffer("class_weight", torch.ones(channels) if weight is None else torch.tensor(weight).float())

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        values = self.loss(*args, **kwargs)
        channels = len(self.class_weight)
        if values.ndim < 2 or values.shape[1] != channels:
            raise ValueError(
                f"{type(self.loss).__name__} returned values of shape {tuple(values.shape)}; "
                f"expected (batch, {channels}) or (batch, {channels}, spatial...), one value per class."
            )
        per_class = values.mean(dim=[d for d in range(values.ndim) if d != 1])
        return (self.class_weight.to(per_class) * per_class).mean()


class DicePlainCELoss(DiceCELoss):
    """MONAI's `DiceCELoss`, with class weights that act on the Dice term alone; the cross-entropy has none.

    Class re-weighting divides attention between organs. In the cross-entropy it also shifts the balance between organ
    and background: a frozen organ (0.1) loses its voxels to the background, whose weight stays 1. With this loss only
    its Dice term is frozen.

    Args:
        as for `DiceCELoss`; `weight` holds one weight for each class, background included.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cross_entropy.weight = None


def check_class_weight_buffers(loss: nn.Module, num_classes: int) -> dict[str, Tensor]:
    """The class-weight buffers of a loss, each made sure to hold N or N + 1 (background first) floats.

    Raises:
        DataError: when the loss holds no class weights, a single one, whole numbers, or a wrong number of them.
    """
    name = type(loss).__name__
    remedy = f"Give the loss weight=[1.0, 1.0, ...] with {num_classes} values, or {num_classes + 1} with background"
    buffers = class_weight_buffers(loss)
    if not buffers:
        raise DataError(
            f"{name} holds no class weights. {remedy}; "
            "a loss that takes none can be wrapped in shared.losses.ClassWeightedLoss."
        )
    for key, buffer in buffers.items():
        if buffer.ndim != 1 or len(buffer) not in (num_classes, num_classes + 1):
            found = "a single weight" if buffer.numel() == 1 else f"weights of shape {tuple(buffer.shape)}"
            raise DataError(f"{name}.{key} holds {found} for {num_classes} foreground classes. {remedy}.")
        if not buffer.is_floating_point():
            raise DataError(f"{name}.{key} holds whole numbers ({buffer.dtype}), so 0.1 would become 0. {remedy}.")
    return buffers
