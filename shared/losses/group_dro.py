from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .domain_loss import DomainLoss, DomainPart


class GroupDROLoss(DomainLoss):
    """Group distributionally robust optimisation (Sagawa et al., arXiv 1911.08731, algorithm 1).

        q_g ← q_g exp(η L_g) / Σ_h q_h exp(η L_h),    loss = Σ_g q_g L_g

    with L_g the mean cross-entropy of a group in the batch; q starts at 1 / G, has no gradient and moves before it is
    used. Where the paper is silent: q of a group that is absent moves with the normalisation alone, and the loss is
    that of the groups which are there, by the sum of their q.

    Args:
        domains, pos_weight: see `DomainLoss`.
        eta: step size of q, above 0.
        by_label: groups are the two classes of each domain, as in the paper, instead of domains.

    Attributes:
        q: (G,), or (2 G,) with the negatives of each domain before its positives; belongs into checkpoints.
    """

    takes_any_batch = True

    def __init__(
        self, domains: Sequence[str], pos_weight: float = 1.0, eta: float = 0.01, by_label: bool = False
    ) -> None:
        super().__init__(domains, pos_weight)
        if not eta > 0:
            raise ValueError(f"eta must be above 0, got {eta}")
        self.eta, self.by_label = float(eta), by_label
        groups = len(self.domains) * (2 if by_label else 1)
        self.register_buffer("q", torch.full((groups,), 1 / groups))

    def extra_repr(self) -> str:
        return f"eta={self.eta}, by_label={self.by_label}"

    def combine(self, parts: Sequence[DomainPart]) -> Tensor:
        members = [
            member
            for part in parts
            for member in ((part.target <= 0.5, part.target > 0.5) if self.by_label else (part.target >= 0,))
        ]
        losses = [part.losses for part in parts for _ in range(len(members) // len(parts))]
        counts = torch.stack([member.sum() for member in members])
        sums = torch.stack([(own * member).sum() for own, member in zip(losses, members, strict=True)])
        means = sums / counts.clamp(min=1)
        if self.training:
            q = self.q * torch.exp(self.eta * means.detach()).to(self.q.dtype)
            self.q.copy_(q / q.sum())
        q = self.q * (counts > 0)
        return (q / q.sum() * means).sum()
