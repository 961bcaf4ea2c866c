from __future__ import annotations

from pathlib import Path

import pytest
from commands import benchmark


@pytest.mark.slow
def test_every_part_is_measured(tmp_path: Path) -> None:
    sizes = {"candidates": 300, "width": 1100, "height": 900, "sides": "600,1000", "backbone": "resnet10"}
    options = {"rounds": 1, "milliseconds": 1, "num_workers": 1, "device": "cpu"}
    found, printed = benchmark("detection", tmp_path, **sizes, **options)
    assert found["loss"]["tiles"] == 6
    assert found["loss"]["time of the loss of MONAI's functions / ours"]["median"] > 0.3
    kept = found["suppression"]["kept"]
    assert kept["both"] + kept["ours alone"] == kept["ours"] <= 300
    assert kept["both"] + kept["batched_nms alone"] == kept["batched_nms"]
    assert kept["both, without classes"] > 0.8 * kept["ours"]
    region = found["region"]
    assert (region["size"], region["num_workers"]) == ([1100, 900], 1)
    assert region["seconds_network"] >= 0.006  # of 6 tiles
    assert region["seconds_region"] > region["seconds_network"]
    assert 0 < found["network"]["share of the time outside the network"]["median"] < 1
    assert found["candidates"]["candidates that cost a fifth of a tile's time"]["median"] > 0
    for method in ("macenko", "reinhard", "stainnet"):
        assert found["stains"][f"time with stains normalised by {method} / without"]["median"] > 0.5
    assert found["memory"]["sizes"] == [[600, 600], [1000, 1000]]
    assert 0.9 < found["memory"]["memory large / small"]["median"] < 1.2
    assert "aim 100.0: " in printed
