from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_part_is_measured(tmp_path: Path) -> None:
    options = [
        "--output",
        tmp_path / "cost.json",
        "--candidates",
        "300",
        "--width",
        "2200",
        "--height",
        "1800",
        "--sides",
        "600,1000",
        "--rounds",
        "1",
    ]
    options += ["--milliseconds", "1", "--num_workers", "1", "--backbone", "resnet10", "--device", "cpu"]
    done = run(ROOT / "scripts" / "benchmark.py", "detection", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "cost.json").read_text())
    kept = found["suppression"]["kept"]
    assert kept["both"] + kept["ours alone"] == kept["ours"] <= 300
    assert kept["both"] + kept["batched_nms alone"] == kept["batched_nms"]
    assert kept["both, without classes"] > 0.8 * kept["ours"]
    region = found["region"]
    assert (region["size"], region["num_workers"]) == ([2200, 1800], 1)
    assert region["seconds_network"] >= 0.02  # of 20 tiles
    assert region["seconds_region"] > region["seconds_network"]
    assert 0 < found["network"]["share of the time outside the network"]["median"] < 1
    assert found["memory"]["sizes"] == [[600, 600], [1000, 1000]]
    assert 0.9 < found["memory"]["memory large / small"]["median"] < 1.2
    assert "aim 100.0: " in done.stdout
