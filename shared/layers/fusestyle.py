"""FuseStyle: mix a feature's statistics with those of another sample of the batch, to train for unseen domains.

Khamankar, Bera, Bhattacharya, Sen and Biswas, *Histopathological Image Analysis with Style-Augmented Feature Domain
Mixing for Improved Generalization*. Symbols: B samples, C channels, S positions; mu and sigma, the mean and standard
deviation of each (sample, channel) over the positions; j(i) the partner of sample i; lambda_i in [0, 1].
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

REFERENCES = ("dot", "random", "euclidean", "kl")


def reference_indices(x: Tensor, reference: str = "dot", normalize: bool = True, eps: float = 1e-6) -> Tensor:
    """The partner j(i) of every sample of a batch.

    * `"dot"` (the paper): the sample with the least inner product `<x_i, x_j>` over all channels and positions, of
      the instance-normalised features (`normalize`, as in the authors' code) or of `x` itself.
    * `"random"`: a random permutation, as in MixStyle; a sample may be its own partner.
    * `"euclidean"`: the sample at the greatest Euclidean distance.
    * `"kl"`: the sample with the greatest Kullback-Leibler divergence `KL(p_i || p_j)`, p the softmax over all
      channels and positions.

    But for `"random"`, a sample is never its own partner. Computed in float32 at least, without gradient.

    Args:
        x: features (B, C, spatial...), B >= 2.
        reference: see above.
        normalize: for `"dot"` alone.
        eps: added to the variance in the normalisation.

    Returns:
        int64 tensor (B,) on the device of `x`.

    Raises:
        ValueError: for another `reference`, or an `x` of another shape or kind, or with a single position.
    """
    _check(x, positions=2)
    if reference not in REFERENCES:
        raise ValueError(f"reference must be one of {', '.join(REFERENCES)}, got {reference!r}")
    if len(x) < 2:
        raise ValueError(f"x has the shape {tuple(x.shape)}: one sample has no partner, expected 2 or more")
    return _partners(x, *_statistics(x, eps), reference, normalize)


def fuse_style(x: Tensor, reference: Tensor, lam: Tensor, eps: float = 1e-6) -> Tensor:
    """Give each sample statistics between its own and its partner's: the paper's equations 2 to 4.

        gamma_i = lambda_i sigma_i + (1 - lambda_i) sigma_j(i)
        beta_i  = lambda_i mu_i + (1 - lambda_i) mu_j(i)
        z_i     = gamma_i (x_i - mu_i) / sigma_i + beta_i

    The variance is unbiased, `eps` is added to it, and the statistics are constants in the backward pass, as in the
    authors' code. So it is one affine map, computed in float32 at least.

    Args:
        x: features (B, C, spatial...), at least two positions.
        reference: int64 (B,), the partner of each sample.
        lam: (B,), lambda in [0, 1]; 1 leaves a sample as it is.
        eps: added to the variance.

    Returns:
        features of the shape, type and memory layout of `x`.

    Raises:
        ValueError: for an `x` of another shape or kind, or with a single position, which has no variance; for a
            `reference` or `lam` of another length.
    """
    _check(x, positions=2)
    if reference.shape != (len(x),) or lam.shape != (len(x),):
        raise ValueError(
            f"reference has the shape {tuple(reference.shape)} and lam {tuple(lam.shape)}, expected one value for each "
            f"of the {len(x)} samples of x"
        )
    return _fused(x, *_statistics(x, eps), reference, lam)


class FuseStyle(nn.Module):
    """Mix feature statistics inside the batch, in training alone; it has no parameters and no state.

    Put it behind a stage of a network: `resnet.layer1.append(FuseStyle())`. No key of the network's state dict
    changes. With probability `p` a forward pass draws `lambda_i ~ Beta(alpha, alpha)` for each sample and returns
    `fuse_style`; otherwise, in eval mode, for a batch of one, and for a single position (which has no variance; this
    warns once), it returns the very tensor it was given. Random numbers come from torch's CPU generator, so that
    `torch.manual_seed` reproduces them on every device, and nothing waits for a GPU.

    Shapes: (B, C, spatial...) to the same, any number of spatial dimensions.

    Args:
        p: probability of mixing, a draw a forward pass.
        alpha: of the Beta distribution; small values keep most samples near their own or their partner's statistics.
        reference: how the partner is chosen, see `reference_indices`.
        normalize: for `reference="dot"`: compare instance-normalised features.
        eps: added to the variance.

    Raises:
        ValueError: when an option is out of its range; when called, if the input has another shape or kind.
    """

    def __init__(
        self, p: float = 0.5, alpha: float = 0.3, reference: str = "dot", normalize: bool = True, eps: float = 1e-6
    ) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must be in [0, 1], got {p}")
        if not alpha > 0 or not eps > 0:
            raise ValueError(f"alpha and eps must be above 0, got {alpha} and {eps}")
        if reference not in REFERENCES:
            raise ValueError(f"reference must be one of {', '.join(REFERENCES)}, got {reference!r}")
        self.p = p
        self.alpha = alpha
        self.reference = reference
        self.normalize = normalize
        self.eps = eps
        self._warned = False

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # of what is exported; it is the identity outside training
            return x
        return self._forward(x)

    @torch.jit.unused
    def _forward(self, x: Tensor) -> Tensor:
        _check(x)
        if not self.training or len(x) < 2 or self._has_one_position(x):
            return x
        drawn = self._draw(len(x), x.device)
        if drawn is None:
            return x
        mean, std = _statistics(x, self.eps)
        lam, permutation = drawn
        partners = permutation
        if self.reference != "random":
            partners = _partners(x, mean, std, self.reference, self.normalize)
        return _fused(x, mean, std, partners, lam)

    def _has_one_position(self, x: Tensor) -> bool:
        if x[0, 0].numel() > 1:
            return False
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"FuseStyle got features of the shape {tuple(x.shape)}: a single position has no variance, and they "
                "stay as they are. Put the layer further to the front.",
                stacklevel=3,
            )
        return True

    @torch.compiler.disable
    def _draw(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Lambda and a permutation of the samples; or None, where this forward pass is not to mix."""
        if torch.rand(()) >= self.p:
            return None
        lam = torch.distributions.Beta(self.alpha, self.alpha).sample((batch,))
        return lam.to(device, non_blocking=True), torch.randperm(batch).to(device, non_blocking=True)

    def extra_repr(self) -> str:
        return f"p={self.p}, alpha={self.alpha}, reference={self.reference!r}, normalize={self.normalize}"


def _check(x: Tensor, positions: int = 0) -> None:
    if x.ndim < 3 or not x.is_floating_point() or x.shape[2:].numel() < positions:
        raise ValueError(
            f"FuseStyle got {x.dtype} of the shape {tuple(x.shape)}, expected floating point features "
            "(batch, channels, spatial...)" + (f" with {positions} positions or more." if positions else ".")
        )


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


@torch.no_grad()
def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """mu and sigma, each (B, C, 1...); in two passes, as exact as `torch.var_mean` and six times as fast on a CPU."""
    features, space = _wide(x), tuple(range(2, x.ndim))
    mean = features.mean(space, keepdim=True)
    variance = (features - mean).square_().sum(space, keepdim=True) / (x.shape[2:].numel() - 1)
    return mean, (variance + eps).sqrt()


@torch.no_grad()
def _partners(x: Tensor, mean: Tensor, std: Tensor, reference: str, normalize: bool) -> Tensor:
    if reference == "random":
        return torch.randperm(len(x)).to(x.device, non_blocking=True)
    features = _wide(x)
    if reference == "dot" and normalize:
        features = (features - mean).div_(std)
    if reference == "euclidean":  # distances do not depend on the origin; near it the squares cancel least
        features = features - features.mean(dim=0)
    # Any order of the positions will do: this one is a view of tensors with their channels first or last.
    features_BN = (features if features.is_contiguous() else features.movedim(1, -1)).flatten(1)
    with torch.autocast(x.device.type, enabled=False):  # half precision overflows here
        if reference == "kl":  # sum p_i log p_i is the same for every partner
            log_p_BN = features_BN.log_softmax(dim=1)
            closeness_BB = log_p_BN.exp() @ log_p_BN.T
        else:
            closeness_BB = features_BN @ features_BN.T
        if reference == "euclidean":
            closeness_BB = 2 * closeness_BB - closeness_BB.diagonal()
    return closeness_BB.fill_diagonal_(torch.inf).argmin(dim=1)


def _fused(x: Tensor, mean: Tensor, std: Tensor, reference: Tensor, lam: Tensor) -> Tensor:
    lam = lam.to(mean).view(-1, *[1] * (x.ndim - 1))
    scale = (lam * std + (1 - lam) * std[reference]) / std
    shift = lam * mean + (1 - lam) * mean[reference] - mean * scale
    return torch.addcmul(shift, _wide(x), scale).to(x.dtype)
