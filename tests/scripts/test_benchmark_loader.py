from __future__ import annotations

from pathlib import Path

from commands import benchmark


def test_the_loader_is_timed_against_monai_s_parts(tmp_path: Path) -> None:
    options = {"workers": "1", "cases": 1, "size": 96, "slices": 96, "cases_per_epoch": 2, "rounds": 2}
    result, printed = benchmark("loader", tmp_path, **options)
    assert result["1"]["ratio"]["median"] > 0
    assert result["1"]["cases_per_second"]["median"] > 0
    assert "1 workers: cases a second" in printed
