from __future__ import annotations

from shared.utils import text_table
from shared.utils.text import first_few


def test_table_as_text() -> None:
    assert text_table([{"name": "a b", "n": 1}, {"name": "c", "n": 100}]) == "name    n\na b     1\nc     100"
    assert text_table([]) == ""


def test_more_names_than_are_shown_are_dots() -> None:
    assert first_few(["a", "b"], 2) == "a, b"
    assert first_few(["a", "b", "c"], 2) == "a, b, ..."
