from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from monai.transforms import NormalizeIntensity, ScaleIntensityRange
from PIL import Image
from region_images import write_scn
from scipy import ndimage
from torch.utils.data import get_worker_info

from shared.data.region_tiles import RegionTiles
from shared.data.regions import Region
from shared.data.roi import Roi
from shared.inferers import DetectionMerger, RegionInferer
from shared.networks import PyramidAnchors
from shared.utils import DataError, data_error_message

PINK = (225, 160, 200)
RADIUS = 5  # of a figure
ANCHORS = PyramidAnchors()
Figure = tuple[float, float, int, int]  # middle x and y, brightness of green (its score) and blue (its class)


class DiscFinder(torch.nn.Module):
    """Finds dark discs: a box around the middle of each, as far as it is in the tile. It sees no further than that."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        return torch.stack([self.output(image) for image in x.numpy()])

    def output(self, image: np.ndarray) -> torch.Tensor:
        anchors = ANCHORS(image.shape[1:])
        middles = (anchors[:, :2] + anchors[:, 2:]) / 2
        out = torch.full((6, len(anchors)), -20.0)
        discs, count = ndimage.label(image[0] < 120)
        for y, x in ndimage.center_of_mass(discs > 0, discs, range(1, count + 1)):
            _, green, blue = image[:, round(y), round(x)]
            offset = torch.tensor([x + 0.5, y + 0.5], dtype=torch.float32) - middles
            nearest = int(offset.norm(dim=1).argmin())
            out[int(blue > 128), nearest] = torch.tensor(float(green) / 255).logit()
            out[2:4, nearest] = offset[nearest] / 50
            out[4:, nearest] = 0
        return out


def picture(width: int, height: int, figures: list[Figure]) -> np.ndarray:
    image = np.full((height, width, 3), PINK, dtype=np.uint8)
    ys, xs = np.mgrid[:height, :width] + 0.5
    for x, y, green, blue in figures:
        image[np.hypot(xs - x, ys - y) <= RADIUS] = (0, green, blue)
    return image


def save(path: Path, image: np.ndarray) -> Path:
    Image.fromarray(image).save(path)
    return path


def infer(image: np.ndarray | Path, mpp: float | None = 0.25, **changes: Any) -> dict[str, np.ndarray]:
    options = {"tile_size": 64, "overlap": 32, "suppress_radius": 10.0, "batch_size": 4, "progress": False}
    inferer = RegionInferer(ANCHORS, **{**options, "input_mpp": mpp, **changes})
    given = Region(image, mpp) if isinstance(image, Path) else torch.from_numpy(image).permute(2, 0, 1)
    return inferer(given, DiscFinder())


def rows(found: dict[str, np.ndarray], shift: tuple[float, float] = (0, 0)) -> np.ndarray:
    """Middle, score and class of each detection, from the highest score to the lowest."""
    box = found["box"].astype(np.float64)
    points = (box[:, :2] + box[:, 2:]) / 2 - shift
    return np.column_stack([points, found["score"], found["label"]])


def table(figures: list[Figure]) -> np.ndarray:
    """The same of figures."""
    return np.array([(x, y, green / 255, blue > 0) for x, y, green, blue in sorted(figures, key=lambda f: -f[2])])


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    """Discs of different scores, at least 16 pixels apart and 20 from the border of 230 × 170 pixels, all over them."""
    rng = np.random.default_rng(0)
    chosen: list[Figure] = []
    while len(chosen) < 40:
        x, y = rng.uniform((20, 20), (210, 150)).round(1).tolist()
        if all(np.hypot(x - other[0], y - other[1]) > 16 for other in chosen):
            chosen.append((x, y, 60 + 4 * len(chosen), int(rng.choice([0, 255]))))
    return chosen


def test_all_figures_are_found_once(figures: list[Figure]) -> None:
    found = infer(picture(230, 170, figures))
    np.testing.assert_allclose(rows(found)[:, 2:], table(figures)[:, 2:], atol=1e-5)
    np.testing.assert_allclose(rows(found)[:, :2], table(figures)[:, :2], atol=0.5)  # a disc is made of pixels


def test_of_a_slide_with_bounds_what_was_scanned_is_searched(figures: list[Figure], tmp_path: Path) -> None:
    """In pixels of the file; and a window, though it knows where it begins, has pixels of its own."""
    image = picture(230, 170, figures)
    slide = Region(write_scn(tmp_path / "a.scn", image, (600, 500)))
    for region, corner in ((slide, (600, 500)), (slide.searched(), (0, 0))):
        found = RegionInferer(ANCHORS, 64, 32, 4, suppress_radius=10.0, progress=False)(region, DiscFinder())
        np.testing.assert_allclose(rows(found, corner), rows(infer(image)), atol=1e-3)


def test_what_lies_in_a_region_of_interest_is_searched(figures: list[Figure], tmp_path: Path) -> None:
    image = picture(230, 170, figures)
    triangle = np.array([[30, 20], [200, 60], [50, 160]], float)
    everything = rows(infer(image))
    inside = Roi(((triangle,),)).contains(everything[:, :2])
    slide = Region(write_scn(tmp_path / "a.scn", image, (600, 500))).within(Roi(((triangle,),)))
    found = RegionInferer(ANCHORS, 64, 32, 4, suppress_radius=10.0, progress=False)(slide, DiscFinder())
    assert 5 < inside.sum() < 35
    np.testing.assert_allclose(rows(found, (600, 500)), everything[inside], atol=1e-3)


@pytest.mark.parametrize("shift", [(1, 0), (7, 13), (45, 3)])
def test_detections_do_not_depend_on_where_the_tiles_lie(figures: list[Figure], shift: tuple[int, int]) -> None:
    image = picture(230, 170, figures)
    before = rows(infer(image))
    larger = np.pad(image, ((shift[1], 0), (shift[0], 9), (0, 0)), mode="edge")
    np.testing.assert_allclose(rows(infer(larger), shift), before, atol=2e-4)
    smaller = image[min(shift[1], 14) :, min(shift[0], 14) :]
    np.testing.assert_allclose(rows(infer(smaller), (-min(shift[0], 14), -min(shift[1], 14))), before, atol=2e-4)
    np.testing.assert_allclose(rows(infer(image, tile_size=96, overlap=40)), before, atol=2e-4)


@pytest.mark.parametrize("where", range(40, 57))
def test_a_figure_on_a_seam_is_found_once(where: int) -> None:
    """Of tiles of 64 and an overlap of 32 the borders are at 48, 80, …"""
    found = infer(picture(160, 160, [(where, where, 200, 255), (where, 80.0, 180, 0)]))
    np.testing.assert_allclose(found["score"], [200 / 255, 180 / 255], atol=1e-5)
    assert found["label"].tolist() == [1, 0]


def test_the_network_sees_the_colours_that_a_region_is_to_have(figures: list[Figure], tmp_path: Path) -> None:
    """Glass is told by those in the file; without overlap, in shifted tiles, all is changed once."""
    image = picture(200, 130, [])
    image[:, 128:] = 250
    seen: list[np.ndarray] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.extend(x.numpy())
        return torch.full((len(x), 6, len(ANCHORS(x.shape[2:]))), -20.0)

    region = Region(save(tmp_path / "a.png", image), 0.25).recoloured(lambda batch: 255 - batch)
    for x, width in ((0, 200), (13, 187)):
        seen.clear()
        part = region.window(x, 0, width, 130)
        RegionInferer(ANCHORS, tile_size=64, overlap=0, suppress_radius=10.0, progress=False)(part, network)
        assert len(seen) == 6  # without those of glass
        columns = set(np.unique(np.concatenate([tile.reshape(3, -1) for tile in seen], axis=1), axis=1)[1].tolist())
        assert columns <= {255 - PINK[1], 255 - 250, 0}
    np.testing.assert_array_equal(region.thumbnail(500), image)
    assert region.searched().recolour is region.recolour


def test_batches_and_worker_processes_change_nothing(figures: list[Figure], tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", picture(230, 170, figures))
    expected = infer(path)
    for changes in ({"batch_size": 1}, {"batch_size": 100}, {"num_workers": 2}):
        found = infer(path, **changes)
        for key in expected:
            np.testing.assert_array_equal(found[key], expected[key])
    assert [expected[key].dtype for key in ("box", "score", "label")] == [np.float32, np.float32, np.int64]


def test_an_image_at_hand_is_taken_like_a_file(figures: list[Figure], tmp_path: Path) -> None:
    image = picture(230, 170, figures)
    from_file, at_hand = infer(save(tmp_path / "a.png", image)), infer(image, num_workers=2)
    for key in from_file:
        np.testing.assert_array_equal(at_hand[key], from_file[key])
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    inferer = RegionInferer(ANCHORS, 64, 32, suppress_radius=10, input_mpp=0.25, progress=False)
    np.testing.assert_array_equal(inferer(batch, DiscFinder())["box"], from_file["box"])
    for wrong in (batch.float(), batch[0, 0], batch[:, :2], batch.repeat(2, 1, 1, 1)):
        with pytest.raises(ValueError, match=r"must be uint8 \(3, height, width\), got torch"):
            inferer(wrong, DiscFinder())


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (63, 200), (40, 30), (97, 96), (129, 65)])
def test_images_of_all_sizes(size: tuple[int, int]) -> None:
    """Figures close to three corners."""
    width, height = size
    figures = [(6.5, 6.5, 90, 0), (width - 6.5, height - 6.5, 120, 255), (width - 6.5, 6.5, 150, 255)]
    np.testing.assert_allclose(rows(infer(picture(width, height, figures))), table(figures), atol=1e-4)


def test_pixels_of_another_size_are_brought_to_the_size_of_the_training(figures: list[Figure]) -> None:
    """The same cells, from a scanner of twice the resolution; the answer is in its pixels."""
    image = picture(230, 170, figures)
    before = rows(infer(image))
    finer = rows(infer(image.repeat(2, axis=0).repeat(2, axis=1), mpp=0.125))
    np.testing.assert_allclose(finer[:, :2] / 2, before[:, :2], atol=0.3)
    np.testing.assert_allclose(finer[:, 2:], before[:, 2:], atol=0.02)
    # boxes are those of the training's 50 pixels
    box = infer(image.repeat(2, axis=0).repeat(2, axis=1), mpp=0.125)["box"]
    np.testing.assert_allclose(box[:, 2:] - box[:, :2], 100, atol=1e-3)


def test_a_scanner_that_differs_a_little_is_taken_as_it_is() -> None:
    inferer = RegionInferer(ANCHORS, mpp=0.25, mpp_tolerance=0.15)
    image = np.zeros((8, 8, 3), np.uint8)

    def scale(mpp: float) -> float:
        region = type("AnyRegion", (), {"mpp": mpp, "path": "a", "image": image})()
        return inferer.scale(region)

    assert [scale(mpp) for mpp in (0.25, 0.23, 0.2201, 0.2873)] == [1.0] * 4
    assert [scale(mpp) for mpp in (0.5, 0.125, 0.216, 0.29)] == pytest.approx([0.5, 2, 0.25 / 0.216, 0.25 / 0.29])


def test_an_image_of_unknown_resolution_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", picture(64, 64, []))
    with pytest.raises(DataError, match=r"a\.png: does not say how many µm.*--mpp, as 0\.25"):
        infer(path, mpp=None)
    with pytest.raises(DataError, match="the image: does not say how many µm"):
        infer(picture(64, 64, []), mpp=None)


def test_glass_is_passed_over(tmp_path: Path) -> None:
    image = picture(400, 100, [(30.5, 50.5, 200, 255)])
    image[:, 100:] = 250  # glass, and a speck on it
    image[45:56, 365:376] = 100
    network = DiscFinder()
    options = {"suppress_radius": 10.0, "progress": False, "input_mpp": 0.25}
    inferer = RegionInferer(ANCHORS, 64, 32, batch_size=1, **options)
    found = inferer(torch.from_numpy(image).permute(2, 0, 1), network)
    assert len(found["score"]) == 1
    assert 0 < len(network.sizes) < 18
    every = DiscFinder()
    RegionInferer(ANCHORS, 64, 32, batch_size=5, min_tissue=0, **options)(
        torch.from_numpy(image).permute(2, 0, 1), every
    )
    assert every.sizes == [5] * 7 + [1]  # 12 × 3 tiles
    # of a TIFF without a pyramid it shows when they are read
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(64, 64), photometric="rgb")
    in_tiles = DiscFinder()
    assert len(inferer(Region(tmp_path / "a.tif", 0.25), in_tiles)["score"]) == 1
    assert 0 < len(in_tiles.sizes) < 18
    nothing = inferer(torch.full((3, 100, 100), 250, dtype=torch.uint8), network)
    assert [nothing[key].shape for key in ("box", "score", "label")] == [(0, 4), (0,), (0,)]


def test_what_is_found_beyond_the_image_is_left_out() -> None:
    """A detection at each anchor, moved by some pixels; the merger allows for 8 pixels beyond a border."""

    class Everywhere(torch.nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = torch.zeros(len(x), 6, 64)
            out[:, 0] = torch.arange(64.0) / 64
            out[:, 2:4] = self.shift / 50
            return out

    inferer = RegionInferer(ANCHORS, 64, 32, suppress_radius=1, input_mpp=0.25, progress=False)
    image = torch.from_numpy(picture(24, 16, [])).permute(2, 0, 1)
    for shift, low, high in ((0, [4, 4], [20, 12]), (-20, [0, 0], [16, 8])):
        points = rows(inferer(image, Everywhere(shift)))[:, :2]
        assert points.min(axis=0) == pytest.approx(low, abs=1e-5)
        assert points.max(axis=0) == pytest.approx(high, abs=1e-5)


def test_tiles_are_read_by_worker_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tile is marked with the process that read it."""
    read = RegionTiles.__getitem__

    def mark(tiles: RegionTiles, index: int) -> dict[str, Any]:
        item, worker = read(tiles, index), get_worker_info()
        item["image"][0, 0, 0] = 0 if worker is None else 1 + worker.id
        return item

    class Readers(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            readers.update(x[:, 0, 0, 0].tolist())
            return torch.full((len(x), 6, 64), -20.0)

    monkeypatch.setattr(RegionTiles, "__getitem__", mark)
    for size, workers, expected in (((230, 170), 2, {1, 2}), ((230, 170), 0, {0}), ((64, 64), 2, {0})):
        readers: set[int] = set()
        options = {"batch_size": 2, "num_workers": workers, "progress": False}
        inferer = RegionInferer(ANCHORS, 64, 32, input_mpp=0.25, **options)
        inferer(torch.from_numpy(picture(*size, [])).permute(2, 0, 1), Readers())
        assert readers == expected


def test_the_network_gets_what_the_transforms_of_training_make() -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return torch.full((len(x), 6, 64), -20.0)

    RegionInferer(ANCHORS, 64, 32, image_mean=mean, image_std=std, input_mpp=0.25, min_tissue=0)(image, network)
    scaled = ScaleIntensityRange(0.0, 255.0, 0.0, 1.0)(image)
    expected = NormalizeIntensity(mean, std, channel_wise=True)(scaled)
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0][0], torch.as_tensor(expected))


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        infer(path)
    path = tmp_path / "b.tif"
    tifffile.imwrite(path, np.asarray(picture(400, 400, [])), tile=(64, 64), photometric="rgb")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    for workers in (0, 1):
        with pytest.raises(DataError) as error:
            infer(path, num_workers=workers, min_tissue=0)
        assert str(data_error_message(error.value)).startswith(f"{path}: ")


def test_numbers_of_the_network_that_are_not_finite_are_an_error() -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 6, 64), torch.nan)

    inferer = RegionInferer(ANCHORS, 64, 32, input_mpp=0.25, progress=False)
    with pytest.raises(DataError, match=r"the image: the network gives no number here.*--amp false"):
        inferer(torch.from_numpy(picture(64, 64, [])).permute(2, 0, 1), Broken())


def test_an_error_of_the_network_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    finder, seen = DiscFinder(), []
    monkeypatch.setattr(DetectionMerger, "_take_in", lambda *args: seen.append(args[0]) or time.sleep(0.2))
    forward = finder.forward

    def fail(x: torch.Tensor) -> torch.Tensor:
        if len(finder.sizes) == 3:
            raise RuntimeError("CUDA out of memory")
        return forward(x)

    finder.forward = fail
    inferer = RegionInferer(ANCHORS, 64, 32, batch_size=1, min_tissue=0, input_mpp=0.25, progress=False)
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="out of memory"):
        inferer(torch.from_numpy(picture(230, 170, [])).permute(2, 0, 1), finder)
    assert seen
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"overlap": 512}, "tile_overlap is 512, expected a whole number from 0 to 511"),
        ({"overlap": -1}, "tile_overlap is -1"),
        *(({name: value}, "expected batch_size and mpp above 0") for name, value in (("batch_size", 0), ("mpp", 0))),
        *(({name: -1}, "of 0 or more") for name in ("mpp_tolerance", "suppress_radius")),
    ],
)
def test_bad_arguments(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RegionInferer(ANCHORS, **changes)
