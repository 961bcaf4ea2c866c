from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiments.frozen_features import features_of, fit_and_score, frozen_features, logistic_regression
from PIL import Image
from torch import nn

from shared.utils import DataError, write_json


class Colours(nn.Module):
    """The channels' means over quarters of the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Patches of two scanners, six slides each; those of class 1 are redder."""
    rng, lists = np.random.default_rng(0), {"training": [], "validation": [], "test": []}
    for scanner in ("XR", "CS"):
        for slide in range(6):
            for i in range(8):
                name = f"{scanner}_{slide}_{i}.png"
                pixels = rng.normal((150 + 60 * (i % 2), 120, 160), 5, (40, 40, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / name)
                entry = {"image": name, "label": i % 2, "domain": scanner, "slide": f"{scanner}{slide}"}
                lists["training"].append(entry)
    write_json(tmp_path / "dataset.json", {"name": "red", "synthetic": True, "labels": {"0": "a", "1": "b"}, **lists})
    return tmp_path


def test_the_regression_is_at_its_minimum() -> None:
    """Its gradient, worked out by hand with both classes weighing the same, is zero; and the penalty shrinks it."""
    rng = np.random.default_rng(0)
    x, penalty = rng.normal(size=(60, 4)), 0.05
    y = (x[:, 0] + rng.normal(size=60) > 0.8).astype(int)
    fit = logistic_regression(x, y, penalty)
    p = 1 / (1 + np.exp(-(x @ fit[:-1] + fit[-1])))
    weight = np.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    gradient = (weight * (p - y)) @ x / 60 + 2 * penalty * fit[:-1]
    np.testing.assert_allclose([*gradient, (weight * (p - y)).mean()], 0, atol=1e-5)
    assert np.linalg.norm(logistic_regression(x, y, 1.0)[:-1]) < np.linalg.norm(fit[:-1])


def test_features_are_means_over_places(data: Path) -> None:
    patches = [{"image": str(data / f"XR_0_{i}.png")} for i in range(3)]
    found = features_of(Colours(), patches, 32, 16)
    for patch in patches:
        middle = np.array(Image.open(patch["image"]))[4:36, 4:36].mean(axis=(0, 1)) / 255
        expected = (middle - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        np.testing.assert_allclose(found[patch["image"]], expected, atol=0.02)


def test_a_scanner_left_out_teaches_nothing() -> None:
    rng = np.random.default_rng(1)

    def patches(name: str, domain: str) -> list[dict[str, Any]]:
        return [{"image": f"{name}{i}", "label": i % 2, "domain": domain, "slide": str(i // 4)} for i in range(20)]

    lists = {"training": patches("t", "XR"), "validation": patches("v", "XR")}
    lists["scored"] = patches("s", "XR") + patches("o", "CS")
    features = {p["image"]: rng.normal(p["label"], 0.3, 3) for part in lists.values() for p in part}
    found = fit_and_score(features, lists)
    changed = fit_and_score(features | {f"o{i}": np.zeros(3) for i in range(20)}, lists)
    assert found.keys() == {"XR", "CS"}
    np.testing.assert_array_equal(found["XR"].probabilities, changed["XR"].probabilities)
    assert found["XR"].threshold == changed["CS"].threshold
    assert ((found["CS"].probabilities >= found["CS"].threshold) == found["CS"].labels).mean() > 0.9


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, and what the command takes
def test_the_table(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture) -> None:
    torch.jit.script(Colours()).save(tmp_path / "colours.ts")
    frozen_features(str(data), str(tmp_path / "colours.ts"), str(tmp_path / "out"), seeds=2, crop_size=32, size=16)
    runs = json.loads((tmp_path / "out" / "frozen_features.json").read_text())["runs"]
    assert [(run["left_out"], run["seed"]) for run in runs] == [("CS", 0), ("XR", 0), ("CS", 1), ("XR", 1)]
    assert all(own["auc"] > 0.95 for run in runs for own in run["scores"]["plain"].values())
    assert "| balanced accuracy | 1.000" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"weights\.pt: is no TorchScript"):
        frozen_features(str(data), str(tmp_path / "weights.pt"), str(tmp_path / "out"))
