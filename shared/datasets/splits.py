"""Deal out patches, regions and cases to training, validation and test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..data import SPLITS
from ..utils import DataError
from .ct_cases import CtCase


def split_cases(
    cases: Sequence[CtCase], seed: int = 0, test_share: float = 0.2, validation_share: float = 0.2
) -> dict[str, list[CtCase]]:
    """Deal out cases to `training`, `validation` and `test`, each sorted by name.

    Args:
        cases: in any order; the result depends on their names and the seed alone.
        seed: of the shuffle.
        test_share: of all cases, at least one; 0 for none.
        validation_share: the same.

    Raises:
        DataError: when no case would remain for training, or the seed is not a whole number of 0 or above.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise DataError(f"--seed is {seed}, expected a whole number of 0 or above.")
    ordered = sorted(cases, key=lambda case: case.name)
    test, validation = (max(1, round(share * len(ordered))) if share else 0 for share in (test_share, validation_share))
    if test + validation >= len(ordered):
        raise DataError(f"Found {len(ordered)} case(s), expected {test + validation + 1} or more: one for each split.")
    order = torch.randperm(len(ordered), generator=torch.Generator().manual_seed(seed)).tolist()
    parts = {"training": order[test + validation :], "validation": order[test:][:validation], "test": order[:test]}
    return {split: [ordered[i] for i in sorted(part)] for split, part in parts.items()}


def split_regions(regions: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Deal out labelled regions to `training`, `validation` and `test`, by slide, within each domain on its own.

    Slides with figures are dealt out as `split_patches` deals out the patches around their figures: the same seed gives
    the same splits. Slides without any, of which there are no patches, are dealt out by themselves, in the same shares
    as far as their number allows.

    Raises:
        DataError: when a domain has fewer than three slides with figures.
    """
    splits = split_patches([r for r in regions if r["box"]], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    empty = [r for r in regions if not r["box"]]
    for domain in sorted({r["domain"] for r in empty}):
        own = sorted((r for r in empty if r["domain"] == domain), key=lambda r: r["image"])
        order = torch.randperm(len(own), generator=generator).tolist()
        test = round(0.2 * len(own))
        validation = round(0.2 * (len(own) - test))
        for i, k in enumerate(order):
            split = "test" if i < test else "validation" if i < test + validation else "training"
            splits[split].append(dict(own[k]))
    return splits


def split_patches(
    patches: Sequence[Mapping[str, Any]],
    unit: str = "slide",
    test_share: float = 0.2,
    validation_share: float = 0.2,
    seed: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """Deal out patches to `training`, `validation` and `test`, within each domain on its own.

    By slide, no slide is in two splits. By patch, as in the paper, patches of one slide, even neighbours, stand on
    both sides, and the scores are those of slides that training has seen.

    Args:
        patches: as `read_patch_table` gives them; `domain` and `slide` are read.
        unit: `"slide"` or `"patch"`.
        test_share: share of the slides (or patches) of each domain for testing.
        validation_share: share of the rest for validation.
        seed: another one gives another split; the same gives the same, whatever the order of the patches.

    Raises:
        ValueError: when a share is out of its range.
        DataError: when the unit is neither, or a domain has fewer than three slides (patches).
    """
    if unit not in ("slide", "patch"):
        raise DataError(f'unit must be "slide" or "patch", got {unit!r}')
    if not (0 < test_share < 1 and 0 < validation_share < 1):
        raise ValueError(f"the shares must be between 0 and 1, got {test_share} and {validation_share}")
    units: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for patch in sorted(patches, key=lambda p: p["image"]):
        units[patch["domain"]][patch["slide" if unit == "slide" else "image"]].append(dict(patch))
    result: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    generator = torch.Generator().manual_seed(seed)
    for domain, members in sorted(units.items()):
        names = sorted(members)
        if len(names) < 3:
            raise DataError(
                f"The domain {domain} has {len(names)} {unit}(s), expected 3 or more: one each for training, "
                'validation and test. Leave it out of the table, or split by patch (unit="patch").'
            )
        order = [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]
        test = min(max(1, round(test_share * len(names))), len(names) - 2)
        validation = min(max(1, round(validation_share * (len(names) - test))), len(names) - test - 1)
        for i, name in enumerate(order):
            split = "test" if i < test else "validation" if i < test + validation else "training"
            result[split] += members[name]
    return result
