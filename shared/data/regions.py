"""`Region`: an image file of any size, of which parts are read at any scale."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..utils import DataError
from ..utils.values import MPP, OrNone, check_value
from .region_files import file_stamp, open_file, read_header, square_mpp
from .roi import Roi

_MOST_AT_ONCE = 2**22  # pixels read from the file before they are resampled, up to 18 bytes each on the way


class Region:
    """An image file of any size, of which parts are read.

    Whole slides and tiled TIFF, with or without a pyramid, are read tile by tile with OpenSlide, or with tiffslide
    where OpenSlide cannot: memory does not grow with the image. PNG, JPEG and other pictures, and TIFF in strips, are
    decoded whole by the first read (`in_memory`); a process keeps as many of them as fit into 256 MB, and at least
    the last one, at 4 bytes a pixel. TIFF in strips of more than 537 million pixels is read strip by strip, slowly.

    A region holds no open file: it pickles, and every process opens the file for itself when it first reads.

    Args:
        path: of the file.
        mpp: µm a pixel, 0.05 to 4; by default what the file says. The file's is ignored where it is under 0.05 or over
            4: 72 or 300 dots an inch were written by a program that knew nothing of it.

    Attributes:
        size: width and height in pixels, of the pyramid's first level.
        mpp: µm a pixel, None where it is not known.
        in_memory: whether the image is decoded whole.
        bounds: x, y, width and height of what was scanned, where the file says that it is not everything; QuPath shows
            no more, and its pixels begin there.
        roi: to what search and count are restricted, see `within`.
        corner: where a window begins in its file, in pixels; (0, 0) of a file.
        recolour: what tiles of it go through before a network sees them; what is read is as the file has it.
        guessed: whether `mpp` is worked out from the objective.
        notes: sentences on what a user should know of how the file is read.

    Raises:
        DataError: the file is missing, a folder, no image, not 8-bit RGB, too large to be decoded whole, or says that
            its pixels are not square; `mpp` is out of range.
    """

    bounds: tuple[int, int, int, int] | None = None
    corner: tuple[int, int] = (0, 0)
    roi: Roi | None = None
    recolour: Callable[[Tensor], Tensor] | None = None
    guessed: bool = False
    notes: tuple[str, ...] = ()
    _plain: Region | None = None  # the same without `recolour`

    def __init__(self, path: str | os.PathLike, mpp: float | None = None) -> None:
        self.path = os.fspath(path)
        self._stamp = file_stamp(self.path)
        header = read_header(self.path)
        self._reader, self.size, self.bounds = header.reader, header.size, header.bounds
        self.in_memory = self._reader == "pillow"
        check_value(f"{path}: mpp", mpp, OrNone(MPP, "as the file says"))
        self.mpp, note = square_mpp(self.path, header) if mpp is None else (float(mpp), "")
        self.guessed, self.notes = bool(note), (note,) * bool(note) + header.notes

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

    @property
    def limits(self) -> tuple[int, int, int, int]:
        """Where the file's pixels lie, in those of this region: x1, y1, x2, y2."""
        return 0, 0, *self.size

    def square(self, x: float, y: float, side: int, scale: float = 1.0) -> np.ndarray:
        """The square around a point; beyond the file's edges, which are not repeated, the image is reflected.

        It begins at the pixel ⌊x / scale − side / 2⌋ of an image of this scale.

        Args:
            x, y: in pixels of the region.
            side: of the result, in its pixels.
            scale: pixels of the file that a pixel of the result is wide.

        Returns:
            uint8, (side, side, 3).

        Raises:
            ValueError: when no pixel of the file lies in it.
            DataError: see `read`.
        """
        indices = []
        for middle, low, high in zip((x, y), self.limits[:2], self.limits[2:], strict=True):
            first = math.ceil(low / scale)
            last = max(math.floor(high / scale), first + 1)
            start = math.floor(middle / scale - side / 2)
            if start >= last or start + side <= first:
                raise ValueError(f"{self.path}: no pixel lies within {side} pixels around {x:g}, {y:g}.")
            indices.append(first + reflected_indices(np.arange(start, start + side) - first, last - first))
        columns, rows = indices
        left, top = int(columns.min()), int(rows.min())
        size = int(columns.max()) + 1 - left, int(rows.max()) + 1 - top
        return self.read(left * scale, top * scale, *size, scale)[np.ix_(rows - top, columns - left)]

    def thumbnail(self, max_size: int) -> np.ndarray:
        """The whole image, made smaller where its longer side is above `max_size`. Uint8, (height, width, 3)."""
        return _thumbnail(self._plain or self, max_size)

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

    def within(self, roi: Roi) -> Region:
        """The same region, of which only regions of interest are to be searched.

        Args:
            roi: in QuPath's pixels, which begin where `bounds` do.

        Raises:
            DataError: when they lie outside of the image.
        """
        part = self.bounds or (0, 0, *self.size)
        found = copy.copy(self)
        found.roi = roi.moved(*part[:2]).clipped(part)
        found._plain = self._plain and self._plain.within(roi)
        if min(found.roi.box[2:]) < 1:
            raise DataError(
                f"{self.path}: its region of interest lies at {roi.box[:2]}, outside of the {part[2]} × {part[3]} "
                "pixels that QuPath shows. Is it that of another slide?"
            )
        return found

    def recoloured(self, change: Callable[[Tensor], Tensor]) -> Region:
        """The same region, of which a network is to see other colours.

        Args:
            change: of uint8 (3, H, W) or (B, 3, H, W), RGB, to the same.
        """
        found = copy.copy(self)
        found.recolour, found._plain = change, self._plain or self
        return found

    def searched(self) -> Region:
        """What is to be searched, as a region of its own: what lies around the regions of interest, else of a slide
        with `bounds` what was scanned, else all of it.
        """
        part = self.bounds if self.roi is None else self.roi.box
        if part is None:
            return self
        found = _searched(self._plain or self, part)
        return found if self.recolour is None else found.recoloured(self.recolour)

    def coarsest(self) -> float:
        """Pixels of the file that a pixel of the pyramid's last level is wide; 1 where there is no pyramid."""
        return self._open().level_downsamples[-1]

    def _open(self) -> Any:
        """The opened file, with the interface of OpenSlide."""
        return open_file(self._reader, self.path, self._stamp, self.size)

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
        self._region, self.corner = region, (x, y)
        self.roi = region.roi and region.roi.moved(-x, -y)
        self.recolour = region.recolour

    def read(self, x: float, y: float, width: int, height: int, scale: float = 1.0) -> np.ndarray:
        return self._region.read(x + self.corner[0], y + self.corner[1], width, height, scale)

    @property
    def limits(self) -> tuple[int, int, int, int]:
        return tuple(end - begin for end, begin in zip(self._region.limits, self.corner * 2, strict=True))

    def _open(self) -> Any:
        return self._region._open()


def reflected_indices(indices: np.ndarray, length: int) -> np.ndarray:
    """Indices from 0 to `length` - 1, where those given are beyond: they go back from the edge, as often as needed."""
    period = max(1, 2 * (length - 1))
    indices = indices % period
    return np.where(indices < length, indices, period - indices)


def open_region(path: str | os.PathLike | Region, mpp: float | None = None) -> Region:
    """The `Region` of a path, whose file is not looked at again as long as it does not change; a region as it is."""
    if not isinstance(path, str | os.PathLike):  # MONAI Label loads a bundle's code anew between its steps: the class
        return path  # of the region that a step before has opened bears the name of ours, and is another
    path = os.fspath(path)
    return _region(path, mpp, file_stamp(path))


@lru_cache(maxsize=1024)
def _region(path: str, mpp: float | None, stamp: tuple[int, int]) -> Region:
    return Region(path, mpp)


@lru_cache(maxsize=16)
def _searched(region: Region, part: tuple[int, int, int, int]) -> Region:
    """Kept, because what goes by the region, such as its thumbnail, is kept."""
    return region.window(*part)


@lru_cache(maxsize=1)
def _thumbnail(region: Region, max_size: int) -> np.ndarray:
    """Kept for who asks next: of a large file without a pyramid it takes as long as reading all of it."""
    scale = thumbnail_scale(region, max_size)
    pixels = region.read(0, 0, *(max(1, round(length / scale)) for length in region.size), scale)
    pixels.flags.writeable = False
    return pixels


def thumbnail_scale(region: Region, max_size: int) -> float:
    """Pixels of the file that a pixel of `Region.thumbnail` is wide."""
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
