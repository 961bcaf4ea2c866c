"""Entries of a datalist of regions, from images and the figures that are marked in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import openslide
from tqdm.contrib.concurrent import thread_map

from ..data import Region, RegionEntry, scanner_name
from ..utils import DataError, fault_list
from .midog import MIDOG_LABELS
from .preparation import read_table, repeated, worker_count
from .region_annotations import Annotations, Figure

KINDS = (*MIDOG_LABELS, "ignore")
"""What a class of the annotations may be taken as."""

CLASSES = {
    **dict.fromkeys(("mitotic", "mitosis", "mitotic figure", "mitotic cell", "mf"), "mitotic"),
    **dict.fromkeys(("non-mitotic", "non-mitotic figure", "non-mitotic cell", "not mitotic figure"), "non_mitotic"),
    **dict.fromkeys(
        ("hard negative", "imposter", "hard negative imposter", "nmf", "mitosis look-alike"), "non_mitotic"
    ),
}
"""Classes that are known without being told, in any case, with spaces, `-` or `_`."""

# Where slides say what scanned them, the most telling first.
_SCANNER = (
    "leica.device-model",
    "hamamatsu.Product",
    "aperio.ScanScope ID",
    "philips.DICOM_MANUFACTURER",
    "tiff.Model",
)


def class_of(name: str, classes: Mapping[str, str] | None = None) -> str | None:
    """What a class of the annotations is: one of `KINDS`, or None where it is not known."""
    told = {key.casefold(): kind for key, kind in (classes or {}).items()}
    plain = re.sub(r"[\s_-]+", " ", name.strip().casefold())
    usual = {re.sub(r"[\s_-]+", " ", key): kind for key, kind in CLASSES.items()}
    return told.get(name.strip().casefold(), usual.get(plain))


@dataclass(frozen=True)
class Sources:
    """Which scanner and slide an image is from.

    Args:
        folder: of the images.
        table: CSV with the columns file, scanner and slide, which says it of some or all images; or None.
        scanner: `folder`, `header` or a name.
        slide: `file`, `folder` or a regular expression with a group.
    """

    folder: Path
    table: Path | None = None
    scanner: str = "folder"
    slide: str = "file"

    @cached_property
    def rows(self) -> dict[str, dict[str, str]]:
        """Of the table, by file name."""
        if self.table is None:
            return {}
        header, found = read_table(self.table, "Give a CSV file with the columns file, scanner and slide.")
        if "file" not in header or not {"scanner", "slide"} & set(header):
            raise DataError(
                f"{self.table}: has the columns {', '.join(header)}, expected file and any of scanner and slide."
            )
        rows = list(found)
        if twice := repeated(row["file"] for row in rows):
            raise DataError(f"{self.table}: lists {twice[0]} more than once. List each file once.")
        return {row["file"]: row for row in rows}

    def row(self, image: Path) -> dict[str, str]:
        return self.rows.get(image.relative_to(self.folder).as_posix()) or self.rows.get(image.name) or {}

    def scanner_of(self, image: Path) -> str:
        """The scanner's short name.

        Raises:
            DataError: when it is not known.
        """
        if told := self.row(image).get("scanner", "").strip():
            return scanner_name(told)
        if self.scanner == "folder":
            return scanner_name(self._folder_of(image, "--scanner"))
        return scanner_name(_scanner_in_header(image) if self.scanner == "header" else self.scanner)

    def slide_of(self, image: Path) -> str:
        """The slide's name.

        Raises:
            DataError: when it is not known.
        """
        if told := self.row(image).get("slide", "").strip():
            return told
        if self.slide == "file":
            return image.relative_to(self.folder).as_posix()
        if self.slide == "folder":
            return self._folder_of(image, "--slide")
        found = re.search(self.slide, image.name)
        if not found or not found.groups():
            raise DataError(
                f"{image}: --slide {self.slide} finds no slide in its name. Expected file, folder, or a regular "
                "expression with a group, such as '^(.+)_region'."
            )
        return found[1]

    def _folder_of(self, image: Path, option: str) -> str:
        folder = image.parent.relative_to(self.folder).as_posix()
        if folder == ".":
            raise DataError(
                f"{image}: lies in no folder below {self.folder} by whose name it could be known. Set {option}, or "
                "name its scanner and slide with --table."
            )
        return folder


def _scanner_in_header(image: Path) -> str:
    try:
        with openslide.OpenSlide(image) as slide:
            properties = dict(slide.properties)
    except openslide.OpenSlideError:
        properties = {}
    name = next((properties[key].strip() for key in _SCANNER if properties.get(key, "").strip()), "")
    if not name:
        raise DataError(f"{image}: its header names no scanner. Set --scanner, or name it with --table.")
    return name


def region_entries(
    images: Sequence[str],
    figures: Mapping[str, Sequence[Figure]],
    annotations: Annotations,
    kinds: Mapping[str, str],
    sources: Sources,
    box_size: float = 50.0,
    others: str = "unlabelled",
    mpp: float | None = None,
) -> list[RegionEntry]:
    """An entry of a datalist for each image, with its full path.

    Args:
        images: full paths.
        figures: of those that were looked at, see `by_image`.
        annotations: what they are from.
        kinds: class of the annotations → one of `KINDS`.
        sources: of scanners and slides.
        box_size: pixels, the side of the box around a point.
        others: what images are that nobody looked at: `unlabelled`, `empty`, or `leave_out`.
        mpp: µm a pixel where a file does not say it, or names the objective alone.

    Raises:
        DataError: when there is no figure at all; an image cannot be read, or its scanner or slide is not known; a
            figure lies outside of its image. Files and numbers are named.
    """
    if not any(kinds[figure.name] == "mitotic" for of_image in figures.values() for figure in of_image):
        raise DataError("There is no mitotic figure in the annotations. Check --annotations and --classes.")
    chosen = [image for image in images if image in figures or others != "leave_out"]

    def entry(image: str) -> RegionEntry | str:
        path, looked = Path(image), image in figures or others == "empty"
        try:
            region = Region(path)
            own: dict[str, Any] = {"image": image, "domain": sources.scanner_of(path), "slide": sources.slide_of(path)}
            own |= {"labelled": looked, "width": region.size[0], "height": region.size[1]}
            size = mpp if region.guessed or region.mpp is None else region.mpp
            own |= {"mpp": size} if size else {}
            if looked:
                place = partial(_place, region=region, box_size=box_size, annotations=annotations)
                marked = [f for f in figures.get(image, ()) if kinds[f.name] != "ignore"]
                own["box"] = [place(figure) for figure in marked]
                own["label"] = [MIDOG_LABELS[kinds[figure.name]] for figure in marked]
        except DataError as e:
            return str(e)
        return own

    found = thread_map(entry, chosen, max_workers=worker_count(None), desc="reading headers", unit="image")
    if faults := [one for one in found if isinstance(one, str)]:
        raise DataError(f"{len(faults)} of {len(chosen)} images cannot be used:{fault_list(faults, 10)}")
    return found


def _place(figure: Figure, region: Region, box_size: float, annotations: Annotations) -> list[float]:
    """The figure's box in pixels of the file, cut off at the image's edges.

    Raises:
        DataError: when it lies outside of the image.
    """
    x1, y1, x2, y2 = figure.box
    (width, height), (left, top) = region.size, (region.bounds or (0, 0))[:2]
    if annotations.shares:
        x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
    if annotations.cropped:
        x1, y1, x2, y2 = x1 + left, y1 + top, x2 + left, y2 + top
    x, y, inside = (x1 + x2) / 2, (y1 + y2) / 2, x2 > 0 and y2 > 0 and x1 < width and y1 < height
    if x1 == x2 or y1 == y2:
        inside = 0 <= x < width and 0 <= y < height
        x1, y1, x2, y2 = x - box_size / 2, y - box_size / 2, x + box_size / 2, y + box_size / 2
    if not inside:
        raise DataError(
            f"{figure.source}: lies at {x:g}, {y:g}, outside of its image of {width} × {height} pixels. Correct it, or "
            "take it out."
        )
    return [max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))]
