"""Scores beside the Dice that a re-weighting rule can follow: whether an organ is found, and how well its surface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric
from torch import Tensor

from .class_dice import ClassDice
from .segmentation import segmentation_scores


class ClassFound(ClassDice):
    """Share of the cases that show a class in which it is found: its Dice there is `least` or more.

    The mean Dice of an organ that is found well in one case of ten, and missed in nine, is that of one that is found
    badly in all. This share tells them apart.

    Args:
        least: Dice of a case from which on the class counts as found in it, above 0 and at most 1.
        others: see `ClassDice`; as there, the value is (N,), NaN for a class that no case shows.

    Raises:
        ValueError: when `least` is out of its range.
    """

    def __init__(self, num_classes: int, least: float = 0.1, **options: Any) -> None:
        if not 0 < least <= 1:
            raise ValueError(f"least must be above 0 and at most 1, got {least}.")
        self.least = least
        super().__init__(num_classes, **options)

    def _table(self) -> Tensor:
        dice = super()._table()
        return torch.where(dice.isnan(), dice, (dice >= self.least).to(dice))


class ClassSurfaceDice(ClassDice):
    """Normalised surface distance of each class, averaged over the cases that show it, as `segmentation_scores` has it.

    It is MONAI's `SurfaceDiceMetric` with `use_subvoxels=True`, but for cases whose label does not show a class, which
    take no part, whatever was predicted. A class that is shown and not predicted scores 0.

    Args:
        spacing: voxel edge of the three axes, mm.
        tolerance: in mm.
        others: see `ClassDice`; predictions and labels are 3D.
    """

    def __init__(
        self,
        num_classes: int,
        spacing: Sequence[float],
        tolerance: float = 2.0,
        output_transform: Callable = lambda x: x,
        case_transform: Callable[[Any], Sequence[str]] | None = None,
    ) -> None:
        self.spacing, self.tolerance = tuple(spacing), tolerance
        super().__init__(num_classes, output_transform, case_transform)

    def _case_metric(self) -> CumulativeIterationMetric:
        return _CaseSurfaces(self.num_classes, self.spacing, self.tolerance)


class _CaseSurfaces(CumulativeIterationMetric):
    def __init__(self, num_classes: int, spacing: tuple[float, ...], tolerance: float) -> None:
        super().__init__()
        self.num_classes, self.spacing, self.tolerance = num_classes, spacing, tolerance

    def _compute_tensor(self, y_pred: Tensor, y: Tensor, **kwargs: Any) -> Tensor:
        maps = (x[:, 0].int().cpu().numpy() for x in (y_pred, y))
        return torch.tensor([self._case(*case) for case in zip(*maps, strict=True)], device=y.device)

    def _case(self, *maps: Any) -> list[float]:
        scores = segmentation_scores(*maps, self.spacing, self.num_classes, self.tolerance)
        return [0.0 if score.status == "missed" else score.nsd for score in scores]

    def aggregate(self) -> Tensor:
        return self.get_buffer()
