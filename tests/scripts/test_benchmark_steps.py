from __future__ import annotations

from pathlib import Path

import pytest
from commands import benchmark


@pytest.mark.slow
@pytest.mark.parametrize(("of", "number", "size"), [("fusestyle", 8, 64), ("methods", 12, 32)])
def test_every_variant_is_timed_beside_plain_training(tmp_path: Path, of: str, number: int, size: int) -> None:
    options = {"of": of, "network": "resnet10", "batch": 4, "size": size, "rounds": 2, "device": "cpu"}
    result, printed = benchmark("steps", tmp_path, **options)
    assert len(result["variants"]) == number
    assert f"{next(iter(result['variants']))}: time beside " in printed
    for variant in result["variants"].values():
        assert variant["time"]["median"] > 0.3
        assert 0.5 < variant["memory"] < 3
        assert 0.9 < variant["process_memory"] < 1.2
    if of == "fusestyle":
        assert result["variants"]["kl"]["time_to_random"]["median"] > 0.3
