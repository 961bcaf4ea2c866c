from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..utils import DataError
from .bootstrap import Interval, bootstrap_intervals, number_groups
from .thresholds import candidate_thresholds

SCORES = ("accuracy", "balanced_accuracy", "auc", "f1", "sensitivity", "specificity")
COUNTS = ("tp", "fp", "tn", "fn")


def _checked(prob: ArrayLike, label: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Scores as float64 and labels as bool, both (n,), n > 0."""
    prob, label = np.asarray(prob, dtype=np.float64), np.asarray(label)
    if prob.ndim != 1 or prob.shape != label.shape or not len(prob):
        raise ValueError(f"scores and labels must be (n,) with n > 0, got {prob.shape} and {label.shape}.")
    if not np.isfinite(prob).all():
        raise ValueError(f"scores must be finite, {np.count_nonzero(~np.isfinite(prob))} of {len(prob)} are not.")
    if not np.isin(label, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {np.unique(label)[:20]}.")
    return prob, label.astype(bool)


def weighted_auc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float | np.ndarray:
    """Area under the ROC curve: how often a positive one scores higher than a negative one, ties counting half.

    It is the Mann-Whitney statistic (Hanley and McNeil, Radiology 1982;143:29-36); a pair weighs the product of its
    two weights. So whole numbers as weights are the same as repeating the items.

    Args:
        scores: (n,), higher is more likely positive.
        labels: (n,) of 0 and 1.
        weights: (R, n), not negative: one row for each of R resamples; None: each item counts once.

    Returns:
        (R,), or a float where `weights` is None; NaN where a class has no weight.

    Raises:
        ValueError: when shapes do not fit, a score is not finite or a label is neither 0 nor 1.
    """
    scores, labels = _checked(scores, labels)
    rows = np.ones((1, len(scores))) if weights is None else np.asarray(weights)
    if rows.ndim != 2 or rows.shape[1] != len(scores):
        raise ValueError(f"weights must be (R, {len(scores)}), got {rows.shape}.")
    positive, negative = np.flatnonzero(labels), np.flatnonzero(~labels)
    negative = negative[np.argsort(scores[negative])]
    # how many negative ones score lower than each positive one, and how many no higher
    lower, no_higher = (np.searchsorted(scores[negative], scores[positive], side) for side in ("left", "right"))
    below = np.zeros((len(rows), len(negative) + 1))  # weight of the negative ones in front of each
    np.cumsum(rows[:, negative], axis=1, out=below[:, 1:])
    own = rows[:, positive].astype(np.float64)
    won = np.einsum("rp,rp->r", own, below[:, lower]) + np.einsum("rp,rp->r", own, below[:, no_higher])
    with np.errstate(invalid="ignore"):
        auc = won / (2 * own.sum(axis=1) * below[:, -1])
    return float(auc[0]) if weights is None else auc


def roc_curve(prob: ArrayLike, label: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve from (0, 0) to (1, 1): 1 - specificity and sensitivity at each threshold, from high to low.

    Args:
        prob: (n,).
        label: (n,) of 0 and 1, both of them.

    Returns:
        Two arrays (k,), k - 1 the number of distinct probabilities.
    """
    prob, label = _checked(prob, label)
    distinct, inverse = np.unique(-prob, return_inverse=True)
    rates = (np.cumsum(np.bincount(inverse[own], minlength=len(distinct))) / own.sum() for own in (~label, label))
    false_positive, true_positive = (np.concatenate([[0.0], rate]) for rate in rates)
    return false_positive, true_positive


def _counts(prob: np.ndarray, label: np.ndarray, threshold: float, group: np.ndarray, groups: int) -> np.ndarray:
    """tp, fp, tn and fn of each group, (groups, 4)."""
    called = prob >= threshold
    cells = (called & label, called & ~label, ~called & ~label, ~called & label)
    return np.stack([np.bincount(group[cell], minlength=groups) for cell in cells], axis=1)


def _scores_of_counts(counts: np.ndarray) -> dict[str, np.ndarray]:
    """All scores but the AUC, each (R,), from counts (R, 4)."""
    tp, fp, tn, fn = counts.T.astype(np.float64)
    with np.errstate(invalid="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        return {
            "accuracy": (tp + tn) / (tp + fp + tn + fn),
            "balanced_accuracy": (sensitivity + specificity) / 2,
            # with no positive patch, the ratio would be 0 or undefined by the number of false alarms alone
            "f1": np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan),
            "sensitivity": sensitivity,
            "specificity": specificity,
        }


def classification_scores(prob: ArrayLike, label: ArrayLike, threshold: float = 0.5) -> dict[str, Any]:
    """Scores of a binary classifier. A patch is called positive when its probability is at least the threshold.

    With tp and fn the positive patches called positive and negative, fp and tn the negative ones:

    * `accuracy`: (tp + tn) / n
    * `sensitivity`: tp / (tp + fn); NaN without positive patches
    * `specificity`: tn / (tn + fp); NaN without negative patches
    * `balanced_accuracy`: (sensitivity + specificity) / 2; NaN where one of them is
    * `f1`: 2 tp / (2 tp + fp + fn), of the positive class; NaN without positive patches
    * `auc`: area under the ROC curve, see `weighted_auc`, whatever the threshold; NaN where a class has no patches

    Args:
        prob: (n,), in [0, 1].
        label: (n,) of 0 and 1.
        threshold: in [0, 1].

    Returns:
        These, as floats, and `tp`, `fp`, `tn` and `fn`, as ints.

    Raises:
        ValueError: when shapes do not fit, a probability is not finite or a label is neither 0 nor 1.
    """
    prob, label = _checked(prob, label)
    counts = _counts(prob, label, threshold, np.zeros(len(prob), dtype=int), 1)
    scores = {name: float(value[0]) for name, value in _scores_of_counts(counts).items()}
    scores["auc"] = weighted_auc(prob, label)
    return {name: scores[name] for name in SCORES} | dict(zip(COUNTS, counts[0].tolist(), strict=True))


def calibration_error(prob: ArrayLike, label: ArrayLike, bins: int = 10) -> float:
    """How far probabilities are from shares: the expected calibration error (Guo et al., arXiv 1706.04599).

    Probabilities are sorted into bins of equal width; in each, the mean probability is compared with the share of
    positive patches, and the differences are averaged, weighted by the number of patches. 0 is perfect.

    Args:
        prob: (n,), in [0, 1], of the positive class.
        label: (n,) of 0 and 1.
        bins: 1 or more.

    Returns:
        In [0, 1].

    Raises:
        ValueError: when shapes do not fit, a probability is out of range or a label is neither 0 nor 1.
    """
    prob, label = _checked(prob, label)
    if prob.min() < 0 or prob.max() > 1:
        raise ValueError(f"probabilities must be in [0, 1], got {prob.min()} to {prob.max()}.")
    number = np.minimum((prob * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(number, weights=prob - label, minlength=bins)).sum() / len(prob))


def scores_of_draws(
    prob: ArrayLike, label: ArrayLike, group: np.ndarray, groups: int, threshold: float = 0.5
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """What gives each score of `classification_scores`, (R,), of draws of groups, (R, groups): how often each is drawn.

    Args:
        prob: (n,), in [0, 1].
        label: (n,) of 0 and 1.
        group: (n,), the number of the slide of each patch, see `number_groups`.
        groups: how many slides there are.
        threshold: in [0, 1].

    Raises:
        ValueError: when shapes do not fit, a probability is not finite or a label is neither 0 nor 1.
    """
    prob, label = _checked(prob, label)
    counts = _counts(prob, label, threshold, group, groups)

    def score(draws: np.ndarray) -> dict[str, np.ndarray]:
        return _scores_of_counts(draws @ counts) | {"auc": weighted_auc(prob, label, draws[:, group])}

    return score


def bootstrap_scores(
    prob: ArrayLike,
    label: ArrayLike,
    groups: Sequence[Any],
    threshold: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """95 % bootstrap intervals over slides of the scores of `classification_scores`.

    Whole slides are drawn with replacement, as many as there are, so the patches of one slide, which resemble each
    other, stay together. Resamples in which a score is undefined are left out.

    Args:
        prob: (n,), in [0, 1].
        label: (n,) of 0 and 1.
        groups: the slide of each patch, n names.
        threshold: in [0, 1].
        resamples: number of resamples.
        seed: of the draws.

    Returns:
        For each score `interval` as [low, high] or None, `resamples_left_out`, and `no_interval_because` where the
        interval is None.

    Raises:
        ValueError: as for `classification_scores`, or when `groups` has another length.
    """
    if len(groups) != len(prob):
        raise ValueError(f"groups must name the slide of each of {len(prob)} patches, got {len(groups)}.")
    group, n = number_groups(groups)
    score = scores_of_draws(prob, label, group, n, threshold)
    found = bootstrap_intervals(score, n, len(prob), resamples, seed, "all patches are from a single slide")
    return {name: found[name] for name in SCORES}


def best_threshold(prob: ArrayLike, label: ArrayLike) -> tuple[float, float]:
    """The threshold of the best balanced accuracy, and that balanced accuracy.

    It lies midway between two neighbours among the probabilities (and 0 and 1), so that no rounding moves a patch to
    its other side. Of equally good ones it is the one nearest to 0.5.

    Args:
        prob: (n,), in [0, 1], of validation patches.
        label: (n,) of 0 and 1, both of them.

    Returns:
        The threshold, in (0, 1), and the balanced accuracy, in [0.5, 1].

    Raises:
        ValueError: when shapes do not fit, a probability is out of range or a label is neither 0 nor 1.
        DataError: when a class has no patches.
    """
    prob, label = _checked(prob, label)
    candidates = candidate_thresholds(prob)
    if label.all() or not label.any():
        raise DataError(
            f"A threshold cannot be chosen: all {len(label)} validation patches are "
            f"{'positive' if label.all() else 'negative'}, expected both classes. Validate on more slides."
        )
    positive, negative = np.sort(prob[label]), np.sort(prob[~label])
    tp = len(positive) - np.searchsorted(positive, candidates)
    tn = np.searchsorted(negative, candidates)
    doubled = tp * len(negative) + tn * len(positive)  # whole numbers: equal ones are equal
    best = candidates[doubled == doubled.max()]
    accuracy = doubled.max() / (2 * len(positive) * len(negative))
    return float(best[np.argmin(np.abs(best - 0.5))]), float(accuracy)
