from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

EDGE = 1e-6  # pixels by which rounding may put a point that lies on an edge beside it


class MitoticCount(NamedTuple):
    """The mitotic figures in an area.

    Attributes:
        count: how many there are in it.
        outline: x1, y1, x2, y2 of the area, in pixels.
        area_mm2: its size.
        tissue: share of it that is tissue; None where that was not asked for.
        whole_image: the image is smaller than the area that was asked for, so that all of it was counted.
        enough_tissue: whether the share of tissue is what was asked for.
    """

    count: int
    outline: tuple[float, float, float, float]
    area_mm2: float
    tissue: float | None
    whole_image: bool
    enough_tissue: bool

    @property
    def tissue_mm2(self) -> float | None:
        """Area of the tissue in it; None where that was not asked for."""
        return None if self.tissue is None else self.tissue * self.area_mm2


class _Tissue:
    """Areas of tissue in rectangles, from a mask's sums over all rectangles that begin at its corner."""

    def __init__(self, mask: np.ndarray, scale: float) -> None:
        self.sums = np.pad(mask.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
        self.scale = scale

    def _left_of(self, x: float) -> np.ndarray:
        """In mask pixels, the tissue to the left of x above each line between two rows, (rows + 1,)."""
        last = self.sums.shape[1] - 1
        position = min(max(x / self.scale, 0.0), last)
        column = min(int(position), last - 1)
        part = position - column
        return (1 - part) * self.sums[:, column] + part * self.sums[:, column + 1]

    def areas(self, left: float, tops: np.ndarray, width: float, height: float) -> np.ndarray:
        """In pixels of the image, the tissue in a rectangle at each of several heights."""
        band = self._left_of(left + width) - self._left_of(left)
        lines = np.arange(len(band)) * self.scale
        return (np.interp(tops + height, lines, band) - np.interp(tops, lines, band)) * self.scale**2


def _edges(points: np.ndarray, side: float, length: float, lines: np.ndarray) -> np.ndarray:
    """Where a side of the rectangle can begin: between two neighbours of these no count or share is larger."""
    stops = np.concatenate([points, lines])
    return np.unique(np.concatenate([stops, stops - side, [0.0]]).clip(0, length - side))


def _densest(
    points: np.ndarray, size: Sequence[int], sides: tuple[float, float], tissue: _Tissue | None, min_tissue: float
) -> tuple[int, float, float, float] | None:
    """Count, share of tissue, left and top of the best rectangle; None where none has enough tissue."""
    width, height = sides
    rows, columns = (0, 0) if tissue is None else tissue.sums.shape
    scale = 1.0 if tissue is None else tissue.scale
    lefts = _edges(points[:, 0], width, size[0], np.arange(columns) * scale)
    tops = _edges(points[:, 1], height, size[1], np.arange(rows) * scale)
    x, y = points[np.argsort(points[:, 1])].T
    ordered = np.sort(x)
    held = np.searchsorted(ordered, lefts + width + EDGE, "right") - np.searchsorted(ordered, lefts - EDGE)
    best = None
    for i in np.argsort(-held, kind="stable"):
        left = lefts[i]
        if best and held[i] < best[0]:
            break  # no strip that is left has as many in all of its height
        strip = y[(x >= left - EDGE) & (x <= left + width + EDGE)]
        counts = np.searchsorted(strip, tops + height + EDGE, "right") - np.searchsorted(strip, tops - EDGE)
        good = np.flatnonzero(counts >= (best[0] if best else 0))
        shares = np.ones(len(good)) if tissue is None else tissue.areas(left, tops[good], *sides) / (width * height)
        good, shares = good[shares >= min_tissue - 1e-9], shares[shares >= min_tissue - 1e-9].round(6)
        if len(good):
            j = np.lexsort((tops[good], -shares, -counts[good]))[0]
            found = (int(counts[good[j]]), float(shares[j]), -float(tops[good[j]]), -float(left))
            best = max(best, found) if best else found
    return best and (best[0], best[1], -best[3], -best[2])


def mitotic_count(
    points: ArrayLike,
    size: Sequence[int],
    mpp: float,
    area_mm2: float = 2.0,
    aspect: float = 4 / 3,
    tissue: np.ndarray | None = None,
    tissue_scale: float = 1.0,
    min_tissue: float = 0.5,
) -> MitoticCount:
    """The mitotic count: figures in the densest rectangle of 2 mm², as pathologists report it.

    The rectangle is parallel to the image's borders and inside the image, its edges belong to it. Of all rectangles of
    this size that have enough tissue it is one with the most figures: none has more, wherever it lies. Of several, the
    one with the most tissue is taken (to six decimals), then the topmost, then the leftmost. Where no rectangle has
    enough tissue, the tissue is left out of account, and `enough_tissue` is false.

    An image that is too narrow or too low for the rectangle's shape gets one of the same area that fits. An image
    smaller than the area is counted as a whole, and the count is that of its own area: it is not extrapolated.

    The time grows with the square of the number of figures and of the sides of the mask: seconds for thousands.

    Args:
        points: centres of the mitotic figures, (n, 2), x and y in pixels; one beyond the border counts as on it.
        size: width and height of the image, in pixels.
        mpp: µm per pixel.
        area_mm2: the area, in mm².
        aspect: width of the rectangle divided by its height.
        tissue: mask, bool (rows, columns); None where tissue plays no part.
        tissue_scale: pixels of the image to one of the mask.
        min_tissue: share of the rectangle that has to be tissue, in [0, 1].

    Raises:
        ValueError: when the points are not (n, 2) or not finite, or a number is out of range.

    Example:
        >>> mitotic_count([[100, 100], [900, 700], [7000, 200]], (8000, 6000), mpp=0.25).count
        2
    """
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2) if not np.size(points) else np.asarray(points, float)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"points must be finite and (n, 2), got the shape {points.shape}.")
    positive = {"width": size[0], "height": size[1], "mpp": mpp, "area_mm2": area_mm2, "aspect": aspect}
    wrong = {name: value for name, value in positive.items() if not 0 < value < np.inf}
    if wrong or not 0 <= min_tissue <= 1:
        raise ValueError(f"expected positive numbers, and min_tissue in [0, 1], got {wrong or min_tissue}.")
    points = points.clip(0, size)
    mask = None if tissue is None else _Tissue(np.asarray(tissue, dtype=bool), tissue_scale)
    area = area_mm2 * 1e6 / mpp**2  # in pixels
    if size[0] * size[1] < area:
        sides = (float(size[0]), float(size[1]))
        share = None if mask is None else float(mask.areas(0, np.zeros(1), *sides)[0]) / (size[0] * size[1])
        enough = share is None or share >= min_tissue
        return MitoticCount(len(points), (0.0, 0.0, *sides), math.prod(sides) * mpp**2 / 1e6, share, True, enough)
    height = min(area / min(math.sqrt(area * aspect), size[0]), size[1])
    width = min(area / height, size[0])
    best = _densest(points, size, (width, height), mask, min_tissue)
    enough = best is not None
    count, share, left, top = best or _densest(points, size, (width, height), mask, 0.0)
    outline = (left, top, left + width, top + height)
    return MitoticCount(count, outline, float(area_mm2), None if mask is None else share, False, enough)
