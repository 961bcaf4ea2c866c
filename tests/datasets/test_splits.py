from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shared.datasets.ct_cases import CtCase
from shared.datasets.histology_entries import count_patches
from shared.datasets.splits import split_cases, split_patches, split_regions
from shared.utils import DataError


def patches(slides: int = 10, per_slide: int = 3) -> list[dict[str, Any]]:
    names = [(d, s, i) for d in ("CS", "XR") for s in range(slides) for i in range(per_slide)]
    return [{"image": f"{d}{s}{i}", "label": i % 2, "domain": d, "slide": f"{s}.tiff"} for d, s, i in names]


def test_no_slide_is_in_two_splits_and_the_shares_hold_in_each_domain() -> None:
    splits = split_patches(patches())
    for domain in ("CS", "XR"):
        slides = {k: {p["slide"] for p in v if p["domain"] == domain} for k, v in splits.items()}
        assert {k: len(v) for k, v in slides.items()} == {"training": 6, "validation": 2, "test": 2}
        assert len(set.union(*slides.values())) == 10
    assert sum(map(len, splits.values())) == 60
    counts = count_patches(splits)
    assert counts[0] == {"domain": "CS", "split": "training", "slides": 6, "negative": 12, "positive": 6}
    assert len(counts) == 6


def test_by_patch_the_slides_mix() -> None:
    splits = split_patches(patches(slides=2, per_slide=20), unit="patch")
    assert {k: len(v) for k, v in splits.items()} == {"training": 52, "validation": 12, "test": 16}
    assert len({p["slide"] for p in splits["test"]} & {p["slide"] for p in splits["training"]}) == 2
    assert len({p["image"] for v in splits.values() for p in v}) == 80


def test_the_split_follows_the_seed_and_not_the_order() -> None:
    first, turned = split_patches(patches(), seed=3), split_patches(patches()[::-1], seed=3)
    assert first == turned
    assert first != split_patches(patches(), seed=4)


def test_three_slides_are_the_least() -> None:
    splits = split_patches(patches(slides=3))
    assert {k: len(v) for k, v in splits.items()} == {"training": 6, "validation": 6, "test": 6}
    with pytest.raises(DataError, match=r"The domain CS has 2 slide\(s\), expected 3 or more"):
        split_patches(patches(slides=2))
    with pytest.raises(ValueError, match="unit is 'tile', expected slide or patch"):
        split_patches(patches(), unit="tile")


def test_slides_without_figures_are_dealt_out_in_the_same_shares() -> None:
    regions = [
        {"image": f"{d}{i:03d}", "box": [[0, 0, 9, 9]] if i < 5 else [], "domain": d, "slide": f"{i}"}
        for d in ("A", "B")
        for i in range(105)
    ]
    splits = split_regions(regions, seed=2)
    assert splits == split_regions(regions[::-1], seed=2)
    for domain in ("A", "B"):
        counts = {s: Counter(bool(r["box"]) for r in found if r["domain"] == domain) for s, found in splits.items()}
        assert counts == {
            "training": {True: 3, False: 64},
            "validation": {True: 1, False: 16},
            "test": {True: 1, False: 20},
        }
    assert len({(r["domain"], r["slide"]) for found in splits.values() for r in found}) == 210
    with pytest.raises(DataError, match=r"The domain A has 2 slide\(s\)"):
        split_regions([r for r in regions if int(r["slide"]) < 2 or not r["box"]])


def test_split_depends_on_names_and_seed_alone() -> None:
    cases = [CtCase(f"case{k}", Path("a"), Path("b")) for k in range(30)]
    splits = split_cases(cases)
    assert {split: len(part) for split, part in splits.items()} == {"training": 18, "validation": 6, "test": 6}
    assert sorted(c.name for part in splits.values() for c in part) == sorted(c.name for c in cases)
    assert split_cases(cases[::-1]) == splits
    assert split_cases(cases, seed=1) != splits
    assert [len(part) for part in split_cases(cases[:3]).values()] == [1, 1, 1]
    assert [len(part) for part in split_cases(cases[:10], test=[]).values()] == [8, 2, 0]
    with pytest.raises(DataError, match=r"Found 2 case\(s\), expected 3 or more"):
        split_cases(cases[:2])
    for wrong in ("a", -1, 0.5):
        with pytest.raises(DataError, match=r"seed is .*, expected a whole number of 0 or above"):
            split_cases(cases, seed=wrong)
