from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .domain_loss import DomainLoss, DomainPart, mean_losses


class VRExLoss(DomainLoss):
    """Variance risk extrapolation (Krueger et al., arXiv 2003.00688, equation 8), with the mean in place of the sum.

        loss = mean_g L_g + β mean_g (L_g − mean L)²

    Args:
        domains, pos_weight: see `DomainLoss`.
        beta: β behind the warm-up; 1 in it, as in DomainBed.
    """

    def __init__(self, domains: Sequence[str], pos_weight: float = 1.0, beta: float = 10.0) -> None:
        super().__init__(domains, pos_weight)
        if not beta >= 0:
            raise ValueError(f"beta must be at least 0, got {beta}")
        self.beta, self.warming_up = float(beta), False

    def extra_repr(self) -> str:
        return f"beta={self.beta}"

    def combine(self, parts: Sequence[DomainPart]) -> Tensor:
        losses = mean_losses(parts)
        return losses.mean() + (1.0 if self.warming_up else self.beta) * losses.var(correction=0)
