from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from shared.metrics import (
    POINTS,
    candidate_thresholds,
    kept_cascade,
    matched_threshold,
    read_cascade,
    read_threshold,
)
from shared.utils import DataError


def test_candidates_lie_midway() -> None:
    assert candidate_thresholds(np.array([0.5, 0.25, 0.5])).tolist() == [0.125, 0.375, 0.75]
    assert candidate_thresholds(np.array([0.0, 1.0])).tolist() == candidate_thresholds(np.array([])).tolist() == [0.5]
    neighbours = np.array([0.5, np.nextafter(0.5, 1)])  # without room between them
    assert candidate_thresholds(neighbours).tolist() == [0.25, pytest.approx(0.75)]
    with pytest.raises(ValueError, match=r"scores must be in \[0, 1\], got -1 to 0.5"):
        candidate_thresholds(np.array([0.5, -1]))


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_a_matched_threshold_moves_with_the_logits(point: str, rate: float) -> None:
    """A scanner that shifts all logits changes nothing of what is taken for positive."""
    rng = np.random.default_rng(0)
    logits = rng.normal(np.where(rng.random(2000) < rate, 2.0, -2.0), 1.0)
    found = [expit(logits + shift) >= matched_threshold(expit(logits + shift), rate, point) for shift in (0, 1.7, -3)]
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()
    assert point == "intercept" or found[0].mean() == pytest.approx(rate, abs=1e-3)


def test_the_intercept_makes_the_mean_probability_the_rate() -> None:
    """And what is as likely as the rate then is at the threshold: where probabilities are right, the best one."""
    rng = np.random.default_rng(1)
    truth = rng.random(50_000) < 0.2
    logits = rng.normal(np.where(truth, 1.0, -1.0), 1.0) * 2 + logit(0.2)  # of the likelihood ratio and the rate
    threshold = matched_threshold(expit(logits - 1.3), 0.2)
    shift = logit(0.2) - logit(threshold)
    assert expit(logits - 1.3 + shift).mean() == pytest.approx(0.2, abs=1e-9)
    assert threshold == pytest.approx(expit(logit(0.2) - 1.3), abs=0.01)
    assert matched_threshold(np.array([0.7, 0.7]), 0.2) == pytest.approx(0.7)
    for seed in range(300):  # all but equal, where rounding decides which of them is above the rate
        rng = np.random.default_rng(seed)
        prob = rng.uniform(0.05, 0.95) + 1e-15 * rng.random(5)
        assert matched_threshold(prob, rng.uniform(0.1, 0.9)) == pytest.approx(prob[0])
    assert matched_threshold(np.array([0.0, 1.0]), 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("prob", "rate", "point"), [([], 0.5, "quantile"), ([0.5], 1.0, "intercept"), ([0.5], 0.5, "")]
)
def test_what_no_threshold_can_be_matched_to(prob: list[float], rate: float, point: str) -> None:
    with pytest.raises(ValueError, match=f"expected images, .*: {len(prob)}, {rate:g}, {point}"):
        matched_threshold(np.array(prob), rate, point)


def test_threshold_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "threshold.json"
    assert read_threshold(path) == 0.5
    assert f"{path}: there is no such file, so 0.5 is taken for it" in caplog.text
    caplog.clear()
    path.write_text(json.dumps({"threshold": 0.37, "balanced_accuracy": 0.9}))
    assert read_threshold(path) == 0.37
    assert not caplog.text


@pytest.mark.parametrize(
    "content", ["{", "[0.5]", "{}", *(f'{{"threshold": {v}}}' for v in ("1.2", "-1", "NaN", '"0.5"', "true"))]
)
def test_a_file_without_a_threshold_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "threshold.json").write_text(content)
    with pytest.raises(DataError, match=r'threshold.json: .*xpected .*\{"threshold": 0.5\}'):
        read_threshold(tmp_path / "threshold.json")


def test_a_cascade_is_read_for_its_own_weights(tmp_path: Path) -> None:
    path = tmp_path / "cascade.json"
    assert read_cascade(path, "a", "") == {}
    with pytest.raises(DataError, match=r"cascade\.json: there is no such file.*configs/cascade.json.*--classifier c"):
        read_cascade(path, "a+b", "c.pt")
    content = {"weight": 0.4, "threshold": 0.25, "weights": "a+b", "flips": False}
    path.write_text(json.dumps(content))
    assert read_cascade(path, "a+b", "c.pt") == content
    with pytest.raises(DataError, match="chosen for other weights of the detector or the classifier"):
        read_cascade(path, "a+c", "c.pt")
    with pytest.raises(DataError, match="was chosen with --classifier_flips false"):
        read_cascade(path, "a+b", "c.pt", flips=True)


def test_what_was_chosen_is_kept_for_these_weights_alone(tmp_path: Path) -> None:
    path = tmp_path / "cascade.json"
    assert kept_cascade(path, "a+b", "c.pt") == {}
    content = {"weight": 0.4, "threshold": 0.25, "weights": "a+b"}
    path.write_text(json.dumps(content))
    assert kept_cascade(path, "a+b", "c.pt") == content | {"flips": False, "floor": 0.0}  # of before there were floors
    content |= {"flips": True, "floor": 0.125}
    path.write_text(json.dumps(content))
    assert kept_cascade(path, "a+b", "c.pt") == kept_cascade(path, None, "c.pt") == content
    assert kept_cascade(path, "a+c", "c.pt") == kept_cascade(path, "a+b", "") == {}
    assert read_cascade(path, "a+b", "c.pt") == read_cascade(path, "a+b", "c.pt", flips=True) == content
    with pytest.raises(DataError, match=r"was chosen with --classifier_flips true\. Leave that option out"):
        read_cascade(path, "a+b", "c.pt", flips=False)
    path.write_text(json.dumps(content | {"flips": "maybe"}))
    for read in (kept_cascade, read_cascade):
        with pytest.raises(DataError, match=r"cascade\.json: flips is 'maybe', expected true or false"):
            read(path, "a+b", "c.pt")
    path.write_text(json.dumps(content | {"floor": 1.5}))
    with pytest.raises(
        DataError, match=r"cascade\.json: its floor is 1\.5, expected a number in \[0, 1\].*--classifier_floor"
    ):
        kept_cascade(path, "a+b", "c.pt")


def test_the_threshold_of_a_cascade_goes_with_its_weight(tmp_path: Path) -> None:
    path, cascade = tmp_path / "cascade.json", {"weight": 0.4, "threshold": 0.25}
    path.write_text(json.dumps(cascade))
    assert read_threshold(path, cascade, 0.4) == 0.25
    with pytest.raises(DataError, match=r"was chosen for a weight of 0\.4 .* is 0\.6\. Give --threshold, too"):
        read_threshold(path, cascade, 0.6)
    path.write_text('{"threshold": 0.5}')
    assert read_threshold(path, cascade, 0.6) == 0.5


@pytest.mark.parametrize(("key", "value"), [("weight", 1.5), ("weight", "a"), ("threshold", None), ("threshold", True)])
def test_a_cascade_without_its_numbers_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "cascade.json"
    path.write_text(json.dumps({"weight": 0.4, "threshold": 0.25, "weights": "a+b"} | {key: value}))
    with pytest.raises(DataError, match=rf"its {key} is .*, expected a number in \[0, 1\]"):
        read_cascade(path, "a+b", "c.pt")
