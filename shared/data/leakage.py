"""What training sees and scores are then made of: the same files, slides or patients in two lists of a datalist."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from ..utils import DataError, flag, read_json_object
from ..utils.text import first_few
from .ct_datalist import load_datalist
from .datalist import DATALIST_REMEDY, FORMAT

logger = logging.getLogger(__name__)

_NAMES = ("slide", "patient", "case")


def check_leakage(
    path: str | os.PathLike,
    allow_leakage: bool = False,
    scored: str | None = None,
    fold: int | None = None,
    folds: int | None = None,
    val_split: str | None = None,
    unlabelled: bool = False,
    judged_by: Iterable[Sequence[str]] | None = None,
) -> list[str]:
    """See that nothing that training sees is scored: by files (with all their names) and by slide, patient and case.

    Files are images and label maps, links to them resolved. The other names are those of entries of one domain. Where
    a datalist says `"split_unit": "patch"`, its slides are shared by intent: that is told of, and not refused. So is
    what validation and test have in common. Call it before a training or an evaluation begins.

    Args:
        path: the datalist.
        allow_leakage: go on all the same.
        scored: the list of an evaluation; for a training that of the validation and test are looked at.
        fold, folds: see `load_datalist`.
        val_split: the list by which the training chooses its epoch, "validation" where none is given; for an
            evaluation the one that the weights were chosen by, None where nobody knows.
        unlabelled: whether training sees the list "unlabelled", too.
        judged_by: the [domain, slide] that a second network, which judges what the first finds, was trained on.

    Returns:
        What reports of the scores, or the record of the weights, have to say: a sentence for each list; often none.

    Raises:
        DataError: when something that training sees is in a list that is scored, or the datalist cannot be read.
    """
    path = Path(path)
    content = read_json_object(path, FORMAT, DATALIST_REMEDY)
    allowed = flag("allow_leakage", allow_leakage)
    chosen_by = val_split or "validation"
    lists = (scored,) if scored else (chosen_by, "test")
    sources = ("training", *(["unlabelled"] if unlabelled else []))
    found = {name: _identities(path, _entries(path, content, name, fold, folds)) for name in (*sources, *lists)}
    intended = content.get("split_unit") == "patch"
    refused, told = [], []
    for name, source in itertools.product(lists, sources):
        shared = _shared(found[source], found[name])
        if name == source:
            told.append("Scored is what the network was trained on.")
        elif shared:
            said = " and ".join(_count(kind, names) for kind, names in shared.items())
            text = f"{said} of '{source}' are in '{name}', too: scores of these are too good."
            (told if intended and "file" not in shared else refused).append(text)
    learned = {(str(domain), str(slide)): str(slide) for domain, slide in judged_by or ()}
    if scored and scored != "training" and (common := _shared({"slide": learned}, found[scored])):
        refused.append(
            f"{_count('slide', common['slide'])} of '{scored}' are of those that the classifier was trained on: scores "
            "of these are too good."
        )
    if scored and scored == val_split:
        told.append("Scored is what the epoch was chosen by.")
    if refused and not allowed:
        raise DataError(
            f"{path}: {' '.join(refused)} Take them out of one of the lists, or go on all the same with "
            "--allow_leakage true; reports then say so."
        )
    if not scored:
        both = _shared(*(found[name] for name in lists)).get("file")
        if both:
            told.append(f"{_count('file', both)} of '{chosen_by}' are in 'test', too: they choose the best epoch.")
    if idist.get_rank() == 0:
        for text in refused + told:
            logger.warning("%s: %s", path, text)
    return refused + (told if scored else [])


def _entries(
    path: Path, content: Mapping[str, Any], name: str, fold: int | None, folds: int | None
) -> list[Mapping[str, Any]]:
    """A list as it stands in the file, or a part of it for cross-validation. What is wrong in it, its reader says."""
    if folds is not None and name in ("training", "validation"):
        cases = load_datalist(path.absolute(), name, fold, folds)  # all have names in one list, from its folder on
        return [{key: value for key, value in case.items() if key != "case"} for case in cases]
    entries = content.get(name)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _identities(path: Path, entries: Iterable[Mapping[str, Any]]) -> dict[str, dict[Any, str]]:
    """Of each kind of thing what tells it from others, and what it is called."""
    found: dict[str, dict[Any, str]] = {kind: {} for kind in ("file", *_NAMES)}
    for entry in entries:
        for key in ("image", "label"):
            if isinstance(entry.get(key), str) and entry[key]:
                found["file"].setdefault(_file(path.parent / entry[key]), entry[key])
        for kind in _NAMES:
            if isinstance(entry.get(kind), str | int):
                found[kind].setdefault((str(entry.get("domain")), str(entry[kind])), str(entry[kind]))
    return found


def _shared(one: Mapping[str, dict[Any, str]], other: Mapping[str, dict[Any, str]]) -> dict[str, list[str]]:
    """What both have of each kind, by its name; kinds of which they share nothing are left out."""
    names = {kind: [name for i, name in one[kind].items() if i in other[kind]] for kind in one}
    return {kind: shared for kind, shared in names.items() if shared}


def _file(path: Path) -> tuple[int, int] | str:
    """What all names of a file have in common: its device and inode, where there are such."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # who reads the list says so
        return os.path.abspath(path)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _count(kind: str, names: list[str]) -> str:
    return f"{len(names)} {kind}{'s' * (len(names) > 1)} ({first_few(names, 3)})"
