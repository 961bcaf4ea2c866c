"""What is known of a patch and of a region, and what several of them have in common: domains, slides, classes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from .regions import Region


class PatchEntry(TypedDict):
    """A patch; in a datalist there may be any other fields of its source.

    Attributes:
        image: path.
        case: its path in the datalist.
        domain: such as the scanner or the centre.
        slide: name of the slide that it was cut from.
        label: 0 or 1.
        labelled: False where nobody has looked at it; then it has no label.
        stylized: path of its copy in another style.
    """

    image: str
    case: NotRequired[str]
    domain: str
    slide: str
    label: NotRequired[int]
    labelled: NotRequired[bool]
    stylized: NotRequired[str]


class RegionEntry(TypedDict):
    """An image, and what is known of it; `load_regions` gives all of it.

    Attributes:
        image: path, or the `Region` itself.
        case: its name, by default the file's.
        domain: such as the scanner.
        slide: name of the slide that it was cut from.
        mpp: µm a pixel; None or left out: what the file says.
        labelled: whether somebody annotated it: then it has `box` and `label`.
        box: n of [x1, y1, x2, y2] in pixels of the file.
        label: n classes.
        stylized: path of its copy in another style.
    """

    image: str | os.PathLike | Region
    case: NotRequired[str]
    domain: NotRequired[str]
    slide: NotRequired[str]
    mpp: NotRequired[float | None]
    labelled: NotRequired[bool]
    box: NotRequired[Sequence[Sequence[float]]]
    label: NotRequired[Sequence[int]]
    stylized: NotRequired[str]


def positive_weight(patches: Sequence[PatchEntry]) -> float:
    """Negatives to a positive: as the weight of the positive class in the loss, both classes weigh the same."""
    positive = sum(patch["label"] for patch in patches)
    return (len(patches) - positive) / positive


def domain_names(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """The domains that occur, in alphabetical order."""
    return sorted({item["domain"] for item in items})


def slide_names(*lists: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The [domain, slide] that entries are of, each once, in alphabetical order."""
    return [
        list(name) for name in sorted({(entry["domain"], entry["slide"]) for entries in lists for entry in entries})
    ]


def leaked_slides(
    seen: Iterable[Mapping[str, Any]], test: Iterable[Mapping[str, Any]]
) -> tuple[list[tuple[str, str]], int]:
    """The (domain, slide) of test entries that entries for training or validation are of too, and how many test has."""
    slides, tested = ({(e.get("domain"), e.get("slide")) for e in entries} for entries in (seen, test))
    return sorted(slides & tested), len(tested)


# How data sets spell the scanners of MIDOG, and the short names used here.
_SCANNERS = {"XR": r"\bxr\b|c12000 22", "S360": r"\bs360\b", "CS": r"\bcs2?\b", "GT450": r"\bgt\s?450\b"}


def scanner_name(name: str) -> str:
    """The short name of a scanner: XR, S360, CS or GT450, whatever a data set calls it; another stays as it is."""
    spaced = re.sub("[_-]+", " ", name.lower())
    found = [short for short, pattern in _SCANNERS.items() if re.search(pattern, spaced)]
    return found[0] if len(found) == 1 else name.strip()


def has_names(entry: object) -> bool:
    """Whether an entry of a datalist names its image, domain and slide."""
    names = ("image", "domain", "slide")
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) and entry[key] for key in names)


def is_unlabelled(entry: object) -> bool:
    """Whether an entry of a datalist says that nobody has looked at it."""
    return isinstance(entry, dict) and entry.get("labelled") is False


def is_class(label: object) -> bool:
    """Whether a label is 0 or 1."""
    return type(label) is int and label in (0, 1)
