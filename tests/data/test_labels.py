from __future__ import annotations

import logging
from typing import Any

import pytest

from shared.data import foreground_labels, ids_in_files
from shared.utils import DataError


def test_labels_come_in_the_order_of_their_ids() -> None:
    assert list(foreground_labels({"spleen": 2, "liver": 1}).items()) == [("liver", 1), ("spleen", 2)]


@pytest.mark.parametrize("name", ["background", "Luft"])
def test_a_background_is_left_out(caplog: pytest.LogCaptureFixture, name: str) -> None:
    caplog.set_level(logging.INFO)
    assert foreground_labels({name: 0, "liver": 1, "spleen": 2}) == {"liver": 1, "spleen": 2}
    assert [record.getMessage() for record in caplog.records] == [
        f"labels: {name} (id 0) is left out, the background is no class of its own"
    ]


WRONG: dict[str, tuple[Any, str]] = {
    "a malformed table": ("{'liver': 1", r"labels is \"\{'liver': 1\", no table of names and ids\. Expected names"),
    "a list": (["liver"], r"labels is \['liver'\], no table"),
    "nothing": (None, r"labels is None, no table"),
    "none": ({}, r"labels has 0 classes beside the background, not"),
    "a background alone": ({"background": 0}, r"labels has 0 classes beside the background, not"),
    "too many": ({f"c{i}": i for i in range(1, 258)}, r"labels has 257 classes beside the background, not 1 to 255"),
    "a name that is none": ({" ": 1}, r"labels has the name ' '\. Expected names"),
    "a number as a name": ({1: 1}, r"labels has the name 1\."),
    "text": ({"liver": "1", "spleen": 2}, r"labels has \{'liver': '1'\}, no whole number of 0 or above"),
    "a fraction": ({"liver": 1.5}, r"labels has \{'liver': 1\.5\}, no whole number"),
    "true": ({"liver": True}, r"labels has \{'liver': True\}, no whole number"),
    "a negative id": ({"liver": -1}, r"labels has \{'liver': -1\}, no whole number of 0 or above"),
    "an id twice": ({"liver": 1, "spleen": 1, "aorta": 2}, r"labels has the id 1 more than once, for liver and spleen"),
    "two backgrounds": ({"air": 0, "bed": 0, "liver": 1}, r"labels has the id 0 more than once, for air and bed"),
    "a gap": (
        {"liver": 1, "spleen": 5},
        r"labels is \{'liver': 1, 'spleen': 5\}: there is no 2\. .*--labels \"\{'liver': 1, 'spleen': 2\}\" "
        r"--label_ids \"\{'liver': 1, 'spleen': 5\}\"",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_labels_that_cannot_be_used(kind: str) -> None:
    labels, message = WRONG[kind]
    with pytest.raises(DataError, match=message):
        foreground_labels(labels)


LABELS = {"liver": 1, "kidneys": 2}


def test_ids_in_files() -> None:
    assert ids_in_files(LABELS) == {"liver": (1,), "kidneys": (2,)}
    assert ids_in_files(LABELS, {"kidneys": [2, 3], "liver": 500}) == {"liver": (500,), "kidneys": (2, 3)}


WRONG_IDS: dict[str, tuple[Any, str]] = {
    "a malformed table": (
        "{'liver': 5",
        r"label_ids is .*, no table of names and ids\. Expected for each name of `labels`",
    ),
    "a name too few": ({"liver": 5}, r"label_ids has no 'kidneys'\. Expected .*\(liver, kidneys\)"),
    "a name too many": ({"liver": 5, "kidneys": 2, "gut": 3}, r"label_ids has 'gut', which `labels` has not"),
    "zero": ({"liver": 0, "kidneys": 2}, r"label_ids has \{'liver': 0\}\. Expected .* from 1 to 65535"),
    "too large": ({"liver": 5, "kidneys": [2, 65536]}, r"label_ids has \{'kidneys': \[2, 65536\]\}\."),
    "text": ({"liver": "5", "kidneys": 2}, r"label_ids has \{'liver': '5'\}\."),
    "no id": ({"liver": [], "kidneys": 2}, r"label_ids has \{'liver': \[\]\}\."),
    "an id twice": ({"liver": 2, "kidneys": [2, 3]}, r"label_ids has the id 2 more than once, for liver and kidneys"),
}


@pytest.mark.parametrize("kind", WRONG_IDS)
def test_ids_in_files_that_cannot_be_used(kind: str) -> None:
    label_ids, message = WRONG_IDS[kind]
    with pytest.raises(DataError, match=message):
        ids_in_files(LABELS, label_ids)
