"""What the layers that change feature statistics have in common: mu and sigma of each (sample, channel), and when
they act."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn


def check_features(x: Tensor, name: str, positions: int = 0) -> None:
    """See that `x` is (B, C, spatial...), of floating point, with so many positions at least.

    Args:
        x: features.
        name: of the layer, for the message.
        positions: how many a sample needs.

    Raises:
        ValueError: when it is not.
    """
    if x.ndim < 3 or not x.is_floating_point() or x.shape[2:].numel() < positions:
        raise ValueError(
            f"{name} got {x.dtype} of the shape {tuple(x.shape)}, expected floating point features "
            "(batch, channels, spatial...)" + (f" with {positions} positions or more." if positions else ".")
        )


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


@torch.no_grad()
def channel_statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """mu and sigma, each (B, C, 1...); in two passes, as exact as `torch.var_mean` and six times as fast on a CPU.

    Args:
        x: features (B, C, spatial...).
        eps: added to the variance, which is unbiased.
    """
    features, space = wide(x), tuple(range(2, x.ndim))
    mean = features.mean(space, keepdim=True)
    variance = (features - mean).square_().sum(space, keepdim=True) / (x.shape[2:].numel() - 1)
    return mean, (variance + eps).sqrt()


class StatisticsLayer(nn.Module):
    """A layer without parameters and state that changes feature statistics, in training alone.

    Put it behind a stage of a network: `resnet.layer1.append(...)`; no key of the network's state dict changes. In eval
    mode, for a batch of one, and for a single position (which has no variance; this warns once), it returns the very
    tensor it was given. What is exported is the identity.

    Args:
        p: probability that a forward pass changes anything.
        eps: added to the variance.

    Raises:
        ValueError: when an option is out of its range; when called, if the input has another shape or kind.
    """

    def __init__(self, p: float, eps: float) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must be in [0, 1], got {p}")
        if not eps > 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        self.p = p
        self.eps = eps
        self._warned = False

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # of what is exported; it is the identity outside training
            return x
        return self._forward(x)

    @torch.jit.unused
    def _forward(self, x: Tensor) -> Tensor:
        check_features(x, type(self).__name__)
        if not self.training or len(x) < 2 or self._has_one_position(x):
            return x
        return self._change(x)

    def _change(self, x: Tensor) -> Tensor:
        """What training does to features (B, C, spatial...), B >= 2, of two positions or more."""
        raise NotImplementedError

    def _has_one_position(self, x: Tensor) -> bool:
        if x[0, 0].numel() > 1:
            return False
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self).__name__} got features of the shape {tuple(x.shape)}: a single position has no variance, "
                "and they stay as they are. Put the layer further to the front.",
                stacklevel=3,
            )
        return True
