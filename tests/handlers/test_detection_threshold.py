from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from torch import Tensor, nn

from shared.data import collate_detections
from shared.engines import DetectionEvaluator
from shared.handlers import DetectionThreshold
from shared.metrics import Findings, average_precision, detection_f1
from shared.networks import PyramidAnchors
from shared.utils import DataError

TILE = 128  # overlapping by 32
ORIGINS = (0, 96)
EVERYWHERE = (-math.inf, -math.inf, math.inf, math.inf)


class ImageIsTheOutput(nn.Module):
    """Six channels of an image, at the places of the anchors."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::8, ::8].flatten(2)


def figures(count: int, seed: int) -> np.ndarray:
    """Places (n, 2) in a region of 224 × 224 that are anchors' centres and lie far from each other."""
    grid = np.stack(np.meshgrid(*[np.arange(28, 220, 40)] * 2), axis=-1).reshape(-1, 2)
    return np.random.default_rng(seed).permutation(grid)[:count]


def regions(count: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    found = []
    for i in range(count):
        xy = figures(12, seed + i)
        box = np.concatenate([xy - 25, xy + 25], axis=1).tolist()
        found.append(
            {"case": f"{i}.png", "domain": ["XR", "CS"][i % 2], "slide": str(i), "box": box, "label": [1, 1, 0] * 4}
        )
    return found


def detections(region: dict[str, Any], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Most figures, and as many places beside them; a false one scores less on the average."""
    rng = np.random.default_rng(seed)
    true = np.array(region["box"])[:, :2] + 25
    rest = np.array([p for p in figures(25, seed).tolist() if p not in true.tolist()])
    points = np.concatenate([true[:10], rest[:10]])
    classes = np.concatenate([region["label"][:10], rng.permutation([1, 0] * 5)])
    scores = 1 / (1 + np.exp(-rng.normal([1.0] * 10 + [-1.0] * 10)))
    return points, scores.astype(np.float32), classes


def tiles(data: Sequence[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Of images whose anchors hold the logits of the detections that a tile sees."""
    items = []
    for i, region in enumerate(data):
        points, scores, classes = detections(region, seed + i)
        for x0 in ORIGINS:
            for y0 in ORIGINS:
                image = torch.zeros(6, TILE, TILE)
                image[:2] = -20
                for (x, y), score, label in zip(points - [x0, y0], scores, classes, strict=True):
                    if 0 <= x < TILE and 0 <= y < TILE:
                        image[label, y - 4, x - 4] = torch.tensor(float(score), dtype=torch.float64).logit().float()
                low, high = -math.inf if x0 == 0 else 16, 112 if x0 == 0 else math.inf
                top, bottom = -math.inf if y0 == 0 else 16, 112 if y0 == 0 else math.inf
                place = {"region": i, "origin": (float(x0), float(y0)), "core": (low, top, high, bottom), "scale": 1.0}
                place["size"] = (4000, 4000)
                nothing = {"box": torch.zeros(0, 4), "label": torch.zeros(0, dtype=torch.int64)}
                case = f"{region['case']} {x0},{y0}"
                items.append({"image": image, "case": case, "domain": region["domain"], **place, **nothing})
    return items


def make(
    data: Sequence[dict[str, Any]], items: list[dict[str, Any]], key: str | None = None, **options: Any
) -> tuple[DetectionEvaluator, DetectionThreshold]:
    handler = DetectionThreshold(data, PyramidAnchors(), **{"match_radius": 10.0, **options})
    evaluator = DetectionEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(items), batch_size=5, collate_fn=collate_detections),
        ImageIsTheOutput(),
        **({"key_val_metric": {key: handler}} if key else {"val_handlers": [handler]}),
    )
    return evaluator, handler


def expected(data: Sequence[dict[str, Any]], seed: int = 0) -> tuple[list[Any], ...]:
    points, scores, classes = zip(*(detections(r, seed + i) for i, r in enumerate(data)), strict=True)
    return points, scores, classes, [np.array(r["box"])[:, :2] + 25 for r in data], [r["label"] for r in data]


def f1(data: Sequence[dict[str, Any]], threshold: float, seed: int = 0) -> float:
    return detection_f1(*expected(data, seed), 10.0, threshold)[1]["f1"]


@pytest.mark.parametrize("repeated", [0, 5])
def test_no_other_threshold_is_better(repeated: int) -> None:
    """Whole regions, however they are cut, and with tiles that come twice."""
    data = regions()
    items = tiles(data)
    evaluator, handler = make(data, items + items[:repeated])
    evaluator.run()
    best = max(f1(data, t) for t in np.linspace(0.05, 1, 2001))
    assert 0.6 < best < 0.95
    assert handler.f1 == pytest.approx(best, abs=1e-12)
    assert f1(data, handler.threshold) == pytest.approx(best, abs=1e-12)
    wanted = average_precision(Findings.matched(*expected(data), 10.0), 1)
    assert evaluator.state.metrics == {"val_f1": handler.f1, "val_ap": pytest.approx(wanted, abs=1e-12)}


def test_the_other_class() -> None:
    data = regions()
    evaluator, handler = make(data, tiles(data), class_id=0)
    evaluator.run()
    assert handler.f1 == detection_f1(*expected(data), 10.0, handler.threshold)[0]["f1"]
    assert handler.f1 != f1(data, handler.threshold)


@pytest.mark.parametrize("key", ["val_f1", "val_ap"])
def test_as_the_key_metric(key: str) -> None:
    data = regions()
    evaluator, _ = make(data, tiles(data), key)
    evaluator.run()
    assert set(evaluator.state.metrics) == {"val_f1", "val_ap"}
    assert evaluator.state.key_metric_name == key
    assert evaluator.state.best_metric == evaluator.state.metrics[key] > 0
    with pytest.raises(ValueError, match="gives val_f1 and val_ap, not val_auc"):
        make(data, tiles(data), "val_auc")


def test_each_validation_begins_anew() -> None:
    data = regions()
    evaluator, handler = make(data, tiles(data))
    evaluator.run(1)
    first = handler.content()
    evaluator.run(2)
    assert handler.content() == first
    evaluator.network.forward = lambda x: ImageIsTheOutput.forward(evaluator.network, x) - 30
    evaluator.run(3)
    assert (handler.f1, handler.average_precision, handler.threshold) == (0, 0, 0.5)


def test_what_is_kept() -> None:
    data = regions()
    evaluator, handler = make(data, tiles(data), suppress_radius=20.0)
    evaluator.run()
    content = json.loads(json.dumps(handler.content(), allow_nan=False))
    assert content == {
        "threshold": handler.threshold,
        "chosen_for": "F1",
        "f1": evaluator.state.metrics["val_f1"],
        "average_precision": evaluator.state.metrics["val_ap"],
        "match_radius": 10.0,
        "suppress_radius": 20.0,
        "split": "validation",
        "domains": ["CS", "XR"],
    }


def test_threshold_is_none_that_nothing_was_looked_at_below() -> None:
    """Every detection is right, so that the best threshold is as low as can be."""
    data = [regions(1)[0] | {"label": [1] * 12}]
    items = tiles(data)
    for item in items:
        item["image"][1] = item["image"][:2].amax(dim=0)
        item["image"][0] = -20
    evaluator, handler = make(data, items, match_radius=300.0, score_threshold=0.4)
    evaluator.run()
    assert handler.threshold == 0.4
    assert handler.f1 > 0.5


def test_tiles_of_all_ranks_make_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    data = regions()
    items = tiles(data)
    alone, chosen = make(data, items)
    alone.run()
    other, of_other = make(data, items[1::2])
    monkeypatch.setattr(of_other, "compute", dict)
    other.run()
    monkeypatch.setattr(idist, "all_gather", lambda own: [own, dict(of_other.detections.merger.parts)])
    first, handler = make(data, items[::2] + items[1:2])
    first.run()
    assert handler.content() == chosen.content()
    assert first.state.metrics == alone.state.metrics


def test_a_region_without_a_tile_counts() -> None:
    data = regions()
    evaluator, handler = make(data, [item for item in tiles(data) if item["region"] < 2])
    evaluator.run()
    assert handler.f1 < max(f1(data[:2], t) for t in np.linspace(0.05, 1, 501))
    points, scores, classes, *truth = expected(data)
    found = (*points[:2], np.empty((0, 2))), (*scores[:2], np.empty(0)), (*classes[:2], np.empty(0, int))
    assert handler.f1 == detection_f1(*found, *truth, 10.0, handler.threshold)[1]["f1"]


def test_a_scaled_tile() -> None:
    """Of an image of twice the resolution: places are those of the image."""
    data = [regions(1)[0]]
    data[0]["box"] = (2 * np.array(data[0]["box"])).tolist()
    items = tiles([regions(1)[0]])
    for item in items:
        item |= {"origin": tuple(2 * o for o in item["origin"]), "scale": 2.0}
    evaluator, handler = make(data, items)
    evaluator.run()
    wanted, same = make(regions(1), tiles(regions(1)))
    wanted.run()
    assert handler.f1 == same.f1 > 0.5


def test_without_a_figure() -> None:
    data = [region | {"label": [0] * 12} for region in regions()]
    evaluator, _ = make(data, tiles(data))
    with pytest.raises(DataError, match="none of 3 validation images has a figure of class 1"):
        evaluator.run()


def test_a_network_that_gives_no_number_is_reported() -> None:
    data = regions()
    items = tiles(data)
    items[3]["image"][5, 0, 8] = math.inf
    evaluator, _ = make(data, items)
    with pytest.raises(DataError, match=r"0.png 96,96: the network gives no number here"):
        evaluator.run()


def test_unlabelled_regions_are_refused() -> None:
    data = [*regions(1), {"case": "gt450.tiff", "domain": "GT450", "labelled": False}]
    with pytest.raises(ValueError, match=r"gt450.tiff has no boxes"):
        DetectionThreshold(data, PyramidAnchors())
