from __future__ import annotations

from typing import Any

import pytest

from shared.utils import DataError
from shared.utils.values import (
    Choice,
    Flag,
    Kind,
    Name,
    Number,
    OrNone,
    Several,
    Table,
    Text,
    Whole,
    check_value,
    read_value,
)

NAN, INFINITY = float("nan"), float("inf")
KINDS: list[tuple[Kind, list[Any], list[Any], str]] = [  # accepted, refused, in words
    (Whole(1), [1, 7], [0, -3, 1.5, 1.0, "1", "abc", True, None, [1]], "a whole number of 1 or above"),
    (Whole(0, 2), [0, 2], [-1, 3], "a whole number from 0 to 2"),
    (Whole(), [-5, 0], [0.5], "a whole number"),
    (Number(0, 1), [0, 0.5, 1], [-0.1, 1.1, NAN, INFINITY, "0.5", True, None], "a number from 0 to 1"),
    (Number(above=0), [1e-9, 3], [0, -1, NAN, INFINITY], "a number above 0"),
    (Number(above=0, most=1), [1, 0.1], [0, 2], "a number above 0, 1 at most"),
    (Flag(), [True, False, "true", "False"], [0, 1, "yes", None, "maybe"], "true or false"),
    (Text("a file"), ["a", "1"], ["", " ", 3, None, ["a"]], "a file"),
    (Text(empty=True), [""], [3], "text"),
    (
        Name("a path"),
        ["a", "../a b/ö.nii.gz", "/" + "x" * 200],
        ["", " ", ".", "./", "/", "a\nb", "a\0", "x" * 201, "ö" * 101, 3, None],
        "a path, without line breaks and other control characters, of 200 bytes at most",
    ),
    (
        Name(folders=False),
        ["s1", ".a"],
        ["a/b", ".."],
        "a name, without line breaks and other control characters, of 200 bytes at most",
    ),
    (Choice(("disk", "memory", "none")), ["disk", "none"], ["foo", "", None, 3], "disk, memory or none"),
    (Choice(("slide",)), ["slide"], ["patch"], "slide"),
    (
        Several(Number(above=0), 3),
        [[1, 2.5, 3], (1, 1, 1)],
        [[1, 2], [-1, 1, 1], "123", 5, [1, 2, "3"], None],
        "a list of 3, each a number above 0",
    ),
    (Several(Text(), distinct=True), [["a", "b"]], [["a", "a"], [], "ab"], "a list, each text, none twice"),
    (Several(Whole(1), empty=True), [[], [1]], [[0]], "a list, each a whole number of 1 or above"),
    (Table(Whole(1), "name → id"), [{"a": 1}], [{}, {"a": 0}, {1: 1}, ["a"], "a"], "name → id"),
    (Table(Number(0), "shares", ("a", "b")), [{"a": 1}], [{"c": 1}], "shares"),
    (OrNone(Whole(1), "all"), [None, 2], [0, "None"], "a whole number of 1 or above, or None (all)"),
]


@pytest.mark.parametrize(("kind", "accepted", "refused", "words"), KINDS)
def test_kinds(kind: Kind, accepted: list[Any], refused: list[Any], words: str) -> None:
    assert kind.expected == words
    for value in accepted:
        check_value("size", value, kind)
    for value in refused:
        with pytest.raises(DataError) as error:
            check_value("size", value, kind)
        assert str(error.value) == f"size is {value!r}, expected {words}."


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", Whole(1), 3),
        ("1e-3", Number(above=0), 1e-3),
        ("0021", Text("a case"), "0021"),  # not the number 21
        ("0021,0022", Several(Text()), ["0021", "0022"]),
        ("0021", Several(Text()), ["0021"]),
        ("['a', 'b']", Several(Text()), ["a", "b"]),
        ("1, 2", Several(Whole()), [1, 2]),
        ("(1, 2, 3)", Several(Number(), 3), (1, 2, 3)),
        ("True", Flag(), True),
        ("false", Flag(), False),
        ("None", OrNone(Whole(1)), None),
        ("None", Text(), "None"),
        ("none", Choice(("none", "disk")), "none"),
        ("{'a': 1}", Table(Whole(), "ids"), {"a": 1}),
    ],
)
def test_text_is_read_as_its_kind(text: str, kind: Kind, value: Any) -> None:
    found = read_value("--size", text, kind)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("abc", Whole(1)), ("nan", Number()), ("1,x", Several(Whole())), ("None", Whole(1)), ("[", Flag())],
)
def test_text_of_another_kind_is_refused(text: str, kind: Kind) -> None:
    with pytest.raises(DataError, match=r"--size is .*, expected "):
        read_value("--size", text, kind)
