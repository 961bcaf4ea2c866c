"""Camelyon17-WILDS: 96 × 96 patches of lymph nodes from five centres, with the default split of WILDS."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from ..data import PatchEntry
from ..utils import DataError
from ..utils.text import first_few
from .preparation import TableRow, read_table, refuse

CAMELYON17_LABELS = {"normal": 0, "tumour": 1}
"""A patch is a tumour patch when its middle 32 × 32 pixels hold any tumour."""

CAMELYON17_SPLITS = ("training", "validation", "ood_validation", "test")

# wilds/datasets/camelyon17_dataset.py of github.com/p-lambda/wilds: these centres are whole splits whatever the
# column `split` says; of the others it tells training (0) from validation (1).
_CENTRES = {1: "ood_validation", 2: "test"}
_COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split")


def read_camelyon17(data_dir: str | os.PathLike, allow_missing: bool = False) -> dict[str, list[PatchEntry]]:
    """The patches of a folder as WILDS unpacks it (`camelyon17_v1.0`), in the four lists of its default split.

    `validation` is from the training centres and their slides, patch by patch, `ood_validation` all of centre 1, and
    `test` all of centre 2.

    Args:
        data_dir: holds `metadata.csv` and `patches`.
        allow_missing: leave out patches whose file is not there.

    Returns:
        For each split dicts with `image` (relative to `data_dir`), `label`, `domain` ("centre 0"), `slide`
        ("patient_004_node_4"), `patient`, `node`, `x_coord`, `y_coord`, `slide_number`, `center` and `wilds_split`,
        the column as it stands.

    Raises:
        DataError: the table is missing, empty, lacks a column or holds something else than numbers in their range; a
            patch is listed twice; files are missing.
    """
    folder = Path(data_dir)
    splits: dict[str, list[PatchEntry]] = {split: [] for split in CAMELYON17_SPLITS}
    files: dict[str, set[str]] = defaultdict(set)
    for row in _rows(folder / "metadata.csv"):
        patch = _patch(folder / "metadata.csv", row)
        name = os.path.basename(patch["image"])
        if name in files[patch["slide"]]:
            raise DataError(f"{folder / 'metadata.csv'}: line {row.line} lists {patch['image']} again. List it once.")
        files[patch["slide"]].add(name)
        split = _CENTRES.get(patch["center"], "validation" if patch["wilds_split"] else "training")
        splits[split].append(patch)
    total = sum(map(len, files.values()))
    if not total:
        raise DataError(f"{folder / 'metadata.csv'}: holds no rows. Expected one for each patch.")
    missing = _missing(folder, files)
    if missing and (not allow_missing or len(missing) == total):
        raise DataError(
            f"{folder}: {len(missing)} of {total} patches are missing: {first_few(missing)}. "
            "Unpack the archive again, or go on with those at hand with --allow_missing."
        )
    absent = set(missing)
    return {split: [p for p in patches if p["image"] not in absent] for split, patches in splits.items()}


def _rows(path: Path) -> Iterator[TableRow]:
    header, rows = read_table(path, "Give the folder that WILDS makes, camelyon17_v1.0.")
    missing = [column for column in _COLUMNS if column not in header]
    refuse(path, missing, f"has no column {{0!r}}. Expected the columns {', '.join(_COLUMNS)}.")
    yield from tqdm(rows, desc="reading metadata", unit="patch")


def _patch(path: Path, row: TableRow) -> PatchEntry:
    try:
        values = {column: int(row[column]) for column in _COLUMNS}
    except ValueError as e:
        raise DataError(f"{path}: line {row.line} holds no whole number ({e}). Copy it again.") from e
    for column, most in (("tumor", 1), ("center", 4), ("split", 1)):
        if not 0 <= values[column] <= most:
            raise DataError(
                f"{path}: {column} is {values[column]} in line {row.line}, expected 0 to {most}. Copy it again."
            )
    slide = f"patient_{values['patient']:03d}_node_{values['node']}"
    x, y = values["x_coord"], values["y_coord"]
    return {
        "image": f"patches/{slide}/patch_{slide}_x_{x}_y_{y}.png",
        "label": values["tumor"],
        "domain": f"centre {values['center']}",
        "slide": slide,
        **{column: values[column] for column in ("patient", "node", "x_coord", "y_coord", "center")},
        "slide_number": values["slide"],
        "wilds_split": values["split"],
    }


def _missing(folder: Path, files: dict[str, set[str]]) -> list[str]:
    """Listing each folder once takes seconds where asking for half a million files takes minutes."""
    missing = []
    for slide, names in tqdm(sorted(files.items()), desc="looking for patches", unit="slide"):
        place = folder / "patches" / slide
        found = {entry.name for entry in os.scandir(place)} if place.is_dir() else set()
        missing += [f"patches/{slide}/{name}" for name in sorted(names - found)]
    return missing
