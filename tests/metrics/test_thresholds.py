from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shared.metrics import candidate_thresholds, read_threshold
from shared.utils import DataError


def test_candidates_lie_midway() -> None:
    assert candidate_thresholds(np.array([0.5, 0.25, 0.5])).tolist() == [0.125, 0.375, 0.75]
    assert candidate_thresholds(np.array([0.0, 1.0])).tolist() == candidate_thresholds(np.array([])).tolist() == [0.5]
    neighbours = np.array([0.5, np.nextafter(0.5, 1)])  # without room between them
    assert candidate_thresholds(neighbours).tolist() == [0.25, pytest.approx(0.75)]
    with pytest.raises(ValueError, match=r"scores must be in \[0, 1\], got -1 to 0.5"):
        candidate_thresholds(np.array([0.5, -1]))


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
