"""DICOM files of synthetic numbers, byte by byte: a library would refuse to write much of what is met."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.datadict import dictionary_VR, tag_for_keyword

CT, CAPTURE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
EXPLICIT, IMPLICIT, JPEG_2000 = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.4.90"
SIDEWAYS = "1\\0\\0\\0\\0\\-1"
SHAPE = (5, 4)  # rows and columns
SPACING = (5.5, 5.0)  # mm from row to row and from column to column


def element(keyword: str, value: Any, implicit: bool = False) -> bytes:
    """A value: text, an int, bytes, or a list of dicts for a sequence."""
    tag, vr = tag_for_keyword(keyword), dictionary_VR(keyword).split(" ")[-1]
    if vr == "SQ":
        items = [elements(item, implicit) for item in value]
        value = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item for item in items)
    elif isinstance(value, int):
        value = struct.pack("<H", value)
    elif isinstance(value, str):
        value = value.encode("latin-1")
    value += (b"\0" if vr in ("UI", "OB", "OW") else b" ") * (len(value) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + struct.pack("<I", len(value)) + value
    long = vr in ("OB", "OW", "SQ")
    return head + vr.encode() + (struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))) + value


def elements(values: dict[str, Any], implicit: bool = False) -> bytes:
    """Values by keyword, in the order of their tags; those that are None are left out."""
    there = sorted((name for name, value in values.items() if value is not None), key=tag_for_keyword)
    return b"".join(element(name, values[name], implicit) for name in there)


def write_dicom(
    path: Path,
    pixels: np.ndarray | None,
    syntax: str = EXPLICIT,
    preamble: bool = True,
    fragments: Sequence[bytes] = (),
    **values: Any,
) -> Path:
    """A file with stored `pixels` (rows, columns) or (frames, rows, columns), or with compressed `fragments`."""
    meta = {"MediaStorageSOPClassUID": values.get("SOPClassUID") or CT, "TransferSyntaxUID": syntax}
    content = elements(values, syntax == IMPLICIT)
    if fragments:
        items = [b"", *fragments, b""]
        tags = [b"\xfe\xff\x00\xe0"] * (len(items) - 1) + [b"\xfe\xff\xdd\xe0"]
        content += b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
        content += b"".join(tag + struct.pack("<I", len(item)) + item for tag, item in zip(tags, items, strict=True))
    elif pixels is not None:
        content += element("PixelData", pixels.astype("<u2").tobytes(), syntax == IMPLICIT)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 * preamble + (b"DICM" + elements(meta)) * preamble + content)
    return path


def slice_values(path: Path, z: float, number: int, **values: Any) -> dict[str, Any]:
    """The header of an axial CT slice at z mm; `values` replace its own, None leaves one out."""
    return {
        "SOPClassUID": CT,
        "SOPInstanceUID": f"1.2.9.{sum(str(path).encode()) * 1000 + number}",
        "StudyInstanceUID": "1.2.0",
        "SeriesInstanceUID": "1.2.3",
        "SeriesNumber": "2",
        "InstanceNumber": str(number),
        "Modality": "CT",
        "ImageType": "ORIGINAL\\PRIMARY\\AXIAL",
        "SliceThickness": "5",
        "PixelSpacing": "\\".join(map(str, SPACING)),
        "ImagePositionPatient": f"-100\\-80\\{z}",
        "ImageOrientationPatient": "1\\0\\0\\0\\1\\0",
        "RescaleSlope": "1",
        "RescaleIntercept": "-1024",
        **pixel_values(),
        **values,
    }


def pixel_values(**values: Any) -> dict[str, Any]:
    return {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": SHAPE[0],
        "Columns": SHAPE[1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        **values,
    }


def stored(k: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """The pixels of slice k, no two of them the same: HU = value − 1024."""
    return 1000 + 100 * k + np.arange(np.prod(shape)).reshape(shape)


def write_slice(path: Path, k: int, z: float | None = None, **values: Any) -> Path:
    """Slice k of a series, at 5 k mm unless told; `syntax` and the like go to `write_dicom`."""
    options = {key: values.pop(key) for key in ("syntax", "preamble", "fragments", "pixels") if key in values}
    pixels = options.pop("pixels", stored(k))
    return write_dicom(path, pixels, **options, **slice_values(path, 5.0 * k if z is None else z, k + 1, **values))


def write_series(folder: Path, count: int = 4, name: str = "{}.dcm", **values: Any) -> Path:
    """Slices of 5 mm from feet to head."""
    for k in range(count):
        write_slice(folder / name.format(k), k, **values)
    return folder


def write_enhanced(
    path: Path, zs: Sequence[float], rescale: Sequence[tuple[float, float]] = ((1, -1024),), **values: Any
) -> Path:
    """An enhanced CT with frames at `zs`; frame i holds the pixels of slice i. One `rescale`, or one for each frame."""

    def transformation(slope: float, intercept: float) -> dict[str, Any]:
        return {"PixelValueTransformationSequence": [{"RescaleIntercept": f"{intercept}", "RescaleSlope": f"{slope}"}]}

    whole = slice_values(path, 0, 1, NumberOfFrames=str(len(zs)), SOPClassUID=f"{CT}.1", **values)
    measures = {"SliceThickness": whole["SliceThickness"], "PixelSpacing": whole["PixelSpacing"]}
    shared = {
        "PlaneOrientationSequence": [{"ImageOrientationPatient": whole["ImageOrientationPatient"]}],
        "PixelMeasuresSequence": [measures],
    }
    frames = [{"PlanePositionSequence": [{"ImagePositionPatient": f"-100\\-80\\{z}"}]} for z in zs]
    if len(rescale) == 1:
        shared |= transformation(*rescale[0])
    else:
        frames = [frame | transformation(*way) for frame, way in zip(frames, rescale, strict=True)]
    moved = ("SliceThickness", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")
    top = dict.fromkeys((*moved, "RescaleSlope", "RescaleIntercept"))
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": frames}
    return write_dicom(path, np.stack([stored(i) for i in range(len(zs))]), **{**whole, **top, **groups})
