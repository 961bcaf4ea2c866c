"""Of detections that lie close together, the best."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

_BLOCK = 1024  # points decided upon together; all pairs among them, half a million at most, are in memory


def suppress_within_radius(points: ArrayLike, scores: ArrayLike, radius: float) -> np.ndarray:
    """One detection where several lie close together: the one of the highest score.

    Greedy: from the highest score to the lowest, a point is kept unless a kept one lies within the radius, at exactly
    the radius included; of equal scores the lower index goes first. Classes play no part: with the points of all
    classes together, a cell gets one answer. The work grows with the number of points, however crowded they are,
    because no more than a few kept points lie within the radius of any one.

    Args:
        points: (n, 2), in any unit.
        scores: (n,), of any range.
        radius: in the unit of the points, not negative.

    Returns:
        indices of the points that are kept, int64, from the highest score to the lowest.

    Raises:
        ValueError: when shapes do not fit, a coordinate or score is not finite or the radius is negative.
    """
    points, scores = np.asarray(points, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if not points.size:
        points = points.reshape(-1, 2)  # an empty list, too, is no points
    if scores.ndim != 1 or points.shape != (len(scores), 2):
        raise ValueError(f"points must be (n, 2) and scores (n,), got {points.shape} and {scores.shape}.")
    if not (np.isfinite(points).all() and np.isfinite(scores).all()):
        raise ValueError("points and scores must be finite, some are NaN or infinite.")
    if not 0 <= radius < np.inf:
        raise ValueError(f"radius must be a finite number of at least 0, got {radius}.")
    order = np.argsort(-scores, kind="stable")
    points = points[order]
    tree = cKDTree(points)
    undecided = np.ones(len(points), dtype=bool)
    kept = []
    for start in range(0, len(points), _BLOCK):
        block = start + np.flatnonzero(undecided[start : start + _BLOCK])
        if len(block):
            within = cKDTree(points[block])
            block = block[_first_come(len(block), within.query_pairs(radius, output_type="ndarray"))]
            near = cKDTree(points[block]).sparse_distance_matrix(tree, radius, output_type="ndarray")
            undecided[near["j"]] = False
            kept.append(block)
    return order[np.concatenate(kept)] if kept else order


def _first_come(count: int, pairs: np.ndarray) -> np.ndarray:
    """Which of so many are kept, (count,), if the second of a pair (i, j), i < j, gives way where the first is kept.

    All who wait for no one before them are kept at once, and then those who are near them go: a few rounds.
    """
    kept, undecided = np.zeros(count, dtype=bool), np.ones(count, dtype=bool)
    while undecided.any():
        free = undecided.copy()
        free[pairs[:, 1]] = False
        kept |= free
        undecided &= ~free
        undecided[pairs[free[pairs[:, 0]], 1]] = False
        pairs = pairs[undecided[pairs].all(axis=1)]
    return kept
