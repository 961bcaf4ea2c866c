"""What the headers of DICOM files say, read without their pixels."""

from __future__ import annotations

import logging
import math
import os
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.charset import python_encoding

from ..utils import DataError

# What pydicom says of headers that are not as the standard has them, of each file; they are read all the same.
logging.getLogger("pydicom").setLevel(logging.ERROR)

CHARSET, IMAGE_TYPE, SOP_CLASS, INSTANCE, MODALITY = 0x00080005, 0x00080008, 0x00080016, 0x00080018, 0x00080060
DESCRIPTION, THICKNESS, GAP, STUDY, SERIES = 0x0008103E, 0x00180050, 0x00180088, 0x0020000D, 0x0020000E
NUMBER, POSITION, ORIENTATION, SAMPLES = 0x00200011, 0x00200032, 0x00200037, 0x00280002
FRAMES, ROWS, COLUMNS, SPACING, ALLOCATED = 0x00280008, 0x00280010, 0x00280011, 0x00280030, 0x00280100
SIGNED, INTERCEPT, SLOPE, SHARED, PER_FRAME = 0x00280103, 0x00281052, 0x00281053, 0x52009229, 0x52009230
HEADER = [CHARSET, IMAGE_TYPE, SOP_CLASS, INSTANCE, MODALITY, DESCRIPTION, THICKNESS, GAP, STUDY, SERIES, NUMBER]
HEADER += [POSITION, ORIENTATION, SAMPLES, FRAMES, ROWS, COLUMNS, SPACING, ALLOCATED, SIGNED]
HEADER += [INTERCEPT, SLOPE]
# The sequences of an enhanced image that hold what a frame's place, axes, pixels and values are.
PLACES, AXES, MEASURES, VALUES = 0x00209113, 0x00209116, 0x00289110, 0x00289145
DIRECTORY, DEFLATED_SYNTAX = "1.2.840.10008.1.3.10", "1.2.840.10008.1.2.1.99"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED = (f"{CT_IMAGE}.1", f"{CT_IMAGE}.2")  # made as such, or of older files
UNDEFINED = 0xFFFFFFFF  # the length of what ends with a delimiter
BOUNDS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # the group with which a file without preamble begins


@dataclass(frozen=True)
class Frame:
    """A slice: a file, or a frame of one. What the header lacks is None; lengths in mm."""

    file: Path
    index: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    thickness: float | None
    rescale: tuple[float, ...] | None


@dataclass(frozen=True)
class DicomHeader:
    """What is said of a file's image; text is empty, and numbers None, where the header lacks them."""

    file: Path
    study: str
    series: str
    number: str
    description: str
    instance: str
    sop_class: str
    modality: str
    image_type: tuple[str, ...]
    rows: int
    columns: int
    samples: int
    frames: int
    storage: tuple[int, int]
    frame: Frame
    fault: str
    """Why its pixels cannot be read; empty where they seem to be there."""


def read_header(path: Path) -> DicomHeader | str | None:
    """The header of a DICOM file, with or without preamble; why it cannot be read; None for what is no DICOM file."""
    try:
        found = path.stat()
    except OSError as e:
        return f"cannot be opened: {e.strerror}"
    if not stat.S_ISREG(found.st_mode):  # who reads a pipe waits for who writes into it
        return None
    return _read_header(path, found.st_size, found.st_mtime_ns)


@lru_cache(2**15)  # a study is listed, loaded, and looked at for its digest; size and time tell another file
def _read_header(path: Path, size: int, time: int) -> DicomHeader | str | None:
    try:
        with path.open("rb") as file:
            start = file.read(132)
            marked = start[128:] == b"DICM"
            if not marked and not _may_be_header(start):
                return None
            file.seek(0)
            tags = _read_tags(file, HEADER)
            if _text(tags, SOP_CLASS) == DIRECTORY or str(tags.file_meta.get("MediaStorageSOPClassUID")) == DIRECTORY:
                return None
            if not any(_text(tags, tag) for tag in (SOP_CLASS, SERIES, MODALITY)):
                return "its header is damaged" if marked else None
            header = _header(path, tags, _pixel_fault(file, tags, size))
    except OSError as e:
        return f"cannot be opened: {e.strerror}"
    except Exception as e:  # pydicom has no type of its own for what it meets in a damaged file
        return f"its header is damaged: {type(e).__name__}"
    return header.fault if header.fault and SERIES not in tags else header


def _may_be_header(start: bytes) -> bool:
    """Whether a file without preamble may begin with a DICOM element: a group, and then a short value's length."""
    if start[:2] not in BOUNDS:
        return False
    return (start[4:6].isalpha() and start[4:6].isupper()) or 0 < int.from_bytes(start[4:8], "little") <= 64


def _read_tags(file: BinaryIO, tags: list[int]) -> pydicom.FileDataset:
    with warnings.catch_warnings():  # of values that are not as the standard has them, which are read here all the same
        warnings.simplefilter("ignore")
        return pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=tags)


def _raw(tags: pydicom.Dataset, tag: int) -> Any:
    """A value as it stands in the file: pydicom refuses some that do no harm."""
    return tags.get_item(tag).value if tag in tags else None


def _text(tags: pydicom.Dataset, tag: int) -> str:
    value = _raw(tags, tag)
    if not isinstance(value, bytes):
        return "" if value is None else "\\".join(map(str, value)) if isinstance(value, list) else str(value)
    charset = _raw(tags, CHARSET) or b""
    names = charset.decode("ascii", "replace").split("\\") if isinstance(charset, bytes) else []
    codec = next((python_encoding[n] for n in map(str.strip, reversed(names)) if n in python_encoding), "latin_1")
    try:
        return value.decode(codec, "replace").strip(" \0\n\r")
    except LookupError:  # of pydicom's own
        return value.decode("latin_1").strip(" \0\n\r")


def _numbers(tags: pydicom.Dataset, tag: int, count: int) -> tuple[float, ...] | None:
    try:
        found = tuple(float(part) for part in _text(tags, tag).split("\\"))
    except ValueError:
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def _whole(tags: pydicom.Dataset, tag: int, default: int) -> int:
    """Of 16 bits, or written as text."""
    value = _raw(tags, tag)
    if isinstance(value, bytes) and tag != FRAMES:
        return int.from_bytes(value[:2], "little" if tags.get_item(tag).is_little_endian else "big")
    found = _text(tags, tag)
    return int(found) if found.isdecimal() else default


def _header(path: Path, tags: pydicom.Dataset, fault: str) -> DicomHeader:
    return DicomHeader(
        file=path,
        study=_text(tags, STUDY),
        series=_text(tags, SERIES),
        number=_text(tags, NUMBER),
        description=_text(tags, DESCRIPTION),
        instance=_text(tags, INSTANCE),
        sop_class=_text(tags, SOP_CLASS),
        modality=_text(tags, MODALITY).upper(),
        image_type=tuple(_text(tags, IMAGE_TYPE).upper().split("\\")),
        rows=_whole(tags, ROWS, 0),
        columns=_whole(tags, COLUMNS, 0),
        samples=_whole(tags, SAMPLES, 1),
        frames=max(1, _whole(tags, FRAMES, 1)),
        storage=(_whole(tags, ALLOCATED, 0), _whole(tags, SIGNED, 0)),
        frame=_frame(path, 0, [tags], [tags], [tags], [tags]),
        fault=fault,
    )


def _frame(
    path: Path,
    index: int,
    place: Sequence[pydicom.Dataset],
    axes: Sequence[pydicom.Dataset],
    measures: Sequence[pydicom.Dataset],
    values: Sequence[pydicom.Dataset],
) -> Frame:
    def first(parts: Sequence[pydicom.Dataset], tag: int, count: int) -> tuple[float, ...] | None:
        return next(filter(None, (_numbers(part, tag, count) for part in parts)), None)

    thickness = first(measures, THICKNESS, 1) or first(measures, GAP, 1)
    slope, intercept = first(values, SLOPE, 1), first(values, INTERCEPT, 1)
    return Frame(
        file=path,
        index=index,
        position=first(place, POSITION, 3),
        orientation=first(axes, ORIENTATION, 6),
        spacing=first(measures, SPACING, 2),
        thickness=thickness[0] if thickness and thickness[0] > 0 else None,
        rescale=slope + intercept if slope and intercept else None,
    )


def read_frames(header: DicomHeader) -> list[Frame]:
    """The slices in a file: its own header's, or one for each frame of an enhanced CT, in the order of the file.

    Raises:
        DataError: when the number of frames is not that of their places.
    """
    if header.frames == 1 and header.sop_class not in ENHANCED:
        return [header.frame]
    with header.file.open("rb") as file:
        tags = _read_tags(file, [*HEADER, SHARED, PER_FRAME])
    own = _items(tags, PER_FRAME)
    common = _items(tags, SHARED)[:1]

    def parts(index: int, sequence: int) -> list[pydicom.Dataset]:
        groups = own[index : index + 1] + common
        return [item for group in groups for item in _items(group, sequence)[:1]] + [tags]

    if own and len(own) != header.frames:
        raise DataError(
            f"{header.file}: its header tells of {header.frames} frames and of where {len(own)} lie. Export it again."
        )
    sequences = (PLACES, AXES, MEASURES, VALUES)
    return [_frame(header.file, i, *(parts(i, s) for s in sequences)) for i in range(header.frames)]


def _items(tags: pydicom.Dataset, sequence: int) -> list[pydicom.Dataset]:
    return list(tags[sequence].value) if sequence in tags else []


def _pixel_fault(file: BinaryIO, tags: pydicom.FileDataset, size: int) -> str:
    """Why the pixels of an image cannot all be there; `file` stands where its header ends."""
    sizes = {"Rows": ROWS, "Columns": COLUMNS, "BitsAllocated": ALLOCATED}
    lacking = [name for name, tag in sizes.items() if _whole(tags, tag, 0) < 1]
    if lacking:  # GDCM ends the whole process for want of the last
        return f"its header has no {' and no '.join(lacking)}"
    if tags.file_meta.get("TransferSyntaxUID") == DEFLATED_SYNTAX:  # packed as a whole
        return ""
    head = file.read(12)
    order = {b"\xe0\x7f\x10\x00": "little", b"\x7f\xe0\x00\x10": "big"}.get(head[:4])
    if order is None or len(head) < 12:
        return "it ends before its pixels"
    explicit = head[4:6] in (b"OB", b"OW", b"UN")
    length = int.from_bytes(head[8:12] if explicit else head[4:8], order)
    file.seek(0 if explicit else -4, os.SEEK_CUR)
    if length == UNDEFINED:
        return _fragments_fault(file, size)
    needed = math.prod(_whole(tags, tag, 1) for tag in (ROWS, COLUMNS, SAMPLES, FRAMES, ALLOCATED)) // 8
    there = min(length, size - file.tell())
    if length >= 2 * needed:
        return f"its header is damaged: {length:,} bytes of pixels, and by its sizes {needed:,}"
    whole = max(needed, length)
    return f"it is cut short: {there:,} of {whole:,} bytes of pixels" if there < whole else ""


def _fragments_fault(file: BinaryIO, size: int) -> str:
    """Of compressed pixels: a table, fragments and a delimiter, which some writers leave out."""
    count = 0
    while file.tell() < size:
        item = file.read(8)
        if item[:4] == b"\xfe\xff\xdd\xe0":
            return "" if count > 1 else "its compressed pixels are missing"
        if item[:4] != b"\xfe\xff\x00\xe0" or len(item) < 8:
            break
        count += 1
        file.seek(int.from_bytes(item[4:], "little"), os.SEEK_CUR)
    return "" if file.tell() == size and count > 1 else "it is cut short: its compressed pixels do not end"
