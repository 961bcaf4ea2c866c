from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.data.utils import set_rnd
from monai.transforms import Compose
from PIL import Image

from shared.data import collate_detections, tile_items
from shared.transforms import RandFlipRotateBoxd, RandTiled
from shared.utils import DataError

SIZE = (230, 170)  # width, height
TILE = 64
BOXES = [[100, 80, 150, 130], [-15, 20, 35, 70], [200, 100, 250, 150], [20.5, 130, 70.5, 180], [60, 60, 110, 110]]
LABELS = [1, 0, 1, 1, 0]


def place_picture(width: int, height: int) -> np.ndarray:
    """Pink tissue whose red and green tell the pixel's place."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, np.full_like(x, 255)], -1).astype(np.uint8)


def region(folder: Path, size: tuple[int, int] = SIZE, pixels: np.ndarray | None = None, **fields: Any) -> dict:
    path = folder / "region.png"
    Image.fromarray(place_picture(*size) if pixels is None else pixels).save(path)
    known = {"image": str(path), "case": "region.png", "box": BOXES, "label": LABELS, "labelled": True, "mpp": None}
    return known | {"domain": "XR", "slide": "1"} | fields


def read(items: list[dict], seed: int = 0, **options: Any) -> list[dict]:
    transform = RandTiled(**{"tile_size": TILE, "margin": 0} | options).set_random_state(seed)
    return [transform(item) for item in items]


def of_kind(found: dict, kind: str, times: int) -> list[dict]:
    return [item for item in tile_items([found]) if item["kind"] == kind] * times


def literally(found: dict, size: tuple[int, int] = SIZE) -> list[tuple]:
    """The figures of the tile, one at a time; none of these centres is outside of the region."""
    (left, top), expected = found["origin"], []
    for (x1, y1, x2, y2), label in zip(BOXES, LABELS, strict=True):
        x, y = (x1 + x2) / 2 - left, (y1 + y2) / 2 - top
        if 0 <= x < TILE and 0 <= y < TILE:
            right, bottom = min(TILE, size[0] - left), min(TILE, size[1] - top)
            box = (max(x1 - left, 0, -left), max(y1 - top, 0, -top), min(x2 - left, right), min(y2 - top, bottom))
            expected.append((*box, label))
    return expected


def boxes_and_labels(found: dict) -> list[tuple]:
    return [(*box.tolist(), int(label)) for box, label in zip(found["box"], found["label"], strict=True)]


def test_tiles_hold_their_figure_and_tell_all_they_hold(tmp_path: Path) -> None:
    items = tile_items([region(tmp_path)]) * 40
    tiles = read(items)
    assert {item["kind"] for item in items} == {"mitotic", "non_mitotic", "empty"}
    pixels = torch.from_numpy(place_picture(*SIZE)).permute(2, 0, 1)
    for item, tile in zip(items, tiles, strict=True):
        x, y = tile["origin"]
        assert 0 <= x <= SIZE[0] - TILE
        assert 0 <= y <= SIZE[1] - TILE
        assert torch.equal(tile["image"], pixels[:, y : y + TILE, x : x + TILE])
        assert tile["image"].is_contiguous()
        assert boxes_and_labels(tile) == literally(tile)
        assert (tile["box"].dtype, tile["label"].dtype) == (torch.float32, torch.int64)
        assert "center" not in tile
        if item["center"]:
            assert x <= item["center"][0] < x + TILE
            assert y <= item["center"][1] < y + TILE
            assert int(item["kind"] == "mitotic") in tile["label"]
        else:
            assert 1 not in tile["label"]
    assert sum(len(tile["label"]) > 1 for tile in tiles) > 20
    assert sum(0 in tile["label"] for tile in tiles if tile["kind"] == "empty") > 5  # hard negatives are in tissue


def test_a_figure_lies_anywhere_in_its_tile(tmp_path: Path) -> None:
    found = region(tmp_path, (400, 400), box=[[180, 180, 230, 230]], label=[1])
    offsets = np.array([205 - np.array(tile["origin"]) for tile in read(of_kind(found, "mitotic", 2000))])
    for axis in range(2):
        assert np.unique(offsets[:, axis]).tolist() == list(range(TILE))  # as good as always: (1 - 1/64)^2000 = 2e-14
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.1


def test_a_margin_is_kept_where_the_region_reaches(tmp_path: Path) -> None:
    found = region(tmp_path, (400, 400), box=[[180, 180, 230, 230]], label=[1])
    items = of_kind(found, "mitotic", 500)
    offsets = np.array([205 - np.array(tile["origin"]) for tile in read(items, margin=20)])
    assert [np.unique(axis).tolist() for axis in offsets.T] == [list(range(20, TILE - 20))] * 2
    middle = [205 - np.array(tile["origin"]) for tile in read(items[:9], margin=500)]
    assert set(np.ravel(middle).tolist()) == {31, 32}
    corner = region(tmp_path, (400, 400), box=[[-20, 380, 30, 430]], label=[1])
    assert {tile["origin"] for tile in read(of_kind(corner, "mitotic", 5), margin=20)} == {(0, 400 - TILE)}


def test_a_centre_outside_of_the_image_is_not_lost(tmp_path: Path) -> None:
    found = region(tmp_path, box=[[-30, 150, 20, 200], [215, -40, 265, 10]], label=[1, 1])
    for tile in read(of_kind(found, "mitotic", 30)):
        x, y = tile["origin"]
        assert 0 <= x <= SIZE[0] - TILE
        assert 0 <= y <= SIZE[1] - TILE
        near = [[0, 150 - y, 20, min(170 - y, TILE)], [215 - x, 0, min(230 - x, TILE), 10]]
        assert tile["box"].tolist() in [[near[0]], [near[1]]]


def test_a_region_smaller_than_the_tile_has_white_around_it(tmp_path: Path) -> None:
    small = (40, 50)
    found = region(tmp_path, small, box=[[-5, 10, 45, 60]], label=[1])
    origins = set()
    for tile in read(of_kind(found, "mitotic", 300) + of_kind(found, "empty", 300)):
        x, y = tile["origin"]
        origins.add((x, y))
        expected = torch.full((3, TILE, TILE), 255, dtype=torch.uint8)
        expected[:, -y : 50 - y, -x : 40 - x] = torch.from_numpy(place_picture(*small)).permute(2, 0, 1)
        assert torch.equal(tile["image"], expected)
        assert boxes_and_labels(tile) == [(-x, 10 - y, 40 - x, 50 - y, 1)]
    assert {x for x, _ in origins} == set(range(40 - TILE, 1))
    assert {y for _, y in origins} == set(range(50 - TILE, 1))


def test_empty_tiles_have_tissue_where_there_is_some(tmp_path: Path) -> None:
    pixels = np.full((SIZE[1], SIZE[0], 3), (243, 240, 246), np.uint8)
    pixels[:, 150:] = (220, 150, 200)
    pixels[:, :20] = 5  # a black border is none
    found = region(tmp_path, pixels=pixels, box=[], label=[])
    share = [
        (150 - tile["origin"][0]) / TILE for tile in read(of_kind(found, "empty", 60), min_tissue=0.5, attempts=32)
    ]
    assert max(share) <= 0.5 + 8 / TILE  # it looks at blocks of 8 pixels
    everywhere = {tile["origin"][0] for tile in read(of_kind(found, "empty", 60), min_tissue=0)}
    assert min(everywhere) < 60
    found = region(tmp_path, pixels=np.full_like(pixels, 245), box=[], label=[])
    assert all((tile["image"] == 245).all() for tile in read(of_kind(found, "empty", 3)))  # glass, if need be


def test_no_place_without_a_figure(tmp_path: Path) -> None:
    """Where every place has mitotic figures, those with the fewest come, and the labels still tell the truth."""
    boxes = [[x - 5, y - 5, x + 5, y + 5] for x in range(10, 230, 30) for y in range(10, 85, 30)]
    boxes += [[x - 5, 125, x + 5, 135] for x in range(10, 230, 45)]
    tiles = read(of_kind(region(tmp_path, box=boxes, label=[1] * len(boxes)), "empty", 40))
    assert {len(tile["label"]) for tile in tiles} == {1}
    assert all(tile["label"].tolist() == [1] for tile in tiles)


def test_unlabelled_images_give_no_boxes(tmp_path: Path) -> None:
    found = region(tmp_path, labelled=False)
    del found["box"], found["label"]
    tiles = read(tile_items([found]) * 3)
    assert all(tile["box"].shape == (0, 4) and tile["label"].shape == (0,) for tile in tiles)
    assert [(tile["labelled"], tile["kind"]) for tile in tiles] == [(False, "unlabelled")] * 3
    batch = collate_detections([*tiles, *read(tile_items([region(tmp_path)])[:2])])
    assert batch["image"].shape == (5, 3, TILE, TILE)
    assert batch["labelled"] == [False] * 3 + [True] * 2


def test_pixels_that_the_file_says_are_not_square(tmp_path: Path) -> None:
    found = region(tmp_path)
    Image.fromarray(place_picture(*SIZE)).save(found["image"], dpi=(100000, 50000))
    assert len(read(tile_items([found | {"mpp": 0.25}]))) == 6
    with pytest.raises(DataError, match="expected square ones"):
        read(tile_items([found]))


def test_seeds(tmp_path: Path) -> None:
    items = tile_items([region(tmp_path)]) * 4
    first, again, other = ([tile["origin"] for tile in read(items, seed)] for seed in (1, 1, 2))
    assert first == again != other
    data = Dataset(items, Compose([RandTiled(tile_size=TILE), RandFlipRotateBoxd()]))
    runs = []
    for seed in (3, 3, 4):
        set_rnd(data, seed)
        runs.append(torch.stack([data[i]["image"] for i in range(len(items))]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_workers_draw_differently(tmp_path: Path) -> None:
    items = of_kind(region(tmp_path, (400, 400), box=[[180, 180, 230, 230]], label=[1]), "mitotic", 8)
    loader = DataLoader(
        Dataset(items, RandTiled(tile_size=TILE)), batch_size=4, num_workers=2, collate_fn=collate_detections
    )
    torch.manual_seed(0)
    runs = [[batch["origin"] for batch in loader] for _ in range(2)]
    assert runs[0][0] != runs[0][1]
    torch.manual_seed(0)
    assert [batch["origin"] for batch in loader] == runs[0] != runs[1]


def test_wrong_files_and_options(tmp_path: Path) -> None:
    found = region(tmp_path)
    Path(found["image"]).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"region\.png: "):
        read(tile_items([found]))
    Path(found["image"]).unlink()
    with pytest.raises(DataError, match=r"region\.png: there is no such file"):
        read(tile_items([found]))
    for wrong in ({"tile_size": 0}, {"margin": -1}, {"attempts": 0}, {"min_tissue": 1.5}):
        with pytest.raises(ValueError, match="must be 1 or more, margin 0 or more"):
            RandTiled(**wrong)


@pytest.mark.parametrize("size", [(9, 9), (7, 12)])
def test_pixels_and_boxes_move_together_in_all_eight_orientations(size: tuple[int, int]) -> None:
    height, width = size
    boxes = torch.tensor([[1, 2, 4, 3], [0, 0, 1, 5], [5, 3, width, height]]).float()
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
        image[channel, y1:y2, x1:x2] = 1 + torch.arange((x2 - x1) * (y2 - y1)).view(y2 - y1, x2 - x1)
    transform = RandFlipRotateBoxd()
    seen, places = {}, []
    for _ in range(300):
        found = transform({"image": image, "box": boxes, "label": [0, 1, 1]})
        for channel, (x1, y1, x2, y2) in enumerate(found["box"].int().tolist()):
            inside = found["image"][channel, y1:y2, x1:x2]
            assert (inside > 0).all()
            assert inside.numel() == (found["image"][channel] > 0).sum()
        assert found["label"] == [0, 1, 1]
        assert found["image"].is_contiguous()
        orientation = tuple(map(tuple, found["image"].sum(0).tolist()))
        seen[orientation] = seen.get(orientation, 0) + 1
        places.append(found["box"].tolist())
    turned = [torch.rot90(side, k, (-2, -1)) for side in (image, image.flip(-1)) for k in range(4)]
    assert set(seen) == {tuple(map(tuple, t.sum(0).tolist())) for t in turned}
    assert len(seen) == 8
    assert min(seen.values()) > 15


def test_orientations_without_a_box_and_without_a_change() -> None:
    data = {"image": torch.arange(12).view(1, 3, 4), "box": torch.zeros(0, 4)}
    transform = RandFlipRotateBoxd().set_random_state(0)
    assert {transform(data)["box"].shape for _ in range(20)} == {(0, 4)}
    same = RandFlipRotateBoxd(prob=0)(data)
    assert same["image"] is data["image"]
    assert same["box"] is data["box"]
