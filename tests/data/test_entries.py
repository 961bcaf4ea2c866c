from __future__ import annotations

import pytest

from shared.data import leaked_slides, positive_weight, scanner_name


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("Hamamatsu XR", "XR"),
        ("Hamamatsu NanoZoomer XR (C12000-22)", "XR"),
        ("Hamamatsu S360 (0.5 NA)", "S360"),
        ("Aperio ScanScope CS2", "CS"),
        ("CS", "CS"),
        ("Leica GT450", "GT450"),
        ("Hamamatsu_XR", "XR"),
        ("CS2_lab", "CS"),
        ("GT-450", "GT450"),
        ("Aperio GT 450", "GT450"),
        ("3DHistech Pannoramic Scan II", "3DHistech Pannoramic Scan II"),
        (" centre 3 ", "centre 3"),
    ],
)
def test_scanners_by_any_of_their_names(name: str, short: str) -> None:
    assert scanner_name(name) == short


def test_slides_that_training_has_seen() -> None:
    seen = [{"domain": "A", "slide": "1"}, {"domain": "A", "slide": "2"}, {"domain": "B", "slide": "2"}]
    test = [{"domain": d, "slide": s} for d, s in (("A", "2"), ("A", "1"), ("A", "1"), ("B", "1"))]
    assert leaked_slides(seen, test) == ([("A", "1"), ("A", "2")], 3)
    assert leaked_slides(seen[2:], test) == ([], 3)


def test_both_classes_weigh_the_same() -> None:
    patches = [{"label": int(i < 3)} for i in range(10)]
    weight = positive_weight(patches)
    assert sum(weight for p in patches if p["label"]) == pytest.approx(sum(1 for p in patches if not p["label"]))
