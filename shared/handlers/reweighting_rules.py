"""The rules of Willoughby and Voiculescu, arXiv 2406.08217: TCF, PCF and CBS, and static weights beside them.

Symbols: see `class_reweighting`. Shapes: T evaluations, N classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..utils import DataError, flag
from .class_reweighting import ClassReweighting


def plateaued_class(
    scores_TN: Tensor,
    frozen_N: Tensor,
    last_firing: int = 0,
    window: int = 3,
    tolerance: float = 1e-4,
    trigger: str = "decline",
) -> int | None:
    """The class that plateau class freezing freezes now, or None.

    Only the best of the classes that are not frozen is looked at: i = argmax `S_ij` (the first of equals). With t in
    [u, j], where t = 0 does not exist:

    * `"decline"` (the paper's formula): max of `S_it` over all t, less max over the t >= j - window, exceeds the
      tolerance.
    * `"stagnation"`: max over the last `window` evaluations exceeds the max over those before by at most the
      tolerance. There must be at least one before.

    A NaN is the score of an absent class: it is no candidate now, and is left out of every maximum.

    Args:
        scores_TN: the scores of all evaluations up to now.
        frozen_N: which classes are frozen.
        last_firing: u.
        window: delta, in evaluations.
        tolerance: epsilon, in units of the score.
        trigger: `"decline"` or `"stagnation"`.
    """
    candidates = scores_TN[-1].nan_to_num(nan=-math.inf).masked_fill(frozen_N, -math.inf)
    best = int(candidates.argmax())
    if candidates[best] == -math.inf:
        return None
    history = scores_TN[max(last_firing, 1) - 1 :, best].nan_to_num(nan=-math.inf)
    if trigger == "decline":
        fires = history.max() - history[-(window + 1) :].max() > tolerance
    else:
        before = history[:-window]
        seen = len(before) > 0 and before.max() > -math.inf
        fires = seen and history[-window:].max() - before.max() <= tolerance
    return best if fires else None


class StaticClassWeights(ClassReweighting):
    """No rule: weights that stay as given, all 1 by default. What the rules are compared with.

    It is used and keeps scores as the rules do, and never fires.

    Args:
        weights: N numbers above 0, as `shared.losses.prevalence_weights` gives them; ones if None.
        others: see `ClassReweighting`.

    Raises:
        DataError: when there are not N weights, or one is not a number above 0.
    """

    def __init__(
        self,
        loss: nn.Module | None = None,
        *,
        metric_name: str = "val_class_dice",
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(loss, metric_name=metric_name, num_classes=num_classes, class_names=class_names)
        if weights is not None:
            if len(weights) != self.num_classes or not all(math.isfinite(w) and w > 0 for w in weights):
                raise DataError(f"weights is {list(weights)}, expected {self.num_classes} numbers above 0.")
            self._weights = torch.tensor(list(weights), dtype=torch.float32)
            self._publish()

    def _reweight(self, scores: Tensor) -> bool:
        return False

    def report(self) -> None:
        """Nothing to say: that the weights stayed as they were is what was asked for."""


@dataclass(kw_only=True, eq=False, repr=False)
class ThresholdClassFreezing(ClassReweighting):
    """TCF: after every evaluation `w_i` = 0.1 if `S_ij` > threshold, else 1; so a class thaws when it falls back.

    A class without a score keeps its weight. It fires in an evaluation in which some class's weight changes.

    Args:
        threshold: score above which a class is frozen.
        others: see `ClassReweighting`.
    """

    threshold: float = 0.9

    _deciding = ("threshold",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {self.threshold}.")

    def _reweight(self, scores: Tensor) -> bool:
        frozen = torch.where(scores.isnan(), self._frozen, scores > self.threshold)
        fired = not torch.equal(frozen, self._frozen)
        self._frozen = frozen
        self._weights = torch.where(frozen, self.frozen_weight, 1.0).float()
        return fired


@dataclass(kw_only=True, eq=False, repr=False)
class PlateauClassFreezing(ClassReweighting):
    """PCF: when the best class not yet frozen has passed its best, freeze it: `w_i` = 0.1. Nothing thaws.

    At most one class is frozen a firing; `plateaued_class` says which and when.

    Args:
        trigger: `"decline"`, the paper's formula, or `"stagnation"`; see `plateaued_class`.
        window: delta, in evaluations; at least 1 for stagnation.
        tolerance: epsilon, in units of the score. Choose it small: curves that rise smoothly decline little.
        others: see `ClassReweighting`.
    """

    trigger: str = "decline"
    window: int = 3
    tolerance: float = 1e-4

    _deciding = ("trigger", "window", "tolerance")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trigger not in ("decline", "stagnation"):
            raise ValueError(f'trigger must be "decline" or "stagnation", got "{self.trigger}".')
        least = int(self.trigger == "stagnation")
        if self.window < least or self.window != int(self.window):
            raise ValueError(f"window must be a whole number, at least {least}, got {self.window}.")
        if self.tolerance < 0:
            raise ValueError(f"tolerance must not be negative, got {self.tolerance}.")
        self.window = int(self.window)

    def _reweight(self, scores: Tensor) -> bool:
        best = plateaued_class(self._scores, self._frozen, self.last_firing, self.window, self.tolerance, self.trigger)
        if best is not None:
            self._frozen[best] = True
            self._weights[best] = self.frozen_weight
        return best is not None


@dataclass(kw_only=True, eq=False, repr=False)
class ClassBoostStrategy(PlateauClassFreezing):
    """CBS: freezes as PCF does, and boosts the others as it fires: `w_k` = min(1 / (`S_kj` + zeta), 2).

    Between firings the weights stay. A class without a score keeps its weight. The weights lie in [0.1, 2].

    Cumulative, which the paper names as future work and leaves open, a firing multiplies the weight that a class has by
    this boost: `w_k` = min(`w_k` · min(1 / (`S_kj` + zeta), 2), most). So weights tell a class that was weak at one
    firing from one that stays weak: at 0 its weight doubles each time. They lie in [0.1, most].

    Args:
        zeta: added to a score before its inverse is taken.
        max_weight: upper limit of a boost, at least 1.
        cumulative: whether boosts are multiplied.
        most: upper limit of a cumulative weight, at least `max_weight`.
        others: see `PlateauClassFreezing` and `ClassReweighting`.
    """

    zeta: float = 1e-3
    max_weight: float = 2.0
    cumulative: bool = False
    most: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.cumulative = flag("cumulative", self.cumulative)
        if self.zeta < 0 or self.max_weight < 1:
            given = f"{self.zeta} and {self.max_weight}"
            raise ValueError(f"zeta must not be negative and max_weight at least 1, got {given}.")
        if self.most < self.max_weight:
            raise ValueError(f"most must be at least max_weight, {self.max_weight}, got {self.most}.")

    def _reweight(self, scores: Tensor) -> bool:
        fired = super()._reweight(scores)
        if fired:
            boosted = ~self._frozen & ~scores.isnan()
            boosts = (1 / (scores[boosted] + self.zeta)).clamp(max=self.max_weight)
            if self.cumulative:
                boosts = (self._weights[boosted] * boosts).clamp(max=self.most)
            self._weights[boosted] = boosts.float()
        return fired
