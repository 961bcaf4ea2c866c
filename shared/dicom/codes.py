"""What a class is called in DICOM: its code, side, parts and colour, from a table that each bundle keeps as data."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from highdicom.color import CIELabColor
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from ..reports.organs import organ_colour
from ..utils import DataError
from ..utils.text import first_few

logger = logging.getLogger(__name__)

LOCAL = "99MBC"
"""The scheme of codes that are nobody else's: DICOM has names that begin with 99 for such."""
SIDES = {"right": codes.SCT.Right, "left": codes.SCT.Left}
CATEGORIES = {
    "anatomical structure": codes.SCT.AnatomicalStructure,
    "abnormal structure": codes.SCT.MorphologicallyAbnormalStructure,
}
_KEYS = ("code", "scheme", "meaning", "laterality", "structures", "category", "colour")
_LONGEST = 16  # characters of a code in DICOM; of a meaning 64


@dataclass(frozen=True)
class StructureCode:
    """How a class stands in DICOM objects.

    Attributes:
        name: the class, as `labels` has it.
        label: its id in the label map, 1 … 255.
        concept: what it is.
        side: right or left as a code, or None.
        parts: what it consists of, where no one code is of it alone.
        category: of `CATEGORIES`.
        colour: red, green and blue, 0 … 255.
    """

    name: str
    label: int
    concept: Code
    side: Code | None
    parts: tuple[Code, ...]
    category: Code
    colour: tuple[int, int, int]

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")

    @property
    def lab_colour(self) -> CIELabColor:
        return CIELabColor.from_rgb(*self.colour)


def read_codes(table: Mapping[str, Mapping[str, Any]], labels: Mapping[str, int]) -> list[StructureCode]:
    """The codes of all classes, by their ids.

    A class of the table has a `code` of a `scheme` (SNOMED CT, SCT, unless said) with its `meaning`; maybe a
    `laterality`, right or left; maybe `structures`, code → meaning: what it consists of, where there is no one code for
    that, and `code` is then of what these have in common; maybe a `category`, anatomical structure unless said; and
    maybe a `colour`, red, green and blue from 0 to 255. A class that the table lacks gets a code of the scheme `LOCAL`,
    made of its name, with a warning: other programs can show it, and know nothing of it.

    Args:
        table: name → these, as `dicom_codes` in a bundle's metadata.json.
        labels: name → id of the classes.

    Raises:
        DataError: an entry has other keys or values; a meaning is not that of its code in pydicom's dictionaries; two
            classes have the same code, side and parts, so that no one could tell them apart.
    """
    lacking = [name for name in labels if name not in table]
    if lacking:
        logger.warning(
            "no DICOM code is known of %s: codes of the local scheme %s are taken. Give their codes with --codes.",
            first_few(lacking, 20),
            LOCAL,
        )
    found = [
        _read_code(name, i, table.get(name) or _local(name)) for name, i in sorted(labels.items(), key=lambda x: x[1])
    ]
    keys = [(code.concept.scheme_designator, code.concept.value, code.side, {*code.parts}) for code in found]
    if twice := [code.name for code, key in zip(found, keys, strict=True) if keys.count(key) > 1]:
        raise DataError(f"codes: {' and '.join(twice)} have the same code. Give each one of its own.")
    return found


def _local(name: str) -> dict[str, str]:
    """Sixteen characters that are always the same for a name."""
    short = re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")
    if len(short) > _LONGEST or not short:
        short = short[:9] + "_" * bool(short) + hashlib.sha256(name.encode()).hexdigest()[:6].upper()
    return {"code": short, "scheme": LOCAL, "meaning": name.replace("_", " ")[:64]}


def _read_code(name: str, label: int, entry: Any) -> StructureCode:
    where = f"codes: {name}"
    if not isinstance(entry, Mapping) or not {"code", "meaning"} <= entry.keys() <= set(_KEYS):
        raise DataError(f"{where} is {entry!r}, expected a table with code and meaning, and of {', '.join(_KEYS)}.")
    scheme = entry.get("scheme", "SCT")
    side, category = entry.get("laterality"), entry.get("category", "anatomical structure")
    if side is not None and side not in SIDES:
        raise DataError(f"{where} has the laterality {side!r}, expected {' or '.join(SIDES)}, or none.")
    if category not in CATEGORIES:
        raise DataError(f"{where} has the category {category!r}, expected {' or '.join(CATEGORIES)}.")
    parts = entry.get("structures", {})
    if not isinstance(parts, Mapping):
        raise DataError(f"{where} has the structures {parts!r}, expected a table of codes and meanings.")
    colour = entry.get("colour", [round(255 * c) for c in organ_colour(label)[:3]])
    if not isinstance(colour, list | tuple) or len(colour) != 3 or not all(c in range(256) for c in colour):
        raise DataError(f"{where} has the colour {colour!r}, expected red, green and blue from 0 to 255.")
    return StructureCode(
        name=name,
        label=label,
        concept=_concept(where, entry["code"], scheme, entry["meaning"]),
        side=SIDES.get(side),
        parts=tuple(_concept(where, code, scheme, meaning) for code, meaning in parts.items()),
        category=CATEGORIES[category],
        colour=tuple(colour),
    )


def _concept(where: str, code: Any, scheme: Any, meaning: Any) -> Code:
    for what, text, most in (("code", code, _LONGEST), ("scheme", scheme, _LONGEST), ("meaning", meaning, 64)):
        if not isinstance(text, str) or not 0 < len(text) <= most or "\\" in text:
            raise DataError(f"{where} has the {what} {text!r}, expected text of {most} characters at most.")
    known = _meanings(scheme)
    if known and code not in known:
        logger.warning("%s: the code %s of %s is in no list of the DICOM standard; look it up.", where, code, scheme)
    elif known and meaning not in known[code]:
        raise DataError(
            f"{where} has the code {code} of {scheme} with the meaning {meaning!r}, expected "
            f"{' or '.join(map(repr, sorted(known[code])))}."
        )
    return Code(code, scheme, meaning)


@lru_cache
def _meanings(scheme: str) -> dict[str, set[str]]:
    """Of pydicom's dictionary of a scheme, by code; empty where it has none."""
    found: dict[str, set[str]] = {}
    if scheme in ("SCT", "DCM", "UCUM"):
        for concept in (getattr(getattr(codes, scheme), name) for name in getattr(codes, scheme).dir()):
            found.setdefault(concept.value, set()).add(concept.meaning)
    return found


def structure_of(segment: Dataset, structures: Sequence[StructureCode]) -> StructureCode | None:
    """Which class a segment of a SEG is of, also of another program's: codes of SNOMED RT stand for those of SNOMED CT,
    and the side may modify the type or the anatomic region.
    """
    types = segment.get("SegmentedPropertyTypeCodeSequence", [])
    modifiers = [m for item in types for m in item.get("SegmentedPropertyTypeModifierCodeSequence", [])]
    for region in segment.get("AnatomicRegionSequence", []):
        modifiers += region.get("AnatomicRegionModifierSequence", [])
    concepts, modified = [_code(item) for item in types], [_code(item) for item in modifiers]
    sides = [side for side in SIDES.values() if side in modified]
    parts = [_code(item) for item in segment.get("PrimaryAnatomicStructureSequence", [])]
    for structure in structures:
        if concepts == [structure.concept] and sides == ([structure.side] if structure.side else []):
            lacking = [part for part in structure.parts if part not in parts]
            if not lacking and (structure.parts or len(parts) < 2):
                return structure
    return None


def _code(item: Dataset) -> Code:
    return Code(item.get("CodeValue", ""), item.get("CodingSchemeDesignator", ""), item.get("CodeMeaning", ""))
