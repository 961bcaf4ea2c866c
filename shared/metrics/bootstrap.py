"""Percentile bootstrap: the resamples, and the intervals that follow from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


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

    Whole cases are drawn with replacement, so the scores of one patient stay together; the interval reaches from the
    2.5th to the 97.5th percentile of the resamples' means (Efron and Tibshirani 1993, section 13.3). A class is
    averaged over the cases where it has a score; then the classes that have a mean are averaged, each with the same
    weight.

    Args:
        scores: (cases, classes), NaN where a class has no score.
        resamples: number of resamples.
        seed: of the draws.

    Returns:
        A dict for each class, and one for the mean over classes: `mean` or None, `interval` as [low, high] or None,
        `cases` that have a score, and `no_interval_because` where the interval is None.
    """
    n = len(scores)
    draws = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=resamples)
    (class_means,), (mean,) = _means(scores, np.ones((1, n)))
    class_resamples, mean_resamples = _means(scores, draws)

    def entry(mean: float, resampled: np.ndarray, cases: int) -> dict[str, Any]:
        reason = {0: "no case has a score", 1: "a single case has a score"}.get(cases)
        # A resample in which no case has a score has no mean.
        interval = None if reason else np.nanpercentile(resampled, [2.5, 97.5]).tolist()
        content = {"mean": None if cases == 0 else float(mean), "interval": interval, "cases": cases}
        return content | ({"no_interval_because": reason} if reason else {})

    scored = ~np.isnan(scores)
    classes = [entry(m, r, int(c)) for m, r, c in zip(class_means, class_resamples.T, scored.sum(axis=0), strict=True)]
    return classes, entry(mean, mean_resamples, int(scored.any(axis=1).sum()))


# Weights that are worked on at a time, 32 MB of them, however many resamples of however many patches there are.
BLOCK = 2**22


def _blocks(rows: int, length: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, length))
    return (slice(i, i + step) for i in range(0, rows, step))


def _interval(scores: np.ndarray, slides: int) -> dict[str, Any]:
    defined = scores[~np.isnan(scores)]
    if not len(defined):  # nothing is drawn from a single slide
        reason = "all patches are from a single slide" if slides == 1 else "undefined in every resample"
        return {"interval": None, "resamples_left_out": len(scores), "no_interval_because": reason}
    interval = np.percentile(defined, [2.5, 97.5]).tolist()
    return {"interval": interval, "resamples_left_out": len(scores) - len(defined)}
