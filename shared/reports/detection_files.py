"""Files with the detections in one image: for the MIDOG challenge, for QuPath, for a table, and to look at.

`detections` are a dict of arrays, one row each: `box` (n, 4), x1, y1, x2, y2 in pixels of the image, `score` (n,) in
[0, 1] and `label` (n,), 1 for mitotic and 0 for non-mitotic, as `shared.inferers.RegionInferer` gives them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from ..data import Region
from ..data.tissue import MASK_SIZE
from ..metrics import MitoticCount
from ..utils import atomic_path, write_csv

MITOTIC = 1
COLUMNS = ("x", "y", "x1", "y1", "x2", "y2", "class", "score", "above_threshold")
COLOURS = ([40, 120, 255], [0, 170, 0])  # of non-mitotic and mitotic, RGB; both stand out from pink and violet
OVERVIEW = 1400  # pixels of its longer side, made from the picture that the tissue mask is made from
SHOWN = 24  # figures in a gallery
PER_ROW = 6
CROP = 96  # pixels, as shown
CROP_MICRONS = 32.0  # side of a crop: the cell and what is around it

Detections = Mapping[str, np.ndarray]


def centres(detections: Detections) -> np.ndarray:
    """Middles of the boxes, x and y, (n, 2)."""
    box = np.asarray(detections["box"], dtype=np.float64).reshape(-1, 4)
    return (box[:, :2] + box[:, 2:]) / 2


def _called(detections: Detections, threshold: float, label: int = MITOTIC) -> np.ndarray:
    return (np.asarray(detections["label"]) == label) & (np.asarray(detections["score"]) >= threshold)


def write_midog_json(path: str | os.PathLike, detections: Detections, mpp: float, threshold: float) -> None:
    """Write the candidates for mitotic figures as the reference container of the MIDOG challenge (2022) does.

    Grand Challenge's "Multiple points": for each candidate the middle of its box in millimetres, its probability and
    its `name`, "mitotic figure" from the threshold on, "non-mitotic figure" below, so that the average precision can
    be computed. Cells that the detector takes for non-mitotic are left out: the probability of a point is that of a
    mitotic figure.

    Args:
        path: of the file.
        detections: see above.
        mpp: µm per pixel. The container takes it from the TIFF file.
        threshold: of the score.
    """
    points = [
        {
            "point": [float(x) * mpp / 1000, float(y) * mpp / 1000, 0],
            "probability": float(score),
            "name": "mitotic figure" if score >= threshold else "non-mitotic figure",
        }
        for (x, y), score, label in zip(centres(detections), detections["score"], detections["label"], strict=True)
        if label == MITOTIC
    ]
    content = {"type": "Multiple points", "points": points, "version": {"major": 1, "minor": 0}}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def write_geojson(
    path: str | os.PathLike,
    detections: Detections,
    threshold: float,
    class_names: Sequence[str] = ("non_mitotic", "mitotic"),
    count: MitoticCount | None = None,
    warning: str | None = None,
) -> None:
    """Write the detections from the threshold on as GeoJSON that QuPath (0.4 or later) imports, in pixels.

    A detection object each, the box, with its class and its score as a measurement; and one locked annotation, the
    area of the mitotic count, with the count in its name.

    Args:
        path: of the file.
        detections: see above.
        threshold: of the score.
        class_names: of class 0 and class 1, as QuPath is to show them.
        count: of the mitotic figures, see `shared.metrics.mitotic_count`.
        warning: goes into the annotation's metadata.
    """
    features = []
    if count is not None:
        properties = {
            "objectType": "annotation",
            "name": f"mitotic count: {count_text(count)}",
            "color": [255, 200, 0],
            "isLocked": True,
            "measurements": {
                "mitotic figures": count.count,
                "area mm^2": count.area_mm2,
                **({} if count.tissue is None else {"share of tissue": count.tissue}),
            },
            **({"metadata": {"warning": warning}} if warning else {}),
        }
        features.append(_feature(count.outline, properties))
    for box, score, label in zip(detections["box"], detections["score"], detections["label"], strict=True):
        if score >= threshold:
            name, colour = class_names[int(label)].replace("_", "-"), COLOURS[int(label)]
            properties = {
                "objectType": "detection",
                "classification": {"name": name, "color": colour},
                "measurements": {"score": float(score)},
            }
            features.append(_feature(box, properties))
    with atomic_path(path) as temporary:
        content = {"type": "FeatureCollection", "features": features}
        temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def _feature(box: Sequence[float], properties: Mapping[str, Any]) -> dict[str, Any]:
    x1, y1, x2, y2 = map(float, box)
    ring = [[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": dict(properties)}


def count_text(count: MitoticCount) -> str:
    """The mitotic count in words."""
    notes = ["the whole image"] * count.whole_image + ["little tissue"] * (not count.enough_tissue)
    figures = f"{count.count} mitotic figure{'s' * (count.count != 1)} in {count.area_mm2:.3g} mm²"
    return figures + (f" ({', '.join(notes)})" if notes else "")


def write_detections_csv(
    path: str | os.PathLike,
    detections: Detections,
    threshold: float,
    class_names: Sequence[str] = ("non_mitotic", "mitotic"),
) -> None:
    """Write all detections as a table: middle and box in pixels, class, score, and whether that is the threshold's."""
    numbers = np.hstack([centres(detections), np.asarray(detections["box"], np.float64).reshape(-1, 4)]).round(2)
    rows = []
    for row, score, label in zip(numbers.tolist(), detections["score"], detections["label"], strict=True):
        called = [class_names[int(label)], round(float(score), 6), int(score >= threshold)]
        rows.append(dict(zip(COLUMNS, row + called, strict=True)))
    write_csv(path, rows, COLUMNS)


def write_overview(
    path: str | os.PathLike,
    region: Region,
    detections: Detections,
    threshold: float,
    count: MitoticCount | None = None,
    title: str = "",
    warning: str | None = None,
) -> None:
    """Draw the image, small, with rings around what was detected from the threshold on and the area of the count.

    Args:
        path: of the PNG file.
        region: the image.
        detections: see above.
        threshold: of the score.
        count: of the mitotic figures.
        title: stands on top.
        warning: stands below the title, in red.
    """
    picture = Image.fromarray(region.thumbnail(MASK_SIZE))
    picture.thumbnail((OVERVIEW, OVERVIEW))
    width, height = picture.size
    figure = Figure(figsize=(max(width / 100, 4) + 1.5, max(height / 100, 2) + 1.2), layout="compressed")
    axes = figure.subplots()
    axes.imshow(picture, extent=(0, region.size[0], region.size[1], 0))
    axes.set(xlabel="x in pixels", ylabel="y in pixels")
    points, mitotic = centres(detections), _called(detections, threshold)
    other = _called(detections, threshold, label=1 - MITOTIC)
    scores = ScalarMappable(Normalize(min(threshold, 0.99), 1), matplotlib.colormaps["plasma"])
    ring = {"s": 90, "facecolors": "none"}
    axes.scatter(*points[other].T, **ring, edgecolors="tab:blue", linewidths=1, zorder=2)
    axes.scatter(*points[mitotic].T, **ring, edgecolors="black", linewidths=3.2, zorder=3)
    axes.scatter(*points[mitotic].T, **ring, edgecolors=scores.to_rgba(detections["score"][mitotic]), zorder=4)
    axes.set(xlim=(0, region.size[0]), ylim=(region.size[1], 0))
    marker = {"color": "none", "marker": "o", "markersize": 9, "markerfacecolor": "none"}
    legend = [
        Line2D([], [], **marker, markeredgecolor="black", label=f"mitotic ({mitotic.sum()})"),
        Line2D([], [], **marker, markeredgecolor="tab:blue", label=f"non-mitotic ({other.sum()})"),
    ]
    if count is not None:
        x1, y1, x2, y2 = count.outline
        outline = {"facecolor": "none", "edgecolor": "black", "linestyle": "--", "linewidth": 1.5, "zorder": 5}
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **outline, clip_on=False))
        legend.append(Line2D([], [], color="black", linestyle="--", label=f"area of the count: {count_text(count)}"))
    figure.colorbar(scores, ax=axes, label=f"score of the mitotic figures, from the threshold {threshold:.3g} on")
    figure.legend(handles=legend, loc="outside lower center", ncols=3, fontsize=9)
    _save(path, figure, title, warning)


def write_gallery(
    path: str | os.PathLike,
    region: Region,
    detections: Detections,
    threshold: float,
    title: str = "",
    warning: str | None = None,
) -> None:
    """Draw the candidates for mitotic figures of the highest scores, with what is around them, the best one first.

    Those below the threshold have a grey frame and follow the others. Arguments as for `write_overview`.
    """
    candidates = np.flatnonzero(np.asarray(detections["label"]) == MITOTIC)
    best = candidates[np.argsort(-detections["score"][candidates], kind="stable")][:SHOWN]
    rows = max(1, math.ceil(len(best) / PER_ROW))
    figure = Figure(figsize=(1.6 * PER_ROW, 1.9 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, PER_ROW, squeeze=False).ravel()
    side = CROP_MICRONS / (region.mpp or 0.25)
    points = centres(detections)
    for axes in grid[len(best) :]:
        axes.set_axis_off()
    for axes, i in zip(grid, best, strict=False):
        x, y = points[i] - side / 2
        axes.imshow(region.read(x, y, CROP, CROP, side / CROP), extent=(x, x + side, y + side, y))
        called = detections["score"][i] >= threshold
        colour = np.array(COLOURS[MITOTIC]) / 255 if called else "grey"
        x1, y1, x2, y2 = detections["box"][i]
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, facecolor="none", edgecolor=colour, linewidth=1.5))
        axes.set(xlim=(x, x + side), ylim=(y + side, y), xticks=[], yticks=[])
        axes.set_title(
            f"{detections['score'][i]:.3f}\n{points[i][0]:.0f}, {points[i][1]:.0f}", fontsize=7, color=colour
        )
    if not len(best):
        grid[0].text(0, 0.5, "none", fontsize=11)
    _save(path, figure, title, warning)


def _save(path: str | os.PathLike, figure: Figure, title: str, warning: str | None) -> None:
    if warning:
        figure.suptitle(f"{title}\n{warning}", color="tab:red", fontsize=11)
    else:
        figure.suptitle(title, fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
