"""What training, evaluation and inference read of a datalist of labelled patches."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.data import check_missing_files

from ..utils import DataError
from .datalist import DATALIST_REMEDY, read_json_object
from .patches import scanner_name

logger = logging.getLogger(__name__)

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
    entries = _entries(path, content, split)
    if whole_unseen:
        if seen_domains is None:
            raise DataError(
                "whole_unseen takes all patches of the domains that the network was not trained on, and what it was "
                "trained on is not known: its model.json, with 'train_domains', is not beside the weights. Copy it "
                "there, or set whole_unseen to false."
            )
        unseen = {e["domain"] for e in entries} - set(seen_domains)
        lists = [name for name, value in content.items() if name != "unlabelled" and _holds_patches(value)]
        everything = [e for name in lists for e in _entries(path, content, name)]
        entries = [e for e in entries if e["domain"] in seen_domains]
        entries += [e for e in everything if e["domain"] in unseen]
    domains = _known_domains(path, domains, _domains(content))
    chosen = [e for e in entries if domains is None or e["domain"] in domains]
    if not chosen:
        wanted = f"of the domains {', '.join(domains)}" if domains else "labelled"
        raise DataError(
            f"{path}: no patch in the list '{split}' is {wanted}. It has labelled patches of "
            f"{_listed(entries, 'domain')}."
        )
    if split == "training":
        _check_classes(path, chosen, domains)
        _warn_of_shared_slides(path, chosen, content.get("test"))
    if split == "validation" and len({e["label"] for e in chosen}) < 2:
        raise DataError(
            f"{path}: in validation, all {len(chosen)} patches of the domains {_listed(chosen, 'domain')} are of class "
            f"{chosen[0]['label']}: the AUC, by which the best epoch is chosen, is undefined. Expected both classes. "
            "Move slides with patches of the other class into 'validation'."
        )
    # nothing else: a field that is missing in one entry could not be put into a batch
    kept = ("label", "domain", "slide")
    patches = [{"image": str(path.parent / e["image"]), "case": e["image"]} | {k: e[k] for k in kept} for e in chosen]
    twice = [case for case, count in Counter(p["case"] for p in patches).items() if count > 1]
    if twice:
        raise DataError(f"{path}: '{split}' lists {twice[0]} more than once ({len(twice)} such). List each patch once.")
    missing = check_missing_files(patches, keys="image")
    if missing:
        names = ", ".join(str(m) for m in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{path}: {len(missing)} of the {len(patches)} files listed in '{split}' do not exist: {names}. Paths are "
            f"relative to {path.parent}."
        )
    return patches


def patch_labels(path: str | os.PathLike) -> dict[str, int]:
    """The names of the classes 0 and 1 in a datalist, name → id.

    Raises:
        DataError: when the datalist is missing, not JSON, or does not name these two.
    """
    found = read_json_object(Path(path), _FORMAT, DATALIST_REMEDY).get("labels")
    named = isinstance(found, dict) and set(found) == {"0", "1"} and all(isinstance(n, str) for n in found.values())
    if not named or found["0"] == found["1"]:
        raise DataError(
            f'{path}: \'labels\' is {found}, expected the names of the two classes, as in {{"0": "non_mitotic", "1": '
            '"mitotic"}.'
        )
    return {found["0"]: 0, found["1"]: 1}


def domain_names(patches: Sequence[dict[str, Any]]) -> list[str]:
    """The domains that occur, in alphabetical order."""
    return sorted({patch["domain"] for patch in patches})


def positive_weight(patches: Sequence[dict[str, Any]]) -> float:
    """Negatives to a positive: as the weight of the positive class in the loss, both classes weigh the same."""
    positive = sum(patch["label"] for patch in patches)
    return (len(patches) - positive) / positive


def _domains(content: dict[str, Any]) -> set[str]:
    entries = [e for value in content.values() if isinstance(value, list) for e in value if isinstance(e, dict)]
    return {e["domain"] for e in entries if isinstance(e.get("domain"), str)}


def _entries(path: Path, content: dict[str, Any], split: str) -> list[dict[str, Any]]:
    entries = content.get(split)
    if not isinstance(entries, list) or not entries:
        found = "is missing" if entries is None else "is empty" if entries == [] else "is not a list"
        lists = [f"'{key}' ({len(value)})" for key, value in content.items() if isinstance(value, list)]
        raise DataError(f"{path}: the list '{split}' {found}. It has {', '.join(lists) or 'none'}. Expected {_FORMAT}.")
    return _checked(path, split, entries)


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


def _listed(entries: Sequence[dict[str, Any]], key: str) -> str:
    return ", ".join(f"{name} ({count})" for name, count in sorted(Counter(e[key] for e in entries).items())) or "none"


def _holds_patches(entries: object) -> bool:
    return isinstance(entries, list) and bool(entries) and all(isinstance(e, dict) and "image" in e for e in entries)


def _known_domains(path: Path, domains: Sequence[str] | None, known: set[str]) -> list[str] | None:
    """The domains as the datalist calls them; scanners may be given by any of their names."""
    if domains is None:
        return None
    listed = isinstance(domains, Sequence) and not isinstance(domains, str) and all(isinstance(d, str) for d in domains)
    if not listed or not domains:
        raise DataError(f"The domains are {domains!r}, expected a list of names such as \"['XR','CS']\".")
    names = [d if d in known else scanner_name(d) for d in domains]
    unknown = [d for d, name in zip(domains, names, strict=True) if name not in known]
    if unknown:
        raise DataError(f"{path}: there is no domain {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
    return names


def _warn_of_shared_slides(path: Path, patches: Sequence[dict[str, Any]], test: object) -> None:
    trained = {(e["domain"], e["slide"]) for e in patches}
    tested = {(e.get("domain"), e.get("slide")) for e in test} if _holds_patches(test) else set()
    if trained & tested:
        logger.warning(
            "%s: training and test share %d slides, such as %s: scores on the test split will be too good. Split by "
            "slide, unless this is meant.",
            path,
            len(trained & tested),
            sorted(trained & tested)[0][1],
        )


def _check_classes(path: Path, patches: Sequence[dict[str, Any]], domains: Sequence[str] | None) -> None:
    for domain in domains or domain_names(patches):
        found = {e["label"] for e in patches if e["domain"] == domain}
        if found != {0, 1}:
            only = f"only patches of class {found.pop()}" if found else "no patch"
            raise DataError(
                f"{path}: in training, the domain {domain} has {only}: a network would learn to tell the domain and "
                "not the class. Expected both classes. Add patches, or leave the domain out with --train_domains."
            )
