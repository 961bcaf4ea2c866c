"""DSU: add noise to a feature's statistics, as large as their spread over the batch, to train for unseen domains.

Li, Dai, Ge, Liu, Shan and Duan, *Uncertainty Modeling for Out-of-Distribution Generalization*, ICLR 2022, arXiv
2202.03958. Symbols: mu and sigma, the mean and standard deviation of each (sample, channel) over the positions; Sigma,
the standard deviation of either over the batch, for each channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .feature_statistics import StatisticsLayer, channel_statistics, check_features, wide


def perturb_statistics(x: Tensor, noise: Tensor, floor: float | None = None, eps: float = 1e-6) -> Tensor:
    """Give each sample statistics around its own: the paper's equations 3 to 6.

        beta_i  = mu_i + noise[0]_i Sigma_mu
        gamma_i = sigma_i + noise[1]_i Sigma_sigma
        z_i     = gamma_i (x_i - mu_i) / sigma_i + beta_i

    All variances are unbiased, `eps` is added to them, and the statistics are constants in the backward pass. So it is
    one affine map, computed in float32 at least.

    Args:
        x: features (B, C, spatial...), two samples and two positions at least.
        noise: (2, B, C), standard normal in the paper.
        floor: gamma_i is at least this share of sigma_i; None, as published: it may even be negative.
        eps: added to the variances.

    Returns:
        features of the shape, type and memory layout of `x`.

    Raises:
        ValueError: for an `x` of another shape or kind, with a single sample or position, or a noise of another shape.
    """
    check_features(x, "DSU", positions=2)
    if len(x) < 2 or noise.shape != (2, *x.shape[:2]):
        raise ValueError(
            f"DSU got features of the shape {tuple(x.shape)} and noise {tuple(noise.shape)}, expected two samples or "
            "more and noise (2, batch, channels)"
        )
    return _perturbed(x, noise, floor, eps)


class DSU(StatisticsLayer):
    """Add noise to feature statistics, in training alone; it has no parameters and no state.

    With probability `p` a forward pass draws the noise of `perturb_statistics`; see `StatisticsLayer` for when nothing
    happens. Random numbers come from torch's CPU generator, so that `torch.manual_seed` reproduces them on every
    device, and nothing waits for a GPU.

    Shapes: (B, C, spatial...) to the same, any number of spatial dimensions.

    Args:
        p: probability of noise, a draw a forward pass.
        floor: least share of sigma that is left, in [0, 1); None, as published: no limit.
        eps: added to the variances.

    Raises:
        ValueError: when an option is out of its range; when called, if the input has another shape or kind.
    """

    def __init__(self, p: float = 0.5, floor: float | None = None, eps: float = 1e-6) -> None:
        super().__init__(p, eps)
        if floor is not None and not 0 <= floor < 1:
            raise ValueError(f"floor must be in [0, 1), or None, got {floor}")
        self.floor = floor

    def _change(self, x: Tensor) -> Tensor:
        noise = self._draw(len(x), x.shape[1], x.device)
        return x if noise is None else _perturbed(x, noise, self.floor, self.eps)

    @torch.compiler.disable
    def _draw(self, batch: int, channels: int, device: torch.device) -> Tensor | None:
        if torch.rand(()) >= self.p:
            return None
        return torch.randn(2, batch, channels).to(device, non_blocking=True)

    def extra_repr(self) -> str:
        return f"p={self.p}, floor={self.floor}"


def _perturbed(x: Tensor, noise: Tensor, floor: float | None, eps: float) -> Tensor:
    mean, std = channel_statistics(x, eps)
    noise = noise.to(mean).view(2, *mean.shape)
    spread = ((own.var(dim=0, keepdim=True) + eps).sqrt() for own in (mean, std))
    beta, gamma = (own + n * s for own, n, s in zip((mean, std), noise, spread, strict=True))
    scale = gamma / std
    if floor is not None:
        scale = scale.clamp(min=floor)
    shift = beta - mean * scale
    return torch.addcmul(shift, wide(x), scale).to(x.dtype)
