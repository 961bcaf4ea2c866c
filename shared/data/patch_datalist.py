"""What training, evaluation and inference read of a datalist of labelled patches."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils import DataError
from .datalist import DATALIST_REMEDY, read_json_object
from .domain_datalist import (
    choose_entries,
    domain_names,
    known_domains,
    list_of,
    listed,
    read_class_ids,
    warn_of_shared_slides,
    with_full_paths,
)

_FORMAT = (
    'a datalist of patches: {"labels": {"0": "non_mitotic", "1": "mitotic"}, "training": [{"image": "a path", '
    '"label": 0 or 1, "domain": "a scanner", "slide": "a name"}, ...], "validation": [...], "test": [...]}'
)


def load_patches(
    path: str | os.PathLike,
    split: str,
    domains: Sequence[str] | None = None,
    whole_unseen: bool = False,
    seen_domains: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The labelled patches of one split of a datalist, checked, in the order of the list.

    Args:
        path: the datalist, a JSON file; the files that it names are relative to its folder.
        split: `"training"`, `"validation"`, `"test"` or another list of the file.
        domains: only patches of these; None for all.
        whole_unseen: with `seen_domains`: take the patches of other domains that `split` has not from `split` alone
            but from all lists. Nothing was trained on them, and more patches make their scores steadier.
        seen_domains: what the network was trained on.

    Returns:
        For each entry `image` as a full path, `label`, `domain`, `slide`, and `case`, its path in the datalist.
        Entries with `"labelled": false` are left out. Slides that training shares with the test split are warned of.

    Raises:
        DataError: the file is missing or not JSON, the split is missing or empty, an entry lacks a field or has
            another label than 0 and 1, a listed file does not exist or is listed twice, a domain is not known (the
            known ones are listed), in training a domain has no patch or patches of one class alone, in validation
            all patches are of one class, `whole_unseen` without `seen_domains`.
    """
    path = Path(path)
    content = read_json_object(path, _FORMAT, DATALIST_REMEDY)
    domains = known_domains(path, content, domains)

    def checked(name: str) -> list[dict[str, Any]]:
        return _checked(path, name, list_of(path, content, name, _FORMAT))

    chosen = choose_entries(path, content, split, checked, ("patch", "patches"), domains, whole_unseen, seen_domains)
    if split == "training":
        _check_classes(path, chosen, domains)
        warn_of_shared_slides(path, chosen, content.get("test"))
    if split == "validation" and len({e["label"] for e in chosen}) < 2:
        raise DataError(
            f"{path}: in validation, all {len(chosen)} patches of the domains {listed(e['domain'] for e in chosen)} "
            f"are of class {chosen[0]['label']}: the AUC, by which the best epoch is chosen, is undefined. Expected "
            "both classes. Move slides with patches of the other class into 'validation'."
        )
    return with_full_paths(path, split, chosen, ("label", "domain", "slide"), "patch")


def patch_labels(path: str | os.PathLike) -> dict[str, int]:
    """The names of the classes 0 and 1 in a datalist, name → id.

    Raises:
        DataError: when the datalist is missing, not JSON, or does not name these two.
    """
    return read_class_ids(Path(path), _FORMAT)


def positive_weight(patches: Sequence[dict[str, Any]]) -> float:
    """Negatives to a positive: as the weight of the positive class in the loss, both classes weigh the same."""
    positive = sum(patch["label"] for patch in patches)
    return (len(patches) - positive) / positive


def _checked(path: Path, split: str, entries: list[Any]) -> list[dict[str, Any]]:
    labelled = []
    for i, e in enumerate(entries):
        if isinstance(e, dict) and e.get("labelled") is False:
            continue
        named = isinstance(e, dict) and all(isinstance(e.get(k), str) and e[k] for k in ("image", "domain", "slide"))
        if not named or type(e.get("label")) is not int or e["label"] not in (0, 1):
            raise DataError(
                f"{path}: entry {i} of '{split}' is {json.dumps(e)}. Expected an image, a label of 0 or 1, a domain "
                f"and a slide, as in {_FORMAT}."
            )
        labelled.append(e)
    return labelled


def _check_classes(path: Path, patches: Sequence[dict[str, Any]], domains: Sequence[str] | None) -> None:
    for domain in domains or domain_names(patches):
        found = {e["label"] for e in patches if e["domain"] == domain}
        if found != {0, 1}:
            only = f"only patches of class {found.pop()}" if found else "no patch"
            raise DataError(
                f"{path}: in training, the domain {domain} has {only}: a network would learn to tell the domain and "
                "not the class. Expected both classes. Add patches, or leave the domain out with --train_domains."
            )
