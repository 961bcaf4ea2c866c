from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_variant_is_timed_against_the_plain_network(tmp_path: Path) -> None:
    options = [
        "--output",
        tmp_path / "cost.json",
        "--network",
        "resnet10",
        "--batch",
        "2",
        "--size",
        "64",
        "--rounds",
        "2",
        "--device",
        "cpu",
    ]
    done = run(ROOT / "scripts" / "benchmark.py", "fusestyle", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "cost.json").read_text())
    assert result["plain"] == {"time": 1, "time_quartiles": [1, 1], "memory": 1, "process_memory": 1}
    assert all(0.9 < result[variant]["process_memory"] < 1.1 for variant in ("random", "dot", "kl"))
    assert all(result[variant]["time"] > 0 and result[variant]["memory"] > 0 for variant in ("random", "dot", "kl"))
    assert "kl to random" in done.stdout
