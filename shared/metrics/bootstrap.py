"""Percentile bootstrap (Efron and Tibshirani 1993, section 13.3): what is drawn, and the 95 % intervals of the scores.

What resembles each other is drawn together: all organs of a case, all patches or tiles of a slide.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np

# Weights that are worked on at a time, 32 MB of them, however many resamples of however many patches there are.
BLOCK = 2**22


class Interval(TypedDict):
    """Of a score; `interval` is [low, high], or None, and `no_interval_because` there."""

    interval: list[float] | None
    resamples_left_out: int
    no_interval_because: NotRequired[str]


def draw(count: int, resamples: int, seed: int | np.random.Generator) -> np.ndarray:
    """How often each of `count` groups is in each resample of as many of them, with replacement, (resamples, count)."""
    return np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=resamples)


def percentiles(scores: np.ndarray) -> list[float] | None:
    """The 2.5th and the 97.5th of the resamples' scores, those that are NaN left out; None where all are."""
    defined = scores[~np.isnan(scores)]
    return np.percentile(defined, [2.5, 97.5]).tolist() if len(defined) else None


def number_groups(groups: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    """The number of each item's group, (n,), and how many groups there are."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[name] for name in groups], dtype=np.int64), len(numbers)


def score_draws(
    score: Callable[[np.ndarray], Mapping[str, np.ndarray]], draws: np.ndarray, items: int
) -> dict[str, np.ndarray]:
    """What `score` gives for draws (R, groups), each (R,), a block of them at a time; see `bootstrap_intervals`."""
    step = max(1, BLOCK // max(1, items))
    parts = [score(draws[i : i + step]) for i in range(0, max(1, len(draws)), step)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def bootstrap_intervals(
    score: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    groups: int,
    items: int,
    resamples: int,
    seed: int,
    too_few: str,
) -> dict[str, Interval]:
    """The interval of each score, from drawing as many groups as there are. Undefined resamples are left out.

    Args:
        score: gives, for draws (R, groups), the scores (R,) by name, NaN where undefined.
        groups: how many there are.
        items: how many are in them, for the memory that `score` needs.
        resamples: number of resamples; of fewer than two groups none are drawn.
        seed: of the draws.
        too_few: the reason to give where there are fewer than two groups.
    """
    draws = draw(groups, resamples, seed) if groups > 1 else np.empty((0, groups), np.int64)
    intervals = {}
    for name, values in score_draws(score, draws, items).items():
        intervals[name] = Interval(interval=percentiles(values), resamples_left_out=int(np.isnan(values).sum()))
        if intervals[name]["interval"] is None:
            intervals[name]["no_interval_because"] = too_few if groups < 2 else "undefined in every resample"
    return intervals


def _means(scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means over cases with NaN left out, (b, n), and their means over classes, (b,); NaN where nothing is.

    scores: (c, n), weights: (b, c).
    """
    present = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        means = (weights @ np.where(present, scores, 0.0)) / (weights @ present)
        there = ~np.isnan(means)
        return means, np.where(there, means, 0.0).sum(axis=1) / there.sum(axis=1)


def bootstrap_means(
    scores: np.ndarray, resamples: int = 1000, seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Mean score of each class, and the mean over classes, with 95 % bootstrap intervals over cases.

    Whole cases are drawn, so the scores of one patient stay together. A class is averaged over the cases where it has a
    score; then the classes that have a mean are averaged, each with the same weight.

    Args:
        scores: (cases, classes), NaN where a class has no score.
        resamples: number of resamples.
        seed: of the draws.

    Returns:
        A dict for each class, and one for the mean over classes: `mean` or None, `interval` as [low, high] or None,
        `cases` that have a score, and `no_interval_because` where the interval is None.
    """
    (class_means,), (mean,) = _means(scores, np.ones((1, len(scores))))
    class_resamples, mean_resamples = _means(scores, draw(len(scores), resamples, seed))

    def entry(mean: float, resampled: np.ndarray, cases: int) -> dict[str, Any]:
        reason = {0: "no case has a score", 1: "a single case has a score"}.get(cases)
        # A resample in which no case has a score has no mean.
        interval = None if reason else percentiles(resampled)
        content = {"mean": None if cases == 0 else float(mean), "interval": interval, "cases": cases}
        return content | ({"no_interval_because": reason} if reason else {})

    scored = ~np.isnan(scores)
    classes = [entry(m, r, int(c)) for m, r, c in zip(class_means, class_resamples.T, scored.sum(axis=0), strict=True)]
    return classes, entry(mean, mean_resamples, int(scored.any(axis=1).sum()))
