"""A table of labelled image patches: read, checked, counted."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.contrib.concurrent import thread_map

from ..data import read_rgb, scanner_name
from ..utils import DataError, fault_list


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
