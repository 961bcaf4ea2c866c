from __future__ import annotations

import math

import numpy as np
import pytest

from shared.metrics import bootstrap
from shared.metrics.bootstrap import bootstrap_intervals, bootstrap_means, draw, number_groups, percentiles


def test_draws_are_as_many_as_there_are_and_a_seed_repeats_them() -> None:
    draws = draw(5, 2000, 3)
    assert (draws.shape, set(draws.sum(axis=1))) == ((2000, 5), {5})
    assert draws.mean(axis=0) == pytest.approx([1] * 5, abs=0.1)
    assert (draws == draw(5, 2000, 3)).all()
    generator = np.random.default_rng(3)
    assert (draws == draw(5, 2000, generator)).all()
    assert (draws != draw(5, 2000, generator)).any()  # what another draw has left


def test_percentiles_are_of_what_is_defined() -> None:
    values = np.append(np.arange(101.0), [math.nan] * 30)
    assert percentiles(np.random.default_rng(0).permutation(values)) == [2.5, 97.5]
    assert percentiles(np.full(3, math.nan)) is None


def test_groups_are_numbered_as_they_come() -> None:
    group, count = number_groups(["b", "a", "b", ("c", 1)])
    assert (group.tolist(), count) == ([0, 1, 0, 2], 3)
    assert (number_groups([])[0].tolist(), number_groups([])[1]) == ([], 0)


def test_intervals_do_not_depend_on_how_many_resamples_are_worked_on_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    values = np.array([3.0, 5.0, 11.0])

    def score(draws: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(draws))
        undefined = np.full(len(draws), math.nan)
        return {"mean": draws @ values / 3, "some": np.where(draws[:, 0] > 0, draws[:, 0], math.nan), "no": undefined}

    whole = bootstrap_intervals(score, 3, 100, 50, 7, "too few")
    monkeypatch.setattr(bootstrap, "BLOCK", 2000)
    assert bootstrap_intervals(score, 3, 100, 50, 7, "too few") == whole
    assert sizes == [50, 20, 20, 10]
    draws = np.random.default_rng(7).multinomial(3, [1 / 3] * 3, size=50)
    assert whole["mean"] == {
        "interval": np.percentile(draws @ values / 3, [2.5, 97.5]).tolist(),
        "resamples_left_out": 0,
    }
    assert whole["some"]["resamples_left_out"] == (draws[:, 0] == 0).sum() > 0
    assert whole["no"] == {
        "interval": None,
        "resamples_left_out": 50,
        "no_interval_because": "undefined in every resample",
    }
    for groups in (0, 1):
        few = bootstrap_intervals(lambda draws: {"n": draws.sum(axis=1)}, groups, 9, 50, 7, "too few")
        assert few == {"n": {"interval": None, "resamples_left_out": 0, "no_interval_because": "too few"}}


def literal_means(scores: np.ndarray, draws: np.ndarray) -> tuple[list[list[float]], list[float]]:
    """Case by case: the means of each class over a resample, and the mean of those."""
    each: list[list[float]] = [[] for _ in scores[0]]
    overall = []
    for counts in draws:
        means = []
        for c in range(scores.shape[1]):
            values = [
                scores[i, c] for i, times in enumerate(counts) for _ in range(times) if not math.isnan(scores[i, c])
            ]
            if values:
                means.append(sum(values) / len(values))
                each[c].append(means[-1])
        if means:
            overall.append(sum(means) / len(means))
    return each, overall


def test_means_are_their_definition() -> None:
    rng = np.random.default_rng(5)
    scores = rng.random((6, 4))
    scores[rng.random((6, 4)) < 0.4] = math.nan
    scores[:, 3] = math.nan
    classes, overall = bootstrap_means(scores, resamples=200, seed=3)
    each, means = literal_means(scores, np.random.default_rng(3).multinomial(6, [1 / 6] * 6, size=200))
    for c in range(3):
        assert classes[c]["cases"] == (~np.isnan(scores[:, c])).sum() >= 2
        assert classes[c]["mean"] == pytest.approx(np.nanmean(scores[:, c]))
        assert classes[c]["interval"] == pytest.approx(np.percentile(each[c], [2.5, 97.5]))
    assert classes[3]["no_interval_because"] == "no case has a score"
    assert overall["interval"] == pytest.approx(np.percentile(means, [2.5, 97.5]))


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_means(rng.normal(0.7, 0.1, (40, 1)), resamples=400)[1]["interval"]
        hits += low <= 0.7 <= high
    assert 0.88 <= hits / 200 <= 0.99
