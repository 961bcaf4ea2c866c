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
from .histology_entries import Entry, write_histology_datalist
from .midog import MIDOG_FIELDS, MIDOG_LABELS, MidogImage
from .preparation import NEW_FOLDER, refuse_other_content


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
