"""Figures that people have marked in images, as their tools write them: GeoJSON, COCO, VOC, YOLO, CSV, SlideRunner."""

from __future__ import annotations

import math
import os
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ..utils import DataError
from ..utils.files import parse_json
from ..utils.text import first_few
from .preparation import read_table

LIMIT = 2**63  # no coordinate is beyond


class Figure(NamedTuple):
    """What was marked.

    Attributes:
        name: of its class, as in the file; empty where it has none.
        box: x1, y1, x2, y2 in pixels of the image, or of YOLO in shares of its width and height; of a point, x and y
            twice.
        source: the file and the number in it.
    """

    name: str
    box: tuple[float, float, float, float]
    source: str


class Annotations(NamedTuple):
    """What a file or folder of annotations holds.

    Attributes:
        figures: of each image that somebody has looked at, by its name in the annotations: with folders, a mere file
            name, or one without extension; an image without figures has an empty list.
        shares: whether boxes are shares of the image's size, as YOLO has them.
        cropped: whether coordinates begin where the scanned area does, as QuPath shows slides with bounds.
    """

    figures: Mapping[str, Sequence[Figure]]
    shares: bool = False
    cropped: bool = False


def read_annotations(path: str | os.PathLike, format: str) -> Annotations:
    """The figures in a file, or in the files of a folder, those below it included.

    Args:
        path: `coco`, `csv` and `sliderunner` are one file for all images; `geojson`, `voc` and `yolo` have a file for
            each image, which is called like it.
        format: one of `FORMATS`.

    Raises:
        DataError: when nothing of this form is there, or one of the files is not of it.
    """
    path = Path(path).expanduser()
    suffixes, read, one_for_all = FORMATS[format]
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes) if path.is_dir() else [path]
    if not all(file.is_file() for file in files) or not files:
        raise DataError(f"{path}: there is no {' or '.join(suffixes)} file. Expected annotations in the form {format}.")
    if one_for_all:
        if len(files) > 1:
            raise DataError(f"{path}: holds {len(files)} files of the form {format}. Name the one with --annotations.")
        return read(files[0])
    if format == "yolo":
        files = [file for file in files if file.name != "classes.txt"]
    found: dict[str, list[Figure]] = {}
    for file in files:
        stem = str(file.relative_to(path).with_suffix("")) if path.is_dir() else file.stem
        if stem in found:
            raise DataError(f"{file}: {stem} has another file of annotations, too. Keep the one that counts.")
        found[stem] = list(_checked(file, read))
    return Annotations(found, shares=format == "yolo", cropped=format == "geojson")


def _checked(file: Path, read: Callable[[Path], Iterable[Figure]]) -> Iterator[Figure]:
    """Figures whose boxes are four finite numbers in order; anything else is named."""
    try:
        for figure in read(file):
            x1, y1, x2, y2 = figure.box
            if not all(math.isfinite(v) and abs(v) < LIMIT for v in figure.box) or x2 < x1 or y2 < y1:
                raise DataError(f"{figure.source}: {list(figure.box)}, expected x1 <= x2 and y1 <= y2, finite numbers.")
            yield figure
    except DataError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ElementTree.ParseError, OSError) as e:
        raise DataError(
            f"{file}: not readable as annotations ({type(e).__name__}: {e}). See --format, and export it again."
        ) from e


def _geojson(file: Path) -> Iterator[Figure]:
    """QuPath's: points, boxes and polygons, each with a classification or none; a group of points is as many."""
    content = parse_json(file)
    features = content.get("features", [content]) if isinstance(content, dict) else content
    for i, feature in enumerate(features):
        properties, geometry = feature.get("properties") or {}, feature["geometry"]
        called = properties.get("classification") or {}
        name = called if isinstance(called, str) else called.get("name") or ": ".join(called.get("names", []))
        kind, coordinates = geometry["type"], geometry["coordinates"]
        parts = coordinates if kind.startswith("Multi") else [coordinates]
        for part in parts:
            points = list(_points(part))
            x, y = zip(*points, strict=True)
            yield Figure(name or "", (min(x), min(y), max(x), max(y)), f"{file}: feature {i}")


def _points(coordinates: Sequence[Any]) -> Iterator[tuple[float, float]]:
    """All points, however deep they lie in lists."""
    if isinstance(coordinates[0], int | float):
        yield float(coordinates[0]), float(coordinates[1])
    else:
        for part in coordinates:
            yield from _points(part)


def _voc(file: Path) -> Iterator[Figure]:
    root = ElementTree.parse(file).getroot()
    if root.tag != "annotation":
        raise ValueError(f"its root is {root.tag}, not annotation")
    for i, thing in enumerate(root.iter("object")):
        corners = [float(thing.find("bndbox").findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax")]
        yield Figure(thing.findtext("name", ""), tuple(corners), f"{file}: object {i}")


def _yolo(file: Path) -> Iterator[Figure]:
    """Classes by their number, or by their name where a `classes.txt` lies beside the file or in a folder above."""
    names = next((p for p in (folder / "classes.txt" for folder in file.parents[:3]) if p.is_file()), None)
    classes = names.read_text(encoding="utf-8").split("\n") if names else []
    for i, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        if not line.strip():
            continue
        number, *shares = line.split()
        name = classes[int(number)].strip() if classes else number
        values = list(map(float, shares))
        box, polygon = len(values) in (4, 5), len(values) > 5 and len(values) % 2 == 0
        if not (box or polygon) or not all(0 <= value <= 1 for value in values):
            raise DataError(
                f"{file}: line {i + 1}: {line[:100]}, expected a class and x, y, width, height, or the corners of a "
                "polygon, as shares of the image's size from 0 to 1."
            )
        if polygon:
            x, y = values[::2], values[1::2]
            yield Figure(name, (min(x), min(y), max(x), max(y)), f"{file}: line {i + 1}")
            continue
        x, y, width, height = values[:4]
        yield Figure(name, (x - width / 2, y - height / 2, x + width / 2, y + height / 2), f"{file}: line {i + 1}")


def _coco(file: Path) -> Annotations:
    content = parse_json(file)
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise DataError(f"{file}: has no lists {', '.join(keys)}. Expected COCO's form, or see --format.")
    try:
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
    except (KeyError, TypeError) as e:
        raise DataError(f"{file}: an image or category lacks {e}. Expected COCO's form.") from e
    found: dict[str, list[Figure]] = {name: [] for name in files.values()}

    def figures(file: Path) -> Iterator[Figure]:
        for annotation in content["annotations"]:
            x, y, width, height = map(float, annotation["bbox"])
            name = names[annotation["category_id"]]
            found[files[annotation["image_id"]]].append(
                figure := Figure(name, (x, y, x + width, y + height), f"{file}: annotation {annotation.get('id')}")
            )
            yield figure

    list(_checked(file, figures))
    return Annotations(found)


COLUMNS = {
    "image": ("image", "file", "filename", "file_name", "path", "slide"),
    "name": ("label", "class", "name", "category", "classification"),
    "x": ("x", "x_center", "cx", "centroid_x"),
    "y": ("y", "y_center", "cy", "centroid_y"),
    "x1": ("x1", "xmin", "left"),
    "y1": ("y1", "ymin", "top"),
    "x2": ("x2", "xmax", "right"),
    "y2": ("y2", "ymax", "bottom"),
}
"""Of a CSV file: what the columns may be called, in any case."""


def _csv(file: Path) -> Annotations:
    header, rows = read_table(file, "Give a CSV file with the columns image, label and x, y or x1, y1, x2, y2.")
    lower = {column.strip().lower(): column for column in header}
    columns = {what: next((lower[n] for n in names if n in lower), None) for what, names in COLUMNS.items()}
    corners = ("x1", "y1", "x2", "y2") if columns["x1"] else ("x", "y", "x", "y")
    missing = [what for what in ("image", "name", *dict.fromkeys(corners)) if not columns[what]]
    if missing:
        raise DataError(
            f"{file}: has the columns {', '.join(header)}, expected one for {missing[0]}, called "
            f"{' or '.join(COLUMNS[missing[0]])}."
        )
    found: dict[str, list[Figure]] = defaultdict(list)

    def figures(file: Path) -> Iterator[Figure]:
        for row in rows:
            image, name = row[columns["image"]], row[columns["name"]]
            if not image:
                raise DataError(f"{file}: line {row.line} names no image.")
            cells = [row[columns[corner]].strip() for corner in corners]
            if not name and not any(cells):  # an image that was looked at, and has no figure
                found[image] = found[image]
                continue
            figure = Figure(name, tuple(map(float, cells)), f"{file}: line {row.line}")
            found[image].append(figure)
            yield figure

    list(_checked(file, figures))
    return Annotations(dict(found))


def _sliderunner(file: Path) -> Annotations:
    """The database of SlideRunner, to which EXACT exports too: the class that the annotators agree on."""
    found: dict[str, list[Figure]] = {}

    def figures(file: Path) -> Iterator[Figure]:
        with closing(sqlite3.connect(f"file:{file.resolve().as_posix()}?mode=ro", uri=True)) as database:
            slides = dict(database.execute("SELECT uid, filename FROM Slides"))
            names = dict(database.execute("SELECT uid, name FROM Classes"))
            found.update({name: [] for name in slides.values()})
            corners = database.execute(
                "SELECT a.uid, a.slide, a.agreedClass, MIN(c.coordinateX), MIN(c.coordinateY), MAX(c.coordinateX), "
                "MAX(c.coordinateY) FROM Annotations a JOIN Annotations_coordinates c ON c.annoId = a.uid "
                "WHERE COALESCE(a.deleted, 0) = 0 GROUP BY a.uid ORDER BY a.uid"
            )
            for uid, slide, agreed, *box in corners:
                figure = Figure(names.get(agreed, ""), tuple(map(float, box)), f"{file}: annotation {uid}")
                found[slides[slide]].append(figure)
                yield figure

    try:
        list(_checked(file, figures))
    except sqlite3.Error as e:
        raise DataError(f"{file}: not readable as a database of SlideRunner ({e}). See --format.") from e
    return Annotations(found)


# Name → endings of its files, how they are read, and whether one holds the figures of all images.
FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Path], Any], bool]] = {
    "geojson": ((".geojson", ".json"), _geojson, False),
    "coco": ((".json",), _coco, True),
    "voc": ((".xml",), _voc, False),
    "yolo": ((".txt",), _yolo, False),
    "csv": ((".csv", ".tsv", ".txt"), _csv, True),
    "sliderunner": ((".sqlite", ".db", ".sqlite3"), _sliderunner, True),
}


def by_image(
    annotations: Annotations, images: Sequence[str], folder: Path, source: str | os.PathLike
) -> dict[str, Sequence[Figure]]:
    """The figures of each image that is in the annotations.

    An image is meant by its path below `folder`, with or without extension; either of the two may have further folders
    in front.

    Args:
        annotations: from `read_annotations`.
        images: full paths, below `folder`.
        folder: of the images.
        source: of the annotations, for messages.

    Raises:
        DataError: when a name in the annotations means no image, or several, or two of them mean the same.
    """
    ways = {image: Path(image).relative_to(folder) for image in images}
    known: dict[str, list[str]] = defaultdict(list)
    for image, way in ways.items():
        for name in {way.name, way.stem}:
            known[name].append(image)
    found: dict[str, Sequence[Figure]] = {}
    lost, doubtful = [], []
    for name, figures in annotations.figures.items():
        *above, last = name.replace("\\", "/").strip("/").split("/")
        meant = [image for image in known.get(last, ()) if _agree(above, ways[image].parts[:-1])]
        if len(meant) != 1:
            (doubtful if meant else lost).append(name)
        elif meant[0] in found:
            raise DataError(f"{source}: {name} and another entry are both of {meant[0]}. Keep one of them.")
        else:
            found[meant[0]] = figures
    if lost or doubtful:
        names, why = (lost, "is called like none of the images") if lost else (doubtful, "may be any of several images")
        raise DataError(
            f"{source}: {names[0]} {why} ({len(names)} such: {first_few(names)}). Check --image_dir, or rename the "
            "annotations like their images."
        )
    return found


def _agree(above: Sequence[str], others: Sequence[str]) -> bool:
    """Whether the folders are the same, from the last one on, as far as both have some."""
    return all(a == b for a, b in zip(reversed(above), reversed(others), strict=False) if a != ".")
