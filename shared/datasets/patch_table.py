"""A table of labelled image patches, read and checked."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data import PatchEntry, domain_names, scanner_name
from ..utils import DataError
from .histology_entries import check_image_files
from .preparation import TableRow, read_table, refuse, repeated

_REMEDY = "Give the path of a CSV file with a header."


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
) -> list[PatchEntry]:
    """The patches that a CSV table lists, each opened and checked.

    Args:
        table: a CSV file with a header.
        image_dir: the folder that the table's file names are relative to.
        positive: what the label column holds for the class 1.
        negative: the same for the class 0; None where the column holds one other value alone.
        image_column, label_column, domain_column, slide_column: where the table has these.

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
    twice = repeated(patch["image"] for patch in patches)
    refuse(path, twice, "lists {0} more than once ({count} such files). List each patch once.")
    check_image_files(path, [patch["image"] for patch in patches], num_workers)
    return patches


def _read_rows(path: Path, columns: Mapping[str, str]) -> list[TableRow]:
    header, found = read_table(path, _REMEDY)
    rows = list(found)
    if not rows:
        raise DataError(f"{path}: holds no rows. Expected a header and a row for each patch.")
    for what, column in columns.items():
        if column not in header:
            raise DataError(
                f"{path}: has no column {column!r} for the {what}. It has: {', '.join(header)}. Choose one of them "
                f"with --{what}_column."
            )
        empty = [row.line for row in rows if not row[column].strip()]
        refuse(path, empty, "the column {column!r} is empty in line {0} ({count} such lines).", column=column)
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


def misleading_names(table: str | os.PathLike, domain_column: str, patches: Sequence[PatchEntry]) -> list[str]:
    """Warnings of what `read_patch_table` may have taken for the same: scanners by their names, slides by theirs."""
    spellings = {row[domain_column].strip() for row in read_table(Path(table), _REMEDY)[1]}
    warnings = []
    for domain in domain_names(patches):
        merged = sorted(name for name in spellings if scanner_name(name) == domain)
        if len(merged) > 1:
            warnings.append(f"Warning: {', '.join(merged)} are taken for one domain, {domain}.")
    domains = defaultdict(set)
    for patch in patches:
        domains[patch["slide"]].add(patch["domain"])
    twice = [slide for slide, names in domains.items() if len(names) > 1]
    if twice:
        warnings.append(
            f"Warning: {len(twice)} slide names, such as {twice[0]}, occur in several domains. If these are the same "
            "slides on several scanners, training sees slides of the test split: split such a table by patient."
        )
    return warnings
