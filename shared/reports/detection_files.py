"""Files with the detections in one image: for the MIDOG challenge, for QuPath, for a table, and to look at."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle
from PIL import Image

from ..data import Region
from ..data.tissue import MASK_SIZE
from ..metrics import MITOTIC, Detections, MitoticCount, box_centres
from ..utils import atomic_path, write_csv
from .gallery import BAR, add_scale_bar, draw_gallery, save_figure

COLUMNS = ("x", "y", "x1", "y1", "x2", "y2", "class", "score", "above_threshold", "qupath_x", "qupath_y")
SUBTYPE_COLUMNS = ("subtype", "subtype_probability")
COLOURS = ([40, 120, 255], [0, 170, 0])  # of non-mitotic and mitotic, RGB; both stand out from pink and violet
OVERVIEW = 1400  # pixels of its longer side, made from the picture that the tissue mask is made from
MANY = 100  # figures in an overview, whose rings are smaller where there are more
SHOWN = 24  # figures in a gallery
CROP = 96  # pixels, as shown
CROP_MICRONS = 32.0  # side of a crop: the cell and what is around it


@dataclass(frozen=True, kw_only=True)
class DetectedImage:
    """What the files tell of an image.

    Attributes:
        region: the image. The MIDOG challenge's reference container takes its `mpp` from the TIFF file.
        detections: what was detected in it, as `shared.inferers.RegionInferer` gives it; 1 is mitotic. In pixels of
            the file, as its count is; QuPath's begin where its `bounds` do.
        threshold: a detection is a figure from this score on.
        class_names: of class 0 and class 1, as QuPath and the table are to show them.
        count: of the mitotic figures, see `shared.metrics.mitotic_count`; None: it is not shown.
        title: of the pictures.
        warning: stands below their titles, in red, and in the GeoJSON's annotation.
        subtypes: of each detection the kind of mitotic figure, "" where it has none; empty: kinds are not told apart.
    """

    region: Region
    detections: Detections
    threshold: float
    class_names: Sequence[str] = ("non_mitotic", "mitotic")
    count: MitoticCount | None = None
    title: str = ""
    warning: str | None = None
    subtypes: Sequence[str] = ()

    @property
    def centres(self) -> np.ndarray:
        """Middles of the boxes, x and y, (n, 2)."""
        return box_centres(self.detections["box"].astype(np.float64))

    @property
    def qupath(self) -> np.ndarray:
        """Where QuPath's pixels begin, (2,)."""
        return np.array((self.region.bounds or (0, 0))[:2])

    def called(self, label: int = MITOTIC) -> np.ndarray:
        """Which detections are figures of a class, (n,)."""
        return (self.detections["label"] == label) & (self.detections["score"] >= self.threshold)


def write_midog_json(path: str | os.PathLike, image: DetectedImage) -> None:
    """Write the candidates for mitotic figures as the reference container of the MIDOG challenge (2022) does.

    Grand Challenge's "Multiple points": for each candidate the middle of its box in millimetres, its probability and
    its `name`, "mitotic figure" from the threshold on, "non-mitotic figure" below, so that the average precision can
    be computed. Cells that the detector takes for non-mitotic are left out: the probability of a point is that of a
    mitotic figure. Of a slide with bounds a `name` says where the millimetres begin.
    """
    mpp, found = image.region.mpp, image.detections
    points = [
        {
            "point": [x * mpp / 1000, y * mpp / 1000, 0],
            "probability": float(score),
            "name": "mitotic figure" if score >= image.threshold else "non-mitotic figure",
        }
        for (x, y), score, label in zip(image.centres.tolist(), found["score"], found["label"], strict=True)
        if label == MITOTIC
    ]
    begin = f"mm from the corner of the file's level 0; the scanned area begins at pixel {tuple(image.qupath.tolist())}"
    name = {"name": begin} if image.region.bounds else {}
    _write_json(path, {**name, "type": "Multiple points", "points": points, "version": {"major": 1, "minor": 0}})


def write_geojson(path: str | os.PathLike, image: DetectedImage) -> None:
    """Write the detections from the threshold on as GeoJSON that QuPath (0.4 or later) imports, in its pixels.

    A detection object each, the box, with its class, of a mitotic figure with its subtype behind a colon where it has
    one, and its score as a measurement; and one locked annotation, the
    area of the mitotic count, with the count in its name.
    """
    features, count, corner = [], image.count, np.tile(image.qupath, 2)
    if count is not None:
        properties = {
            "objectType": "annotation",
            "name": f"mitotic count: {count_text(count)}",
            "color": [255, 200, 0],
            "isLocked": True,
            "measurements": {
                "mitotic figures": count.count,
                "area mm^2": count.area_mm2,
                **({} if count.tissue is None else {"share of tissue": count.tissue, "tissue mm^2": count.tissue_mm2}),
            },
            **({"metadata": {"warning": image.warning}} if image.warning else {}),
        }
        features.append(_feature(count.outline - corner, properties))
    found = image.detections
    for i, (box, score, label) in enumerate(zip(found["box"], found["score"], found["label"], strict=True)):
        if score >= image.threshold:
            name, measured = image.class_names[label].replace("_", "-"), {"score": float(score)}
            if image.subtypes and image.subtypes[i]:  # QuPath's way to write a class within a class
                name, measured = f"{name}: {image.subtypes[i]}", {**measured, "subtype": float(found["subtype"][i])}
            properties = {
                "objectType": "detection",
                "classification": {"name": name, "color": COLOURS[label]},
                "measurements": measured,
            }
            features.append(_feature(box - corner, properties))
    _write_json(path, {"type": "FeatureCollection", "features": features})


def _write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def _feature(box: Sequence[float], properties: Mapping[str, Any]) -> dict[str, Any]:
    x1, y1, x2, y2 = map(float, box)
    ring = [[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": dict(properties)}


def count_text(count: MitoticCount) -> str:
    """The mitotic count in words."""
    notes = [] if count.tissue is None else [f"{count.tissue_mm2:.3g} mm² of tissue"]
    notes += ["all that was searched"] * count.whole_image + ["little tissue"] * (not count.enough_tissue)
    figures = f"{count.count} mitotic figure{'s' * (count.count != 1)} in {count.area_mm2:.3g} mm²"
    return figures + (f" ({', '.join(notes)})" if notes else "")


def write_detections_csv(path: str | os.PathLike, image: DetectedImage) -> None:
    """Write all detections as a table: middle and box in pixels of the file, class, score, whether that is the
    threshold's, and the middle in QuPath's pixels; where subtypes are told apart these, and their probabilities.
    """
    found, shown = image.detections, (image.centres - image.qupath).round(2).tolist()
    places = np.hstack([image.centres, found["box"].astype(np.float64)]).round(2).tolist()
    rows = []
    for place, score, label, qupath in zip(places, found["score"], found["label"], shown, strict=True):
        called = (image.class_names[label], round(float(score), 6), int(score >= image.threshold))
        rows.append(dict(zip(COLUMNS, (*place, *called, *qupath), strict=True)))
    for row, name, p in zip(rows, image.subtypes, found.get("subtype", ()), strict=False):
        row |= dict(zip(SUBTYPE_COLUMNS, (name, round(float(p), 6) if name else ""), strict=True))
    write_csv(path, rows, (*COLUMNS, *SUBTYPE_COLUMNS) if "subtype" in found else COLUMNS)


def write_overview(path: str | os.PathLike, image: DetectedImage) -> None:
    """Draw what was searched, small, with rings around what was detected from the threshold on and the area of the
    count, in QuPath's pixels.
    """
    region, threshold, count = image.region.searched(), image.threshold, image.count
    picture = Image.fromarray(region.thumbnail(MASK_SIZE))
    picture.thumbnail((OVERVIEW, OVERVIEW))
    width, height = picture.size
    figure = Figure(figsize=(max(width / 100, 4) + 1.5, max(height / 100, 2) + 1.2), layout="compressed")
    axes = figure.subplots()
    left, top = np.array(region.corner) - image.qupath
    right, bottom = left + region.size[0], top + region.size[1]
    axes.imshow(picture, extent=(left, right, bottom, top))
    axes.set(xlabel="x in pixels", ylabel="y in pixels")
    for ring in (ring for rings in (region.roi.polygons if region.roi else ()) for ring in rings):
        axes.add_patch(Polygon(ring + (left, top), fill=False, edgecolor="tab:green", linewidth=1.5, zorder=1))
    points, mitotic, other = image.centres - image.qupath, image.called(), image.called(1 - MITOTIC)
    scores = ScalarMappable(Normalize(min(threshold, 0.99), 1), matplotlib.colormaps["plasma"])
    smaller = max(0.3, min(1.0, (MANY / max(mitotic.sum() + other.sum(), 1)) ** 0.5))  # where they are many, in width
    ring = {"s": 90 * smaller**2, "facecolors": "none"}
    thin, thick = {**ring, "linewidths": 1.5 * smaller}, {**ring, "linewidths": 3.2 * smaller}
    axes.scatter(*points[other].T, **thin, edgecolors="tab:blue", zorder=2)
    axes.scatter(*points[mitotic].T, **thick, edgecolors="black", zorder=3)
    axes.scatter(*points[mitotic].T, **thin, edgecolors=scores.to_rgba(image.detections["score"][mitotic]), zorder=4)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    marker = {"color": "none", "marker": "o", "markersize": 9, "markerfacecolor": "none"}
    legend = [
        Line2D([], [], **marker, markeredgecolor="black", label=f"mitotic ({mitotic.sum()})"),
        Line2D([], [], **marker, markeredgecolor="tab:blue", label=f"non-mitotic ({other.sum()})"),
    ]
    if region.roi is not None:
        legend.append(Line2D([], [], color="tab:green", label="region of interest"))
    if count is not None:
        x1, y1, x2, y2 = count.outline - np.tile(image.qupath, 2)
        outline = {"facecolor": "none", "edgecolor": "black", "linestyle": "--", "linewidth": 1.5, "zorder": 5}
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **outline, clip_on=False))
        legend.append(Line2D([], [], color="black", linestyle="--", label=f"area of the count: {count_text(count)}"))
    figure.colorbar(scores, ax=axes, label=f"score of the mitotic figures, from the threshold {threshold:.3g} on")
    figure.legend(handles=legend, loc="outside lower center", ncols=3, fontsize=9)
    _save(path, figure, image)


def write_gallery(path: str | os.PathLike, image: DetectedImage) -> None:
    """Draw the candidates for mitotic figures of the highest scores, with what is around them, the best one first.

    Those below the threshold have a grey frame and follow the others. A bar of 10 µm is in each crop.
    """
    region, detections = image.region, image.detections
    candidates = np.flatnonzero(detections["label"] == MITOTIC)
    best = candidates[np.argsort(-detections["score"][candidates], kind="stable")][:SHOWN]
    side, points = CROP_MICRONS / (region.mpp or 0.25), image.centres

    def draw(axes: Axes, i: int) -> None:
        x, y = points[i] - side / 2
        axes.imshow(region.read(x, y, CROP, CROP, side / CROP), extent=(x, x + side, y + side, y))
        called = detections["score"][i] >= image.threshold
        colour = np.array(COLOURS[MITOTIC]) / 255 if called else "grey"
        x1, y1, x2, y2 = detections["box"][i]
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, facecolor="none", edgecolor=colour, linewidth=1.5))
        axes.set_axis_on()  # a frame tells what is white in the image from what lies beyond it
        axes.set(xlim=(x, x + side), ylim=(y + side, y), xticks=[], yticks=[])
        shown = points[i] - image.qupath
        text = f"{detections['score'][i]:.3f}\n{shown[0]:.0f}, {shown[1]:.0f}"
        axes.set_title(text, fontsize=7, color=colour)
        if region.mpp:
            add_scale_bar(axes, region.mpp)

    shown = f"{len(best)} of {len(candidates)} candidates, highest scores; scores over x, y in pixels"
    meaning = f"green: from the threshold {image.threshold:.3g} on, grey: below; bar: {BAR:g} µm"
    _save(path, draw_gallery({f"{shown}\n{meaning}" if len(best) else "none": best}, draw), image)


def _save(path: str | os.PathLike, figure: Figure, image: DetectedImage) -> None:
    if image.warning:
        figure.suptitle(f"{image.title}\n{image.warning}", color="tab:red", fontsize=11)
    else:
        figure.suptitle(image.title, fontsize=11)
    save_figure(path, figure, dpi=100)


WRITERS = {
    ".json": write_midog_json,
    ".geojson": write_geojson,
    ".csv": write_detections_csv,
    "_overview.png": write_overview,
    "_gallery.png": write_gallery,
}
"""What an image's files are called behind its name, and what writes them."""
ANNOTATION_FILES = ("_ann.dcm", "_ann.json")
"""What its figures as a DICOM object are called, and what is said of that, see `shared.dicom.AnnotationExport`."""
