from __future__ import annotations

from pathlib import Path

import pytest
from commands import benchmark


@pytest.mark.slow
def test_every_variant_is_timed_against_the_plain_network(tmp_path: Path) -> None:
    options = {"network": "resnet10", "batch": 2, "size": 64, "rounds": 2, "device": "cpu"}
    result, printed = benchmark("fusestyle", tmp_path, **options)
    assert result["plain"] == {"time": 1, "time_quartiles": [1, 1], "memory": 1, "process_memory": 1}
    assert all(0.9 < result[variant]["process_memory"] < 1.1 for variant in ("random", "dot", "kl"))
    assert all(result[variant]["time"] > 0 and result[variant]["memory"] > 0 for variant in ("random", "dot", "kl"))
    assert "kl to random" in printed
