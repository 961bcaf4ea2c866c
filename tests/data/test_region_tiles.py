from __future__ import annotations

import math
import pickle
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from region_images import HEIGHT, WIDTH, WRITERS, make_slide, texture, write_picture, write_tiled
from torch.utils.data import DataLoader

from shared.data import Region, RegionTiles, tile_items
from shared.data.region_tiles import tile_grid, tile_origins
from shared.utils import DataError


@pytest.fixture
def image() -> np.ndarray:
    return texture()


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "expected"),
    [
        (10, 10, 3, [0]),
        (4, 10, 3, [0]),
        (11, 10, 3, [0, 1]),
        (17, 10, 3, [0, 7]),
        (18, 10, 3, [0, 7, 8]),
        (30, 10, 0, [0, 10, 20]),
        (12, 10, 9, [0, 1, 2]),
    ],
)
def test_origins(length: int, tile: int, overlap: int, expected: list[int]) -> None:
    assert tile_origins(length, tile, overlap) == expected


@pytest.mark.parametrize(("length", "tile", "overlap"), [(0, 10, 3), (10, 10, 10), (10, 10, -1), (10, 0, 0)])
def test_origins_of_nothing(length: int, tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=r"length must be positive|tile_overlap is"):
        tile_origins(length, tile, overlap)


@pytest.mark.parametrize("seed", range(20))
def test_cores_partition_the_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 300, 2).tolist())
    tile = int(rng.integers(10, 100))
    overlap = int(rng.integers(0, tile - 5))
    grid = tile_grid(size, tile, overlap)
    points = rng.uniform(0, size, (200, 2))
    x, y = np.concatenate([points, points.round(), np.round(2 * points) / 2, [(0, 0), size]]).T
    owners = np.zeros(len(x), int)
    for left, top, (x1, y1, x2, y2) in grid:
        own = (x - left >= x1) & (x - left < x2) & (y - top >= y1) & (y - top < y2)
        owners += own
        for at, start, length in ((x, left, size[0]), (y, top, size[1])):
            assert start >= 0
            assert start + tile <= length or start == 0
            if start > 0:
                assert (at[own] >= start + overlap / 2).all()
            if start + tile < length:
                assert (at[own] <= start + tile - overlap / 2).all()
    assert (owners == 1).all()


def make_regions(folder: Path, image: np.ndarray) -> list[dict[str, Any]]:
    boxes = [[10, 20, 30, 40], [90, 50, 110, 70], [-10, -5, 8, 15], [190, 120, 210, 140]]
    return [
        {
            "image": str(write_tiled(folder / "a.tif", image)),
            "box": boxes,
            "label": [1, 0, 1, 1],
            "domain": "XR",
            "slide": "7.tif",
            "case": "first",
        },
        {"image": str(write_picture(folder / "b.png", image[:50, :70]))},
        {"image": str(write_tiled(folder / "c.tif", image, compression="jpegxl")), "box": [], "label": []},
    ]


def test_items(image: np.ndarray, tmp_path: Path) -> None:
    tiles = RegionTiles(make_regions(tmp_path, image), tile_size=100, overlap=20)
    assert [i for i, _ in tiles.tiles] == 12 * [0] + [1] + 12 * [2]
    assert len(tiles) == 25
    corners = [(x, y) for y in (0, 80, 100) for x in (0, 80, 160, 200)]
    assert [tile[:2] for i, tile in tiles.tiles if i == 0] == corners
    item = tiles[1]
    assert item["image"].dtype == torch.uint8
    assert item["image"].is_contiguous()
    assert (item["image"].permute(1, 2, 0).numpy() == image[:100, 80:180]).all()
    shown = {key: value for key, value in item.items() if key not in ("image", "box", "label")}
    assert shown == {
        "region": 0,
        "origin": (80.0, 0.0),
        "core": (10, -math.inf, 90, 90),
        "scale": 1.0,
        "size": (300, 200),
        "case": "first 80,0",
        "domain": "XR",
        "slide": "7.tif",
    }
    assert tiles.data == 12 * [{"domain": "XR", "slide": "7.tif"}] + 13 * [{}]
    small = tiles[12]
    assert set(small) == {"image", "region", "origin", "core", "scale", "size", "case"}
    assert small["case"] == "b 0,0"
    assert (small["image"][:, :50, :70].permute(1, 2, 0).numpy() == image[:50, :70]).all()
    assert (small["image"][:, 50:] == 255).all()
    assert (small["image"][:, :, 70:] == 255).all()
    assert tiles[13]["box"].shape == (0, 4)
    assert tiles[13]["label"].dtype == torch.int64
    assert RegionTiles(make_regions(tmp_path, image), 100, 20, lambda item: item["case"])[12] == "b 0,0"


def test_boxes_go_where_their_centre_is(image: np.ndarray, tmp_path: Path) -> None:
    region = make_regions(tmp_path, image)[0]
    tiles = RegionTiles([region], tile_size=100, overlap=20)
    assert tiles[0]["box"].tolist() == [[10, 20, 30, 40]]  # one has its centre at 100, one at -1: outside
    assert tiles[1]["box"].tolist() == [[10, 50, 30, 70]]
    assert tiles[1]["label"].tolist() == [0]
    assert tiles[10]["box"].tolist() == [[30, 20, 50, 40]]
    assert tiles[11]["box"].tolist() == [[0, 20, 10, 40]]  # half of it
    halved = RegionTiles([region], tile_size=100, overlap=20, scale=2.0)
    assert [tile[:2] for _, tile in halved.tiles] == [(0, 0), (50, 0)]
    assert halved[0]["box"].tolist() == [[5, 10, 15, 20], [45, 25, 55, 35]]
    assert halved[1]["origin"] == (100.0, 0.0)
    assert halved[1]["box"].tolist() == [[0, 25, 5, 35], [45, 60, 55, 70]]


def test_every_box_is_in_the_core_of_one_tile(image: np.ndarray, tmp_path: Path) -> None:
    centres = np.random.default_rng(1).uniform(0, (WIDTH, HEIGHT), (300, 2))
    boxes = np.concatenate([centres - 12, centres + 12], axis=1)
    region = {"image": str(write_tiled(tmp_path / "a.tif", image)), "box": boxes.tolist(), "label": 300 * [1]}
    for scale in (1.0, 1.7):
        found = []
        for item in RegionTiles([region], tile_size=64, overlap=32, scale=scale):
            x1, y1, x2, y2 = item["core"]
            box = item["box"].numpy()
            own = box[((box >= 1) & (box <= 63)).all(axis=1)]  # not clipped: 24 px are less than the overlap
            x, y = (own[:, :2] + own[:, 2:]).T / 2
            inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
            found.append(own[inside] * scale + 2 * item["origin"])
        found = np.concatenate(found)
        inner = boxes[((boxes > 2 * scale) & (boxes < [WIDTH - 4, HEIGHT - 4] * 2)).all(axis=1)]
        distances = np.abs(inner[:, None] - found[None]).max(axis=-1)
        assert ((distances < 1e-3).sum(axis=1) == 1).all()


def test_scales_of_their_own(image: np.ndarray, tmp_path: Path) -> None:
    path = str(write_tiled(tmp_path / "a.tif", image))
    tiles = RegionTiles([{"image": path}, {"image": Path(path)}], tile_size=100, overlap=0, scale=[2.99, 0.5])
    assert [len([1 for i, _ in tiles.tiles if i == region]) for region in (0, 1)] == [2, 24]
    assert [tiles[i]["scale"] for i in (1, 2)] == [2.99, 0.5]
    assert tiles[1]["origin"] == (2.99, 0.0)  # for the last third of a pixel
    assert (tiles[1]["image"].permute(1, 2, 0).numpy() == Region(path).read(2.99, 0, 100, 100, 2.99)).all()
    assert tiles[3]["origin"] == (50.0, 0.0)
    assert (tiles[3]["image"].permute(1, 2, 0).numpy() == Region(path).read(50, 0, 100, 100, 0.5)).all()
    for wrong in ([1.0], [1.0, 0.0], 0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="scale must be positive"):
            RegionTiles([{"image": path}, {"image": path}], scale=wrong)
    with pytest.raises(DataError, match="there is no such file"):
        RegionTiles([{"image": str(tmp_path / "none.tif")}])


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_processes_read_the_same(context: str, image: np.ndarray, tmp_path: Path) -> None:
    tiles = RegionTiles(make_regions(tmp_path, image), tile_size=100, overlap=20, scale=[1.0, 1.3, 1.0])
    here = [tiles[i]["image"] for i in range(len(tiles))]  # files are open here before a process forks
    pickle.loads(pickle.dumps(Region(tiles.regions[0]["image"]))).read(0, 0, 5, 5)
    workers = 2 if context == "fork" else 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        loader = DataLoader(tiles, batch_size=None, num_workers=workers, multiprocessing_context=context)
        there = [item["image"] for item in loader]
    assert len(there) == len(here)
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def tissue_in(tile: Any, scale: float) -> float:
    """The share of a tile of 100 pixels that is tissue of `make_slide`."""
    x1, y1, x2, y2 = ((start + side) * scale for side in (0, 100) for start in tile[:2])
    return max(0, min(x2, 500) - max(x1, 250)) * max(0, min(y2, 400) - max(y1, 200)) / (100 * scale) ** 2


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["pyramid", "png"])
def test_tiles_without_tissue_are_left_out(kind: str, scale: float, tmp_path: Path) -> None:
    region = {"image": str(WRITERS[kind](tmp_path, make_slide()))}
    everything = RegionTiles([region, region], 100, 20, scale=scale)
    some = RegionTiles([region, region], 100, 20, scale=scale, min_tissue=0.1)
    kept = set(some.tiles)
    assert kept < set(everything.tiles)
    for i, tile in everything.tiles:
        share = tissue_in(tile, scale)
        if share > 0.15 or share == 0:
            assert ((i, tile) in kept) == (share > 0.15)
    empty = {"image": str(write_picture(tmp_path / "empty.png", make_slide()[:190]))}
    assert len(RegionTiles([empty], 100, 20, min_tissue=0.01)) == 0


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_tiles_without_tissue_are_marked_where_there_is_no_pyramid(scale: float, tmp_path: Path) -> None:
    region = {"image": str(WRITERS["tiled"](tmp_path, make_slide()))}
    tiles = RegionTiles([region], 100, 20, scale=scale, min_tissue=0.1)
    assert tiles.tiles == RegionTiles([region], 100, 20, scale=scale).tiles
    found = [item["tissue"] for item in tiles]
    assert True in found
    for tissue, (_, tile) in zip(found, tiles.tiles, strict=True):
        share = tissue_in(tile, scale)
        if share > 0.12 or share == 0:
            assert tissue == (share > 0.12)


@pytest.mark.parametrize("kind", WRITERS)
def test_tissue_alone(kind: str, tmp_path: Path) -> None:
    """All tiles stay, also where most of a tile lies beyond the image."""
    tissue = {"image": str(WRITERS[kind](tmp_path, make_slide()[200:360, 250:490]))}
    for size in (64, 480):
        found = RegionTiles([tissue], size, 16, min_tissue=1.0)
        assert found.tiles == RegionTiles([tissue], size, 16).tiles
        assert all(item["tissue"] for item in found)


def test_an_item_for_each_figure_and_for_tissue_without() -> None:
    boxes = [[10, 20, 60, 70], [-5, 0.5, 45, 50.5]]
    regions = [
        {"image": "a.tiff", "domain": domain, "labelled": True, "box": own, "label": [0, 1][: len(own)]}
        for domain in ("CS", "XR")
        for own in (boxes, boxes[::-1], [])
    ]
    unlabelled = [{"image": "b.tiff", "domain": "GT450", "labelled": False}] * 2
    items = tile_items(regions + unlabelled, empty_per_region=2)
    assert Counter((i["domain"], i["kind"]) for i in items) == {
        **{(d, kind): n for d in ("CS", "XR") for kind, n in (("mitotic", 2), ("non_mitotic", 2), ("empty", 6))},
        ("GT450", "unlabelled"): 2,
    }
    assert [(i["kind"], i["center"]) for i in items[:4]] == [
        ("non_mitotic", (35, 45)),
        ("mitotic", (20, 25.5)),
        ("empty", None),
        ("empty", None),
    ]
    assert all(regions[0].items() <= item.items() for item in items[:4])
    assert [(i["labelled"], i["center"], "box" in i) for i in items[-2:]] == [(False, None, False)] * 2
    assert Counter(i["kind"] for i in tile_items(regions, 0)) == {"mitotic": 4, "non_mitotic": 4}
    with pytest.raises(ValueError, match="empty_per_region must be 0 or more, got -1"):
        tile_items(regions, -1)
