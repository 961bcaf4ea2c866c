"""What the header of a TIFF says: its colours, its pyramid, and the size of a pixel, wherever its writer put that."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import tifffile

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PREFIXES = {"P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1, "": 0, "d": -1, "c": -2, "m": -3}
_PREFIXES |= {"µ": -6, "μ": -6, "u": -6, "n": -9, "p": -12, "f": -15, "a": -18}  # both letters that look like a mu
_UNITS = {f"{prefix}m": 10.0 ** (power + 6) for prefix, power in _PREFIXES.items()}
_UNITS |= {"Å": 1e-4, "thou": 25.4, "li": 25400 / 12, "in": 25400, "ft": 304800, "yd": 914400, "pt": 25400 / 72}
_UNITS |= {"micron": 1, "microns": 1, "micrometer": 1, "inch": 25400, "\\u00B5m": 1}  # as ImageJ writes them
_LENGTHS = {2: 25400, 3: 10000}  # of a TIFF's ResolutionUnit, in µm


class TiffHeader(NamedTuple):
    """What is known of a TIFF without decoding it.

    Attributes:
        size: width and height.
        colour: photometric interpretation, as TIFF numbers them: 2 RGB, 6 YCbCr, 3 a palette.
        samples, bits: of a pixel, and of each of them.
        tiled: whether a part can be read without the rest.
        axes: of the first image, as tifffile calls them; "YXS" for RGB.
        levels: of its pyramid.
        microns: a pixel, in x and y; None where that is not said.
        power: of the objective, where it alone is said.
        orientation: 1 where rows run down and columns to the right.
        profile: whether there is an ICC profile.
    """

    size: tuple[int, int]
    colour: int
    samples: int
    bits: int
    tiled: bool
    axes: str
    levels: int
    microns: Sequence[float] | None
    power: float | None
    orientation: int
    profile: bool


def read_tiff_header(path: str) -> TiffHeader | None:
    """None where it is no TIFF, or broken."""
    try:
        with Path(path).open("rb") as file:
            if file.read(4) not in _SIGNATURES:
                return None
        with tifffile.TiffFile(path) as tiff:
            page, series = tiff.pages[0], tiff.series[0]
            microns, power = _pixel(tiff, page)
            return TiffHeader(
                (page.imagewidth, page.imagelength),
                int(page.photometric),
                page.samplesperpixel,
                page.bitspersample,
                page.is_tiled,
                series.axes,
                len(series.levels),
                microns,
                power,
                int(page.tags.valueof("Orientation", 1)),
                "InterColorProfile" in page.tags,
            )
    except Exception:  # on a broken header any; who is asked next says what is wrong
        return None


def _pixel(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> tuple[Sequence[float] | None, float | None]:
    """µm in x and y, and the objective's power: of OME-XML, ImageJ, Aperio, or the tags that all TIFF may have."""
    microns = power = None
    if tiff.is_ome:
        microns, power = ome_pixel(tiff.ome_metadata)
    elif tiff.is_imagej:
        unit = _UNITS.get(str((tiff.imagej_metadata or {}).get("unit")))
        return _of_tags(page, unit) or _of_tags(page, _LENGTHS.get(page.resolutionunit)), None
    elif page.is_svs:
        found = {name: re.search(rf"\b{name}\s*=\s*([\d.]+)", page.description) for name in ("MPP", "AppMag")}
        microns = found["MPP"] and (float(found["MPP"][1]),) * 2
        power = found["AppMag"] and float(found["AppMag"][1])
    return microns or _of_tags(page, _LENGTHS.get(page.resolutionunit)), power


def _of_tags(page: tifffile.TiffPage, unit: float | None) -> Sequence[float] | None:
    """Of the numbers of pixels in a unit."""
    if unit is None or "XResolution" not in page.tags or "YResolution" not in page.tags:
        return None
    x, y = (page.tags.valueof(name) for name in ("XResolution", "YResolution"))
    return (unit * x[1] / x[0], unit * y[1] / y[0]) if x[0] and y[0] else None


def ome_pixel(xml: str) -> tuple[Sequence[float] | None, float | None]:
    """Of OME-XML the µm a pixel of the first image, in x and y, and the power of the first objective."""
    root = ElementTree.fromstring(xml)
    pixels, objective = root.find(".//{*}Pixels"), root.find(".//{*}Objective")
    found = []
    for axis in "XY" if pixels is not None else "":
        length = float(pixels.get(f"PhysicalSize{axis}", "nan"))
        found.append(length * _UNITS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), math.nan))
    power = None if objective is None else objective.get("NominalMagnification")
    return found if found and all(map(math.isfinite, found)) else None, power and float(power)
