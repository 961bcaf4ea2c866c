from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from region_images import HEIGHT, WIDTH, WRITERS, texture, write_picture, write_pyramid, write_scn, write_tiled

from shared.data import Region, RegionTiles, open_region, regions
from shared.utils import DataError

LAZY = {"tiled", "planar", "pyramid", "odd"}


@pytest.fixture
def image() -> np.ndarray:
    return texture()


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_pixels_from_every_format(kind: str, image: np.ndarray, tmp_path: Path) -> None:
    region = Region(WRITERS[kind](tmp_path, image))
    assert region.size == (WIDTH, HEIGHT)
    assert region.mpp is None
    assert region.in_memory == (kind not in LAZY)
    assert (region.read(0, 0, WIDTH, HEIGHT) == image).all()
    part = region.read(37, 51, 90, 70)
    assert (part == image[51:121, 37:127]).all()
    assert part.flags.writeable
    assert (region.thumbnail(1000) == image).all()


@pytest.mark.parametrize("kind", WRITERS)
def test_white_beyond_the_image(kind: str, image: np.ndarray, tmp_path: Path) -> None:
    region = Region(WRITERS[kind](tmp_path, image))
    padded = np.pad(image, ((40, 60), (50, 70), (0, 0)), constant_values=255)
    assert (region.read(-50, -40, WIDTH + 120, HEIGHT + 100) == padded).all()
    assert (
        region.read(WIDTH - 10, HEIGHT - 20, 64, 64) == padded[40 + HEIGHT - 20 :, 50 + WIDTH - 10 :][:64, :64]
    ).all()
    for corner in ((WIDTH, 0), (-64, 10), (10, HEIGHT + 5), (-1000, -1000)):
        assert (region.read(*corner, 64, 64) == 255).all()
    assert (region.read(WIDTH + 10, 10, 20, 20, 2.5) == 255).all()


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_lossy_formats(suffix: str, image: np.ndarray, tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(image).resize((32, 16)).resize((256, 128), Image.Resampling.BICUBIC))
    path = tmp_path / f"a.{suffix}"
    write_picture(path, smooth, quality=95) if suffix == "jpg" else write_tiled(path, smooth, compression="jpeg")
    assert np.abs(Region(path).read(0, 0, 256, 128).astype(int) - smooth).max() < 16


@pytest.mark.parametrize("kind", WRITERS)
def test_half_the_scale_is_the_mean_of_four_pixels(kind: str, image: np.ndarray, tmp_path: Path) -> None:
    region = Region(WRITERS[kind](tmp_path, image))
    reduced = np.asarray(Image.fromarray(image).reduce(2)).astype(int)
    found = region.read(0, 0, WIDTH // 2, HEIGHT // 2, 2.0)
    inner = (slice(1, -1), slice(1, -1))  # at the border some white comes in
    assert np.abs(found[inner] - reduced[inner]).mean() < 4
    assert np.abs(region.thumbnail(WIDTH // 2)[inner] - reduced[inner]).mean() < 4


def ramp(width: int, height: int, step: int) -> np.ndarray:
    """Red is the x, green the y of a pixel's middle; `step`: pixels of the first level that a pixel is wide, odd."""
    x, y = (np.arange(n) * step + step // 2 for n in (width, height))
    return np.stack(np.broadcast_arrays(x[None], y[:, None], 100), axis=-1).astype(np.uint8)


@pytest.mark.parametrize("scale", [0.37, 0.5, 1.0, 1.3, 2.0, 4.94, 5.0, 5.8])
@pytest.mark.parametrize("corner", [(30.0, 25.0), (31.0, 27.0), (30.25, 27.6)])
def test_every_pixel_is_where_it_belongs(scale: float, corner: tuple[float, float], tmp_path: Path) -> None:
    """A ramp stays a ramp, at any scale and from any level of the pyramid."""
    region = Region(write_pyramid(tmp_path / "ramp.tif", [ramp(250, 200, 1), ramp(50, 40, 5)]))
    found = region.read(*corner, 30, 20, scale).astype(float)
    x, y = (start + (np.arange(n) + 0.5) * scale - 0.5 for start, n in zip(corner, (30, 20), strict=True))
    most = 0.52 if scale < 4.9 else 0.9  # rounded; and the filter is off by up to 0.07 pixels of its level
    assert np.abs(found[..., 0] - x).max() < most
    assert np.abs(found[..., 1] - y[:, None]).max() < most
    assert (found[..., 2] == 100).all()


@pytest.mark.parametrize(("scale", "colour"), [(0.5, 10), (1, 10), (3.9, 10), (4, 20), (15, 20), (16, 30), (40, 30)])
def test_the_coarsest_level_that_is_fine_enough(scale: float, colour: int, tmp_path: Path) -> None:
    sides = [(514, 10), (128, 20), (32, 30)]  # as writers cut off the last pixels
    levels = [np.full((side, side, 3), value, np.uint8) for side, value in sides]
    region = Region(write_pyramid(tmp_path / "levels.tif", levels))
    assert (region.read(128, 128, 4, 4, scale) == colour).all()


@pytest.mark.parametrize("scale", [0.7, 2.0, 3.3])
def test_no_seam_between_parts(
    scale: float, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = Region(write_tiled(tmp_path / "a.tif", image))
    whole = region.read(-5.5, 3.25, 80, 60, scale).astype(int)
    part = region.read(-5.5 + 30 * scale, 3.25 + 20 * scale, 25, 33, scale)
    assert np.abs(whole[20:53, 30:55] - part).max() <= 1
    sizes = []
    read_level = Region._read_level

    def recorded(self: Region, slide: Any, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        sizes.append(width * height)
        return read_level(self, slide, level, x, y, width, height)

    monkeypatch.setattr(Region, "_read_level", recorded)
    monkeypatch.setattr(regions, "_MOST_AT_ONCE", 2000)
    assert np.abs(region.read(-5.5, 3.25, 80, 60, scale) - whole).max() <= 1
    assert len(sizes) > 1
    assert max(sizes) < 4000  # with the margins


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_a_window_is_a_region_of_its_own(scale: float, image: np.ndarray, tmp_path: Path) -> None:
    whole = Region(write_tiled(tmp_path / "a.tif", image), mpp=0.25)
    window = pickle.loads(pickle.dumps(whole.window(40, 30, 100, 80)))
    assert (window.size, window.mpp, window.path) == ((100, 80), 0.25, whole.path)
    for x, y in ((0, 0), (-20, 60)):  # beyond its borders is what lies there in the image
        assert np.array_equal(window.read(x, y, 50, 30, scale), whole.read(x + 40, y + 30, 50, 30, scale))
    assert np.array_equal(window.thumbnail(500), image[30:110, 40:140])
    tiles = RegionTiles([{"image": window, "case": "a"}], tile_size=64, overlap=8)
    assert {tiles[i]["origin"] for i in range(len(tiles))} == {(0, 0), (36, 0), (0, 16), (36, 16)}
    with pytest.raises(ValueError, match="width and height must be positive, got 0 and 5"):
        whole.window(0, 0, 0, 5)


def test_what_was_scanned_of_a_slide_with_bounds(image: np.ndarray, tmp_path: Path) -> None:
    slide = Region(write_scn(tmp_path / "a.scn", image, (60, 50)))
    assert (slide.bounds, slide.mpp) == ((60, 50, WIDTH, HEIGHT), 0.25)
    part = slide.searched()
    assert part is slide.searched()
    assert (part.corner, part.size, part.searched()) == ((60, 50), (WIDTH, HEIGHT), part)
    assert (part.read(0, 0, WIDTH, HEIGHT) == image).all()
    whole = Region(write_tiled(tmp_path / "a.tif", image))
    assert (whole.bounds, whole.searched()) == (None, whole)


def test_a_region_of_code_that_was_loaded_again_is_taken_as_it_is(image: np.ndarray, tmp_path: Path) -> None:
    path = write_tiled(tmp_path / "a.tif", image)
    again = type("Region", (), dict(vars(Region)))(path)
    assert open_region(again) is again
    assert not isinstance(again, Region)


def test_what_was_not_scanned_is_white(tmp_path: Path) -> None:
    pixels = np.full((64, 128, 4), 50, np.uint8)
    pixels[..., 3] = 255
    pixels[:, 64:, 3] = 0
    path = write_tiled(tmp_path / "rgba.tif", pixels, extrasamples=["unassalpha"])
    found = Region(path).read(0, 0, 128, 64)
    assert (found[:, :64] == 50).all()
    assert (found[:, 64:] == 255).all()


def test_what_cannot_be_read(image: np.ndarray, tmp_path: Path) -> None:
    region = Region(WRITERS["tiled"](tmp_path, image))
    for arguments in ((0, 5, 1.0), (5, 0, 1.0), (5, 5, 0.0), (5, 5, -1.0), (5, 5, math.inf), (5, 5, math.nan)):
        with pytest.raises(ValueError, match="must be positive"):
            region.read(0, 0, *arguments)
    os.unlink(region.path)
    with pytest.raises(DataError, match=r"tiled\.tif: cannot be opened any more"):
        region.read(0, 0, 5, 5)
