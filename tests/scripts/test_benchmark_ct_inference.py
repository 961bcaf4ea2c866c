from __future__ import annotations

from pathlib import Path

import pytest
from commands import benchmark


@pytest.mark.slow
def test_time_and_memory_are_measured(tmp_path: Path) -> None:
    sizes = {"size": 96, "slices": 64, "cases": 2, "classes": "3,20", "depths": "100,300", "side": 96}
    result, printed = benchmark("ct_inference", tmp_path, **sizes, milliseconds=1, rounds=2)
    for cases in (1, 2):
        name = f"time outside of the network / the zoo's, {cases} case(s)"
        assert result["time"][str(cases)][name]["median"] > 0
        assert name in printed
    memory = result["memory"]
    assert memory["memory 300 slices / 100"]["median"] < 1.3
    assert memory["memory / whole logits"]["median"] < 1
    assert memory["whole_logits"] == 4 * 96 * 96 * 300 * 20
