"""Labelled image patches from several domains (scanners, centres): read from a table, split by slide, counted."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.contrib.concurrent import thread_map

from ..utils import DataError, atomic_path, fault_list
from .images import read_rgb

SPLITS = ("training", "validation", "test")

# How data sets spell the scanners of MIDOG, and the short names used here.
_SCANNERS = {"XR": r"\bxr\b|c12000 22", "S360": r"\bs360\b", "CS": r"\bcs2?\b", "GT450": r"\bgt\s?450\b"}


def scanner_name(name: str) -> str:
    """The short name of a scanner: XR, S360, CS or GT450, whatever a data set calls it; another stays as it is."""
    spaced = re.sub("[_-]+", " ", name.lower())
    found = [short for short, pattern in _SCANNERS.items() if re.search(pattern, spaced)]
    return found[0] if len(found) == 1 else name.strip()


def read_patch_table(
    table: str | os.PathLike,
    image_dir: str | os.PathLike,
    positive: str,
    negative: str | None = None,
    image_column: str = "file",
    label_column: str = "label",
    domain_column: str = "scanner",
    slide_column: str = "slide",
    num_workers: int = 4,
) -> list[dict[str, Any]]:
    """The patches that a CSV table lists, each opened and checked.

    Args:
        table: a CSV file with a header.
        image_dir: the folder that the table's file names are relative to.
        positive: what the label column holds for the class 1.
        negative: the same for the class 0; None where the column holds one other value alone.
        image_column, label_column, domain_column, slide_column: where the table has these.
        num_workers: files opened at a time.

    Returns:
        A dict a row, in the table's order: `image` (absolute path), `label` (0 or 1), `domain` (by `scanner_name`),
        `slide`, and every other column under its own name.

    Raises:
        DataError: the table is missing, empty or lacks a column; a cell is empty; a label is neither of the two; an
            image is missing, unreadable or listed twice. The rows at fault are named.
    """
    path = Path(table)
    columns = {"image": image_column, "label": label_column, "domain": domain_column, "slide": slide_column}
    rows = _read_rows(path, columns)
    classes = _classes(path, [row[label_column] for row in rows], positive, negative)
    patches = []
    for row in rows:
        others = {key: value for key, value in row.items() if key not in columns.values() and key not in columns}
        image = str((Path(image_dir) / row[image_column]).resolve())
        known = {"label": classes[row[label_column]], "domain": scanner_name(row[domain_column])}
        patches.append({"image": image, **known, "slide": row[slide_column], **others})
    twice = [image for image, count in Counter(patch["image"] for patch in patches).items() if count > 1]
    if twice:
        raise DataError(f"{path}: lists {twice[0]} more than once ({len(twice)} such files). List each patch once.")
    check_image_files(path, [patch["image"] for patch in patches], num_workers)
    return patches


def _read_rows(path: Path, columns: Mapping[str, str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such table. Give the path of a CSV file with a header.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        rows, header = list(reader), reader.fieldnames or []
    if not rows:
        raise DataError(f"{path}: holds no rows. Expected a header and a row for each patch.")
    for what, column in columns.items():
        if column not in header:
            raise DataError(
                f"{path}: has no column {column!r} for the {what}. It has: {', '.join(header)}. Choose one of them "
                f"with --{what}_column."
            )
        empty = [i for i, row in enumerate(rows, start=2) if not row[column].strip()]
        if empty:
            raise DataError(f"{path}: the column {column!r} is empty in line {empty[0]} ({len(empty)} such lines).")
    return rows


def _classes(path: Path, labels: Sequence[str], positive: str, negative: str | None) -> dict[str, int]:
    counts = Counter(labels)
    others = [label for label in counts if label != positive]
    if positive not in counts or (negative is None and len(others) != 1) or (negative and set(others) != {negative}):
        listed = ", ".join(f"{label!r} ({count})" for label, count in counts.items())
        raise DataError(
            f"{path}: its labels are {listed}, expected {positive!r} and "
            f"{repr(negative) if negative else 'one other value'}. Set --positive and --negative to the two values, "
            "and take rows with others out of the table."
        )
    return {positive: 1, others[0]: 0}


def check_image_files(
    source: str | os.PathLike,
    images: Sequence[str],
    num_workers: int = 4,
    size: tuple[int, int] | None = None,
    remedy: str = "Check --image_dir, and copy broken files again.",
) -> None:
    """Read every image, which has to be 8-bit RGB, see `read_rgb`.

    Args:
        source: what lists the images; it begins the message.
        images: paths.
        num_workers: files opened at a time.
        size: the width and height that each has; None where any will do.
        remedy: what to do, at the end of the message.

    Raises:
        DataError: when some are missing, unreadable or of another size; the first five are named.
    """

    def fault(image: str) -> str | None:
        try:
            found = read_rgb(image).size
        except DataError as e:
            return str(e)
        if size is not None and found != tuple(size):
            return f"{image}: has {found[0]} × {found[1]} pixels, expected {size[0]} × {size[1]}."
        return None

    faults = thread_map(fault, images, max_workers=num_workers, desc="checking images", unit="file")
    found = [text for text in faults if text]
    if found:
        summary = f"{source}: {len(found)} of {len(images)} images cannot be used. {remedy}"
        raise DataError(summary + fault_list(found, 5))


def first_few(names: Sequence[str], count: int = 5) -> str:
    """The first names of a list, and dots where there are more: for messages."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def split_patches(
    patches: Sequence[Mapping[str, Any]],
    unit: str = "slide",
    test_share: float = 0.2,
    validation_share: float = 0.2,
    seed: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """Deal out patches to `training`, `validation` and `test`, within each domain on its own.

    By slide, no slide is in two splits. By patch, as in the paper, patches of one slide, even neighbours, stand on
    both sides, and the scores are those of slides that training has seen.

    Args:
        patches: as `read_patch_table` gives them; `domain` and `slide` are read.
        unit: `"slide"` or `"patch"`.
        test_share: share of the slides (or patches) of each domain for testing.
        validation_share: share of the rest for validation.
        seed: another one gives another split; the same gives the same, whatever the order of the patches.

    Raises:
        ValueError: when a share is out of its range.
        DataError: when the unit is neither, or a domain has fewer than three slides (patches).
    """
    if unit not in ("slide", "patch"):
        raise DataError(f'unit must be "slide" or "patch", got {unit!r}')
    if not (0 < test_share < 1 and 0 < validation_share < 1):
        raise ValueError(f"the shares must be between 0 and 1, got {test_share} and {validation_share}")
    units: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for patch in sorted(patches, key=lambda p: p["image"]):
        units[patch["domain"]][patch["slide" if unit == "slide" else "image"]].append(dict(patch))
    result: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    generator = torch.Generator().manual_seed(seed)
    for domain, members in sorted(units.items()):
        names = sorted(members)
        if len(names) < 3:
            raise DataError(
                f"The domain {domain} has {len(names)} {unit}(s), expected 3 or more: one each for training, "
                'validation and test. Leave it out of the table, or split by patch (unit="patch").'
            )
        order = [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]
        test = min(max(1, round(test_share * len(names))), len(names) - 2)
        validation = min(max(1, round(validation_share * (len(names) - test))), len(names) - test - 1)
        for i, name in enumerate(order):
            split = "test" if i < test else "validation" if i < test + validation else "training"
            result[split] += members[name]
    return result


def count_patches(splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each domain and split: `domain`, `split`, `slides`, `negative`, `positive`."""
    domains = sorted({patch["domain"] for patches in splits.values() for patch in patches})
    rows = []
    for domain in domains:
        for split, patches in splits.items():
            own = [patch for patch in patches if patch["domain"] == domain]
            positive = sum(patch["label"] for patch in own)
            counts = {"negative": len(own) - positive, "positive": positive}
            rows.append({"domain": domain, "split": split, "slides": len({p["slide"] for p in own}), **counts})
    return rows


def leaked_slides(splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[int, int]:
    """How many slides of the test split are in training or validation too, and how many it has."""
    slides = {split: {(p["domain"], p["slide"]) for p in patches} for split, patches in splits.items()}
    return len(slides["test"] & (slides["training"] | slides["validation"])), len(slides["test"])


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as lines of aligned columns under a header; numbers to the right."""
    columns = list(rows[0]) if rows else []
    width = {c: max(len(str(c)), *(len(str(row[c])) for row in rows)) for c in columns}
    right = {c for c in columns if isinstance(rows[0][c], int)}
    lines = [{c: c for c in columns}, *rows]
    cells = [[str(r[c]).rjust(width[c]) if c in right else str(r[c]).ljust(width[c]) for c in columns] for r in lines]
    return "\n".join("  ".join(line).rstrip() for line in cells)


def write_datalist(path: str | os.PathLike, content: Mapping[str, Any], overwrite: bool = False) -> None:
    """Write a datalist as JSON, with a line for each entry. The same content leaves an older file as it is.

    Raises:
        DataError: when the name does not end in .json, or the file holds something else and `overwrite` is false.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise DataError(f"{path}: a datalist is a .json file. Choose another --output.")
    if path.exists():
        if _holds(path, content):
            return
        if not overwrite:
            raise DataError(f"{path}: holds another datalist. Choose another output, or replace it with --overwrite.")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for i, (key, value) in enumerate(content.items()):
            file.write(f"{',' if i else '{'}\n  {json.dumps(key)}: ")
            if isinstance(value, list) and value:
                for k, entry in enumerate(value):
                    file.write(f"{',' if k else '['}\n    {json.dumps(entry, allow_nan=False)}")
                file.write("\n  ]")
            else:
                file.write(json.dumps(value, allow_nan=False))
        file.write("\n}\n")


def _holds(path: Path, content: Mapping[str, Any]) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8")) == content
    except (OSError, ValueError):
        return False
