"""Regions of interest: outlines in GeoJSON, as QuPath exports them, to which search and count are restricted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.path import Path as Outline
from PIL import Image, ImageDraw

from ..utils import DataError
from ..utils.files import parse_json

Polygon = tuple[np.ndarray, ...]  # rings (n, 2) of x and y: an outline, then its holes
_REMEDY = "Expected GeoJSON with a Polygon or MultiPolygon, as QuPath exports annotations."


@dataclass(frozen=True, eq=False)
class Roi:
    """Polygons in pixels of an image; what lies in one of them belongs to it, up to their holes."""

    polygons: tuple[Polygon, ...]

    def moved(self, x: float, y: float) -> Roi:
        """The same, further to the right and below."""
        return Roi(tuple(tuple(ring + (x, y) for ring in rings) for rings in self.polygons))

    def clipped(self, part: tuple[int, int, int, int]) -> Roi:
        """What lies in a part, x, y, width and height; what reaches beyond is pushed back to its border."""
        low, high = np.array(part[:2]), np.add(part[:2], part[2:])
        return Roi(tuple(tuple(ring.clip(low, high) for ring in rings) for rings in self.polygons))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x, y, width and height of a rectangle of whole pixels around it."""
        points = np.concatenate([rings[0] for rings in self.polygons])
        x, y = np.floor(points.min(0)).astype(int).tolist()
        right, bottom = np.ceil(points.max(0)).astype(int).tolist()
        return x, y, right - x, bottom - y

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which points, (n, 2), lie in it."""
        inside = np.zeros(len(points), bool)
        for rings in self.polygons:
            inside |= np.logical_xor.reduce([Outline(ring).contains_points(points) for ring in rings])
        return inside

    def mask(self, shape: tuple[int, int], scale: float) -> np.ndarray:
        """Bool, of this shape (height, width), whose pixels are `scale` of the image's wide; its edges included."""
        return np.logical_or.reduce([_drawn(rings, shape, scale) for rings in self.polygons])

    def area(self, shape: tuple[int, int], scale: float) -> float:
        """In pixels of the image. Where polygons overlap, by the share that the masks of this shape overlap."""
        drawn = [_drawn(rings, shape, scale) for rings in self.polygons]
        apart = sum(int(mask.sum()) for mask in drawn)
        areas = [_area(rings[0]) - sum(map(_area, rings[1:])) for rings in self.polygons]
        return sum(areas) * (float(np.logical_or.reduce(drawn).sum()) / apart if apart else 1.0)


def _area(ring: np.ndarray) -> float:
    (x1, y1), (x2, y2) = ring.T, np.roll(ring, -1, axis=0).T
    return abs(float((x1 * y2 - x2 * y1).sum())) / 2


def _drawn(rings: Polygon, shape: tuple[int, int], scale: float) -> np.ndarray:
    picture = Image.new("1", shape[::-1])
    for i, ring in enumerate(rings):
        ImageDraw.Draw(picture).polygon([tuple(point) for point in (ring / scale - 0.5).tolist()], fill=int(i == 0))
    return np.array(picture)


def read_roi(path: str | os.PathLike) -> Roi:
    """The polygons of a GeoJSON file. Detections and cells, lines and points in it are no regions of interest.

    Raises:
        DataError: when the file is missing, no GeoJSON, or holds no polygon.
    """
    path = Path(path)
    try:
        polygons = tuple(_polygons(parse_json(path)))
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}). {_REMEDY}") from e
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise DataError(f"{path}: is no GeoJSON ({type(e).__name__}: {e}). {_REMEDY}") from e
    polygons = tuple(rings for rings in polygons if _area(rings[0]) > 0)  # a line has none
    if not polygons:
        raise DataError(f"{path}: holds no area. {_REMEDY}")
    return Roi(polygons)


def _polygons(content: Any) -> Iterator[Polygon]:
    if isinstance(content, list):
        parts: Sequence[Any] = content
    elif content["type"] == "FeatureCollection":
        parts = content["features"]
    elif content["type"] == "GeometryCollection":
        parts = content["geometries"]
    elif content["type"] == "Feature":
        properties: Mapping[str, Any] = content.get("properties") or {}
        parts = [] if properties.get("objectType") in ("detection", "cell", "tile") else [content["geometry"]]
    else:
        kind = content["type"]
        each = {"Polygon": [content["coordinates"]], "MultiPolygon": content["coordinates"]}.get(kind, [])
        for rings in each:
            yield tuple(_ring(ring) for ring in rings)
        return
    for part in parts:
        yield from _polygons(part)


def _ring(points: Any) -> np.ndarray:
    ring = np.array([point[:2] for point in points], dtype=np.float64)
    if ring.ndim != 2 or len(ring) < 3 or not np.isfinite(ring).all():
        raise ValueError("a ring needs three points or more")
    return ring


def find_roi(path: str | os.PathLike, case: str, image: str) -> Roi:
    """Of a file, or of a folder in which it is called like the case or the image file.

    Raises:
        DataError: when there is none, or as `read_roi`.
    """
    path = Path(path)
    if not path.is_dir():
        return read_roi(path)
    names = dict.fromkeys([case, Path(case).name, Path(image).name])
    files = [path / f"{name}{suffix}" for name in names for suffix in (".geojson", ".json")]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise DataError(f"{path}: holds no region of interest for {image}. Expected {files[0].name} in it.")
    return read_roi(found)
