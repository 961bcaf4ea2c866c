"""What the header of an image file says: who can read it, its size, its colours, its pixels' size."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import openslide
import tiffslide
from PIL import Image

from ..utils import DataError

_LARGEST_PICTURE = 2**29  # pixels; more are not decoded at once. Pillow takes 4 bytes for each, and twice that to read
_MICRONS = (0.05, 4.0)  # a pixel; what is outside of it was meant for a printer
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
