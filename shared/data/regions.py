"""Image files of any size, regions and whole slides, of which parts are read at any scale."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openslide
import tiffslide
from PIL import Image
from scipy.ndimage import binary_dilation, uniform_filter

from ..utils import DataError
from .images import read_rgb

_TILE_CACHE = 32 * 2**20  # bytes, of OpenSlide's decoded tiles in a process
_PICTURE_CACHE = 256 * 2**20  # bytes, of pictures that were decoded whole in a process; one larger one goes in alone
_LARGEST_PICTURE = 2**29  # pixels; more are not decoded at once. Pillow takes 4 bytes for each, and twice that to read
_MOST_AT_ONCE = 2**22  # pixels read from the file before they are resampled, up to 18 bytes each on the way
MASK_SIZE = 2048  # pixels of the longer side of a tissue mask
_MICRONS = (0.05, 4.0)  # a pixel; what is outside of it was meant for a printer
_SATURATION, _DARKEST = 0.07, 40  # of tissue, from 0 to 1 and 255
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_COLOURS = (2, 6)  # RGB and YCbCr, in a TIFF


class _Header(NamedTuple):
    reader: str  # openslide, tiffslide or pillow
    size: tuple[int, int]
    microns: tuple[Any, Any]  # a pixel, in x and y, as the file has it


class _Tiff(NamedTuple):
    size: tuple[int, int]
    microns: tuple[Any, Any]
    axes: str
    tiled: bool
    photometric: Any
    samples: int
    bits: int


class Region:
    """An image file of any size, of which parts are read.

    Whole slides and tiled TIFF, with or without a pyramid, are read tile by tile with OpenSlide, or with tiffslide
    where OpenSlide cannot: memory does not grow with the image. PNG, JPEG and other pictures, and TIFF in strips, are
    decoded whole by the first read (`in_memory`); a process keeps as many of them as fit into 256 MB, and at least
    the last one, at 4 bytes a pixel. TIFF in strips of more than 537 million pixels is read strip by strip, slowly.

    A region holds no open file: it pickles, and every process opens the file for itself when it first reads.

    Args:
        path: of the file.
        mpp: µm a pixel; by default what the file says. The file's is ignored where it is under 0.05 or over 4:
            72 or 300 dots an inch were written by a program that knew nothing of it.

    Attributes:
        size: width and height in pixels, of the pyramid's first level.
        mpp: µm a pixel, None where it is not known.
        in_memory: whether the image is decoded whole.

    Raises:
        DataError: the file is missing, a folder, no image, not 8-bit RGB, too large to be decoded whole, or says that
            its pixels are not square.
    """

    def __init__(self, path: str | os.PathLike, mpp: float | None = None) -> None:
        self.path = os.fspath(path)
        self._stamp = _stamp(self.path)
        self._reader, self.size, microns = _header(self.path)
        self.in_memory = self._reader == "pillow"
        if mpp is not None and not 0 < mpp < math.inf:
            raise DataError(f"{path}: mpp is {mpp}, expected µm a pixel, such as 0.25.")
        self.mpp = _mpp(self.path, microns) if mpp is None else float(mpp)

    def read(self, x: float, y: float, width: int, height: int, scale: float = 1.0) -> np.ndarray:
        """A part of the image.

        At a scale other than 1 it comes from the pyramid's coarsest level that is fine enough, resampled (bilinear,
        with antialiasing) with what is around the part, so that parts fit together without seams.

        Args:
            x, y: top left corner in pixels of the file, which may lie outside of it or between pixels.
            width, height: of the result, in its pixels.
            scale: pixels of the file that a pixel of the result is wide.

        Returns:
            uint8, (height, width, 3). White outside of the image, and where a slide was not scanned.

        Raises:
            DataError: the file cannot be decoded there.
            ValueError: when a size or the scale is not positive.
        """
        if min(width, height) < 1 or not 0 < scale < math.inf:
            raise ValueError(f"width, height and scale must be positive, got {width}, {height} and {scale}.")
        slide = self._open()
        level = slide.get_best_level_for_downsample(scale * 1.01)  # 4.001 is a 4 whose last row was cut off
        downsample = slide.level_downsamples[level]
        shrink, left, top = scale / downsample, x / downsample, y / downsample
        if shrink == 1 and left % 1 == top % 1 == 0:
            return self._read_level(slide, level, int(left), int(top), width, height)
        if max(width, height) > 1 and width * height * shrink**2 > _MOST_AT_ONCE:
            if width > height:
                half = width // 2
                right = self.read(x + half * scale, y, width - half, height, scale)
                return np.concatenate([self.read(x, y, half, height, scale), right], axis=1)
            half = height // 2
            lower = self.read(x, y + half * scale, width, height - half, scale)
            return np.concatenate([self.read(x, y, width, half, scale), lower])
        right, bottom = left + width * shrink, top + height * shrink
        margin = math.ceil(max(shrink, 1)) + 1  # the filter reaches no further
        x1, y1 = math.floor(left) - margin, math.floor(top) - margin
        x2, y2 = math.ceil(right) + margin, math.ceil(bottom) + margin
        part = Image.fromarray(self._read_level(slide, level, x1, y1, x2 - x1, y2 - y1))
        box = (left - x1, top - y1, right - x1, bottom - y1)
        return np.array(part.resize((width, height), Image.Resampling.BILINEAR, box))

    def thumbnail(self, max_size: int) -> np.ndarray:
        """The whole image, made smaller where its longer side is above `max_size`. Uint8, (height, width, 3)."""
        return _thumbnail(self, max_size)

    def window(self, x: int, y: int, width: int, height: int) -> Region:
        """A rectangle of the image as a region of its own, of which nothing is read; coordinates begin at its corner.

        What is read beyond its borders is what lies there in the image.

        Args:
            x, y: its top left corner in pixels of the file.
            width, height: in the same.

        Raises:
            ValueError: when width or height is not positive.
        """
        return _Window(self, x, y, width, height)

    def coarsest(self) -> float:
        """Pixels of the file that a pixel of the pyramid's last level is wide; 1 where there is no pyramid."""
        return self._open().level_downsamples[-1]

    def _open(self) -> Any:
        """The opened file, with the interface of OpenSlide."""
        if self.in_memory:
            return _picture(self.path, self._stamp, self.size)
        return _opened(self._reader, self.path, self._stamp, os.getpid())

    def _read_level(self, slide: Any, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The same in pixels of a level, without resampling."""
        result = np.full((height, width, 3), 255, dtype=np.uint8)
        columns, rows = slide.level_dimensions[level]
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + width, columns), min(y + height, rows)
        if x1 < x2 and y1 < y2:
            # Upwards, because both readers divide by the downsampling again and one of them rounds down.
            corner = tuple(math.ceil(start * slide.level_downsamples[level] - 1e-6) for start in (x1, y1))
            try:
                found = slide.read_region(corner, level, (x2 - x1, y2 - y1))
            except Exception as e:  # the decoders of tiffslide have no exception in common
                raise DataError(
                    f"{self.path}: cannot be decoded at {corner[0]}, {corner[1]} ({e}). It may have been cut off; copy "
                    "the file again, or export it anew."
                ) from e
            result[y1 - y : y2 - y, x1 - x : x2 - x] = _on_white(found)
        return result


class _Window(Region):
    def __init__(self, region: Region, x: int, y: int, width: int, height: int) -> None:
        if min(width, height) < 1:
            raise ValueError(f"width and height must be positive, got {width} and {height}.")
        self.path, self.mpp, self.in_memory = region.path, region.mpp, region.in_memory
        self.size = (width, height)
        self._region, self._corner = region, (x, y)

    def read(self, x: float, y: float, width: int, height: int, scale: float = 1.0) -> np.ndarray:
        return self._region.read(x + self._corner[0], y + self._corner[1], width, height, scale)

    def _open(self) -> Any:
        return self._region._open()


def open_region(path: str | os.PathLike | Region, mpp: float | None = None) -> Region:
    """The `Region` of a path, whose file is not looked at again as long as it does not change; a region as it is."""
    if not isinstance(path, str | os.PathLike):  # MONAI Label loads a bundle's code anew between its steps: the class
        return path  # of the region that a step before has opened bears the name of ours, and is another
    path = os.fspath(path)
    return _region(path, mpp, _stamp(path))


@lru_cache(maxsize=1024)
def _region(path: str, mpp: float | None, stamp: tuple[int, int]) -> Region:
    return Region(path, mpp)


def tissue_mask(region: Region, max_size: int = MASK_SIZE) -> tuple[np.ndarray, float]:
    """Where there is tissue, and not glass or the black that some scanners put around it.

    Tissue is what has colour: (max − min) / max of red, green and blue, each averaged over 3 × 3 pixels, is at least
    0.07, where glass and empty lumina lie at 0.02 to 0.06; and the brightest of the three is at least 40 of 255. The
    mask is one pixel wider than what is found. A pen's marks have colour, too.

    Args:
        region: at scale `max(region.size) / max_size` it is read whole: from a pyramid at once, but from a large
            TIFF without one by decoding all of it.
        max_size: the longer side of the mask at most.

    Returns:
        the mask, bool, (height, width), and how many pixels of the file one of its pixels is wide.
    """
    colours = uniform_filter(region.thumbnail(max_size).astype(np.float32), (3, 3, 1), mode="nearest")
    return binary_dilation(_has_colour(colours), np.ones((3, 3))), _thumbnail_scale(region, max_size)


def tissue_share(pixels: np.ndarray) -> float:
    """The share of an image (height, width, 3), uint8, that is tissue as in `tissue_mask`, seen at an eighth."""
    return float(_has_colour(np.asarray(Image.fromarray(pixels).reduce(8), np.float32)).mean())


def _has_colour(colours: np.ndarray) -> np.ndarray:
    brightest, least = colours.max(-1), colours.min(-1)
    return (brightest - least >= _SATURATION * brightest) & (brightest >= _DARKEST)


@lru_cache(maxsize=1)
def _thumbnail(region: Region, max_size: int) -> np.ndarray:
    """Kept for who asks next: of a large file without a pyramid it takes as long as reading all of it."""
    scale = _thumbnail_scale(region, max_size)
    pixels = region.read(0, 0, *(max(1, round(length / scale)) for length in region.size), scale)
    pixels.flags.writeable = False
    return pixels


def _thumbnail_scale(region: Region, max_size: int) -> float:
    return max(1.0, max(region.size) / max_size)


def _on_white(image: Image.Image) -> np.ndarray:
    """RGB. What is transparent was not scanned."""
    if image.mode == "RGBA":
        alpha = image.getchannel("A")
        if alpha.getextrema()[0] < 255:
            ground = Image.new("RGB", image.size, "white")
            ground.paste(image, mask=alpha)
            return np.asarray(ground)
    return np.asarray(image.convert("RGB"))


def _stamp(path: str) -> tuple[int, int]:
    """Changes when the file does."""
    try:
        found = os.stat(path)
    except OSError as e:
        raise DataError(f"{path}: there is no such file, or it cannot be reached ({e.strerror}).") from e
    if os.path.isdir(path):
        raise DataError(
            f"{path}: found a folder, expected an image file: a whole slide, TIFF, PNG or JPEG. Give the file itself, "
            "for a slide in several files the one that OpenSlide opens."
        )
    return found.st_mtime_ns, found.st_size


def _header(path: str) -> _Header:
    """Who can read a file, and what its header says."""
    try:
        with openslide.OpenSlide(path) as slide:
            names = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
            found = _Header("openslide", slide.dimensions, tuple(map(slide.properties.get, names)))
            if slide.properties[openslide.PROPERTY_NAME_VENDOR] != "generic-tiff":
                return found
    except openslide.OpenSlideError:
        found = None
    tiff = _tiff(path)
    if found is None and tiff and tiff.axes == "YXS" and (tiff.tiled or math.prod(tiff.size) > _LARGEST_PICTURE):
        found = _Header("tiffslide", tiff.size, tiff.microns)
    if found and tiff:
        _check_colours(path, tiff)  # OpenSlide turns everything into 8-bit RGB without a word
    return found or _picture_header(path)


def _tiff(path: str) -> _Tiff | None:
    """What tiffslide finds in a file; None where it is no TIFF, or broken."""
    try:
        with Path(path).open("rb") as file:
            if file.read(4) not in _TIFF:
                return None
        with tiffslide.TiffSlide(path) as slide:
            names = (tiffslide.PROPERTY_NAME_MPP_X, tiffslide.PROPERTY_NAME_MPP_Y)
            microns = tuple(map(slide.properties.get, names))
            page, axes = slide.ts_tifffile.pages[0], slide.properties["tiffslide.series-axes"]
            colours = (page.photometric, page.samplesperpixel, page.bitspersample)
            return _Tiff(slide.dimensions, microns, axes, page.is_tiled, *colours)
    except Exception:  # on a broken header any; who is asked next says what is wrong
        return None


def _check_colours(path: str, tiff: _Tiff) -> None:
    """Raise unless it is 8-bit RGB, also as YCbCr or with a palette."""
    if tiff.bits != 8 or not ((tiff.photometric in _COLOURS and tiff.samples in (3, 4)) or tiff.photometric == 3):
        name = "grey" if tiff.photometric in (0, 1) else getattr(tiff.photometric, "name", tiff.photometric)
        raise DataError(
            f"{path}: found {name} with {tiff.samples} × {tiff.bits} bit, expected 8-bit RGB. The colours of the "
            "stains cannot be made up: export it as 8-bit RGB from the slide."
        )


def _picture_header(path: str) -> _Header:
    try:
        with _no_limit(), Image.open(path) as opened:
            size, dots = opened.size, opened.info.get("dpi", (0, 0))
    except (OSError, SyntaxError, ValueError) as e:  # what Pillow's readers raise
        raise DataError(
            f"{path}: cannot be read as an image ({e}). Expected a whole slide that OpenSlide reads, or 8-bit RGB as "
            "TIFF, PNG or JPEG; copy the file again, or export it anew."
        ) from e
    if math.prod(size) > _LARGEST_PICTURE:
        raise DataError(
            f"{path}: has {size[0]} × {size[1]} pixels, and of this format all of them have to be decoded at once; "
            f"expected no more than {_LARGEST_PICTURE:,}. Convert it to a tiled TIFF."
        )
    return _Header("pillow", size, tuple(25400 / float(d) if d else None for d in dots))


def _mpp(path: str, microns: Sequence[Any]) -> float | None:
    try:
        x, y = map(float, microns)
    except (TypeError, ValueError):
        return None
    if not all(_MICRONS[0] <= length <= _MICRONS[1] for length in (x, y)):
        return None
    if abs(x - y) > 0.02 * max(x, y):
        raise DataError(
            f"{path}: its pixels are {x:g} × {y:g} µm, expected square ones. Resample it; or, where the file is wrong, "
            "give the µm a pixel as mpp."
        )
    return (x + y) / 2


@lru_cache(maxsize=64)
def _opened(reader: str, path: str, stamp: tuple[int, int], process: int) -> Any:
    """An open file belongs to a process: after a fork, two would move in it at the same time."""
    try:
        if reader == "tiffslide":
            slide = tiffslide.TiffSlide(path)
            weakref.finalize(slide, slide.ts_tifffile.close)  # what OpenSlide does by itself
            return slide
        slide = openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be opened any more ({e}). It may have been moved, or changed.") from e
    slide.set_cache(_tile_cache(process))
    return slide


@lru_cache(maxsize=2)
def _tile_cache(process: int) -> openslide.OpenSlideCache:
    """One for all slides: with one for each, memory would grow with their number."""
    return openslide.OpenSlideCache(_TILE_CACHE)


_pictures: dict[tuple[str, tuple[int, int]], openslide.ImageSlide] = {}  # from the longest unused to the last used


def _picture(path: str, stamp: tuple[int, int], size: tuple[int, int]) -> openslide.ImageSlide:
    """A file decoded whole. Others make room for it."""
    with _pillow:
        found = _pictures.pop((path, stamp), None)
        if found is None:
            pixels = math.prod(size)
            while (
                _pictures and 4 * (pixels + sum(math.prod(p.dimensions) for p in _pictures.values())) > _PICTURE_CACHE
            ):
                del _pictures[next(iter(_pictures))]
            with _no_limit():
                found = openslide.ImageSlide(read_rgb(path))
        _pictures[path, stamp] = found
        return found


_pillow = threading.RLock()  # of its limit, which belongs to the process, and of `_pictures`


@contextmanager
def _no_limit() -> Iterator[None]:
    """Pillow objects to images above a limit, for fear of decompression bombs; one of our own is checked here."""
    with _pillow:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
