"""MIDOG 2021, MIDOG 2022 and MIDOG++: images, annotated figures, and what each image was scanned with.

The three are a JSON file with annotations and a folder with a TIFF for each image, a region of a whole slide of
another patient. A box is `[x1, y1, x2, y2]`, always 50 × 50 pixels around the figure, and may overhang the image;
a few of MIDOG++ have even their centre up to 5 pixels outside.
None of the files says which scanner an image is from: it follows from the image's number.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from PIL import TiffImagePlugin
from tqdm.contrib.concurrent import thread_map

from ..utils import DataError, flag, read_json_object
from ..utils.text import first_few
from ..utils.values import Name, Whole, check_value
from .preparation import read_table, refuse, repeated

MIDOG_LABELS = {"non_mitotic": 0, "mitotic": 1}
"""Classes of the patches. A negative is a hard one: a cell that someone took for a mitotic figure."""

MIDOG_FIELDS = ("scanner", "tumor_type", "species", "origin")
"""What is known of every image, and domains can be made of."""

_CATEGORIES = {"mitotic figure": 1} | dict.fromkeys(
    ("not mitotic figure", "non-mitotic figure", "hard negative", "imposter", "hard negative imposter"), 0
)
BOX_SIDE = 50  # pixels, of every box


class _Part(NamedTuple):
    """Images that belong together, by their numbers. `labelled`: someone has looked for figures in them."""

    first: int
    last: int
    tumor_type: str
    scanner: str
    origin: str
    labelled: bool = True

    def fields(self) -> dict[str, str]:
        species = self.tumor_type.split()[0]
        return {"scanner": self.scanner, "tumor_type": self.tumor_type, "species": species, "origin": self.origin}


_XR, _S360, _CS, _GT450 = "Hamamatsu XR", "Hamamatsu S360", "Aperio CS2", "Leica GT450"
_3D = "3DHistech Pannoramic Scan II"
_UTRECHT, _VIENNA, _BERLIN, _NEW_YORK = "UMC Utrecht", "VMU Vienna", "FU Berlin", "AMC New York"
_BREAST = (
    _Part(1, 50, "human breast cancer", _XR, _UTRECHT),
    _Part(51, 100, "human breast cancer", _S360, _UTRECHT),
    _Part(101, 150, "human breast cancer", _CS, _UTRECHT),
)
# Images of this scanner come with MIDOG 2021, without annotations; MIDOG++ lists them and has neither.
_BREAST_UNLABELLED = (_Part(151, 200, "human breast cancer", _GT450, _UTRECHT, labelled=False),)

# Sources: for 2021 and 2022 the download pages of the challenges (imig.science/midog2021/download-dataset and
# midog.deepmicroscopy.org/download-dataset), for MIDOG++ datasets_xvalidation.csv of github.com/DeepMicroscopy/MIDOGpp
# and the tumor_type of MIDOG++.json. From 151 on the numbers of 2022 and of MIDOG++ are not the same.
_PARTS = {
    "midog21": (*_BREAST, *_BREAST_UNLABELLED),
    "midog22": (
        *_BREAST,
        _Part(151, 194, "canine lung cancer", _3D, _VIENNA),
        _Part(195, 249, "canine lymphosarcoma", _3D, _VIENNA),
        _Part(250, 299, "canine cutaneous mast cell tumor", _CS, _BERLIN),
        _Part(300, 354, "human neuroendocrine tumor", _XR, _UTRECHT),
        _Part(355, 405, "human melanoma", _XR, _UTRECHT, labelled=False),
    ),
    "midog++": (
        *_BREAST,
        *_BREAST_UNLABELLED,
        _Part(201, 244, "canine lung cancer", _3D, _VIENNA),
        _Part(245, 299, "canine lymphosarcoma", _3D, _VIENNA),
        _Part(300, 349, "canine cutaneous mast cell tumor", _CS, _BERLIN),
        _Part(350, 404, "human neuroendocrine tumor", _XR, _UTRECHT),
        _Part(405, 489, "canine soft tissue sarcoma", _3D, _NEW_YORK),
        _Part(490, 504, "canine soft tissue sarcoma", _3D, _VIENNA),
        _Part(505, 553, "human melanoma", _XR, _UTRECHT),
    ),
}
MIDOG_NAMES = {"midog21": "MIDOG 2021", "midog22": "MIDOG 2022", "midog++": "MIDOG++"}
"""The data sets whose numbering is known."""

# What an image is known by apart from its fields, or would have from nobody's annotations.
_NO_FIELDS = ("id", "file_name", "width", "height", "labelled", "box", "label", "figures")
_FORMAT = 'an annotation file of MIDOG: {"images": [...], "categories": [...], "annotations": [...]}'


class MidogFigure(TypedDict):
    """A cell that someone took for a mitotic figure, beside these with the annotation file's other fields."""

    annotation_id: Any
    label: int  # see `MIDOG_LABELS`
    category: str
    bbox: list[float]
    x: float  # of its centre, in pixels
    y: float


@dataclass(frozen=True)
class MidogImage:
    """One region of a slide.

    Attributes:
        file_name: of the TIFF, without a folder.
        size: width and height in pixels.
        labelled: whether it was annotated. Where not, nothing is known of its cells, and it is no source of negatives.
        fields: `image_id`, `MIDOG_FIELDS` and whatever else the annotation file holds of it.
        figures: its annotations.
    """

    file_name: str
    size: tuple[int, int]
    labelled: bool
    fields: dict[str, Any]
    figures: tuple[MidogFigure, ...]

    @property
    def stem(self) -> str:
        return Path(self.file_name).stem


def read_midog(
    annotations: str | os.PathLike, dataset: str | None = None, scanners: str | os.PathLike | None = None
) -> tuple[str, list[MidogImage]]:
    """The images that an annotation file lists, checked, with what is known of each.

    A field is taken from the table `scanners` where it has it, else from the annotation file, else from the known
    numbering of the data set. Images without an annotation count as looked at and found empty, but for the parts of
    the data sets that nobody annotated: Leica GT450 of 2021 and the melanomas of 2022.

    Args:
        annotations: MIDOG.json, MIDOG2022_training.json, MIDOG++.json or one of the same form.
        dataset: one of `MIDOG_NAMES`; by default the one that the file's description names.
        scanners: a CSV table with the column `file_name` and any of `MIDOG_FIELDS` and `labelled` (true or false).

    Returns:
        the name of the data set, and the images in the file's order.

    Raises:
        DataError: a file is missing or has another form, a category is not known, a box is not 50 × 50 from corner to
            corner or lies outside of the image, the scanner of an image is not known, or the numbering or
            the annotations contradict what is known of the data set.
    """
    path = Path(annotations)
    content = read_json_object(path, _FORMAT, "Check --annotations.")
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key), list) or (key != "annotations" and not content[key]):
            raise DataError(f"{path}: has no list '{key}'. Expected {_FORMAT}. Check --annotations.")
    if dataset and dataset not in _PARTS:
        raise DataError(f"--dataset is {dataset!r}, expected one of {', '.join(_PARTS)}.")
    dataset = dataset or _recognised(content.get("info"))
    try:
        figures = _read_figures(path, content)
        images = _read_images(path, content["images"], figures, _PARTS.get(dataset, ()), _scanner_table(scanners))
    except (KeyError, TypeError) as e:
        raise DataError(f"{path}: an image, category or annotation lacks a field ({e}). Expected {_FORMAT}.") from e
    _check_scanners(path, images, dataset)
    _check_parts(path, images, dataset)
    return MIDOG_NAMES.get(dataset, path.stem), images


def _recognised(info: object) -> str:
    description = str(info.get("description", "")).lower() if isinstance(info, dict) else ""
    marks = {"midog++": "midog++", "2022": "midog22", "2021": "midog21"}
    return next((dataset for mark, dataset in marks.items() if mark in description), "")


def _read_figures(path: Path, content: Mapping[str, Any]) -> dict[Any, list[MidogFigure]]:
    """The annotations of each image id."""
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    unknown = [name for name in names.values() if name.lower() not in _CATEGORIES]
    message = (
        "the category {0!r} is not known. Expected {known}: whether its cells are mitotic figures cannot be guessed. "
        "Rename it, or take its annotations out of the file."
    )
    refuse(path, unknown, message, known=", ".join(map(repr, _CATEGORIES)))
    for image, side in product(content["images"], ("width", "height")):
        check_value(f"{path}: the {side} of image {image['id']}", image[side], Whole(1))
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    lost = [a for a in content["annotations"] if a["image_id"] not in sizes or a["category_id"] not in names]
    message = "annotation {0[id]} is of the image {0[image_id]} and the category {0[category_id]}, one of which "
    refuse(path, lost, message + "the file does not list ({count} such). Copy the file again.")
    _check_boxes(path, content["annotations"], sizes)
    twice = repeated(a["id"] for a in content["annotations"])
    refuse(path, twice, "has more than one annotation with the id {0}. Number them one by one.")
    figures = defaultdict(list)
    for a in content["annotations"]:
        x1, y1, x2, y2 = a["bbox"]
        category = names[a["category_id"]]
        known = {"annotation_id": a["id"], "label": _CATEGORIES[category.lower()], "category": category}
        known |= {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2}
        others = {k: v if k == "bbox" else _plain(v) for k, v in a.items() if k not in ("id", "image_id")}
        figures[a["image_id"]].append(known | others | known)
    return figures


def _plain(value: Any) -> Any:
    # Lists of different lengths, as the raters' votes are, would not go into a batch.
    return " ".join(map(str, value)) if isinstance(value, list) else value


def _check_boxes(path: Path, annotations: Sequence[Mapping[str, Any]], sizes: Mapping[Any, tuple[int, int]]) -> None:
    def fits(box: Any) -> bool:
        numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
        return numbers and math.isclose(box[2] - box[0], BOX_SIDE) and math.isclose(box[3] - box[1], BOX_SIDE)

    wrong = [a for a in annotations if not fits(a["bbox"])]
    if wrong:
        coco = all(isinstance(a["bbox"], list) and a["bbox"][2:] == [BOX_SIDE, BOX_SIDE] for a in wrong)
        guess = " They look like COCO's x, y, width, height." if coco else ""
        raise DataError(
            f"{path}: {len(wrong)} of {len(annotations)} boxes are not [x1, y1, x2, y2] with {BOX_SIDE} pixels between "
            f"the corners: that of annotation {wrong[0]['id']} is {wrong[0]['bbox']}.{guess} Use the file as "
            "downloaded, or convert its boxes."
        )
    for a in annotations:
        x1, y1, x2, y2 = a["bbox"]
        width, height = sizes[a["image_id"]]
        if not (x2 > 0 and y2 > 0 and x1 < width and y1 < height):
            raise DataError(
                f"{path}: annotation {a['id']}, {a['bbox']}, is outside of its image of {width} × {height} pixels. "
                "Use the file as downloaded."
            )


def _scanner_table(table: str | os.PathLike | None) -> dict[str, dict[str, str]]:
    """What the user's table says of each file."""
    if not table:
        return {}
    known = (*MIDOG_FIELDS, "labelled")
    header, rows = read_table(Path(table), "Give a CSV file with the columns file_name and scanner.")
    if "file_name" not in header or not set(known) & set(header):
        raise DataError(
            f"{table}: has the columns {', '.join(header) or 'none'}, expected file_name and any of {', '.join(known)}."
        )
    return {row["file_name"]: {k: row[k].strip() for k in known if row.get(k, "").strip()} for row in rows}


def _read_images(
    path: Path,
    entries: Sequence[Mapping[str, Any]],
    figures: Mapping[Any, Sequence[MidogFigure]],
    parts: Sequence[_Part],
    table: Mapping[str, Mapping[str, str]],
) -> list[MidogImage]:
    names = [str(entry["file_name"]) for entry in entries]
    for what, values in (("image id", (e["id"] for e in entries)), ("file name", (Path(n).stem for n in names))):
        refuse(path, repeated(values), f"lists the {what} {{0}} more than once. List each image once.")
    deep = [name for name in names if Path(name).name != name]
    refuse(path, deep, "a file name holds a folder, {0}. Expected names alone, as in 001.tiff.")
    if table and not set(table) & set(names):
        raise DataError(f"{path}: the table of scanners names none of its images, as {names[0]}. Check --scanners.")
    images = []
    for name, entry in zip(names, entries, strict=True):
        check_value(f"{path}: the file_name of image {entry['id']}", name, Name(folders=False))
        part, own = _part_of(parts, name), dict(table.get(name, {}))
        labelled = flag(f"labelled of {name}", own.pop("labelled", entry.get("labelled", not part or part.labelled)))
        known = part.fields() if part else {}
        found = {k: _plain(v) for k, v in entry.items() if k not in _NO_FIELDS and v not in (None, "")}
        fields = {"image_id": entry["id"], **dict.fromkeys(MIDOG_FIELDS, ""), **known, **found, **own}
        size = (entry["width"], entry["height"])
        images.append(MidogImage(name, size, labelled, fields, tuple(figures.get(entry["id"], ()))))
    return images


def _part_of(parts: Sequence[_Part], file_name: str) -> _Part | None:
    stem = Path(file_name).stem
    number = int(stem) if stem.isdecimal() else 0
    return next((part for part in parts if part.first <= number <= part.last), None)


def _check_scanners(path: Path, images: Sequence[MidogImage], dataset: str) -> None:
    unknown = [image.file_name for image in images if not image.fields["scanner"]]
    message = (
        f"read as {MIDOG_NAMES.get(dataset, 'none of the known data sets')}, the scanner of {{count}} of its "
        f"{len(images)} images is not known: {{names}}. Set --dataset to one of {', '.join(_PARTS)} if the file is one "
        "of these, or give a CSV table with the columns file_name and scanner with --scanners."
    )
    refuse(path, unknown, message, names=first_few(unknown, 20))


def _check_parts(path: Path, images: Sequence[MidogImage], dataset: str) -> None:
    """A file that is numbered otherwise would get the scanners of other images: its tumours and annotations tell."""
    tumors = defaultdict(set)
    for image in images:
        part = _part_of(_PARTS.get(dataset, ()), image.file_name)
        if part:
            tumors[part].add(image.fields["tumor_type"])
        if image.figures and not image.labelled:
            raise DataError(
                f"{path}: {image.file_name} has {len(image.figures)} annotations, but in {MIDOG_NAMES.get(dataset)} "
                f"images of the {image.fields['scanner']} with this number were not annotated. Set --dataset to "
                "what the file is, or give a table with the column labelled with --scanners."
            )
    for part, names in tumors.items():
        if len(names) > 1:
            raise DataError(
                f"{path}: the images {part.first:03d} to {part.last:03d} are of {' and '.join(sorted(names))}; in "
                f"{MIDOG_NAMES[dataset]} they are of one tumour. Set --dataset to what the file is, or, if its images "
                "have other numbers, name all scanners with --scanners and the tumour types too."
            )


def find_midog(
    images: Sequence[MidogImage], image_dir: str | os.PathLike, allow_missing: bool = False, num_workers: int = 4
) -> list[MidogImage]:
    """The images whose TIFF is at hand, with a look at each file's header.

    Images that were not annotated may be absent all together: MIDOG++ lists 50 that do not come with it.

    Raises:
        DataError: a file is missing (unless `allow_missing`) or all with annotations are; a file is no TIFF, not RGB
            with 8 bit, or of another size than the annotations say. The first of them are named.
    """
    folder = Path(image_dir)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Give the folder with the TIFF files with --image_dir.")
    present = {entry.name for entry in os.scandir(folder)}
    here = [image for image in images if image.file_name in present]
    no_unlabelled = all(image.labelled for image in here)
    required = [image for image in images if image.labelled or not no_unlabelled] or images
    missing = [image.file_name for image in required if image.file_name not in present]
    if not here or (missing and not allow_missing):
        raise DataError(
            f"{folder}: {len(missing)} of {len(required)} images are missing: {first_few(missing)}. Download them, or "
            "go on with those at hand with --allow_missing."
        )
    if not any(image.figures for image in here):
        raise DataError(f"{folder}: of the images that are listed only such without annotations are at hand.")
    look = partial(_header_fault, folder)
    faults = thread_map(look, here, max_workers=num_workers, desc="checking headers", unit="image")
    message = (
        "{count} of {all} images are not what the annotations describe: {few}. Download them again, and see that the "
        "images and --annotations are of the same data set."
    )
    refuse(folder, [text for text in faults if text], message, all=len(here))
    return here


def _header_fault(folder: Path, image: MidogImage) -> str | None:
    try:
        # Not Image.open, which objects to large regions before their size can be compared.
        with TiffImagePlugin.TiffImageFile(folder / image.file_name) as opened:
            mode, size = opened.mode, opened.size
    except (OSError, SyntaxError, ValueError, TypeError, KeyError) as e:  # what Pillow raises on broken files
        return f"{image.file_name} (no readable TIFF: {e})"
    if size != image.size:
        return f"{image.file_name} ({size[0]} × {size[1]} pixels, annotated are {image.size[0]} × {image.size[1]})"
    return None if mode == "RGB" else f"{image.file_name} (mode {mode}, expected RGB with 8 bit)"
