from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from shared.data import Region
from shared.inferers import FindingsCollector
from shared.networks import PyramidAnchors
from shared.utils import DataError

SIZE = 64
EVERYWHERE = (-math.inf, -math.inf, math.inf, math.inf)


def square(x: float, y: float) -> list[float]:
    return [x - 25, y - 25, x + 25, y + 25]


REGIONS = [
    {"image": "a.png", "case": "a", "box": [square(20, 20), square(76, 20)], "label": [1, 0]},
    {"image": "b.png", "case": "b", "box": [], "label": []},
    {"image": "c.png", "case": "c", "box": [square(20, 22)], "label": [1]},
]


def tile(region: int, *figures: tuple[int, int, float, int], x: int = 0, scale: float = 1.0) -> tuple[dict, Tensor]:
    """A tile, and what a network says that finds figures (x, y, score, class) of the tile."""
    output = torch.full((6, SIZE // 8, SIZE // 8), -20.0)
    output[2:] = 0
    for column, row, score, label in figures:
        output[label, row // 8, column // 8] = math.log(score / (1 - score))
    place = {"region": region, "origin": (float(x), 0.0), "core": EVERYWHERE, "scale": scale, "size": (400, 400)}
    return {"case": f"{'abc'[region]} {x},0", "image": torch.zeros(3, SIZE, SIZE), **place}, output.flatten(1)


def batch(*tiles: tuple[dict, Tensor]) -> tuple[dict[str, Any], Tensor]:
    items, outputs = zip(*tiles, strict=True)
    joined = {key: [item[key] for item in items] for key in items[0]}
    return joined | {"image": torch.stack(joined["image"])}, torch.stack(outputs)


TILES = (
    tile(0, (20, 20, 0.75, 1), (60, 20, 0.5, 0)),
    tile(0, (20, 20, 0.875, 0), x=40),  # the figure at 60, seen from the other side, and more surely
    tile(2, (44, 20, 0.625, 1)),
)


def collect(*tiles: tuple[dict, Tensor], **options: Any) -> FindingsCollector:
    collector = FindingsCollector(REGIONS, PyramidAnchors(), **{"suppress_radius": 10.0, **options})
    if tiles:
        collector.add(*batch(*tiles))
    return collector


def test_tiles_of_a_region_are_put_together_and_matched() -> None:
    findings = collect(*TILES).findings(25.0)
    assert findings.count == 3
    assert findings.images.tolist() == [0, 0, 2]
    assert findings.points.tolist() == [[60, 20], [20, 20], [44, 20]]
    assert findings.scores == pytest.approx([0.875, 0.75, 0.625], abs=1e-6)
    assert findings.classes.tolist() == [0, 1, 1]
    assert findings.true_images.tolist() == [0, 0, 2]
    assert findings.true_points.tolist() == [[20, 20], [76, 20], [20, 22]]
    assert findings.match.tolist() == [1, 0, 2]
    assert collect(*TILES).findings(24.0).match.tolist() == [1, 0, -1]


def test_a_tile_that_comes_twice_counts_once() -> None:
    once, twice = collect(*TILES).findings(25.0), collect(*TILES, *TILES[:2]).findings(25.0)
    np.testing.assert_array_equal(once.points, twice.points)
    np.testing.assert_array_equal(once.scores, twice.scores)


def test_regions_without_a_tile_or_a_figure_count() -> None:
    findings = collect().findings(25.0)
    assert (findings.count, len(findings.points), findings.true_images.tolist()) == (3, 0, [0, 0, 2])
    assert np.isnan(findings.found_at).all()


def test_all_ranks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    other = dict(collect(TILES[1], TILES[2]).merger.parts)
    monkeypatch.setattr(idist, "all_gather", lambda own: [own, other])
    assert collect(TILES[0]).findings(25.0).match.tolist() == [1, 0, 2]


def pictures(folder: Path) -> list[dict[str, Any]]:
    found = []
    for region in REGIONS:
        Image.new("RGB", (400, 400), (200, 150, 190)).save(folder / region["image"])
        found.append({**region, "image": str(folder / region["image"])})
    return found


def test_a_judge_sees_each_region_and_all_that_was_found_in_it(tmp_path: Path) -> None:
    seen = []

    def judge(region: Region, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append((Path(region.path).name, found["mitotic"].round(3).tolist()))
        return {**found, "label": np.ones(len(found["score"]), int), "score": found["score"] / 2}

    collector = FindingsCollector(pictures(tmp_path), PyramidAnchors(), suppress_radius=10.0, judge=judge)
    collector.add(*batch(*TILES))
    findings = collector.findings(25.0)
    # of class 0 next to nothing is left for class 1
    assert seen == [("a.png", [0.0, 0.75]), ("b.png", []), ("c.png", [0.625])]
    assert findings.classes.tolist() == [1, 1, 1]
    assert findings.scores == pytest.approx([0.4375, 0.375, 0.3125], abs=1e-6)


def test_ranks_share_the_regions_to_be_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = FindingsCollector(pictures(tmp_path), PyramidAnchors())
    found, parts = [{"score": np.full(1, i)} for i in range(3)], []

    def work(region: Region, own: dict[str, np.ndarray]) -> str:
        return f"{Path(region.path).name} {own['score'][0]}"

    def gather(own: dict[int, str]) -> list[dict[int, str]]:
        parts.append(sorted(own))
        return [own, {1: "b.png 1"}]

    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(idist, "all_gather", gather)
    assert collector.of_each(work, found) == ["a.png 0", "b.png 1", "c.png 2"]
    assert parts == [[0, 2]]


def test_what_was_added_is_forgotten() -> None:
    collector = collect(*TILES)
    collector.clear()
    assert len(collector.findings(25.0).points) == 0


def test_an_output_that_is_no_number_names_its_tile() -> None:
    damaged = tile(2, (20, 20, 0.9, 1), x=8)
    damaged[1][5, 3] = math.nan
    with pytest.raises(DataError, match="c 8,0: the network gives no number here"):
        collect(TILES[0], damaged).findings(25.0)


def test_a_region_that_nobody_annotated_is_refused() -> None:
    with pytest.raises(ValueError, match="d has no boxes: a region that nobody annotated cannot be scored"):
        FindingsCollector([*REGIONS, {"image": "d.png", "case": "d"}], PyramidAnchors())
