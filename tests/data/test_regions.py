from __future__ import annotations

import math
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy.ndimage import zoom
from torch.utils.data import DataLoader

from shared.data import Region, RegionTiles, open_region, region_files, regions, tile_grid, tile_origins, tissue_mask
from shared.utils import DataError

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / "../shared/data/histology/regions"
WIDTH, HEIGHT = 300, 200


def texture(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Coloured noise that a scale of 2 does not wipe out."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(30, 220, (height // 10, width // 10, 3))
    return (zoom(coarse, (10, 10, 1), order=1) + rng.uniform(0, 20, (height, width, 3))).astype(np.uint8)


def write_tiled(path: Path, image: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, image, **{"tile": (64, 64), "compression": "zlib", "photometric": "rgb"} | options)
    return path


def write_pyramid(path: Path, levels: list[np.ndarray], **options: Any) -> Path:
    with tifffile.TiffWriter(path) as file:
        for i, level in enumerate(levels):
            file.write(level, tile=(64, 64), compression="zlib", photometric="rgb", subfiletype=int(i > 0), **options)
    return path


def write_picture(path: Path, image: np.ndarray, **options: Any) -> Path:
    Image.fromarray(image).save(path, **options)
    return path


WRITERS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "tiled": lambda folder, image: write_tiled(folder / "tiled.tif", image),
    "planar": lambda folder, image: write_tiled(
        folder / "planar.tif", np.ascontiguousarray(image.transpose(2, 0, 1)), planarconfig="separate"
    ),
    "pyramid": lambda folder, image: write_pyramid(folder / "pyramid.tif", [image, image[::4, ::4]]),
    "odd": lambda folder, image: write_tiled(folder / "odd.tif", image, compression="jpegxl"),  # OpenSlide refuses it
    "strips": lambda folder, image: write_tiled(folder / "strips.tif", image, tile=None, rowsperstrip=7),
    "png": lambda folder, image: write_picture(folder / "a.png", image),
    "bmp": lambda folder, image: write_picture(folder / "a.bmp", image),
}
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


@pytest.mark.parametrize("kind", ["tiled", "odd", "strips", "png", "jpeg"])
@pytest.mark.parametrize(
    ("dots_per_cm", "expected"), [((40000, 40000), 0.25), ((20000, 20100), 0.49875), ((118, 118), None), (None, None)]
)
def test_microns_a_pixel_of_the_file(
    kind: str, dots_per_cm: tuple[int, int] | None, expected: float | None, image: np.ndarray, tmp_path: Path
) -> None:
    dots = {} if dots_per_cm is None else {"dpi": tuple(d * 2.54 for d in dots_per_cm)}
    if kind == "png":
        path = write_picture(tmp_path / "a.png", image, **dots)
    elif kind == "jpeg":
        path = write_picture(tmp_path / "a.jpg", image, **dots)
        if dots_per_cm and dots_per_cm[0] > 65535 / 2.54:  # too many for an inch in 16 bit: as they are, in cm
            content = bytearray(path.read_bytes())
            content[13:18] = b"\2" + b"".join(d.to_bytes(2, "big") for d in dots_per_cm)
            path.write_bytes(content)
    else:
        options = {"odd": {"compression": "jpegxl"}, "strips": {"tile": None, "rowsperstrip": 7}}.get(kind, {})
        if dots_per_cm:
            options |= {"resolution": dots_per_cm, "resolutionunit": "CENTIMETER"}
        path = write_tiled(tmp_path / "a.tif", image, **options)
    assert Region(path).mpp == (None if expected is None else pytest.approx(expected, rel=1e-3))
    assert Region(path, mpp=0.3).mpp == 0.3


def test_microns_in_inches_and_pixels_that_are_not_square(image: np.ndarray, tmp_path: Path) -> None:
    path = write_tiled(tmp_path / "a.tif", image, resolution=(101600, 101600), resolutionunit="INCH")
    assert Region(path).mpp == pytest.approx(0.25)
    path = write_tiled(tmp_path / "b.tif", image, resolution=(40000, 20000), resolutionunit="CENTIMETER")
    with pytest.raises(DataError, match=r"b\.tif: its pixels are 0\.25 × 0\.5 µm, expected square ones"):
        Region(path)
    assert Region(path, 0.25).mpp == 0.25
    for wrong in (0, -0.25, math.nan, math.inf):
        with pytest.raises(DataError, match=r"a\.tif: mpp is .*, expected µm a pixel"):
            Region(tmp_path / "a.tif", wrong)


def grey(folder: Path, image: np.ndarray) -> Path:
    return write_tiled(folder / "wrong", image[..., 0], photometric="minisblack")


def deep(folder: Path, image: np.ndarray) -> Path:
    return write_tiled(folder / "wrong", image.astype(np.uint16) * 256)


def cut(kind: str, share: float) -> Callable[[Path, np.ndarray], Path]:
    def write(folder: Path, image: np.ndarray) -> Path:
        content = WRITERS[kind](folder, image).read_bytes()
        (folder / "wrong").write_bytes(content[: int(share * len(content))])
        return folder / "wrong"

    return write


def bytes_of(content: bytes) -> Callable[[Path, np.ndarray], Path]:
    def write(folder: Path, image: np.ndarray) -> Path:
        (folder / "wrong").write_bytes(content)
        return folder / "wrong"

    return write


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder, image: folder / "wrong", "there is no such file"),
        (lambda folder, image: (folder / "wrong").mkdir() or folder / "wrong", "found a folder, expected an image"),
        (bytes_of(b""), "cannot be read as an image"),
        (bytes_of(b"a letter"), "cannot be read as an image"),
        (bytes_of(b"II*\0\x08\0\0\0"), "cannot be read as an image"),
        (grey, "found grey with 1 × 8 bit, expected 8-bit RGB"),
        (deep, "found RGB with 3 × 16 bit, expected 8-bit RGB"),
        (lambda f, image: write_tiled(f / "wrong", image[..., 0], tile=None, photometric="minisblack"), "found a grey"),
        (lambda f, image: write_picture(f / "wrong", image[..., 0], format="PNG"), "found a grey image"),
        (cut("tiled", 0.5), "cannot be decoded at"),
        (cut("odd", 0.5), "cannot be decoded at"),
        (cut("strips", 0.5), "cannot be read as an image"),
        (cut("png", 0.5), "cannot be read as an image"),
        (cut("tiled", 0.01), "cannot be"),
    ],
)
def test_wrong_files(write: Callable, message: str, image: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path, image)
    with pytest.raises(DataError, match=message) as error:
        Region(path).read(0, 0, WIDTH, HEIGHT)
    assert str(error.value).startswith(f"{tmp_path / 'wrong'}: ")
    with pytest.raises(DataError, match=message):  # nor is half of it kept
        open_region(path).thumbnail(50)


def test_what_cannot_be_read(image: np.ndarray, tmp_path: Path) -> None:
    region = Region(WRITERS["tiled"](tmp_path, image))
    for arguments in ((0, 5, 1.0), (5, 0, 1.0), (5, 5, 0.0), (5, 5, -1.0), (5, 5, math.inf), (5, 5, math.nan)):
        with pytest.raises(ValueError, match="must be positive"):
            region.read(0, 0, *arguments)
    os.unlink(region.path)
    with pytest.raises(DataError, match=r"tiled\.tif: cannot be opened any more"):
        region.read(0, 0, 5, 5)


def test_large_pictures(image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit is none for a region; what does not fit into memory is refused, or read strip by strip."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for kind in ("png", "strips"):
        assert (Region(WRITERS[kind](tmp_path, image)).read(0, 0, WIDTH, HEIGHT) == image).all()
    assert Image.MAX_IMAGE_PIXELS == 1000
    monkeypatch.setattr(region_files, "_LARGEST_PICTURE", WIDTH * HEIGHT - 1)
    with pytest.raises(DataError, match=r"a\.png: has 300 × 200 pixels, .* expected no more than 59,999"):
        Region(tmp_path / "a.png")
    strips = Region(tmp_path / "strips.tif")
    assert not strips.in_memory
    assert (strips.read(20, 30, 50, 50) == image[30:80, 20:70]).all()


def test_pictures_are_decoded_once_and_do_not_pile_up(
    image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    monkeypatch.setattr(regions, "read_rgb", lambda path: decoded.append(Path(path).stem) or Image.open(path).copy())
    monkeypatch.setattr(regions, "_pictures", {})
    monkeypatch.setattr(regions, "_PICTURE_CACHE", 2 * 4 * WIDTH * HEIGHT)
    a, b, c = (Region(write_picture(tmp_path / f"{name}.png", image)) for name in "abc")
    for region in (a, b, a, b, a):
        region.read(0, 0, 10, 10)
    assert decoded == ["a", "b"]
    for region in (c, a, c):
        region.read(0, 0, 10, 10)
    assert decoded == ["a", "b", "c"]
    b.read(0, 0, 10, 10)
    assert decoded == ["a", "b", "c", "b"]
    monkeypatch.setattr(regions, "_PICTURE_CACHE", 1)
    a.read(0, 0, 10, 10)
    a.read(0, 0, 10, 10)
    assert decoded[4:] == ["a"]
    assert len(regions._pictures) == 1


@pytest.mark.parametrize("kind", ["tiled", "png"])
def test_a_file_that_has_changed_is_opened_again(kind: str, image: np.ndarray, tmp_path: Path) -> None:
    first = open_region(WRITERS[kind](tmp_path, image))
    assert open_region(first.path) is first
    assert open_region(first) is first
    assert open_region(first.path, 0.5).mpp == 0.5
    assert (first.read(0, 0, 9, 9) == image[:9, :9]).all()
    os.unlink(first.path)
    second = open_region(WRITERS[kind](tmp_path, 255 - image[:-10]))
    assert second.size == (WIDTH, HEIGHT - 10)
    assert (second.read(0, 0, 9, 9) == 255 - image[:9, :9]).all()


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
    with pytest.raises(ValueError, match="length must be positive and"):
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


def make_slide(glass: tuple[int, int, int] = (243, 240, 236), border: int = 0) -> np.ndarray:
    """Glass with some noise, tissue in its middle, `border` black pixels around."""
    rng = np.random.default_rng(0)
    slide = np.array(glass) + rng.normal(0, 2, (600, 800, 3))
    slide[200:400, 250:500] = (215, 150, 195) + rng.normal(0, 25, (200, 250, 3))
    if border:
        black = np.ones(slide.shape[:2], bool)
        black[border:-border, border:-border] = False
        slide[black] = rng.normal(4, 4, (black.sum(), 3))
    return slide.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("glass", [(255, 255, 255), (243, 240, 236), (226, 232, 235), (200, 200, 200)])
@pytest.mark.parametrize("border", [0, 60])
def test_tissue_is_neither_glass_nor_black(glass: tuple[int, int, int], border: int, tmp_path: Path) -> None:
    region = Region(write_tiled(tmp_path / "slide.tif", make_slide(glass, border)))
    for max_size, scale in ((2048, 1.0), (200, 4.0)):
        mask, found = tissue_mask(region, max_size)
        assert found == scale
        assert mask.shape == (600 / scale, 800 / scale)
        tissue = np.zeros(mask.shape, bool)
        tissue[int(200 / scale) : int(400 / scale), int(250 / scale) : int(500 / scale)] = True
        assert mask[tissue].all()
        assert mask[~tissue].mean() < 0.05  # what it is wider


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


@pytest.mark.parametrize("name", ["example1.png", "example2.png"])
def test_real_tissue(name: str) -> None:
    if not (REAL / name).is_file():
        pytest.skip(f"{name} is not at hand")
    mask, scale = tissue_mask(Region(REAL / name))
    assert (mask.shape, scale) == ((1024, 1024), 1.0)
    assert 0.9 < mask.mean() < 0.99  # its lumina and clefts are none
    tiles = RegionTiles([{"image": REAL / name}], 256, 64, min_tissue=0.05)
    assert len(tiles) == 25
    assert all(item["tissue"] for item in tiles)
