"""Deal out patches, regions and cases to training, validation and test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import torch

from ..data import SPLITS, PatchEntry, RegionEntry
from ..utils import DataError
from ..utils.values import Choice, Whole, check_value
from .ct_cases import CtCase

SPLIT_UNITS = ("slide", "patch")

Item = TypeVar("Item")
OneEntry = TypeVar("OneEntry", PatchEntry, RegionEntry)


def _deal_out(items: Sequence[Item], test: int, validation: int, generator: torch.Generator) -> dict[str, list[Item]]:
    """So many items for testing, so many for validation and the rest for training, each list in a random order."""
    order = [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]
    parts = order[test + validation :], order[test : test + validation], order[:test]
    return dict(zip(SPLITS, parts, strict=True))


def split_cases(
    cases: Sequence[CtCase], seed: int = 0, test: Sequence[CtCase] | None = None
) -> dict[str, list[CtCase]]:
    """Deal out cases to `training`, `validation` and `test`, a fifth of them to each of the latter two, at least one.

    Args:
        cases: in any order; the result, whose lists are sorted by name, depends on their names and the seed alone.
        seed: of the shuffle.
        test: cases that are for testing anyhow, and maybe none; then all others are for training and validation.

    Raises:
        DataError: when no case would remain for training, or the seed is not a whole number of 0 or above.
    """
    check_value("seed", seed, Whole(0))
    ordered = sorted(cases, key=lambda case: case.name)
    fifth = max(1, round(0.2 * len(ordered)))
    least = 2 * fifth + 1 if test is None else fifth + 1
    if least > len(ordered):
        raise DataError(f"Found {len(ordered)} case(s), expected {least} or more: one for each split.")
    generator = torch.Generator().manual_seed(seed)
    parts = _deal_out(range(len(ordered)), fifth if test is None else 0, fifth, generator)
    splits = {split: [ordered[i] for i in sorted(part)] for split, part in parts.items()}
    return splits if test is None else splits | {"test": list(test)}


def split_regions(regions: Sequence[RegionEntry], seed: int = 0) -> dict[str, list[RegionEntry]]:
    """Deal out labelled regions to `training`, `validation` and `test`, by slide, within each domain on its own.

    Slides with figures are dealt out as `split_patches` deals out the patches around their figures: the same seed gives
    the same splits. Slides without any, of which there are no patches, are dealt out by themselves, in the same shares
    as far as their number allows.

    Raises:
        DataError: when a domain has fewer than three slides with figures.
    """
    marked = {(r["domain"], r["slide"]) for r in regions if r["box"]}
    splits = split_patches([r for r in regions if (r["domain"], r["slide"]) in marked], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for _, slides in _by_domain([r for r in regions if (r["domain"], r["slide"]) not in marked], "slide"):
        test = round(0.2 * len(slides))
        validation = round(0.2 * (len(slides) - test))
        for split, chosen in _deal_out(slides, test, validation, generator).items():
            splits[split] += [region for slide in chosen for region in slide]
    return splits


def split_patches(
    patches: Sequence[OneEntry], unit: str = "slide", seed: int = 0, testing: bool = True
) -> dict[str, list[OneEntry]]:
    """Deal out patches, within each domain on its own: a fifth to `test`, of the rest a fifth to `validation`.

    By slide, no slide is in two splits. By patch, as in the paper, patches of one slide, even neighbours, stand on
    both sides, and the scores are those of slides that training has seen.

    Args:
        unit: `"slide"` or `"patch"`.
        seed: another one gives another split; the same gives the same, whatever the order of the patches.
        testing: False keeps none for `test`.

    Raises:
        DataError: when the unit is neither, or a domain has fewer than three slides (patches), or two without a test.
    """
    check_value("unit", unit, Choice(SPLIT_UNITS))
    splits: dict[str, list[OneEntry]] = {split: [] for split in SPLITS}
    generator = torch.Generator().manual_seed(seed)
    for domain, units in _by_domain(patches, "slide" if unit == "slide" else "image"):
        count = len(units)
        if count < 2 + testing:
            raise DataError(
                f"The domain {domain} has {count} {unit}(s), expected {2 + testing} or more: one each for training"
                f"{', validation and test' if testing else ' and validation'}. Leave it out of the table, or split by "
                'patch (unit="patch").'
            )
        test = min(max(1, round(0.2 * count)), count - 2) if testing else 0
        validation = min(max(1, round(0.2 * (count - test))), count - test - 1)
        for split, chosen in _deal_out(units, test, validation, generator).items():
            splits[split] += [patch for one in chosen for patch in one]
    return splits


def _by_domain(entries: Sequence[OneEntry], key: str) -> list[tuple[str, list[list[OneEntry]]]]:
    """For each domain copies of its entries, those with the same `key` together, all in alphabetical order."""
    found: dict[str, dict[str, list[OneEntry]]] = defaultdict(lambda: defaultdict(list))
    for entry in sorted(entries, key=lambda e: e["image"]):
        found[entry["domain"]][entry[key]].append(entry.copy())
    return [(domain, [units[name] for name in sorted(units)]) for domain, units in sorted(found.items())]
