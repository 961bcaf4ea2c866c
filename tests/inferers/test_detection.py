from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from shared.inferers import DetectionMerger, TilePlace
from shared.networks import PyramidAnchors
from shared.utils import DataError

ANCHORS = PyramidAnchors()


def output(size: tuple[int, int], figures: list[tuple[float, float, float, int]]) -> torch.Tensor:
    """What a network would say that finds figures (x, y, score, class) at the anchors around their centres."""
    rows, columns = (-(-length // 8) for length in size)
    out = torch.full((6, rows, columns), -20.0)
    out[2:] = 0
    for x, y, score, label in figures:
        row, column = int(y // 8), int(x // 8)  # whose anchor has its centre in the middle of the 8 x 8 pixels
        out[label, row, column] = np.log(score / (1 - score))
        out[2:4, row, column] = torch.tensor([(x - 8 * column - 4) / 50, (y - 8 * row - 4) / 50])
    return out.flatten(1)


def add(merger: DetectionMerger, image: Any, out: torch.Tensor, image_size: Sequence[int], **place: Any) -> None:
    merger.add(out[None], image_size, [TilePlace(image, **place)])


def test_centres_come_back_in_pixels_of_the_image() -> None:
    merger = DetectionMerger(ANCHORS)
    add(merger, "a", output((128, 96), [(41.0, 70.5, 0.9, 1)]), [128, 96], origin=(1000, 50), scale=2.0)
    found = merger.merged("a")
    np.testing.assert_allclose(found["box"], [[1032, 141, 1132, 241]], atol=1e-3)
    assert found["score"] == pytest.approx(0.9)
    assert found["label"].tolist() == [1]


def test_the_probability_of_a_class_comes_along() -> None:
    """Of a figure that is taken for another, too, and through the suppression across tiles."""
    out = output((128, 128), [(40.0, 40.0, 0.9, 1), (100.0, 40.0, 0.8, 0)]).unflatten(1, (16, 16))
    out[1, 5, 12] = np.log(0.3 / 0.7)
    for class_id, key in ((None, set()), (1, {"mitotic"})):
        merger = DetectionMerger(ANCHORS, class_id=class_id)
        empty = merger.merged("nothing")
        add(merger, "a", out.flatten(1), [128, 128])
        add(merger, "a", out.flatten(1), [128, 128])
        found = merger.merged("a")
        assert found.keys() == empty.keys() == {"box", "score", "label"} | key
        assert found["score"] == pytest.approx([0.9, 0.8])
    assert found["mitotic"] == pytest.approx([0.9, 0.3])
    assert found["mitotic"].dtype == empty["mitotic"].dtype == np.float32


def test_a_tile_answers_for_its_core() -> None:
    merger = DetectionMerger(ANCHORS, radius=3)
    figures = [(8.0, 40.0, 0.9, 1), (40.0, 40.0, 0.8, 0), (80.0, 40.0, 0.7, 1), (40.0, 80.0, 0.6, 1)]
    add(merger, "a", output((128, 128), figures), [128, 128], core=(40, 0, 64, 64))
    np.testing.assert_allclose(merger.merged("a")["score"], [0.8], rtol=1e-5)


@pytest.mark.parametrize("seen", [(95.9, 96.1), (96.1, 95.9), (96.0, 96.0), (92.0, 100.0), (100.0, 92.0), (90.0, 90.0)])
def test_a_figure_on_a_seam_is_found_once(seen: tuple[float, float]) -> None:
    """Two tiles hold it, and do not quite agree about where it is, or what."""
    merger = DetectionMerger(ANCHORS)
    left, right = output((128, 128), [(seen[0], 40, 0.9, 1)]), output((128, 128), [(seen[1] - 64, 40, 0.8, 0)])
    add(merger, "a", left, [128, 128], core=(-np.inf, -np.inf, 96, np.inf))
    add(merger, "a", right, [128, 128], origin=(64, 0), core=(32, -np.inf, np.inf, np.inf))
    assert len(merger.merged("a")["score"]) == 1


def test_many_figures_all_have_room() -> None:
    """Ten anchors that find the same figure count as one of the most that a tile may have."""
    places = [(x, y) for x in range(36, 500, 40) for y in range(36, 500, 40)]
    around = [(dx, dy) for dx in (-8, 0, 8) for dy in (-8, 0, 8)]
    rows = columns = 64
    out = torch.full((6, rows, columns), -20.0)
    out[2:] = 0
    for i, (x, y) in enumerate(places):
        for dx, dy in around:
            column, row = (x + dx) // 8, (y + dy) // 8
            out[1, row, column] = (0.01 * i) - 0.1 * (abs(dx) + abs(dy)) / 8
            out[2:4, row, column] = torch.tensor([(x - 8 * column - 4) / 50, (y - 8 * row - 4) / 50])
    for top_k, expected in ((300, len(places)), (100, 100)):
        merger = DetectionMerger(ANCHORS, top_k=top_k)
        add(merger, "a", out.flatten(1), [512, 512])
        found = merger.merged("a")["box"]
        assert len(found) == expected
        centres = {tuple(c) for c in ((found[:, :2] + found[:, 2:]) / 2).round().astype(int).tolist()}
        assert centres == set(places[-expected:])


def test_nothing_is_found_beyond_the_image() -> None:
    merger = DetectionMerger(ANCHORS)
    figures = [(20.0, 20.0, 0.9, 1), (90.0, 20.0, 0.9, 1), (20.0, 90.0, 0.9, 1)]
    add(merger, "a", output((128, 128), figures), [128, 128], origin=(200, 100), scale=2.0, size=(340, 250))
    np.testing.assert_allclose(merger.merged("a")["box"], [[190, 90, 290, 190]], atol=1e-3)


def test_images_are_apart_and_empty_ones_are_fine() -> None:
    merger = DetectionMerger(ANCHORS, top_k=1)
    figures = [(40.0, 40.0, 0.6, 1), (80.0, 80.0, 0.7, 0)]
    add(merger, 0, output((128, 128), figures), [128, 128])
    add(merger, 1, output((64, 64), []), [64, 64])
    np.testing.assert_allclose(merger.merged(0)["score"], [0.7], rtol=1e-5)
    assert [merger.merged(1)[key].shape for key in ("box", "score", "label")] == [(0, 4), (0,), (0,)]
    assert merger.merged(2)["box"].shape == (0, 4)
    merger.clear()
    assert not len(merger.merged(0)["score"])


def test_a_batch_is_merged_as_its_tiles_one_by_one_are() -> None:
    generator = torch.Generator().manual_seed(0)
    out = torch.cat([2 * torch.randn(6, 2, 256, generator=generator), 0.1 * torch.randn(6, 4, 256)], dim=1)
    out[0, :2] = 30.0  # scores that are all 1
    tiles = [TilePlace("ab"[i % 2], (96 * i, 0), (16, 0, 112, 128), 1.0, (500, 100)) for i in range(6)]
    single, together = DetectionMerger(ANCHORS, radius=4), DetectionMerger(ANCHORS, radius=4)
    for one, tile in zip(out, tiles, strict=True):
        single.add(one[None], [128, 128], [tile])
    together.add(out, [128, 128], tiles)
    for image in "ab":
        found, expected = together.merged(image), single.merged(image)
        assert len(found["score"]) > 20
        for key in found:
            np.testing.assert_array_equal(found[key], expected[key])


def test_damaged_tiles_are_named_and_leave_no_thread() -> None:
    merger = DetectionMerger(ANCHORS)
    good, bad = output((64, 64), [(20, 20, 0.9, 1)]), torch.full((6, 64), torch.inf)
    before = threading.active_count()
    merger.add(torch.stack([good, bad]), [64, 64], [TilePlace("a"), TilePlace("a", name="a 64,0")])
    with pytest.raises(DataError, match="a 64,0: the network gives no number here"):
        merger.merged("a")
    assert threading.active_count() == before
    add(merger, "b", bad, [64, 64])
    merger.clear()
    assert (threading.active_count(), merger.parts) == (before, {})
    for _ in range(4):  # as many as it may be ahead
        add(merger, "b", bad, [64, 64])
    with pytest.raises(DataError, match="the network gives no number here"):
        add(merger, "b", bad, [64, 64])
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="of 2 tiles, and 1 places are given"):
        merger.add(torch.stack([good, good]), [64, 64], [TilePlace("a")])


def test_the_caller_waits_where_it_is_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    merger, out = DetectionMerger(ANCHORS), output((64, 64), [(20, 20, 0.9, 1)])
    take_in, go = DetectionMerger._take_in, threading.Event()
    monkeypatch.setattr(DetectionMerger, "_take_in", lambda *args: go.wait(10) and take_in(*args))
    for i in range(4):
        add(merger, i, out, [64, 64])
    assert not merger._parts
    caller = threading.Thread(target=add, args=(merger, 4, out, [64, 64]))
    caller.start()
    caller.join(0.2)
    assert caller.is_alive()
    go.set()
    caller.join(10)
    assert sorted(merger.parts) == [0, 1, 2, 3, 4]
