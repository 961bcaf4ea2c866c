"""Datalists whose entries have a domain and a slide: what the lists of patches and of regions have in common."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import check_missing_files

from ..utils import DataError
from .datalist import DATALIST_REMEDY, read_json_object

logger = logging.getLogger(__name__)

Entry = dict[str, Any]


def read_class_ids(path: Path, expected: str) -> dict[str, int]:
    """The names of the classes 0 and 1 in a datalist, name → id.

    Args:
        path: the datalist.
        expected: its form, for messages.

    Raises:
        DataError: when the datalist is missing, not JSON, or does not name these two.
    """
    return class_ids(path, read_json_object(path, expected, DATALIST_REMEDY))


def class_ids(path: Path, content: Entry) -> dict[str, int]:
    """The same, of the content of the datalist."""
    found = content.get("labels")
    named = isinstance(found, dict) and set(found) == {"0", "1"} and all(isinstance(n, str) for n in found.values())
    if not named or found["0"] == found["1"]:
        raise DataError(
            f'{path}: \'labels\' is {found}, expected the names of the two classes, as in {{"0": "non_mitotic", "1": '
            '"mitotic"}.'
        )
    return {found["0"]: 0, found["1"]: 1}


def list_of(path: Path, content: Entry, split: str, expected: str) -> list[Any]:
    """A list of the datalist, which has to have entries.

    Raises:
        DataError: when it is missing, empty or not a list.
    """
    entries = content.get(split)
    if not isinstance(entries, list) or not entries:
        found = "is missing" if entries is None else "is empty" if entries == [] else "is not a list"
        lists = [f"'{key}' ({len(value)})" for key, value in content.items() if isinstance(value, list)]
        raise DataError(
            f"{path}: the list '{split}' {found}. It has {', '.join(lists) or 'none'}. Expected {expected}."
        )
    return entries


def choose_entries(
    path: Path,
    content: Entry,
    split: str,
    checked: Callable[[str], list[Entry]],
    nouns: tuple[str, str],
    domains: Sequence[str] | None = None,
    whole_unseen: bool = False,
    seen_domains: Sequence[str] | None = None,
) -> list[Entry]:
    """The entries of a split and of some domains, or, of domains that the network has not seen, of all lists.

    Args:
        path, content: the datalist.
        split: one of its lists.
        checked: gives the usable entries of a list, by its name; raises a `DataError` for wrong ones.
        nouns: what the entries are, one and several, for messages.
        domains: as `known_domains` gives them.
        whole_unseen, seen_domains: see `load_patches`.

    Raises:
        DataError: an entry is wrong, none is left, or `whole_unseen` without `seen_domains`.
    """
    entries = checked(split)
    if whole_unseen:
        if seen_domains is None:
            raise DataError(
                f"whole_unseen takes all {nouns[1]} of the domains that the network was not trained on, and what it "
                "was trained on is not known: its model.json, with 'train_domains', is not beside the weights. Copy "
                "it there, or set whole_unseen to false."
            )
        unseen = {e["domain"] for e in entries} - set(seen_domains)
        everything = [e for name in labelled_lists(content) for e in checked(name)]
        entries = [e for e in entries if e["domain"] in seen_domains]
        entries += [e for e in everything if e["domain"] in unseen]
    chosen = [e for e in entries if domains is None or e["domain"] in domains]
    if not chosen:
        wanted = f"of the domains {', '.join(domains)}" if domains else "labelled"
        raise DataError(
            f"{path}: no {nouns[0]} in the list '{split}' is {wanted}. It has labelled {nouns[1]} of "
            f"{listed(e['domain'] for e in entries)}."
        )
    return chosen


def labelled_lists(content: Entry) -> list[str]:
    """The names of the lists of images, but for "unlabelled"."""
    return [name for name, value in content.items() if name != "unlabelled" and holds_images(value)]


def holds_images(entries: object) -> bool:
    return isinstance(entries, list) and bool(entries) and all(isinstance(e, dict) and "image" in e for e in entries)


def with_full_paths(path: Path, split: str, entries: Sequence[Entry], keys: Sequence[str], noun: str) -> list[Entry]:
    """`image` as a full path, `case`, its path in the datalist, and these keys of each entry.

    Raises:
        DataError: when an image is listed twice or does not exist.
    """
    # nothing else: a field that is missing in one entry could not be put into a batch
    items = [{"image": str(path.parent / e["image"]), "case": e["image"]} | {k: e[k] for k in keys} for e in entries]
    twice = [case for case, count in Counter(item["case"] for item in items).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: '{split}' lists {twice[0]} more than once ({len(twice)} such). List each {noun} once."
        )
    missing = check_missing_files(items, keys="image")
    if missing:
        names = ", ".join(str(m) for m in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{path}: {len(missing)} of the {len(items)} files listed in '{split}' do not exist: {names}. Paths are "
            f"relative to {path.parent}."
        )
    return items


def domain_names(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """The domains that occur, in alphabetical order."""
    return sorted({item["domain"] for item in items})


def warn_of_shared_slides(path: Path, entries: Sequence[Entry], test: object) -> None:
    """Warn when the test split has slides of these entries, which are for training."""
    trained = {(e["domain"], e["slide"]) for e in entries}
    tested = {(e.get("domain"), e.get("slide")) for e in test} if holds_images(test) else set()
    if trained & tested:
        logger.warning(
            "%s: training and test share %d slides, such as %s: scores on the test split will be too good. Split by "
            "slide, unless this is meant.",
            path,
            len(trained & tested),
            sorted(trained & tested)[0][1],
        )


def listed(values: Iterable[Any]) -> str:
    """Each value with how often it occurs, for messages."""
    return ", ".join(f"{name} ({count})" for name, count in sorted(Counter(values).items())) or "none"


def known_domains(path: Path, content: Entry, domains: Sequence[str] | None) -> list[str] | None:
    """The domains as the datalist calls them; scanners may be given by any of their names. None stays None.

    Raises:
        DataError: when they are no list of names, or the datalist has no such domain.
    """
    if domains is None:
        return None
    names = isinstance(domains, Sequence) and not isinstance(domains, str) and all(isinstance(d, str) for d in domains)
    if not names or not domains:
        raise DataError(f"The domains are {domains!r}, expected a list of names such as \"['XR','CS']\".")
    entries = [e for value in content.values() if isinstance(value, list) for e in value if isinstance(e, dict)]
    known = {e["domain"] for e in entries if isinstance(e.get("domain"), str)}
    found = [d if d in known else scanner_name(d) for d in domains]
    unknown = [d for d, name in zip(domains, found, strict=True) if name not in known]
    if unknown:
        raise DataError(f"{path}: there is no domain {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
    return found


# How data sets spell the scanners of MIDOG, and the short names used here.
_SCANNERS = {"XR": r"\bxr\b|c12000 22", "S360": r"\bs360\b", "CS": r"\bcs2?\b", "GT450": r"\bgt\s?450\b"}


def scanner_name(name: str) -> str:
    """The short name of a scanner: XR, S360, CS or GT450, whatever a data set calls it; another stays as it is."""
    spaced = re.sub("[_-]+", " ", name.lower())
    found = [short for short, pattern in _SCANNERS.items() if re.search(pattern, spaced)]
    return found[0] if len(found) == 1 else name.strip()
