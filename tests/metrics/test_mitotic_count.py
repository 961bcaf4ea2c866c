from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from shared.metrics import mitotic_count

MM = 1000.0  # µm per pixel: a pixel is a millimetre wide


def count_in(points: np.ndarray, outline: tuple[float, float, float, float]) -> int:
    x1, y1, x2, y2 = outline
    return sum(x1 <= x <= x2 and y1 <= y <= y2 for x, y in points.tolist())


def tissue_in(mask: np.ndarray, scale: float, outline: tuple[float, float, float, float]) -> float:
    """Share of tissue, pixel of the mask by pixel of the mask."""
    x1, y1, x2, y2 = outline
    area = 0.0
    for row, column in zip(*np.nonzero(mask), strict=True):
        wide = min(x2, (column + 1) * scale) - max(x1, column * scale)
        high = min(y2, (row + 1) * scale) - max(y1, row * scale)
        area += max(wide, 0) * max(high, 0)
    return area / ((x2 - x1) * (y2 - y1))


def brute_force(points: np.ndarray, size: tuple[int, int], step: float, **kwargs: Any) -> tuple[int, float, float]:
    """The most figures in a rectangle of 4 × 3, and of those the most tissue, over all places on a fine grid."""
    best = (-1, 0.0)
    for x, y in itertools.product(np.arange(0, size[0] - 4 + step, step), np.arange(0, size[1] - 3 + step, step)):
        outline = (x, y, x + 4, y + 3)
        share = tissue_in(kwargs["mask"], kwargs["scale"], outline) if "mask" in kwargs else 1.0
        if share >= kwargs.get("min_tissue", 0) - 1e-9:
            best = max(best, (count_in(points, outline), round(share, 6)))
    return best


@pytest.mark.parametrize("seed", range(8))
def test_no_place_has_more(seed: int) -> None:
    """Coordinates in quarters are exact, and so is the grid of all places where anything changes."""
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(4, 12)), int(rng.integers(3, 12)))
    points = rng.integers(0, np.multiply(size, 4) + 1, (int(rng.integers(0, 30)), 2)) / 4
    found = mitotic_count(points, size, MM, area_mm2=12)
    assert found.count == brute_force(points, size, 0.25)[0] == count_in(points, found.outline)
    x1, y1, x2, y2 = found.outline
    assert (x2 - x1, y2 - y1) == pytest.approx((4, 3))
    assert min(x1, y1) >= 0
    assert x2 <= size[0] + 1e-9
    assert y2 <= size[1] + 1e-9
    assert (found.area_mm2, found.tissue, found.whole_image, found.enough_tissue) == (12, None, False, True)


@pytest.mark.parametrize("seed", range(8))
def test_no_place_with_enough_tissue_has_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, scale = (9, 8), 1.5
    mask = rng.random((6, 6)) < 0.4
    points = rng.integers(0, np.multiply(size, 2) + 1, (8, 2)) / 2
    options = {"mask": mask, "scale": scale, "min_tissue": 0.6}
    found = mitotic_count(points, size, MM, 12, tissue=mask, tissue_scale=scale, min_tissue=0.6)
    count, share = brute_force(points, size, 0.5, **options)
    assert found.enough_tissue == (count >= 0)
    if not found.enough_tissue:
        count, share = brute_force(points, size, 0.5, **{**options, "min_tissue": 0})
    assert (found.count, found.tissue) == (count, pytest.approx(share, abs=2e-6))
    assert found.count == count_in(points, found.outline)
    assert found.tissue == pytest.approx(tissue_in(mask, scale, found.outline), abs=1e-6)


def test_both_of_these_cases_occur() -> None:
    """The test above would say less if its masks were all alike."""
    masks = [np.random.default_rng(seed).random((6, 6)) < 0.4 for seed in range(8)]
    results = {mitotic_count([], (9, 8), MM, 12, tissue=m, tissue_scale=1.5, min_tissue=0.6) for m in masks}
    assert {result.enough_tissue for result in results} == {True, False}


def test_tissue_comes_before_figures_and_decides_between_equals() -> None:
    mask = np.zeros((10, 20), dtype=bool)
    mask[:, 10:] = True
    glass, one = [[1, 1], [2, 2]], [[15, 5]]
    assert mitotic_count(glass + one, (20, 10), MM, 12).count == 2
    found = mitotic_count(glass + one, (20, 10), MM, 12, tissue=mask)
    assert (found.count, found.tissue) == (1, 1.0)
    assert mitotic_count(glass + one, (20, 10), MM, 12, tissue=mask, min_tissue=0).count == 2
    # nothing to count: in the tissue, topmost and leftmost
    assert mitotic_count([], (20, 10), MM, 12, tissue=mask).outline == (10, 0, 14, 3)
    assert mitotic_count([], (20, 10), MM, 12).outline == (0, 0, 4, 3)


def test_a_figure_at_the_border_of_the_tissue_gets_a_rectangle_on_the_tissue() -> None:
    mask = np.zeros((10, 20), dtype=bool)
    mask[:5, :10] = True
    found = mitotic_count([[9.9, 4.9]], (20, 10), MM, 12, tissue=mask, min_tissue=1)
    assert (found.count, found.tissue, found.enough_tissue) == (1, 1.0, True)


def test_two_square_millimetres_of_four_to_three() -> None:
    x1, y1, x2, y2 = mitotic_count([], (20_000, 20_000), 0.25).outline
    assert (x2 - x1) * (y2 - y1) * 0.25e-3**2 == pytest.approx(2)
    assert (x2 - x1) / (y2 - y1) == pytest.approx(4 / 3)
    # 400x fields of a microscope or the challenge's regions are as large as the rectangle: no room to go round
    x1, y1, x2, y2 = mitotic_count([], (5000, 8000), 0.25, aspect=4 / 3).outline
    assert (x1, x2) == (0, 5000)
    assert y2 - y1 == pytest.approx(6400)
    x1, y1, x2, y2 = mitotic_count([], (32_000, 1000), 0.25, aspect=1).outline
    assert (x1, x2, y1, y2) == (0, 32_000, 0, 1000)


def test_an_image_of_less_is_counted_as_it_is() -> None:
    mask = np.ones((50, 50), dtype=bool)
    mask[:, 30:] = False
    points = [[5, 5], [999, 999], [1003, -4]]  # the last one is a box that reaches beyond the border
    found = mitotic_count(points, (1000, 1000), 0.25, tissue=mask, tissue_scale=20, min_tissue=0.7)
    assert found.outline == (0, 0, 1000, 1000)
    assert (found.count, found.area_mm2, found.whole_image) == (3, 0.0625, True)
    assert (found.tissue, found.enough_tissue) == (pytest.approx(0.6), False)
    assert mitotic_count([], (1000, 1000), 0.25).tissue is None


def test_a_figure_beyond_the_border_counts_as_on_it() -> None:
    found = mitotic_count([[-0.5, 5], [20.5, 5], [3, 10.5]], (20, 10), MM, 12)
    assert (found.count, found.outline) == (1, (0, 2, 4, 5))
    assert mitotic_count([[-0.5, 5], [-0.5, 6], [3, 6]], (20, 10), MM, 12).count == 3


def test_points_on_all_four_edges_count_whatever_the_rounding() -> None:
    for shift in np.random.default_rng(0).uniform(0, 0.3, 20):
        corners = np.array([[0, 0], [4, 0], [0, 3], [4, 3], [2, 1]]) * 0.1 + shift
        assert mitotic_count(corners, (2000, 2000), MM, 0.12).count == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": [[1, 2, 3]]}, r"\(n, 2\), got the shape \(1, 3\)"),
        ({"points": [[1, np.nan]]}, "finite"),
        ({"mpp": 0}, "'mpp': 0"),
        ({"area_mm2": -1}, "'area_mm2': -1"),
        ({"aspect": np.inf}, "'aspect': inf"),
        ({"min_tissue": 1.5}, "min_tissue.*1.5"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mitotic_count(**{"points": [], "size": (10, 10), "mpp": 1.0, **changes})
