"""Mixing images and their labels within a batch: linear interpolation between partners of different domains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Beta

from ..losses.domain_loss import domain_ids, several_domains


class BatchMixing(ABC):
    """Mixes each sample of a batch, image and label, with a partner from the same batch.

        x_i ← λ_i x_i + (1 − λ_i) x_j,    y_i ← λ_i y_i + (1 − λ_i) y_j,    λ_i ~ Beta(α, α)

    The cross-entropy of soft labels is exact: it is linear in them. j is drawn uniformly from the partners that the
    method allows; a sample without any stays as it is. All is drawn from torch's generator of the CPU; in a distributed
    run each rank mixes its own part of a batch.

    Args:
        domains: names of those that are trained on.
        alpha: above 0.

    Raises:
        ValueError: for another alpha.
        DataError: for fewer than two domains; when called with another one.
    """

    def __init__(self, domains: Sequence[str], alpha: float = 2.0) -> None:
        self.domains = several_domains(type(self).__name__, domains)
        if not alpha > 0:
            raise ValueError(f"alpha must be above 0, got {alpha}")
        self.alpha = float(alpha)

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in vars(self).items() if key != "domains")
        return f"{type(self).__name__}({options})"

    def __call__(self, images: Tensor, target: Tensor, labels: Tensor, domains: Sequence[str]) -> tuple[Tensor, Tensor]:
        """
        Args:
            images: (B, ...).
            target: (B, 1), beside the images.
            labels: the same in main memory, 0 or 1: partners are chosen there, and no GPU is waited for.
            domains: the domain of each sample.

        Returns:
            Images and target, mixed.
        """
        ids = torch.tensor(domain_ids(self.domains, domains, len(images)))
        labels = labels.flatten()
        allowed = self.partners(labels[:, None] == labels, ids[:, None] == ids)
        alone = ~allowed.any(dim=1)
        partner = torch.multinomial((allowed | torch.diag(alone)).double(), 1).flatten()
        weight = Beta(self.alpha, self.alpha).sample((len(labels),))
        partner, weight = (x.to(images.device, non_blocking=True) for x in (partner, weight))
        return tuple(x[partner].lerp(x, weight.to(x.dtype).view(-1, *[1] * (x.ndim - 1))) for x in (images, target))

    @abstractmethod
    def partners(self, same_label: Tensor, same_domain: Tensor) -> Tensor:
        """Which partner each sample may have, (B, B) of bool, by which pairs have the same label and domain."""


class DomainMix(BatchMixing):
    """Partners are of other domains, whatever their labels: DomainMix, as Yao et al. (arXiv 2201.00299) use the name
    (Xu et al., AAAI 2020, for an adversarial variant).

    Args:
        domains, alpha: see `BatchMixing`.
    """

    def partners(self, same_label: Tensor, same_domain: Tensor) -> Tensor:
        return ~same_domain


class LISA(BatchMixing):
    """Partners have the same label and another domain, or the same domain and the other label (Yao et al., *Improving
    Out-of-Distribution Robustness via Selective Augmentation*, arXiv 2201.00299).

    Which of the two is drawn for each batch. Partners come from the batch; the authors' code draws them from the whole
    set, and may take one of the same domain.

    Args:
        domains, alpha: see `BatchMixing`.
        p_sel: probability of the first, 0 to 1; the authors have 1 for Camelyon17.
    """

    def __init__(self, domains: Sequence[str], alpha: float = 2.0, p_sel: float = 0.5) -> None:
        super().__init__(domains, alpha)
        if not 0 <= p_sel <= 1:
            raise ValueError(f"p_sel must be from 0 to 1, got {p_sel}")
        self.p_sel = float(p_sel)

    def partners(self, same_label: Tensor, same_domain: Tensor) -> Tensor:
        if torch.rand(()) < self.p_sel:
            return same_label & ~same_domain
        return same_domain & ~same_label
