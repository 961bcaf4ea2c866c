"""The decathlon datalist of a CT data set: read, checked against the labels, split into folds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import partition_dataset

from ..utils import DataError, read_json_object
from .case_names import case_names
from .datalist import DATALIST_REMEDY, check_files_exist, check_names, get_list
from .labels import ids_in_files

_FORM = 'a decathlon datalist: {"labels": {"1": "spleen", ...}, "training": [{"image": ..., "label": ...}, ...], ...}'


def _check_entries(path: Path, split: str, entries: list[Any]) -> None:
    for i, entry in enumerate(entries):
        for key in ("image", "label"):
            if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
                raise DataError(
                    f"{path}: entry {i} of '{split}' is {json.dumps(entry)[:300]}, which names no file under '{key}'. "
                    'Expected {"image": "a path", "label": "a path"}, relative to the folder of the datalist.'
                )
        check_names(path, split, i, entry, ("image", "label"))


def _check_labels(path: Path, found: object, labels: Mapping[str, int], label_ids: Any) -> None:
    """The data set's own names of its labels, if it has them, are those of the configuration, whatever the spelling.

    With `label_ids` it is the ids that have to be among its own; the names may be others.
    """
    ids = ids_in_files(labels, label_ids)
    if found is None:
        return
    try:
        own = {int(k): str(v) for k, v in dict(found).items() if int(k) != 0}
    except (TypeError, ValueError) as e:
        raise DataError(
            f"{path}: 'labels' is {json.dumps(found)}. Expected the name of each label id, as in "
            '{"0": "background", "1": "spleen"}.'
        ) from e
    if label_ids is not None:
        if unknown := {name: i for name, of in ids.items() for i in of if i not in own}:
            raise DataError(
                f"{path}: `label_ids` has {unknown}, which the datalist's own labels have not: {own}. Set `label_ids` "
                "to what the label files hold, or correct the datalist."
            )
        return
    wanted = {v: k for k, v in labels.items()}

    def plain(name: str | None) -> str | None:
        return name and name.lower().replace(" ", "_").replace("-", "_")

    differ = [i for i in sorted(own.keys() | wanted.keys()) if plain(own.get(i)) != plain(wanted.get(i))]
    if differ:
        i, ids_of = differ[0], {name: [i for i, of in own.items() if plain(of) == plain(name)] for name in labels}
        known = {name: of[0] if len(of) == 1 else of for name, of in ids_of.items() if of}
        option = f' (--label_ids "{known}")' if len(known) == len(labels) else ""
        raise DataError(
            f"{path}: label {i} is {own.get(i, 'nothing')} in the datalist and {wanted.get(i, 'nothing')} in the "
            f"configuration. The datalist has {own}, `labels` has {wanted}. Set `labels` to what the label files hold, "
            f"map their ids to these with `label_ids`{option}, or correct the datalist."
        )


def _check_own_names(path: Path, content: Mapping[str, Any]) -> None:
    """The `case` that entries may have can be a file's name, and stands for one image in all lists."""
    images: dict[str, Any] = {}
    lists = [(split, i, e) for split, part in content.items() if isinstance(part, list) for i, e in enumerate(part)]
    for split, i, entry in ((split, i, e) for split, i, e in lists if isinstance(e, dict) and "case" in e):
        check_names(path, split, i, entry, ())
        name, image = entry["case"], entry.get("image")
        if images.setdefault(name, image) != image:
            raise DataError(
                f"{path}: {images[name]} and {image} are both the case {name}. Give each a name of its own."
            )


def _fold_of(path: Path, cases: list[dict[str, Any]], split: str, fold: int, folds: int) -> list[dict[str, Any]]:
    if not 2 <= folds <= len(cases) or not 0 <= fold < folds:
        raise DataError(
            f"fold {fold} of {folds} cannot be made of the {len(cases)} training and validation cases of {path}. "
            f"Expected `folds` from 2 to {len(cases)} and `fold` from 0 to `folds` - 1."
        )
    order = np.random.default_rng(0).permutation(len(cases))
    cases = sorted(cases, key=lambda c: c["case"])
    parts = partition_dataset([cases[i] for i in order], num_partitions=folds)
    if split == "validation":
        return list(parts[fold])
    return [case for i, part in enumerate(parts) if i != fold for case in part]


def load_datalist(
    path: str | os.PathLike,
    split: str,
    fold: int | None = None,
    folds: int | None = None,
    labels: Mapping[str, int] | None = None,
    label_ids: Mapping[str, int | Sequence[int]] | None = None,
) -> list[dict[str, Any]]:
    """The cases of one split of a decathlon datalist, checked.

    With `folds` and `fold`, cross-validation: the training and validation cases are pooled, sorted by case name,
    shuffled with a fixed seed and dealt out into `folds` parts. Part number `fold` is the split `"validation"`, the
    others are `"training"`. The split `"test"` takes no part in it and stays as it is.

    Args:
        path: the datalist, a JSON file; the files that it names are relative to its folder.
        split: `"training"`, `"validation"` or `"test"` (or another list that the file has).
        fold: which part validates, in [0, folds).
        folds: number of parts, at least 2.
        labels: name → id of the configuration; compared with the datalist's own where it has them (lower or upper
            case, blank, hyphen or underscore make no difference).
        label_ids: name → id or ids in the label files, see `ids_in_files`; compared with the datalist's own ids.

    Returns:
        Dicts with what the entry holds; `image` and `label` are full paths; `case` is a name that no other of them
        has: the entry's own, or made from the image's file name.

    Raises:
        DataError: the file is missing or not JSON, the split is missing or empty, an entry names no image or label,
            a listed file does not exist, a case is listed twice, two have one name or a name that cannot be a
            file's, the labels differ, or the fold is impossible.
    """
    path = Path(path)
    content = read_json_object(path, _FORM, DATALIST_REMEDY)
    if labels is not None:
        _check_labels(path, content.get("labels"), labels, label_ids)
    if (fold is None) != (folds is None):
        raise DataError(f"`fold` is {fold} and `folds` is {folds}. Set both, or neither.")
    pooled = folds is not None and split in ("training", "validation")
    sources = [s for s in ("training", "validation") if content.get(s)] or ["training"] if pooled else [split]

    for source in sources:
        _check_entries(path, source, get_list(path, content, source, _FORM))
    _check_own_names(path, content)
    entries = [entry for source in sources for entry in content[source]]
    cases = [
        {**entry, **{key: os.path.normpath(path.parent / entry[key]) for key in ("image", "label")}, "case": name}
        for entry, name in zip(entries, case_names(path, entries), strict=True)
    ]
    check_files_exist(path, cases, ("image", "label"), " and ".join(sources))
    return _fold_of(path, cases, split, fold, folds) if pooled else cases
