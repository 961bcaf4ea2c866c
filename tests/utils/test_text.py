from __future__ import annotations

from shared.utils import text_table
from shared.utils.text import differences, first_few


def test_table_as_text() -> None:
    assert text_table([{"name": "a b", "n": 1}, {"name": "c", "n": 100}]) == "name    n\na b     1\nc     100"
    assert text_table([]) == ""


def test_differences_of_tables_are_told_entry_by_entry() -> None:
    then = {"weight": 0.5, "crop": {"side": 64, "mpp": 0.25}, "slides": [["XR", str(i)] for i in range(99)]}
    now = {"weight": 0.5, "crop": {"side": 40, "mpp": 0.25}, "slides": [], "flips": True}
    side, slides, flips = differences("classifier", then, now)
    assert side == ("classifier.crop.side", "64", "40")
    assert (slides[0], slides[2]) == ("classifier.slides", "[]")
    assert len(slides[1]) <= 100
    assert slides[1].endswith(" ...")
    assert flips == ("classifier.flips", "None", "True")
    assert list(differences("a", then, dict(then))) == []


def test_more_names_than_are_shown_are_dots() -> None:
    assert first_few(["a", "b"], 2) == "a, b"
    assert first_few(["a", "b", "c"], 2) == "a, b, ..."
