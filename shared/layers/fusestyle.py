"""FuseStyle: mix a feature's statistics with those of another sample of the batch, to train for unseen domains.

Khamankar, Bera, Bhattacharya, Sen and Biswas, *Histopathological Image Analysis with Style-Augmented Feature Domain
Mixing for Improved Generalization*. Symbols: B samples, C channels, S positions; mu and sigma, the mean and standard
deviation of each (sample, channel) over the positions; j(i) the partner of sample i; lambda_i in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .feature_statistics import StatisticsLayer, channel_statistics, check_features, wide

REFERENCES = ("dot", "random", "euclidean", "kl", "style")
PARTNERS = ("any", "same_label", "other_domain")
RATIO = 10.0  # of two sigmas, at most, where statistics are extrapolated


def reference_indices(
    x: Tensor, reference: str = "dot", normalize: bool = True, eps: float = 1e-6, allowed: Tensor | None = None
) -> Tensor:
    """The partner j(i) of every sample of a batch.

    * `"dot"` (the paper): the sample with the least inner product `<x_i, x_j>` over all channels and positions, of
      the instance-normalised features (`normalize`, as in the authors' code) or of `x` itself.
    * `"random"`: a random permutation, as in MixStyle; a sample may be its own partner. With `allowed`, one of those
      allowed, each as probably.
    * `"euclidean"`: the sample at the greatest Euclidean distance.
    * `"kl"`: the sample with the greatest Kullback-Leibler divergence `KL(p_i || p_j)`, p the softmax over all
      channels and positions.
    * `"style"`: the sample at the greatest Euclidean distance in style, (mu, log sigma) of all channels, each of these
      2 C numbers standardised over the batch: else the channels with large means rule.

    But for a permutation, a sample is never its own partner. Computed in float32 at least, without gradient.

    Args:
        x: features (B, C, spatial...), B >= 2.
        reference: see above.
        normalize: for `"dot"` alone.
        eps: added to variances.
        allowed: (B, B) of bool, which partners each sample may have; one without any is its own. None: all others.

    Returns:
        int64 tensor (B,) on the device of `x`.

    Raises:
        ValueError: for another `reference`, or an `x` of another shape or kind, or with a single position; for an
            `allowed` of another shape.
    """
    check_features(x, "FuseStyle", positions=2)
    if reference not in REFERENCES:
        raise ValueError(f"reference must be one of {', '.join(REFERENCES)}, got {reference!r}")
    if len(x) < 2:
        raise ValueError(f"x has the shape {tuple(x.shape)}: one sample has no partner, expected 2 or more")
    if allowed is not None and allowed.shape != (len(x), len(x)):
        raise ValueError(f"allowed has the shape {tuple(allowed.shape)}, expected {(len(x), len(x))}")
    drawn = None
    if reference == "random":
        drawn = _draw_order(len(x), reference, restricted=allowed is not None).to(x.device, non_blocking=True)
    return _partners(x, *channel_statistics(x, eps), drawn, allowed, reference, normalize, eps)


def fuse_style(
    x: Tensor, reference: Tensor, lam: Tensor, eps: float = 1e-6, extrapolation: float | None = None
) -> Tensor:
    """Give each sample statistics between its own and its partner's: the paper's equations 2 to 4.

        gamma_i = lambda_i sigma_i + (1 - lambda_i) sigma_j(i)
        beta_i  = lambda_i mu_i + (1 - lambda_i) mu_j(i)
        z_i     = gamma_i (x_i - mu_i) / sigma_i + beta_i

    Or, with an `extrapolation` e (ours), on the way to the partner's and, above 1, beyond: what lies between two
    domains never reaches a third outside of them.

        gamma_i = sigma_i (sigma_j(i) / sigma_i)^(e (1 - lambda_i))
        beta_i  = mu_i + e (1 - lambda_i) (mu_j(i) - mu_i)

    where the ratio counts as 10 at most and 1/10 at least: of a channel that is nearly constant in one of the two
    samples, the power would be too large for half precision.

    The variance is unbiased, `eps` is added to it, and the statistics are constants in the backward pass, as in the
    authors' code. So it is one affine map, computed in float32 at least.

    Args:
        x: features (B, C, spatial...), at least two positions.
        reference: int64 (B,), the partner of each sample.
        lam: (B,), lambda in [0, 1]; 1 leaves a sample as it is.
        eps: added to the variance.
        extrapolation: above 0; None: the paper's equations.

    Returns:
        features of the shape, type and memory layout of `x`.

    Raises:
        ValueError: for an `x` of another shape or kind, or with a single position, which has no variance; for a
            `reference` or `lam` of another length.
    """
    check_features(x, "FuseStyle", positions=2)
    if reference.shape != (len(x),) or lam.shape != (len(x),):
        raise ValueError(
            f"reference has the shape {tuple(reference.shape)} and lam {tuple(lam.shape)}, expected one value for each "
            f"of the {len(x)} samples of x"
        )
    return _fused(x, *channel_statistics(x, eps), reference, lam, extrapolation)


class FuseStyle(StatisticsLayer):
    """Mix feature statistics inside the batch, in training alone; it has no parameters and no state.

    With probability `p` a forward pass draws `lambda_i ~ Beta(alpha, alpha)` for each sample and returns `fuse_style`;
    see `StatisticsLayer` for when nothing happens. Random numbers come from torch's CPU generator, so that
    `torch.manual_seed` reproduces them on every device, and nothing waits for a GPU.

    Partners that depend on label or domain need to be told before each forward pass in training, by `tell_batch`; a
    sample without an allowed partner then stays as it is.

    Shapes: (B, C, spatial...) to the same, any number of spatial dimensions.

    Args:
        p: probability of mixing, a draw a forward pass.
        alpha: of the Beta distribution; small values keep most samples near their own or their partner's statistics.
        reference: how the partner is chosen, see `reference_indices`.
        normalize: for `reference="dot"`: compare instance-normalised features.
        eps: added to the variance.
        partners: which samples may be partners: `"any"`, those of the `"same_label"`, or of an `"other_domain"`.
        extrapolation: see `fuse_style`.

    Attributes:
        last_partners: those of the last forward pass in training, (B,); None where it has mixed nothing.

    Raises:
        ValueError: when an option is out of its range; when called, if the input has another shape or kind, or if it
            is not the batch that `tell_batch` has told of.
    """

    def __init__(
        self,
        p: float = 0.5,
        alpha: float = 0.3,
        reference: str = "dot",
        normalize: bool = True,
        eps: float = 1e-6,
        partners: str = "any",
        extrapolation: float | None = None,
    ) -> None:
        super().__init__(p, eps)
        if not alpha > 0 or not (extrapolation is None or extrapolation > 0):
            raise ValueError(f"alpha and extrapolation must be above 0, got {alpha} and {extrapolation}")
        if reference not in REFERENCES:
            raise ValueError(f"reference must be one of {', '.join(REFERENCES)}, got {reference!r}")
        if partners not in PARTNERS:
            raise ValueError(f"partners must be one of {', '.join(PARTNERS)}, got {partners!r}")
        self.alpha = alpha
        self.reference = reference
        self.normalize = normalize
        self.partners = partners
        self.extrapolation = extrapolation
        self.last_partners: Tensor | None = None
        self._told: Tensor | None = None

    def tell(self, labels: Tensor | None, domains: Sequence[str] | None) -> None:
        """What `tell_batch` tells of the batch that comes next, once; a layer without need of it keeps nothing."""
        if self.partners == "same_label":
            self._told = None if labels is None else _classes(labels)
        elif self.partners == "other_domain":
            number = {name: i for i, name in enumerate(dict.fromkeys(domains or ()))}
            self._told = None if domains is None else torch.tensor([number[name] for name in domains])

    @torch.jit.unused
    def _forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.last_partners = None
        return super()._forward(x)

    def _change(self, x: Tensor) -> Tensor:
        drawn = self._draw(len(x), x.device)
        if drawn is None:
            return x
        lam, order, told = drawn
        allowed = None
        if told is not None:
            same = told[:, None] == told
            allowed = same if self.partners == "same_label" else ~same
        mean, std = channel_statistics(x, self.eps)
        partners = _partners(x, mean, std, order, allowed, self.reference, self.normalize, self.eps)
        if allowed is not None:  # one without a partner, exactly as it is
            lam = lam.masked_fill(partners == torch.arange(len(x), device=x.device), 1)
        self.last_partners = partners
        return _fused(x, mean, std, partners, lam, self.extrapolation)

    @torch.compiler.disable
    def _draw(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Lambda, what `_draw_order` gives, and what was told; or None, where this forward pass is not to mix."""
        told, self._told = self._told, None
        if self.partners != "any" and (told is None or len(told) != batch):
            what = "labels" if self.partners == "same_label" else "domains"
            known = "was not told of" if told is None else f"was told of {len(told)} samples for"
            raise ValueError(
                f"FuseStyle with partners={self.partners!r} {known} a batch of {batch}: call tell_batch(network, "
                f"labels, domains) with its {what} before each forward pass in training."
            )
        if torch.rand(()) >= self.p:
            return None
        lam = torch.distributions.Beta(self.alpha, self.alpha).sample((batch,))
        order = _draw_order(batch, self.reference, self.partners != "any")
        found = (x if x is None else x.to(device, non_blocking=True) for x in (lam, order, told))
        return tuple(found)

    def extra_repr(self) -> str:
        return (
            f"p={self.p}, alpha={self.alpha}, reference={self.reference!r}, normalize={self.normalize}, "
            f"partners={self.partners!r}, extrapolation={self.extrapolation}"
        )


def tell_batch(network: nn.Module, labels: Tensor | None = None, domains: Sequence[str] | None = None) -> None:
    """Tell the FuseStyle layers of a network what they may have to know of the batch that comes next.

    A line of each step of a training: `tell_batch(network, labels, domains)`, then `network(images)`. Each layer uses
    it once.

    Args:
        network: may be wrapped for distributed training, and have no such layer.
        labels: on any device; whole numbers (B,) or (B, 1) for classes, floating point numbers for the probability of
            the positive one, which counts as positive above 0.5, or (B, K) for that of each class, of which the
            largest counts. None: not known.
        domains: names, such as of scanners. None: not known.
    """
    for layer in network.modules():
        if isinstance(layer, FuseStyle):
            layer.tell(labels, domains)


def _classes(labels: Tensor) -> Tensor:
    if labels.ndim == 2 and labels.shape[1] > 1:
        return labels.argmax(dim=1)
    labels = labels.flatten()
    return labels > 0.5 if labels.is_floating_point() else labels


def _draw_order(batch: int, reference: str, restricted: bool) -> Tensor:
    """A permutation of the samples, (B,); or, for a random choice of those allowed, random numbers, (B, B)."""
    return torch.rand(batch, batch) if restricted and reference == "random" else torch.randperm(batch)


@torch.no_grad()
def _partners(
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    drawn: Tensor | None,
    allowed: Tensor | None,
    reference: str,
    normalize: bool,
    eps: float,
) -> Tensor:
    if reference == "random" and allowed is None:
        return drawn
    closeness_BB = drawn if reference == "random" else _closeness(x, mean, std, reference, normalize, eps)
    closeness_BB = closeness_BB.fill_diagonal_(torch.inf)
    if allowed is None:
        return closeness_BB.argmin(dim=1)
    least, found = closeness_BB.masked_fill_(~allowed, torch.inf).min(dim=1)
    return torch.where(least.isposinf(), torch.arange(len(x), device=x.device), found)


def _closeness(x: Tensor, mean: Tensor, std: Tensor, reference: str, normalize: bool, eps: float) -> Tensor:
    """How alike the samples are, (B, B)."""
    features = wide(x)
    if reference == "dot" and normalize:
        features = (features - mean).div_(std)
    if reference == "euclidean":  # distances do not depend on the origin; near it the squares cancel least
        features = features - features.mean(dim=0)
    if reference == "style":
        features = _style(mean, std, eps)
    # Any order of the positions will do: this one is a view of tensors with their channels first or last.
    features_BN = (features if features.is_contiguous() else features.movedim(1, -1)).flatten(1)
    with torch.autocast(x.device.type, enabled=False):  # half precision overflows here
        if reference == "kl":  # sum p_i log p_i is the same for every partner
            log_p_BN = features_BN.log_softmax(dim=1)
            return log_p_BN.exp() @ log_p_BN.T
        closeness_BB = features_BN @ features_BN.T
    return 2 * closeness_BB - closeness_BB.diagonal() if reference in ("euclidean", "style") else closeness_BB


def _style(mean: Tensor, std: Tensor, eps: float) -> Tensor:
    """mu and log sigma of each sample, standardised over the batch, (B, 2 C)."""
    style_BF = torch.cat([mean, std.log()], dim=1).flatten(1)
    style_BF = style_BF - style_BF.mean(dim=0)
    return style_BF / (style_BF.var(dim=0) + eps).sqrt()


def _fused(x: Tensor, mean: Tensor, std: Tensor, reference: Tensor, lam: Tensor, extrapolation: float | None) -> Tensor:
    lam = lam.to(mean).view(-1, *[1] * (x.ndim - 1))
    if extrapolation is None:
        scale = (lam * std + (1 - lam) * std[reference]) / std
        shift = lam * mean + (1 - lam) * mean[reference] - mean * scale
    else:
        way = extrapolation * (1 - lam)
        scale = (std[reference] / std).clamp(1 / RATIO, RATIO) ** way
        shift = mean + way * (mean[reference] - mean) - mean * scale
    return torch.addcmul(shift, wide(x), scale).to(x.dtype)
