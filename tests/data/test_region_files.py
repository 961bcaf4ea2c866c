from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from region_images import HEIGHT, WIDTH, WRITERS, texture, write_dicom_slide, write_picture, write_tiled

from shared.data import Region, open_region, region_files
from shared.utils import DataError


@pytest.fixture
def image() -> np.ndarray:
    return texture()


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
    for wrong in (0, -0.25, 0.0025, 40, math.nan, math.inf):
        with pytest.raises(DataError, match=r"a\.tif: mpp is .*, expected a number from 0\.05 to 4"):
            Region(tmp_path / "a.tif", wrong)


SIZES = {
    "nm": 250,
    "µm": 0.25,
    "μm": 0.25,
    "um": 0.25,
    "mm": 0.00025,
    "cm": 0.000025,
    "m": 2.5e-7,
    "Å": 2500,
    "in": 1e-5,
}


@pytest.mark.parametrize("unit", SIZES)
@pytest.mark.parametrize("tile", [(64, 64), None])
def test_microns_of_ome_xml_in_any_unit(
    unit: str, tile: tuple[int, int] | None, image: np.ndarray, tmp_path: Path
) -> None:
    size = {f"PhysicalSize{axis}": SIZES[unit] for axis in "XY"} | {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    path = write_tiled(tmp_path / "a.ome.tif", image, tile=tile, metadata={"axes": "YXS", **size})
    assert Region(path).mpp == pytest.approx(0.254 if unit == "in" else 0.25)
    path = write_tiled(tmp_path / "b.ome.tif", planes(image), planarconfig="separate", metadata={"axes": "SYX", **size})
    region = Region(path)
    assert region.mpp == pytest.approx(0.254 if unit == "in" else 0.25)
    assert (region.read(5, 6, 70, 80) == image[6:86, 5:75]).all()


@pytest.mark.parametrize(
    ("unit", "dots", "expected"),
    [("um", 4, 0.25), ("micron", 4, 0.25), ("\\u00B5m", 4, 0.25), ("nm", 0.004, 0.25), ("mm", 4000, 0.25)]
    + [("cm", 40000, 0.25), ("inch", 101600, 0.25), ("pixel", 4, None), ("um", 0.004, None)],
)
def test_microns_of_imagej(unit: str, dots: float, expected: float | None, image: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, imagej=True, resolution=(dots, dots), metadata={"unit": unit})
    assert Region(path).mpp == (None if expected is None else pytest.approx(expected, rel=1e-3))


def test_the_levels_of_an_ome_tiff_in_sub_ifds(image: np.ndarray, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", bigtiff=True) as file:
        options = {"tile": (64, 64), "photometric": "rgb"}
        file.write(image, subifds=1, metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}, **options)
        file.write(np.full((50, 75, 3), 90, np.uint8), subfiletype=1, **options)
    region = Region(tmp_path / "a.ome.tif")
    assert (region.coarsest(), region.mpp) == (4, 0.5)
    assert (region.read(0, 0, WIDTH, HEIGHT) == image).all()
    assert (region.read(40, 40, 20, 20, 4) == 90).all()


@pytest.mark.parametrize(
    ("options", "power", "mpp"),
    [
        ({"description": "Aperio Image Library\n300x200|AppMag = 20"}, 20, 0.5),
        ({"description": "Aperio Image Library\n300x200|AppMag = 40|MPP = 0.2498"}, None, 0.2498),
        ({"description": "Aperio Image Library\n300x200|AppMag = 0"}, None, None),
    ],
)
@pytest.mark.parametrize("tile", [(64, 64), None])
def test_an_objective_alone_is_taken_with_a_warning(
    options: dict[str, Any], power: int | None, mpp: float | None, tile: Any, image: np.ndarray, tmp_path: Path
) -> None:
    region = Region(write_tiled(tmp_path / "a.tif", image, tile=tile, compression=None, metadata=None, **options))
    assert (region.mpp, region.guessed) == (mpp, power is not None)
    assert [f"{power}x, which is taken for {mpp} µm" in note for note in region.notes] == [True] * region.guessed


@pytest.mark.parametrize("kind", ["tiled", "strips", "png", "jpg"])
def test_profiles_and_orientation_are_said_to_be_ignored(kind: str, image: np.ndarray, tmp_path: Path) -> None:
    """What reads TIFF otherwise turns each tile by itself, or all of it."""
    path = tmp_path / f"a.{kind if kind in ('png', 'jpg') else 'tif'}"
    if path.suffix == ".tif":
        tags = [(274, 3, 1, 6, True), (34675, 7, 4, b"icc!", True)]
        write_tiled(path, image, extratags=tags, metadata=None, **({} if kind == "tiled" else {"tile": None}))
    else:
        exif = Image.Exif()
        exif[274] = 6
        write_picture(path, image, icc_profile=b"a profile", exif=exif)
    region = Region(path)
    assert region.size == (WIDTH, HEIGHT)
    assert kind == "jpg" or (region.read(0, 0, WIDTH, HEIGHT) == image).all()
    assert ["ICC" in note for note in region.notes] == [True, False]
    assert "orientation 6" in region.notes[1]
    assert Region(write_tiled(tmp_path / "plain.tif", image)).notes == ()
    (note,) = Region(write_tiled(tmp_path / "stack.tif", np.stack([image] * 3))).notes
    assert "of which the first is taken" in note


def grey(folder: Path, image: np.ndarray) -> Path:
    return write_tiled(folder / "wrong", image[..., 0], photometric="minisblack")


def planes(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def stack(folder: Path, image: np.ndarray, **options: Any) -> Path:
    """Grey pages: with a tag alone they would be colours."""
    return write_tiled(folder / "wrong", planes(image), photometric="minisblack", **{"tile": None} | options)


def planar(folder: Path, image: np.ndarray, **options: Any) -> Path:
    return write_tiled(folder / "wrong", planes(image), planarconfig="separate", **{"tile": None} | options)


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


def test_what_openslide_knows_and_cannot_read(image: np.ndarray, tmp_path: Path) -> None:
    """A DICOM slide of 16 bit: it says why, and no other reader is asked."""
    folder = write_dicom_slide(tmp_path / "slide", image)
    for path in folder.iterdir():
        file = pydicom.dcmread(path)
        file.BitsAllocated = file.BitsStored = 16
        file.save_as(path)
    with pytest.raises(DataError, match=r"0\.dcm: cannot be read as a slide \(.*BitsAllocated value 16.*8-bit RGB"):
        Region(folder / "0.dcm")


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
        (lambda f, image: write_tiled(f / "wrong", image[..., 0], tile=None, photometric="minisblack"), "found grey"),
        (stack, "found grey with 1 × 8 bit"),
        (lambda f, image: stack(f, image, tile=(64, 64)), "found grey with 1 × 8 bit"),
        (lambda f, image: planar(f, image.astype(np.uint16) * 256, tile=(64, 64)), "found RGB with 3 × 16 bit"),
        (lambda f, image: planar(f, image.astype(np.uint16) * 256), "found RGB with 3 × 16 bit"),
        (lambda f, image: write_picture(f / "wrong", image[..., 0], format="PNG"), "found a grey image"),
        (lambda f, image: planar(f, image, extratags=[(274, 3, 1, 3, True)]), "is stored turned or mirrored"),
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
    monkeypatch.setattr(
        region_files, "read_rgb", lambda path: decoded.append(Path(path).stem) or Image.open(path).copy()
    )
    monkeypatch.setattr(region_files, "_pictures", {})
    monkeypatch.setattr(region_files, "_PICTURE_CACHE", 2 * 4 * WIDTH * HEIGHT)
    a, b, c = (Region(write_picture(tmp_path / f"{name}.png", image)) for name in "abc")
    for region in (a, b, a, b, a):
        region.read(0, 0, 10, 10)
    assert decoded == ["a", "b"]
    for region in (c, a, c):
        region.read(0, 0, 10, 10)
    assert decoded == ["a", "b", "c"]
    b.read(0, 0, 10, 10)
    assert decoded == ["a", "b", "c", "b"]
    monkeypatch.setattr(region_files, "_PICTURE_CACHE", 1)
    a.read(0, 0, 10, 10)
    a.read(0, 0, 10, 10)
    assert decoded[4:] == ["a"]
    assert len(region_files._pictures) == 1


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
