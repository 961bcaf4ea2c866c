"""What is written of MIDOG: the entries of datalists of patches and of regions, and what lies beside them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.contrib.concurrent import thread_map

from ..data import PatchEntry, Region, RegionEntry, scanner_name
from ..utils import DataError, read_json_object, text_table, write_csv, write_json
from .histology_entries import Entry, check_image_files, write_histology_datalist
from .midog import MIDOG_FIELDS, MIDOG_LABELS, MidogImage
from .preparation import NEW_FOLDER, refuse, refuse_other_content


def midog_domain(image: MidogImage, fields: Sequence[str]) -> str:
    """The name of the image's domain: the short name of its scanner, its tumour type, …, joined by ` + `.

    Raises:
        DataError: when the image lacks one of the fields.
    """
    missing = [field for field in fields if image.fields.get(field) in (None, "")]
    if missing or not fields:
        known = [key for key, value in image.fields.items() if value not in (None, "")]
        raise DataError(
            f"{image.file_name}: its {missing[0] if missing else 'domain'} is not known, so no domain can be made of "
            f"it. Known: {', '.join(known)}. Choose others with --domain, or add a column to the table of --scanners."
        )
    values = [str(image.fields[field]) for field in fields]
    return " + ".join(scanner_name(v) if f == "scanner" else v for f, v in zip(fields, values, strict=True))


def midog_entry(
    image: MidogImage, domain: Sequence[str], own: Mapping[str, Any], more: Mapping[str, Any] | None = None
) -> Entry:
    """An entry of a datalist: its `own` image and labels, what every one says of its region, and the source's fields.

    A field of the source that has the name of another gives way.

    Raises:
        DataError: when the image lacks one of the fields of `domain`.
    """
    known = {**own, "domain": midog_domain(image, domain), "slide": image.file_name, "labelled": image.labelled}
    known |= {"file_name": image.file_name, "width": image.size[0], "height": image.size[1], **(more or {})}
    return known | image.fields | known


def midog_patches(images: Sequence[MidogImage], domain: Sequence[str]) -> list[PatchEntry]:
    """An entry of a datalist for each figure of the labelled images: `image` is where `crop_midog` puts its crop."""
    entries = []
    for image in images:
        for figure in image.figures:
            name = f"patches/{image.stem}/{figure['annotation_id']}.png"
            entry = midog_entry(image, domain, {"image": name, "label": figure["label"]})
            entries.append(entry | figure | entry)
    return entries


def named_patches(
    images: Sequence[MidogImage], patch_dir: str | os.PathLike, positive: str | None, prefix: str, domain: Sequence[str]
) -> tuple[dict[str, int], list[PatchEntry]]:
    """Entries of patches that others have cropped and labelled, in a folder for each class, by their annotations' ids.

    Args:
        images: from `read_midog`: what the ids are of.
        patch_dir: with two folders of PNG files called PREFIX and the id of an annotation, such as `MIDOG21_3099.png`.
        positive: the folder of the class 1; None where the classes do not matter.
        prefix: of the files that are meant; others are left out, as those of another data set.
        domain: fields that make the domain.

    Returns:
        The labels, name → id, and for each patch an entry with its full path.

    Raises:
        DataError: when there are no such two folders or no such files, an id is none of the annotations, a class has
            figures of both of MIDOG's classes, or a patch cannot be read.
    """
    folder = Path(patch_dir).resolve()
    classes = sorted(path.name for path in folder.glob("[!.]*") if path.is_dir() and any(path.glob("*.png")))
    if not classes or (positive is not None and (len(classes) != 2 or positive not in classes)):
        raise DataError(
            f"{patch_dir}: has the folders {', '.join(classes) or 'none'} with PNG files, expected two, one of them "
            f"{positive or 'for the mitotic figures'}. Check --patch_dir and --positive."
        )
    known = {str(figure["annotation_id"]): (image, figure) for image in images for figure in image.figures}
    labels, entries, lost = {name: int(name == positive) for name in classes}, [], []
    others: dict[str, set[int]] = {name: set() for name in classes}  # what the annotations call the patches of a class
    for path in sorted(folder.glob("[!.]*/*.png")):
        number = path.stem.removeprefix(prefix)
        if not path.stem.startswith(prefix) or not number.isdecimal():
            continue
        if number not in known:
            lost.append(f"{path.parent.name}/{path.name}")
            continue
        image, figure = known[number]
        others[path.parent.name].add(figure["label"])
        own = {"image": str(path), "label": labels[path.parent.name], "annotation_id": figure["annotation_id"]}
        entries.append(midog_entry(image, domain, own, {"x": figure["x"], "y": figure["y"]}))
    mixed = [name for name, found in others.items() if len(found) > 1]
    message = "of {0}, some are mitotic figures in the annotations and some are not: the numbers are no ids of theirs."
    refuse(patch_dir, mixed, message + " Check --annotations.")
    refuse(patch_dir, lost, "{count} files are called like no annotation: {few}. Check --annotations and --prefix.")
    if not entries:
        some = next(folder.glob("[!.]*/*.png")).name
        raise DataError(f"{patch_dir}: no file is called {prefix!r} and a number; one is {some}. Set --prefix.")
    check_image_files(patch_dir, [entry["image"] for entry in entries], remedy="Copy broken files again.")
    return labels, entries


def midog_regions(
    images: Sequence[MidogImage],
    image_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    domain: Sequence[str] = ("scanner",),
    num_workers: int = 4,
) -> list[RegionEntry]:
    """An entry of a datalist for each image of `find_midog`. The TIFF files stay where they are.

    Returns:
        Entries for `load_regions`: `image` (relative to `output_dir`), `box` (cut off at the image's edges) and
        `label`, `domain`, `slide`, `width`, `height`, `mpp` where the file states it, every field of the source, and
        `figures`, what the source holds of each box, its `bbox` included. Those of images that nobody annotated have
        none of the three.

    Raises:
        DataError: an image's domain is not known, or a file cannot be read.
    """
    folder, target = Path(image_dir).resolve(), Path(output_dir).resolve()

    def entry(image: MidogImage) -> RegionEntry:
        region = Region(folder / image.file_name)
        own: dict[str, Any] = {"image": os.path.relpath(folder / image.file_name, target)}
        if image.labelled:
            own["box"] = [_clipped(figure["bbox"], *image.size) for figure in image.figures]
            own["label"] = [figure["label"] for figure in image.figures]
        pixels = {"tiled": not region.in_memory} | ({} if region.mpp is None else {"mpp": region.mpp})
        figures = {"figures": list(image.figures)} if image.labelled else {}
        return midog_entry(image, domain, own, pixels) | figures

    return thread_map(entry, images, max_workers=num_workers, desc="reading headers", unit="image")


def _clipped(box: Sequence[float], width: int, height: int) -> list[float]:
    x1, y1, x2, y2 = box
    return [max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)]


def clipped_boxes(images: Sequence[MidogImage]) -> tuple[int, int]:
    """How many boxes begin left of or above the image, and how many of the others reach past its far edges."""
    boxes = [(figure["bbox"], image.size) for image in images for figure in image.figures]
    negative = [min(box[:2]) < 0 for box, _ in boxes]
    beyond = [box[2] > width or box[3] > height for box, (width, height) in boxes]
    return sum(negative), sum(b and not n for b, n in zip(beyond, negative, strict=True))


def count_midog(images: Sequence[MidogImage]) -> list[dict[str, Any]]:
    """How scanner, tumour, species and origin go together: images and annotations for each combination that occurs."""
    rows: dict[tuple, dict[str, Any]] = {}
    for image in images:
        fields = {field: image.fields[field] for field in MIDOG_FIELDS}
        fields["scanner"] = scanner_name(fields["scanner"])
        key = (*fields.values(), image.labelled)
        counts = {"images": 0, "non_mitotic": 0, "mitotic": 0}
        row = rows.setdefault(key, {**fields, "labelled": "yes" if image.labelled else "no", **counts})
        row["images"] += 1
        for figure in image.figures:
            row["mitotic" if figure["label"] else "non_mitotic"] += 1
    return [rows[key] for key in sorted(rows)]


def claim_folder(
    output_dir: str | os.PathLike,
    annotations: str | os.PathLike,
    settings: Mapping[str, Any],
    images: Sequence[MidogImage] = (),
) -> None:
    """Make the output folder, or go on in one of the same preparation, which `preparation.json` in it tells.

    What it holds depends on the annotations and the settings, apart from the split; there may be crops of `images`.

    Raises:
        DataError: when the folder holds anything else, or the result of other settings.
    """
    folder, mark = Path(output_dir), Path(output_dir) / "preparation.json"
    own = {"dataset.json", "confounding.csv", "patches", mark.name} if mark.is_file() else set()
    stems = {image.stem for image in images}
    strange = [path.name for path in sorted(folder.glob("[!.]*")) if path.name not in own]
    strange += [f"patches/{p.name}" for p in sorted(folder.glob("patches/[!.]*")) if p.name not in stems]
    refuse_other_content(folder, strange)
    settings = {"annotations_sha256": hashlib.sha256(Path(annotations).read_bytes()).hexdigest(), **settings}
    if not mark.is_file():
        write_json(mark, settings)
        return
    before = read_json_object(mark, "the settings of an earlier run", NEW_FOLDER)
    differ = [f"{k} {before.get(k)}" for k, v in settings.items() if before.get(k) != v]
    if differ:
        raise DataError(f"{folder}: was filled with other settings: {', '.join(differ)}. {NEW_FOLDER}")


def write_midog(
    output_dir: Path,
    name: str,
    images: Sequence[MidogImage],
    splits: Mapping[str, Sequence[Entry]],
    facts: Mapping[str, Any],
    overwrite: bool = False,
) -> str:
    """Write `dataset.json`, and beside it the rows of `count_midog` as `confounding.csv`. Returns these as text.

    Raises:
        DataError: when another datalist is in the way and `overwrite` is false.
    """
    write_histology_datalist(output_dir / "dataset.json", name, MIDOG_LABELS, splits, facts, overwrite)
    confounding = count_midog(images)
    write_csv(output_dir / "confounding.csv", confounding, list(confounding[0]))
    return text_table(confounding)
