"""What training, evaluation and inference read of a datalist of regions with annotated figures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils import DataError
from .datalist import DATALIST_REMEDY, read_json_object
from .domain_datalist import (
    choose_entries,
    class_ids,
    domain_names,
    holds_images,
    known_domains,
    labelled_lists,
    list_of,
    read_class_ids,
    warn_of_shared_slides,
    with_full_paths,
)

TILE_KINDS = ("mitotic", "non_mitotic", "empty", "unlabelled")
"""What a tile is drawn for: a figure of one of the two classes, tissue without any, an image nobody annotated."""

MPP_TOLERANCE = 0.15
"""Scanners with the same magnification differ by less, and networks are trained on their pixels as they are."""

_NAMES = ("image", "domain", "slide")
_FORMAT = (
    'a datalist of regions: {"labels": {"0": "non_mitotic", "1": "mitotic"}, "box_mode": "xyxy", "training": '
    '[{"image": "a path", "box": [[x1, y1, x2, y2], ...], "label": [0 or 1, ...], "domain": "a scanner", "slide": "a '
    'name"}, ...], "validation": [...], "test": [...], "unlabelled": [{"image": "a path", "labelled": false, '
    '"domain": ..., "slide": ...}, ...]}'
)


def load_regions(
    path: str | os.PathLike,
    split: str,
    domains: Sequence[str] | None = None,
    whole_unseen: bool = False,
    seen_domains: Sequence[str] | None = None,
    optional: bool = False,
    mpp: float | None = None,
) -> list[dict[str, Any]]:
    """The regions of one split of a datalist, checked, in the order of the list.

    Args:
        path: the datalist, a JSON file; the files that it names are relative to its folder.
        split: `"training"`, `"validation"`, `"test"` or another list of the file; `"unlabelled"` for the images that
            nobody annotated.
        domains, whole_unseen, seen_domains: see `load_patches`.
        optional: a list that is missing or empty gives no regions, and no error.
        mpp: µm a pixel that the network is for; pixels are taken as they are, and regions that state a size that
            differs by more than 15 % are refused. None: any will do.

    Returns:
        For each entry `image` as a full path, `case`, its path in the datalist, `domain`, `slide`, `mpp`, the size of
        a pixel in µm that the entry or else the datalist states, or None, and `labelled`. Where that is true,
        `box`, a list of [x1, y1, x2, y2] in pixels, and `label`, a class for each, both empty for an image without a
        figure. Slides that training shares with the test split are warned of.

    Raises:
        DataError: the file is missing, not JSON or states no or another `box_mode` than "xyxy"; the split is missing
            or empty; an entry lacks a field; a box is no box or lies outside of an image of known size; labels are
            not as many as boxes or not classes; a labelled split has an entry that is not labelled, or "unlabelled"
            one that is; an image is listed twice or in two lists, or does not exist; a domain is not known; in
            training a domain has no mitotic figure, in validation there is none; `whole_unseen` without
            `seen_domains`; a region states pixels of another size than `mpp`.
    """
    path = Path(path)
    content = read_json_object(path, _FORMAT, DATALIST_REMEDY)
    if content.get("box_mode") != "xyxy":
        raise DataError(
            f"{path}: 'box_mode' is {json.dumps(content.get('box_mode'))}, expected \"xyxy\": boxes are [x1, y1, x2, "
            "y2] in pixels. Convert them, and state it."
        )
    if content.get("mpp") is not None and not _positive(content["mpp"]):
        raise DataError(f"{path}: 'mpp' is {json.dumps(content['mpp'])}, expected the size of a pixel in µm, above 0.")
    domains = known_domains(path, content, domains)
    names = {str(i): name for name, i in class_ids(path, content).items()}
    _check_in_one_list(path, content)
    if optional and not content.get(split):
        return []

    def checked(name: str) -> list[dict[str, Any]]:
        entries = list_of(path, content, name, _FORMAT)
        for i, entry in enumerate(entries):
            fault = _entry_fault(entry, name != "unlabelled", names)
            if fault:
                raise DataError(f"{path}: entry {i} of '{name}'{_image_of(entry)}: {fault}")
        return entries

    chosen = choose_entries(path, content, split, checked, ("region", "regions"), domains, whole_unseen, seen_domains)
    if split == "training":
        _check_figures(path, chosen, domains)
        warn_of_shared_slides(path, chosen, content.get("test"))
    if split == "validation" and not any(1 in e["label"] for e in chosen):
        raise DataError(
            f"{path}: in validation, none of the {len(chosen)} regions has a mitotic figure: no score threshold can be "
            "chosen. Move a slide with some into 'validation'."
        )
    labelled = split != "unlabelled"
    _check_mpp(path, chosen, content.get("mpp"), mpp)
    entries = [e | {"labelled": labelled, "mpp": e.get("mpp") or content.get("mpp")} for e in chosen]
    keys = ("box", "label") if labelled else ()
    return with_full_paths(path, split, entries, (*keys, "domain", "slide", "mpp", "labelled"), "region")


def _check_mpp(path: Path, entries: Sequence[Mapping[str, Any]], common: float | None, mpp: float | None) -> None:
    for entry in entries:
        stated = entry.get("mpp") or common
        if stated and mpp and max(stated / mpp, mpp / stated) > 1 + MPP_TOLERANCE:
            raise DataError(
                f"{path}: {entry['image']} has {stated:g} µm a pixel, and the network is for {mpp:g}: figures would "
                "have another size than in inference. Set --mpp in training to what all regions have, or resample "
                "those that differ, with their boxes."
            )


def region_labels(path: str | os.PathLike) -> dict[str, int]:
    """The names of the classes 0 and 1 in a datalist of regions, name → id.

    Raises:
        DataError: when the datalist is missing, not JSON, or does not name these two.
    """
    return read_class_ids(Path(path), _FORMAT)


def tile_items(regions: Sequence[Mapping[str, Any]], empty_per_region: int = 1) -> list[dict[str, Any]]:
    """What tiles for training are drawn from: an item for each figure, and some for each region.

    Args:
        regions: as `load_regions` gives them, labelled or not.
        empty_per_region: items for tissue without a figure, in each labelled region; 0 for none. How often they are
            drawn is for `TileSampler` to say.

    Returns:
        For each item what the region holds, `kind`, one of `TILE_KINDS`, and `center`, the (x, y) of its figure in
        pixels or None. Regions without labels have one item, of the kind "unlabelled".

    Raises:
        ValueError: when `empty_per_region` is negative.
    """
    if empty_per_region < 0:
        raise ValueError(f"empty_per_region must be 0 or more, got {empty_per_region}")
    items = []
    for region in regions:
        if not region["labelled"]:
            items.append({**region, "kind": "unlabelled", "center": None})
            continue
        for (x1, y1, x2, y2), label in zip(region["box"], region["label"], strict=True):
            kind = "mitotic" if label == 1 else "non_mitotic"
            items.append({**region, "kind": kind, "center": ((x1 + x2) / 2, (y1 + y2) / 2)})
        items += [{**region, "kind": "empty", "center": None}] * empty_per_region
    return items


def _image_of(entry: object) -> str:
    return f", {entry['image']}" if isinstance(entry, dict) and isinstance(entry.get("image"), str) else ""


def _entry_fault(entry: object, labelled: bool, names: Mapping[str, str]) -> str | None:
    """What is wrong with an entry, or None."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) and entry[k] for k in _NAMES):
        found = json.dumps(entry)
        return f"found {found[:300]}, expected an image, a domain and a slide, as in {_FORMAT}."
    wrong = [k for k in ("mpp", "width", "height") if entry.get(k) is not None and not _positive(entry[k])]
    if wrong:
        return f"'{wrong[0]}' is {json.dumps(entry[wrong[0]])}, expected a number above 0."
    if not labelled:
        if entry.get("labelled") is not False or "box" in entry or "label" in entry:
            return 'it is in "unlabelled", expected "labelled": false and neither box nor label. Move it to a split.'
        return None
    if entry.get("labelled", True) is not True:
        return (
            f'"labelled" is {json.dumps(entry["labelled"])}: an image that nobody annotated would count as one '
            'without a figure. Move it to the list "unlabelled".'
        )
    boxes, labels = entry.get("box"), entry.get("label")
    if not isinstance(boxes, list) or not isinstance(labels, list):
        return f"its box and label are not both lists. Expected {_FORMAT}; both empty for an image without a figure."
    if len(boxes) != len(labels):
        return f"has {len(boxes)} boxes and {len(labels)} labels, expected one label a box."
    faults = (_box_fault(box, label, entry, names) for box, label in zip(boxes, labels, strict=True))
    return next((f"box {i}, {json.dumps(boxes[i])}: {fault}" for i, fault in enumerate(faults) if fault), None)


def _box_fault(box: object, label: object, entry: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_finite, box)):
        return "expected [x1, y1, x2, y2], four finite numbers."
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return (
            "has no area: expected x1 < x2 and y1 < y2. Is it x, y, width, height? Correct it, or take it out together "
            "with its label."
        )
    width, height = entry.get("width") or math.inf, entry.get("height") or math.inf
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        return (
            f"lies outside of its image of {entry.get('width', '?')} × {entry.get('height', '?')} pixels. Take it out "
            "together with its label."
        )
    if type(label) is not int or str(label) not in names:
        known = ", ".join(f"{i} ({name})" for i, name in sorted(names.items()))
        return f"its label is {json.dumps(label)}, which is no known category. Expected {known}."
    return None


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: object) -> bool:
    return _finite(value) and value > 0  # type: ignore[operator]


def _check_in_one_list(path: Path, content: Mapping[str, Any]) -> None:
    found: dict[str, str] = {}
    for name in [*labelled_lists(dict(content)), *(["unlabelled"] if holds_images(content.get("unlabelled")) else [])]:
        for image in {os.path.normpath(e["image"]) for e in content[name] if isinstance(e["image"], str)}:
            if found.setdefault(image, name) != name:
                raise DataError(
                    f"{path}: {image} is both in '{found[image]}' and in '{name}'. List each image once: its score "
                    "would be that of an image that training has seen."
                )


def _check_figures(path: Path, regions: Sequence[Mapping[str, Any]], domains: Sequence[str] | None) -> None:
    for domain in domains or domain_names(regions):
        own = [e for e in regions if e["domain"] == domain]
        if not any(1 in e["label"] for e in own):
            raise DataError(
                f"{path}: in training, the {len(own)} regions of the domain {domain} have no mitotic figure: a network "
                "would learn to tell the domain and not the class. Add regions, or leave the domain out with "
                "--train_domains."
            )
