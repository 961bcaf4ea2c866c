from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree


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
    tree = cKDTree(points)
    undecided = np.ones(len(points), dtype=bool)
    kept = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if undecided[i]:
            kept.append(i)
            undecided[tree.query_ball_point(points[i], radius)] = False
    return np.array(kept, dtype=np.int64)
