"""The files behind regions: what the header says (who can read it, size, colours, pixels' size), and opened files."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import openslide
import tifffile
import tiffslide
from PIL import ExifTags, Image

from ..utils import DataError
from ..utils.values import MPP
from .images import missing, read_rgb
from .tiff_headers import TiffHeader, read_tiff_header

_TILE_CACHE = 32 * 2**20  # bytes, of OpenSlide's decoded tiles in a process
_PICTURE_CACHE = 256 * 2**20  # bytes, of pictures that were decoded whole in a process; one larger one goes in alone
_LARGEST_PICTURE = 2**29  # pixels; more are not decoded at once. Pillow takes 4 bytes for each, and twice that to read
_BOUNDS = tuple(f"openslide.bounds-{name}" for name in ("x", "y", "width", "height"))
_COLOURS = (2, 6)  # RGB and YCbCr, in a TIFF


class Header(NamedTuple):
    """What the header of an image file says."""

    reader: str  # openslide, tiffslide or pillow
    size: tuple[int, int]
    microns: Sequence[Any] | None  # a pixel, in x and y, as the file has it
    power: Any = None  # of the objective, as the file has it
    notes: tuple[str, ...] = ()  # what a user should know of how it is read
    bounds: tuple[int, int, int, int] | None = None  # x, y, width and height of what was scanned, where that is less


def file_stamp(path: str) -> tuple[int, int]:
    """Changes when the file does."""
    try:
        found = os.stat(path)
    except OSError as e:
        raise DataError(missing(path)) from e
    if os.path.isdir(path):
        raise DataError(
            f"{path}: found a folder, expected an image file: a whole slide, TIFF, PNG or JPEG. Give the file itself, "
            "for a slide in several files the one that OpenSlide opens."
        )
    return found.st_mtime_ns, found.st_size


def read_header(path: str) -> Header:
    """Who can read a file, and what its header says.

    Raises:
        DataError: when nobody can, or it is not 8-bit RGB.
    """
    found, reason = None, ""
    try:
        with openslide.OpenSlide(path) as slide:
            says = slide.properties
            names = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
            power = says.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)
            microns, notes = tuple(map(says.get, names)), _notes(profile="openslide.icc-size" in says)
            found = Header("openslide", slide.dimensions, microns, power, notes, _bounds(slide))
            levels = slide.level_count
            if says[openslide.PROPERTY_NAME_VENDOR] != "generic-tiff":
                return found
    except openslide.OpenSlideUnsupportedFormatError:
        pass
    except openslide.OpenSlideError as e:
        reason = str(e)
    tiff = read_tiff_header(path)
    if tiff is None and reason:
        raise DataError(
            f"{path}: cannot be read as a slide ({reason}). Files that belong to it may be missing, or it has no 8-bit "
            "RGB; copy all of it again, or export it anew."
        )
    if tiff is None:
        return found or _picture_header(path)
    _check_colours(path, tiff)  # OpenSlide and Pillow turn all sorts of things into 8-bit RGB without a word
    notes = _notes(tiff.profile, tiff.orientation, stack=len(tiff.axes.replace("S", "")) > 2)
    header = Header("tiffslide", tiff.size, tiff.microns, tiff.power, notes)
    simple, turned = tiff.axes == "YXS", tiff.orientation != 1
    if turned and not simple:
        raise DataError(
            f"{path}: is stored turned or mirrored (orientation {tiff.orientation}), and in planes or stacks. Export "
            "it anew, with rows that run down."
        )
    if simple and turned:  # OpenSlide would turn each tile by itself
        return header
    if found is None:
        large = simple and (tiff.tiled or math.prod(tiff.size) > _LARGEST_PICTURE)
        return header if large else header._replace(reader="pillow", size=_picture_header(path).size)
    # OpenSlide does not see the levels in an OME-TIFF's SubIFDs
    return header if simple and tiff.levels > levels else header._replace(reader="openslide")


def _notes(profile: bool, orientation: int = 1, stack: bool = False) -> tuple[str, ...]:
    notes = {
        "has an ICC profile, which is not applied: colours are taken as they are stored, as in training": profile,
        f"says that it is to be turned (orientation {orientation}), which is not followed": orientation != 1,
        "holds a stack of images, of which the first is taken": stack,
    }
    return tuple(note for note, holds in notes.items() if holds)


def _bounds(slide: openslide.OpenSlide) -> tuple[int, int, int, int] | None:
    """What was scanned, as QuPath crops to it; None where that is everything."""
    try:
        x, y, width, height = (int(slide.properties[name]) for name in _BOUNDS)
    except (KeyError, ValueError):
        return None
    x, y, (right, bottom) = max(x, 0), max(y, 0), np.minimum((x + width, y + height), slide.dimensions).tolist()
    whole = (x, y, right, bottom) == (0, 0, *slide.dimensions)
    return None if whole or x >= right or y >= bottom else (x, y, right - x, bottom - y)


def _check_colours(path: str, tiff: TiffHeader) -> None:
    """Raise unless it is 8-bit RGB, also as YCbCr or with a palette."""
    kind, samples, bits = tiff.colour, tiff.samples, tiff.bits
    if not (bits == 8 and kind in _COLOURS and samples in (3, 4)) and kind != 3:
        name = "grey" if kind in (0, 1) else tifffile.PHOTOMETRIC(kind).name
        raise DataError(
            f"{path}: found {name} with {samples} × {bits} bit, expected 8-bit RGB. The colours of the stains cannot "
            "be made up: export it as 8-bit RGB from the slide."
        )


def _picture_header(path: str) -> Header:
    try:
        with no_limit(), Image.open(path) as opened:
            size, dots = opened.size, opened.info.get("dpi", (0, 0))
            notes = _notes("icc_profile" in opened.info, opened.getexif().get(ExifTags.Base.Orientation, 1))
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
    return Header("pillow", size, tuple(25400 / float(d) if d else None for d in dots), notes=notes)


def square_mpp(path: str, header: Header) -> tuple[float | None, str]:
    """µm a pixel, and a note where that was not simply read.

    None where it is not said, or by what knew nothing of it. 10 µm by the objective's power where that alone is known.

    Raises:
        DataError: when the pixels are not square.
    """
    x, y = map(_number, header.microns or (None, None))
    if not (MPP.accepts(x) and MPP.accepts(y)):
        power = _number(header.power)
        mpp = 10 / power if power > 0 else math.nan
        if not MPP.accepts(mpp):
            return None, ""
        note = f"says only that its objective has {power:g}x, which is taken for {mpp:g} µm a pixel"
        return mpp, note + "; where that is wrong, give the right one with --mpp."
    if abs(x - y) > 0.02 * max(x, y):
        raise DataError(
            f"{path}: its pixels are {x:g} × {y:g} µm, expected square ones. Resample it; or, where the file is wrong, "
            "give the µm a pixel with --mpp and --override_mpp true."
        )
    return (x + y) / 2, ""


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


_pillow = threading.RLock()  # of its limit, which belongs to the process, and of `_pictures`


@contextmanager
def no_limit() -> Iterator[None]:
    """Pillow objects to images above a limit, for fear of decompression bombs; one of our own is checked here."""
    with _pillow:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def open_file(reader: str, path: str, stamp: tuple[int, int], size: tuple[int, int]) -> Any:
    """The opened file, with the interface of OpenSlide. A process keeps it, as long as there is room.

    Args:
        reader, size: of its header.
        path: of the file.
        stamp: of the file, whose change opens it again.

    Raises:
        DataError: when it has gone, or cannot be decoded whole.
    """
    return _picture(path, stamp, size) if reader == "pillow" else _opened(reader, path, stamp, os.getpid())


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
            with no_limit():
                found = openslide.ImageSlide(read_rgb(path))
        _pictures[path, stamp] = found
        return found
