from __future__ import annotations

import math

import numpy as np
import pytest

from shared.inferers import suppress_within_radius


def candidates(n: int = 400, side: float = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((n, 2)) * side, rng.random(n)


def pair_by_pair(points: np.ndarray, scores: np.ndarray, radius: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (-scores[i], i)):
        if all(math.dist(points[i], points[k]) > radius for k in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("side", [50, 300, 3000])
def test_it_is_its_definition(side: float) -> None:
    points, scores = candidates(side=side)
    assert suppress_within_radius(points, scores, 25).tolist() == pair_by_pair(points, scores, 25)
    points, scores = np.round(points / 5) * 5, np.round(scores * 4)  # equal places, scores and distances of exactly 25
    assert suppress_within_radius(points, scores, 25).tolist() == pair_by_pair(points, scores, 25)


def test_by_hand() -> None:
    points = [[0, 0], [15, 20], [30, 40], [90, 90], [90, 90], [90, 116]]
    scores = [0.7, 0.9, 0.8, 0.3, 0.3, 0.2]
    # the second takes both of its neighbours at exactly 25; of two at one place the first stays; 26 is far enough
    assert suppress_within_radius(points, scores, 25).tolist() == [1, 3, 5]
    # a point that is suppressed suppresses nothing
    assert suppress_within_radius([[0, 0], [20, 0], [40, 0]], [0.9, 0.8, 0.7], 25).tolist() == [0, 2]
    assert suppress_within_radius(points, scores, 0).tolist() == [1, 2, 0, 3, 5]


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_points_does_not_matter(seed: int) -> None:
    points, scores = candidates(seed=seed)
    order = np.random.default_rng(seed + 100).permutation(len(points))
    again = order[suppress_within_radius(points[order], scores[order], 25)]
    assert again.tolist() == suppress_within_radius(points, scores, 25).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_what_stays_is_apart_and_what_goes_has_a_better_neighbour(seed: int) -> None:
    points, scores = candidates(seed=seed)
    kept = suppress_within_radius(points, scores, 25)
    distance = np.hypot(*(points[:, None] - points[kept]).transpose(2, 0, 1))
    apart = distance[kept]
    assert apart[~np.eye(len(kept), dtype=bool)].min() > 25
    dropped = np.setdiff1d(np.arange(len(points)), kept)
    assert 0 < len(kept) < len(dropped)
    better = (distance <= 25) & (scores[kept] > scores[:, None])
    assert better[dropped].any(axis=1).all()
    assert (np.diff(scores[kept]) < 0).all()


def test_nothing_and_one() -> None:
    for nothing in ([], np.empty((0, 2))):
        kept = suppress_within_radius(nothing, [], 25)
        assert kept.shape == (0,)
        assert np.issubdtype(kept.dtype, np.integer)  # it can be an index
    assert suppress_within_radius([[3, 4]], [0.1], 25).tolist() == [0]


@pytest.mark.parametrize(
    ("points", "scores", "radius", "message"),
    [
        ([[0, 0]], [0.5, 0.6], 25, r"got \(1, 2\) and \(2,\)"),
        ([[0, 0, 9]], [0.5], 25, r"got \(1, 3\)"),
        ([], [0.5], 25, r"got \(0, 2\) and \(1,\)"),
        ([[0, math.nan]], [0.5], 25, "points and scores must be finite"),
        ([[0, 0]], [math.nan], 25, "points and scores must be finite"),
        ([[0, 0]], [0.5], -1, "radius .* got -1"),
        ([[0, 0]], [0.5], math.nan, "radius .* got nan"),
    ],
)
def test_bad_input(points: list, scores: list, radius: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suppress_within_radius(points, scores, radius)
