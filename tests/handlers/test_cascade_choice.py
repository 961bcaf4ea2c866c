from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detected_regions import SIZE, detections, regions
from monai.data import DataLoader, Dataset
from torch import Tensor, nn

from shared.data import Region, collate_detections
from shared.engines import DetectionEvaluator
from shared.handlers import CascadeChoice
from shared.metrics import Findings, average_precision, detection_f1, read_cascade
from shared.networks import PyramidAnchors
from shared.utils import DataError

EVERYWHERE = (-math.inf, -math.inf, math.inf, math.inf)
RADIUS = 10.0


class ImageIsTheOutput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::8, ::8].flatten(2)


class Opinion:
    """Mostly right: probabilities by the place, of the region's file and the point."""

    flips = False

    def __init__(self, data: list[dict[str, Any]]) -> None:
        self.by_path = {region["image"]: region for region in data}

    def __call__(self, region: Region, points: np.ndarray) -> np.ndarray:
        entry = self.by_path[region.path]
        true = np.array(entry["box"]).reshape(-1, 4)[:, :2] + 25
        near = np.linalg.norm(points[:, None] - true, axis=2)
        right = (near.min(axis=1) < RADIUS) & (np.array(entry["label"])[near.argmin(axis=1)] == 1)
        noise = np.random.default_rng(len(points)).normal(0, 1, len(points))
        return (1 / (1 + np.exp(-(np.where(right, 0.8, -0.8) + noise)))).astype(np.float32)


def tiles(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    items = []
    for i, (points, scores, classes) in enumerate(detections(data)):
        image = torch.zeros(6, SIZE, SIZE)
        image[:2] = -20
        for (x, y), score, label in zip(points, scores, classes, strict=True):
            image[label, y - 4, x - 4] = torch.tensor(float(score), dtype=torch.float64).logit().float()
            image[1 - label, y - 4, x - 4] = torch.tensor(0.4 * float(score), dtype=torch.float64).logit().float()
        place = {"region": i, "origin": (0.0, 0.0), "core": EVERYWHERE, "scale": 1.0, "size": (4000, 4000)}
        items.append({"image": image, "case": f"{i} 0,0", **place, "box": torch.zeros(0, 4), "label": torch.zeros(0)})
    return items


def choose(path: Path, data: list[dict[str, Any]], items: list[dict[str, Any]], **options: Any) -> DetectionEvaluator:
    handler = CascadeChoice(
        path, data, PyramidAnchors(), **{"classify": Opinion(data), "match_radius": RADIUS} | options
    )
    loader = DataLoader(Dataset(items), batch_size=5, collate_fn=collate_detections)
    evaluator = DetectionEvaluator(torch.device("cpu"), loader, ImageIsTheOutput(), val_handlers=[handler])
    evaluator.run()
    return evaluator


def slow_scores(data: list[dict[str, Any]], weight: float, floor: float) -> tuple[float, float, float]:
    """F1, average precision and threshold of a weight and a floor, all thresholds one by one."""
    opinion, points, scores, classes, true, true_classes = Opinion(data), [], [], [], [], []
    for region, (xy, score, label) in zip(data, detections(data), strict=True):
        order = [i for i in np.argsort(-score, kind="stable") if score[i] >= 0.05]
        xy, score, label = xy[order].astype(float), score[order], label[order]
        mitotic = np.where(label == 1, score, 0.4 * score)
        said = np.where(mitotic >= floor, opinion(Region(region["image"]), xy), 0)
        scores.append((1 - weight) * mitotic + weight * said)
        points.append(xy)
        classes.append(np.ones(len(xy), int))
        true.append(np.array(region["box"])[:, :2] + 25)
        true_classes.append(region["label"])
    both = (points, scores, classes, true, true_classes, RADIUS)
    values = sorted({0.0, 1.0, *np.concatenate(scores).tolist()})
    f1, threshold = max(
        (detection_f1(*both, middle)[1]["f1"], middle) for middle in ((a + b) / 2 for a, b in pairwise(values))
    )
    return f1, average_precision(Findings.matched(*both), 1), threshold


def test_the_best_of_all_is_chosen(tmp_path: Path) -> None:
    """The highest floor that costs no F1, and there the best weight."""
    data = regions(tmp_path)
    engine = choose(tmp_path / "cascade.json", data, tiles(data), weights="a+b")
    content = json.loads((tmp_path / "cascade.json").read_text())
    alone = content["tried"][-11]["threshold"]
    floors, weights = [0.75 * alone, 0.5 * alone, 0.25 * alone, 0.0], [i / 10 for i in range(11)]
    slow = {(floor, weight): slow_scores(data, weight, floor) for floor in floors for weight in weights}
    assert [(row["floor"], row["weight"]) for row in content["tried"]] == list(slow)
    for key, place in (("f1", 0), ("average_precision", 1)):
        np.testing.assert_allclose([row[key] for row in content["tried"]], [s[place] for s in slow.values()], atol=1e-6)
    greatest = {floor: max(slow[floor, weight][0] for weight in weights) for floor in floors}
    floor = next(floor for floor in floors if greatest[floor] >= greatest[0.0] - 1e-9)
    weight = max(weights, key=lambda weight: slow[floor, weight][:2])
    f1, ap, _ = slow[floor, weight]
    assert weight > 0 < floor
    chosen = (content["floor"], content["weight"], content["f1"], content["average_precision"])
    assert chosen == pytest.approx((floor, weight, f1, ap))
    assert (content["split"], content["domains"], content["flips"]) == ("validation", ["CS", "S360", "XR"], False)
    assert engine.state.metrics["val_f1"] == pytest.approx(f1)
    assert read_cascade(tmp_path / "cascade.json", "a+b", "model.pt") == content


def test_it_needs_a_classifier(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No classifier is given, .*--classifier"):
        CascadeChoice(tmp_path / "a" / "cascade.json", [], PyramidAnchors(), None)
    assert not (tmp_path / "a").exists()


def test_without_a_figure_nothing_is_chosen(tmp_path: Path) -> None:
    items = tiles(regions(tmp_path, count=1))
    data = [{**region, "box": [], "label": []} for region in regions(tmp_path, count=1)]
    with pytest.raises(DataError, match="A threshold cannot be chosen"):
        choose(
            tmp_path / "cascade.json", data, items, classify=lambda region, points: np.zeros(len(points), np.float32)
        )
    assert not (tmp_path / "cascade.json").exists()
