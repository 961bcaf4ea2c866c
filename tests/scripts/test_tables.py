from __future__ import annotations

import csv
import json
from pathlib import Path

from experiments.tables import describe, markdown_grid, mean_and_std, write_table
from matplotlib.figure import Figure
from matplotlib.image import imread


def test_what_values_over_seeds_are_described_by() -> None:
    assert describe([0.5, 0.25]) == {"mean": 0.375, "std": 0.1768, "min": 0.25, "max": 0.5, "n": 2}
    assert describe([0.5])["std"] is None
    assert describe([]) is None
    assert json.dumps(describe([0, 2])), "plain numbers"


def test_a_spread_is_written_as_mean_and_deviation() -> None:
    assert mean_and_std(describe([0.5, 0.25])) == "0.375 ± 0.177"
    assert mean_and_std(describe([0.5]), "+") == "+0.500"
    assert mean_and_std(None, nothing="–") == "–"


def test_a_table_is_written_in_four_forms(tmp_path: Path) -> None:
    text = markdown_grid(["a", "b"], [["1", "2"]])
    assert text == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    figure = Figure()
    figure.subplots().plot([0, 1])
    write_table(tmp_path / "table", text, figure, {"a": [1]}, [{"a": 1, "more": 2}, {}], ["a", "b"])
    assert (tmp_path / "table.md").read_text() == text
    assert json.loads((tmp_path / "table.json").read_text()) == {"a": [1]}
    with (tmp_path / "table.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": ""}, {"a": "", "b": ""}]
    assert imread(tmp_path / "table.png").std() > 0
