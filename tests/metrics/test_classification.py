from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics

from shared.metrics import (
    best_threshold,
    bootstrap,
    bootstrap_scores,
    calibration_error,
    classification_scores,
    roc_curve,
    weighted_auc,
)
from shared.utils import DataError

SCORES = ("accuracy", "balanced_accuracy", "auc", "f1", "sensitivity", "specificity")


def patches(n: int = 200, seed: int = 0, steps: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with many ties, some of them across classes, and labels."""
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.35).astype(int)
    return np.round(np.clip(rng.normal(0.35 + 0.3 * label, 0.2), 0, 1) * steps) / steps, label


def test_auc_counts_the_pairs() -> None:
    prob, label = patches(80)
    weights = np.random.default_rng(1).random((3, 80))
    for auc, weight in zip(weighted_auc(prob, label, weights), weights, strict=True):
        won = total = 0.0
        for i in np.flatnonzero(label == 1):
            for j in np.flatnonzero(label == 0):
                won += weight[i] * weight[j] * ((prob[i] > prob[j]) + 0.5 * (prob[i] == prob[j]))
                total += weight[i] * weight[j]
        assert auc == pytest.approx(won / total, abs=1e-12)


def test_auc_of_resamples_is_scikit_learns() -> None:
    prob, label = patches()
    weights = np.random.default_rng(1).multinomial(200, [1 / 200] * 200, size=7)
    expected = [sklearn.metrics.roc_auc_score(label, prob, sample_weight=w) for w in weights]
    assert weighted_auc(prob, label, weights) == pytest.approx(expected, abs=1e-12)
    assert weighted_auc(prob, label) == pytest.approx(sklearn.metrics.roc_auc_score(label, prob), abs=1e-12)


def test_auc_does_not_depend_on_the_order_and_turns_around() -> None:
    prob, label = patches()
    order = np.random.default_rng(2).permutation(200)
    auc = weighted_auc(prob, label)
    assert weighted_auc(prob[order], label[order]) == auc
    assert weighted_auc(np.exp(5 * prob), label) == auc  # scores of any range, their order alone counts
    assert weighted_auc(1 - prob, label) == pytest.approx(1 - auc)
    assert weighted_auc(np.ones(200), label) == 0.5
    assert weighted_auc(label, label) == 1


def test_auc_is_undefined_where_a_class_has_no_weight() -> None:
    auc = weighted_auc([0.1, 0.6, 0.4], [0, 1, 1], [[1, 1, 1], [0, 1, 2], [3, 0, 0], [1, 0, 1]])
    assert auc.tolist() == pytest.approx([1, math.nan, math.nan, 1], nan_ok=True)
    assert math.isnan(weighted_auc([0.1, 0.6], [1, 1]))


def test_roc_curve_is_scikit_learns() -> None:
    prob, label = patches()
    expected = sklearn.metrics.roc_curve(label, prob, drop_intermediate=False)
    for found, values in zip(roc_curve(prob, label), expected, strict=False):
        assert found == pytest.approx(values, abs=1e-12)
    assert np.trapezoid(*roc_curve(prob, label)[::-1]) == pytest.approx(weighted_auc(prob, label))


@pytest.mark.parametrize("threshold", [0.0, 0.35, 0.5, 0.61, 1.0])
def test_scores_are_scikit_learns(threshold: float) -> None:
    prob, label = patches()
    called = prob >= threshold
    scores = classification_scores(prob, label, threshold)
    tn, fp, fn, tp = sklearn.metrics.confusion_matrix(label, called).ravel()
    assert [scores[c] for c in ("tp", "fp", "tn", "fn")] == [tp, fp, tn, fn]
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(label, called),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(label, called),
        "auc": sklearn.metrics.roc_auc_score(label, prob),
        "f1": sklearn.metrics.f1_score(label, called),
        "sensitivity": sklearn.metrics.recall_score(label, called),
        "specificity": sklearn.metrics.recall_score(label, called, pos_label=0),
    }
    assert {name: scores[name] for name in SCORES} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("label", "defined"),
    [
        ([1, 1, 1], {"accuracy": 2 / 3, "sensitivity": 2 / 3, "f1": 0.8}),
        ([0, 0, 0], {"accuracy": 1 / 3, "specificity": 1 / 3}),
    ],
)
def test_what_one_class_alone_leaves_undefined(label: list[int], defined: dict[str, float]) -> None:
    scores = classification_scores([0.5, 0.9, 0.2], label, 0.5)
    expected = dict.fromkeys(SCORES, math.nan) | defined
    assert {name: scores[name] for name in SCORES} == pytest.approx(expected, nan_ok=True)


def test_bootstrap_is_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slide by slide, with repeated patches; slides differ in size, and one resample in a few lacks a class."""
    monkeypatch.setattr(bootstrap, "BLOCK", 200)
    prob, label = patches(60)
    slides = np.array(["a"] * 30 + ["b"] * 20 + ["c"] * 10)
    label[slides == "c"], label[slides == "b"] = 1, 0
    found = bootstrap_scores(prob, label, slides.tolist(), 0.45, resamples=100, seed=4)
    draws = np.random.default_rng(4).multinomial(3, [1 / 3] * 3, size=100)
    resampled: dict[str, list[float]] = {name: [] for name in SCORES}
    for draw in draws:
        chosen = np.concatenate(
            [np.flatnonzero(slides == s) for s, times in zip("abc", draw, strict=True) for _ in range(times)]
        )
        scores = classification_scores(prob[chosen], label[chosen], 0.45)
        for name in SCORES:
            resampled[name].append(scores[name])
    for name in SCORES:
        assert found[name]["interval"] == pytest.approx(np.nanpercentile(resampled[name], [2.5, 97.5])), name
        assert found[name]["resamples_left_out"] == np.isnan(resampled[name]).sum()
    assert found["auc"]["resamples_left_out"] == sum(d[0] == 0 and 0 in d[1:] for d in draws) > 0
    assert found["accuracy"]["resamples_left_out"] == 0


def test_bootstrap_keeps_the_patches_of_a_slide_together() -> None:
    """Each patch ten times over, on the same slide, tells nothing new; as slides of their own they seem to."""
    prob, label = patches(60)
    slides = list(range(60))
    once = bootstrap_scores(prob, label, slides, resamples=300)
    again = bootstrap_scores(np.repeat(prob, 10), np.repeat(label, 10), np.repeat(slides, 10).tolist(), resamples=300)
    apart = bootstrap_scores(np.repeat(prob, 10), np.repeat(label, 10), list(range(600)), resamples=300)
    for name in SCORES:
        assert again[name]["interval"] == pytest.approx(once[name]["interval"])
        assert np.diff(apart[name]["interval"]) < 0.5 * np.diff(once[name]["interval"])


def test_bootstrap_interval_covers_the_score_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = dict.fromkeys(("accuracy", "auc"), 0)
    truth = {"accuracy": 0.6914625, "auc": 0.7602499}  # of two normal distributions, one standard deviation apart
    for _ in range(200):
        label = rng.integers(0, 2, 200)
        prob = np.clip((rng.normal(label, 1.0) + 4.5) / 10, 0, 1)  # 0.5 is midway
        found = bootstrap_scores(prob, label, list(range(200)), resamples=200, seed=1)
        for name in hits:
            low, high = found[name]["interval"]
            hits[name] += low <= truth[name] <= high
    assert all(0.88 <= count / 200 <= 0.99 for count in hits.values()), hits


def test_where_there_is_no_interval() -> None:
    one = bootstrap_scores([0.1, 0.9], [0, 1], ["a", "a"])
    assert one["auc"] == {
        "interval": None,
        "resamples_left_out": 0,
        "no_interval_because": "all patches are from a single slide",
    }
    none = bootstrap_scores([0.1, 0.9, 0.3], [0, 0, 0], ["a", "b", "b"], resamples=50)
    assert none["auc"] == {
        "interval": None,
        "resamples_left_out": 50,
        "no_interval_because": "undefined in every resample",
    }
    assert none["specificity"]["interval"] is not None


def test_best_threshold_is_the_best_of_all() -> None:
    for seed in range(20):
        prob, label = patches(40, seed)
        threshold, accuracy = best_threshold(prob, label)
        values = np.unique([0, *prob, 1])
        midway = (values[:-1] + values[1:]) / 2
        scores = [sklearn.metrics.balanced_accuracy_score(label, prob >= t) for t in midway]
        best = midway[np.isclose(scores, max(scores), rtol=0, atol=1e-12)]
        assert accuracy == pytest.approx(max(scores))
        assert threshold in best
        assert abs(threshold - 0.5) == min(abs(best - 0.5))
        assert sklearn.metrics.balanced_accuracy_score(label, prob >= threshold) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("prob", "label", "threshold", "accuracy"),
    [
        ([0.1, 0.2, 0.4, 0.9], [0, 0, 1, 1], 0.3, 1.0),
        ([0.1, 0.9], [0, 1], 0.5, 1.0),
        ([0.0, 1.0], [0, 1], 0.5, 1.0),
        ([0.9, 0.2], [0, 1], 0.1, 0.5),  # no better than calling all of them positive
        ([0.3, 0.3], [0, 1], 0.65, 0.5),
        ([np.nextafter(1, 0), 1.0], [0, 1], 0.5, 0.5),  # no number lies between
    ],
)
def test_best_threshold_lies_midway(prob: list[float], label: list[int], threshold: float, accuracy: float) -> None:
    found = best_threshold(prob, label)
    assert found == pytest.approx((threshold, accuracy))
    assert 0 < found[0] < 1


def test_best_threshold_needs_both_classes() -> None:
    with pytest.raises(DataError, match="all 2 validation patches are negative, expected both classes"):
        best_threshold([0.2, 0.3], [0, 0])
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got -2 to 3"):
        best_threshold([-2, 3], [0, 1])


@pytest.mark.parametrize(
    ("prob", "label", "message"),
    [
        ([0.1, 0.2], [1], "must be .n,. with n > 0"),
        ([], [], "must be .n,. with n > 0"),
        ([0.1, math.nan], [0, 1], "must be finite, 1 of 2 are not"),
        ([0.1, 0.2], [1, 2], "labels must be 0 or 1"),
    ],
)
def test_bad_arguments(prob: list[float], label: list[int], message: str) -> None:
    for function in (weighted_auc, classification_scores, best_threshold):
        with pytest.raises(ValueError, match=message):
            function(prob, label)


def test_bad_weights_and_groups() -> None:
    with pytest.raises(ValueError, match=r"weights must be \(R, 2\), got \(2,\)"):
        weighted_auc([0.1, 0.2], [0, 1], [1, 1])
    with pytest.raises(ValueError, match="slide of each of 2 patches, got 1"):
        bootstrap_scores([0.1, 0.2], [0, 1], ["a"])


def test_calibration_error_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    prob = np.concatenate([rng.uniform(size=200), [0.0, 0.1, 0.3, 1.0]])  # the last bin holds 1
    label = rng.uniform(size=204) < prob**2
    error = 0.0
    for k in range(10):
        own = [i for i, p in enumerate(prob) if k / 10 <= p < (k + 1) / 10 or (k == 9 and p == 1)]
        if own:
            error += len(own) / len(prob) * abs(prob[own].mean() - label[own].mean())
    assert calibration_error(prob, label) == pytest.approx(error)
    assert calibration_error([0.0, 1.0, 1.0], [0, 1, 1]) == 0
    assert calibration_error([0.9, 0.9], [0, 1], bins=1) == pytest.approx(0.4)
    assert calibration_error([1.0, 0.95], [0, 1]) == pytest.approx(0.475)  # both in the last bin
    for bad in ([0.5, 1.2], [-0.1, 0.5]):
        with pytest.raises(ValueError, match=r"probabilities must be in \[0, 1\], got"):
            calibration_error(bad, [0, 1])
