from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from experiments.tables import (
    RESAMPLES,
    Score,
    describe,
    differences,
    flat,
    holm,
    markdown_grid,
    mean_and_std,
    mean_score,
    over_seeds,
    p_value,
    resampled_means,
    seeds_cell,
    write_table,
)
from matplotlib.figure import Figure
from matplotlib.image import imread

from shared.metrics.bootstrap import draw


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


def scores_of(rng: np.random.Generator, seeds: int) -> dict[int, Score]:
    return {seed: Score(float(rng.uniform()), rng.uniform(size=RESAMPLES)) for seed in range(seeds)}


def test_an_interval_is_that_of_drawn_seeds_with_the_same_slides() -> None:
    scores = scores_of(np.random.default_rng(1), 5)
    scores[2].resampled[::3] = np.nan  # left out of the mean
    means = []
    for i, times in enumerate(draw(5, RESAMPLES, 1)):
        drawn = [scores[seed].resampled[i] for seed in range(5) for _ in range(times[seed])]
        means.append(np.mean([value for value in drawn if not np.isnan(value)]))
    found = over_seeds(scores)
    assert found["interval"] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1e-4)
    assert found["mean"] == pytest.approx(np.mean([score.value for score in scores.values()]), abs=1e-4)


def test_as_many_seeds_as_slides_are_drawn_apart() -> None:
    """A score is then the sum of what its seed and its slide give: drawn together, the first and the first go along."""
    of_seeds = of_slides = np.arange(5.0)
    slides = draw(5, RESAMPLES, 0) @ of_slides / 5  # as the tables draw them
    scores = {seed: Score(0.0, of_seeds[seed] + slides) for seed in range(5)}
    apart = np.var(draw(5, RESAMPLES, 1) @ of_seeds / 5 + slides)
    assert np.var(resampled_means(scores)) == pytest.approx(apart)
    assert np.var(2 * slides) > 1.5 * apart


def test_of_fewer_seeds_or_without_slides_to_draw_there_is_no_interval() -> None:
    assert over_seeds(scores_of(np.random.default_rng(0), 4))["interval"] is None
    assert over_seeds({seed: Score(0.5) for seed in range(6)})["interval"] is None
    assert over_seeds({}) is None


def test_differences_and_means_are_those_of_the_same_slides() -> None:
    own, base = (scores_of(np.random.default_rng(i), 3) for i in range(2))
    del base[1]
    gain = differences(own, base)
    assert [*gain] == [0, 2]
    assert gain[2].value == own[2].value - base[2].value
    assert (gain[2].resampled == own[2].resampled - base[2].resampled).all()
    mean = mean_score([own[0], own[1]])
    assert mean.value == pytest.approx((own[0].value + own[1].value) / 2)
    assert mean.resampled[7] == pytest.approx((own[0].resampled[7] + own[1].resampled[7]) / 2)
    assert differences(own, {0: Score(0.5)})[0].resampled is None


def test_what_a_cell_shows() -> None:
    few = over_seeds({1: Score(0.25), 0: Score(0.5)})
    assert seeds_cell(few) == "0.375 (0.250 to 0.500: 0.500, 0.250)"
    assert seeds_cell(over_seeds({0: Score(0.5)}), "+") == "+0.500"
    assert seeds_cell(over_seeds({seed: Score(0.5) for seed in range(5)})) == "0.500 (0.500 to 0.500)"
    assert seeds_cell({"mean": 0.5, "interval": [0.25, 0.75], "n": 5}, "+") == "+0.500 [+0.250, +0.750]"
    assert seeds_cell(None) == ""
    row = flat({"method": "m", **few, "gain": over_seeds({0: Score(0.1), 1: Score(-0.3)})})
    assert (row["values"], row["low"], row["gain"], row["better"]) == ("0.5 0.25", None, -0.1, 1)


def test_a_p_value_is_twice_the_share_of_resamples_beyond_0() -> None:
    def gains(shift: float, seeds: int = 5) -> dict[int, Score]:
        drawn = np.linspace(-1, 1, RESAMPLES + 1)[1:] + shift  # of all seeds alike: means are these
        return {seed: Score(shift, drawn) for seed in range(seeds)}

    assert p_value(gains(0.5)) == pytest.approx(0.5, abs=0.01)
    assert p_value(gains(-0.5)) == pytest.approx(0.5, abs=0.01)
    assert p_value(gains(0.0)) == pytest.approx(1, abs=0.01)
    assert p_value(gains(5.0)) == pytest.approx(2 / 1001)  # never 0
    assert p_value(gains(0.5, seeds=4)) is None


def test_p_values_are_adjusted_by_holm() -> None:
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03})
    assert found == pytest.approx({"b": 0.03, "c": 0.06, "a": 0.06})
    assert holm({"a": 0.9, "b": 0.6}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}
