from __future__ import annotations

from pathlib import Path

import pytest
from commands import benchmark


@pytest.mark.slow
def test_each_method_is_timed_beside_plain_training(tmp_path: Path) -> None:
    options = {"network": "resnet10", "batch": 4, "size": 32, "rounds": 2, "device": "cpu"}
    result, printed = benchmark("methods", tmp_path, **options)
    assert "fish: time beside plain training" in printed
    assert len(result["methods"]) == 12
    for method in result["methods"].values():
        assert method["time"]["median"] > 0.3
        assert 0.5 < method["memory"] < 3
