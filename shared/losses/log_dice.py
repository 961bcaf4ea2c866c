from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LogDiceCELoss(nn.Module):
    """The logarithm of each class's Dice, and cross-entropy: finds classes that a Dice loss leaves at 0.

    `sum_i w_i (-ln D_i)^gamma / N + lambda_ce CE`, where `D_i = (2 sum p_i y_i + s) / (sum p_i + sum y_i + s)` of all
    voxels of a batch, over its N foreground classes. This is the Dice term of the exponential logarithmic loss (Wong et
    al., MICCAI 2018, arXiv 1809.00076, equation 2); classes that a batch lacks have no part in it, and the
    cross-entropy, which knows no weights, keeps them from being found there.

    Why it finds them: the slope of a Dice loss falls with the probability p of a class's own voxels, so that what has
    faded stays so; and where a batch lacks a class, the smoothed loss S / (S + s) pushes what is left of it, S, to 0.
    The slope of `-ln D` is that of `D` divided by `D`, which does not fall with p.

    Args:
        num_classes: number N of foreground classes.
        gamma: 0.3 is the best of the paper; of 1, classes of a low Dice outweigh the others more.
        lambda_ce: weight of the cross-entropy.
        weight: of the N classes, ones if None: the buffer `class_weight`, which rules of re-weighting write.
        smooth: the s above.

    Shape:
        input: logits, (B, N + 1, spatial...), background first. target: class ids, (B, 1, spatial...).

    Raises:
        ValueError: for other numbers of weights or channels, a `gamma` or `smooth` that is not above 0, or a
            `lambda_ce` or weights below 0.

    Example:
        >>> loss = LogDiceCELoss(num_classes=13)
        >>> loss(network(image), label).backward()
    """

    class_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        gamma: float = 0.3,
        lambda_ce: float = 1.0,
        weight: Sequence[float] | None = None,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        weights = torch.ones(num_classes) if weight is None else torch.as_tensor(weight).float().clone()
        if num_classes < 1 or weights.shape != (num_classes,) or not 0 <= weights.min() <= weights.max() < torch.inf:
            raise ValueError(f"weight is {weight} for {num_classes} classes, expected a number of at least 0 for each.")
        for name, value in (("gamma", gamma), ("smooth", smooth)):  # without s, the logarithm of 0
            if not torch.finfo().tiny <= value < torch.inf:
                raise ValueError(f"{name} is {value}, expected a number above 0.")
        if not 0 <= lambda_ce < torch.inf:
            raise ValueError(f"lambda_ce is {lambda_ce}, expected a number of at least 0.")
        self.gamma, self.lambda_ce, self.smooth = gamma, lambda_ce, smooth
        self.register_buffer("class_weight", weights)

    def extra_repr(self) -> str:
        return f"num_classes={len(self.class_weight)}, gamma={self.gamma}, lambda_ce={self.lambda_ce}"

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        channels = len(self.class_weight) + 1
        if input.ndim < 3 or input.shape[1] != channels or target.shape != (len(input), 1, *input.shape[2:]):
            raise ValueError(
                f"Logits of shape {tuple(input.shape)} and labels of {tuple(target.shape)}; expected "
                f"(batch, {channels}, spatial...), a channel for each class and the background, and "
                "(batch, 1, spatial...)."
            )
        logits, label = input.to(torch.promote_types(input.dtype, torch.float32)), target[:, 0].long()
        found = logits.softmax(1)
        truth = torch.zeros_like(found).scatter_(1, label[:, None], 1.0)
        both, predicted, labelled = (each.flatten(2).sum(2).sum(0)[1:] for each in (found * truth, found, truth))
        dice = (2 * both + self.smooth) / (predicted + labelled + self.smooth)
        term = (-dice.log()).clamp_min(1e-6) ** self.gamma  # whose slope at 0 is infinite
        return (self.class_weight * term * (labelled > 0)).mean() + self.lambda_ce * F.cross_entropy(logits, label)
