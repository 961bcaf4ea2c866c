from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from .domain_loss import DomainLoss, DomainPart, mean_losses


class CORALLoss(DomainLoss):
    """Correlation alignment (Sun and Saenko, arXiv 1607.01719, equation 1), between all pairs of domains.

        loss = mean_g L_g + λ mean over pairs (g, h) of ‖C_g − C_h‖² / (4 d²)

    with C_g the covariance of a domain's features in the batch, (d, d), what the last linear layer reads. A domain with
    fewer than two samples in the batch is in no pair.

    Args:
        domains, pos_weight: see `DomainLoss`.
        network: whose features are looked at.
        weight: λ, at least 0.
    """

    def __init__(
        self, domains: Sequence[str], network: nn.Module, pos_weight: float = 1.0, weight: float = 1.0
    ) -> None:
        super().__init__(domains, pos_weight, network)
        if not weight >= 0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        self.weight = float(weight)

    def extra_repr(self) -> str:
        return f"weight={self.weight}"

    def combine(self, parts: Sequence[DomainPart]) -> Tensor:
        covariances = [_covariance(part.features) for part in parts if len(part.losses) > 1]
        distances = [(a - b).square().mean() / 4 for a, b in combinations(covariances, 2)]
        penalty = torch.stack(distances).mean() if distances else 0.0
        return mean_losses(parts).mean() + self.weight * penalty


def _covariance(features: Tensor) -> Tensor:
    centred = features - features.mean(dim=0)
    return centred.T @ centred / (len(features) - 1)  # torch.cov has the host wait for a GPU
