from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import benchmark
from experiments.benchmark_lambda3d import Step
from torch import nn


def test_the_floor_is_the_longer_of_arithmetic_and_traffic() -> None:
    """A matrix product and its two gradients: each has 2 · 16 · 8 · 4 operations and touches three matrices."""
    step = Step(nn.Linear(8, 4, bias=False), torch.randn(16, 8, requires_grad=True), "float32")
    operations, matrices = 3 * 2 * 16 * 8 * 4, 3 * (16 * 8 + 8 * 4 + 16 * 4) * 4
    assert step.floor(1e-12, 1e9) == operations
    assert step.floor(1e9, 1e-9) == matrices


@pytest.mark.slow
def test_networks_and_layers_are_timed_against_each_other(tmp_path: Path) -> None:
    sizes = {"size": 32, "feature_size": 8, "hidden_size": 48, "grids": "2,4"}
    options = {"rounds": 2, "device": "cpu", "tflops": 1000, "gigabytes": 100000}
    result, printed = benchmark("lambda3d", tmp_path, **sizes, **options)
    found = result["float32"]
    seconds = found["seconds"]
    networks, layers = ["unetr", "lambda3d", "lambda3d_mlp", "flash"], ["lambda_layer", "sa_block"]
    assert list(seconds) == networks + [f"{layer}_{grid}" for grid in (2, 4) for layer in layers]
    for a, b in (("lambda3d", "unetr"), ("lambda3d", "flash"), ("lambda_layer_4", "sa_block_4")):
        low, high = found[f"time {a} / {b}"]["quartiles"]
        assert 0 < low <= found[f"time {a} / {b}"]["median"] <= high
    assert found["time a token lambda_layer_2 / lambda_layer_2"]["median"] == 1
    assert all(0.3 < found[f"memory {name} / unetr"]["median"] < 3 for name in networks[1:])
    assert all(0 < found[f"share of the floor {name}"]["median"] < 1 for name in seconds)
    assert "time lambda3d / unetr" in printed
