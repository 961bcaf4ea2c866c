from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import pytest
import torch

from shared.reports import Scoring, Summary
from shared.reports.provenance import MADE_UP_CASES, MADE_UP_WEIGHTS
from shared.reports.summary import format_number, round_score


@dataclass(kw_only=True)
class Toy(Summary):
    count: int = 2

    def counts(self) -> dict[str, int]:
        return {"cases": self.count, "slides": 1, "patches": self.count}

    def results(self) -> dict[str, Any]:
        return {"mean": 0.5, "intervals": self.intervals("cases")}

    def score_table(self) -> str:
        return "a  0.5"

    def rows(self) -> list[dict[str, Any]]:
        return [{"case": "a", "dice": 0.5}, {"case": "b", "dice": None}]


def toy(dataset: dict[str, Any] | None = None, count: int = 2, **options: Any) -> Toy:
    return Toy(how=Scoring(dataset=dataset, **options), notes=["What a mean is."], count=count)


@pytest.mark.parametrize(
    ("dataset", "count", "title"),
    [
        (None, 2, "evaluation, 2 cases, 1 slide, 2 patches"),
        ({"name": "toy", "split": "test"}, 1, "toy, test, 1 case, 1 slide, 1 patch"),
        (
            {"name": "toy", "split": "test", "fold": 0, "folds": 5},
            0,
            "toy, test, fold 0 of 5, 0 cases, 1 slide, 0 patches",
        ),
    ],
)
def test_title(dataset: dict[str, Any] | None, count: int, title: str) -> None:
    assert toy(dataset, count).title == title


def test_table_has_the_notes_and_the_warnings() -> None:
    summary = toy({"name": "toy", "synthetic": True}, record={"synthetic": True})
    assert summary.table().split("\n") == [summary.title, "a  0.5", "What a mean is.", MADE_UP_CASES, MADE_UP_WEIGHTS]


def test_files(tmp_path: Path) -> None:
    dataset, record = {"name": "toy", "synthetic": False}, {"synthetic": True, "epoch": 3}
    toy(dataset, record=record, bootstrap=7, seed=1).write(tmp_path)
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content == {
        "dataset": dataset,
        "mean": 0.5,
        "intervals": {"level": 0.95, "method": "percentile bootstrap over cases", "resamples": 7, "seed": 1},
        "model": record,
        "weights": None,
        "warnings": [MADE_UP_WEIGHTS],
        "notes": ["What a mean is."],
        "versions": {"monai": monai.__version__, "torch": torch.__version__},
    }
    assert list(content)[-4:] == ["weights", "warnings", "notes", "versions"]
    with (tmp_path / "scores.csv").open() as file:
        assert list(csv.reader(file)) == [["case", "dice"], ["a", "0.5"], ["b", ""]]


def test_no_resamples() -> None:
    with pytest.raises(ValueError, match="bootstrap must be at least 1, got 0"):
        Scoring(bootstrap=0)


def test_numbers() -> None:
    assert [format_number(v) for v in (None, 0.12345, 1)] == ["-", "0.123", "1.000"]
    assert format_number(12.34, 1) == "12.3"
    assert [round_score(v) for v in (None, math.nan, 0.123456)] == [None, None, 0.1235]
