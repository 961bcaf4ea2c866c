"""What cases are called: after their files, and so that each has a name of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from ..utils import DataError


def case_name(path: str | os.PathLike) -> str:
    """The name of a case: that of its file without extension, or of its folder, and of a link its own."""
    path = Path(os.path.abspath(Path(path).expanduser()))
    if path.is_dir():
        return path.name
    name = without(path.name, ".gz")
    return name.rpartition(".")[0] or path.name


def without(name: str, suffix: str) -> str:
    """The name without the suffix, in whatever case."""
    return name[: -len(suffix)] if name.lower().endswith(suffix) else name


def case_names(path: Path, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of the entries of a datalist of CTs, in training and inference alike.

    An entry's own `case`, or the image file's name without extension; where files share it, with the folders, and where
    they share these, too, with the extension.

    Raises:
        DataError: when two entries have the same name.
    """
    images = [entry["image"] for entry in entries]
    names = [entry.get("case", case_name(path.parent / i)) for entry, i in zip(entries, images, strict=True)]
    if len(set(names)) < len(names):
        folders = ["_".join(p for p in PurePath(i).parts[:-1] if p not in ("/", "..", ".")) for i in images]
        longer = [f"{f}_{n}" if f else n for f, n in zip(folders, names, strict=True)]
        names = [entry.get("case", name) for entry, name in zip(entries, longer, strict=True)]
        twice = {name for name, times in Counter(names).items() if times > 1}
        endings = [PurePath(i).name.removeprefix(case_name(path.parent / i)) for i in images]
        longer = [name + end if name in twice else name for name, end in zip(names, endings, strict=True)]
        names = [entry.get("case", name) for entry, name in zip(entries, longer, strict=True)]
    for name, times in Counter(names).items():
        if times > 1:
            same = [i for i, n in zip(images, names, strict=True) if n == name]
            raise DataError(f"{path}: {times} entries are the case {name}: {same[:5]}. List each case once.")
    return names
