"""What datalists of any kind have in common: how they are read, checked, described and written."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import check_missing_files

from ..utils import DataError, atomic_path, parse_json, read_json_object
from ..utils.text import first_few
from ..utils.values import Name, check_value

SPLITS = ("training", "validation", "test")
FORMAT = (  # what all kinds have in common
    'a datalist: {"labels": {"1": "a name", ...}, "training": [{"image": "a path", "label": ..., ...}, ...], '
    '"validation": [...], "test": [...]}'
)
FILE = Name("the path of a file, from the folder of the datalist")
NAMES = {"case": Name("what can be a file's name, as s0011", folders=False), "domain": Name(), "slide": Name()}
DATALIST_REMEDY = "Check `dataset_dir` and `datalist`."


def get_list(path: Path, content: Mapping[str, Any], split: str, expected: str) -> list[Any]:
    """A list of a datalist; a `DataError`, with the form that is expected, where it is missing, empty or not a list."""
    entries = content.get(split)
    if not isinstance(entries, list) or not entries:
        found = "is missing" if entries is None else "is empty" if entries == [] else "is not a list"
        lists = [f"'{key}' ({len(value)})" for key, value in content.items() if isinstance(value, list)]
        raise DataError(
            f"{path}: the list '{split}' {found}. It has {', '.join(lists) or 'none'}. Expected {expected}."
        )
    return entries


def check_names(path: Path, split: str, number: int, entry: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Raise a `DataError` unless an entry's files, and its names where it has them, are such as files can have."""
    where = f"{path}: entry {number} of '{split}'"
    for key in keys:
        check_value(f"{where}: {key}", entry.get(key), FILE)
    for key, kind in NAMES.items():
        if key in entry:
            check_value(f"{where}: {key}", entry[key], kind)


def check_files_exist(path: Path, entries: Sequence[Mapping[str, Any]], keys: Sequence[str], where: str) -> None:
    """Raise a `DataError` unless the files under these keys of the entries are there, which `where` lists."""
    missing = [str(file) for file in check_missing_files(entries, keys=keys)]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of the {len(keys) * len(entries)} files listed in {where} do not exist: "
            f"{first_few(missing)}. Paths are relative to {path.parent}."
        )


def dataset_info(
    path: str | os.PathLike,
    split: str | None = None,
    fold: int | None = None,
    folds: int | None = None,
    leakage: Sequence[str] = (),
) -> dict[str, Any]:
    """What a report says about the data: `name` of the data set, whether it is `synthetic`, and the part of it used.

    `leakage` is what `check_leakage` has found, if anything.

    The name is the datalist's own, or the name of its folder. Only `"synthetic": true` in the datalist makes the data
    synthetic.

    Raises:
        DataError: when the file is missing or not JSON.
    """
    content = read_json_object(Path(path), FORMAT, DATALIST_REMEDY)
    part = {"split": split, "fold": fold, "folds": folds, "leakage": list(leakage) or None}
    return {
        "name": str(content.get("name") or Path(path).resolve().parent.name),
        "synthetic": content.get("synthetic") is True,
        **{key: value for key, value in part.items() if value is not None},
    }


def data_digest(*lists: Sequence[Mapping[str, Any]]) -> str:
    """What tells the entries of some lists from any others, wherever the folder of the data is."""
    text = json.dumps(lists, sort_keys=True, default=str)
    names = re.sub(r'"[^"]*/', '"', text)  # of files, without their folders
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def write_datalist(path: str | os.PathLike, content: Mapping[str, Any], overwrite: bool = False) -> None:
    """Write a datalist as JSON, with a line for each entry. The same content leaves an older file as it is.

    Raises:
        DataError: when the name does not end in .json, or the file holds something else and `overwrite` is false.
    """
    path = Path(path)
    if holds_datalist(path, content, overwrite):
        return
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


def holds_datalist(path: Path, content: Mapping[str, Any], overwrite: bool = False) -> bool:
    """Whether a file holds this very datalist already, and need not be written.

    Raises:
        DataError: as `write_datalist` would, for whoever has much to do before that.
    """
    if path.suffix != ".json":
        raise DataError(f"{path}: a datalist is a .json file. Choose another --output.")
    try:
        same = parse_json(path) == content
    except (OSError, ValueError):
        same = False
    if path.exists() and not same and not overwrite:
        raise DataError(f"{path}: holds another datalist. Choose another output, or replace it with --overwrite.")
    return same
