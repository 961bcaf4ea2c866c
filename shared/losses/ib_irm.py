from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .domain_loss import DomainLoss, DomainPart, mean_losses


class IBIRMLoss(DomainLoss):
    """Invariant risk minimisation with an information bottleneck (Ahuja et al., arXiv 2106.06607).

        loss = mean_g L_g + λ_irm mean_g d_g(one half) d_g(other half) + λ_ib mean_g mean_channels var_g(features)

    d_g = ∂L_g(w s) / ∂w at w = 1, s being the logits: the gradient penalty of IRMv1 (Arjovsky et al., arXiv
    1907.02893), unbiased, so that it may be negative. Of the cross-entropy with the weight p of the positives it is in
    closed form the mean of s ((1 − y) σ(s) − p y (1 − σ(s))), so that one backward pass does. The halves are those of
    the domain's samples in the order of the batch, which should be shuffled; features are what the last linear layer
    reads, and their variance is the unbiased one. A domain with fewer than two samples in the batch has neither.

    Args:
        domains, pos_weight: see `DomainLoss`.
        network: whose features are looked at.
        irm_weight: λ_irm behind the warm-up; 1 in it, as in DomainBed.
        ib_weight: λ_ib behind the warm-up; 0 in it.
    """

    def __init__(
        self,
        domains: Sequence[str],
        network: nn.Module,
        pos_weight: float = 1.0,
        irm_weight: float = 100.0,
        ib_weight: float = 100.0,
    ) -> None:
        super().__init__(domains, pos_weight, network)
        if not min(irm_weight, ib_weight) >= 0:
            raise ValueError(f"irm_weight and ib_weight must be at least 0, got {irm_weight} and {ib_weight}")
        self.irm_weight, self.ib_weight, self.warming_up = float(irm_weight), float(ib_weight), False

    def extra_repr(self) -> str:
        return f"irm_weight={self.irm_weight}, ib_weight={self.ib_weight}"

    def combine(self, parts: Sequence[DomainPart]) -> Tensor:
        loss, several = mean_losses(parts), [part for part in parts if len(part.losses) > 1]
        if not several:
            return loss.mean()
        irm = torch.stack([self._irm_penalty(part) for part in several]).mean()
        ib = torch.stack([part.features.var(dim=0).mean() for part in several]).mean()
        irm_weight, ib_weight = (1.0, 0.0) if self.warming_up else (self.irm_weight, self.ib_weight)
        return loss.mean() + irm_weight * irm + ib_weight * ib

    def _irm_penalty(self, part: DomainPart) -> Tensor:
        s, y, p = part.logits, part.target, self.pos_weight.to(part.logits.dtype)
        slopes = s * ((1 - y) * torch.sigmoid(s) - p * y * torch.sigmoid(-s))
        half = len(slopes) // 2
        return slopes[:half].mean() * slopes[half:].mean()
