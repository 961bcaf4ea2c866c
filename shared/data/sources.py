"""Whose results are kept: of which image, by which weights and settings."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape, glob
from pathlib import Path
from typing import Any

from ..utils import DataError
from .dicom_series import files_below, find_series, is_dicom
from .dicom_slides import slide_files

# Headers, whose voxels or slide lie beside them: in files that they name, or that are called like them, or in a folder.
HEADERS = (".mhd", ".nhdr", ".hdr", ".img", ".mrxs", ".vms", ".vmu")
# What a header of MetaImage or NRRD says of where the voxels are: LIST, a file, or files by a pattern with a number.
_VOXELS = re.compile(rb"^(?:ElementDataFile *=|data ?file *:) *(.+)", re.IGNORECASE | re.MULTILINE | re.DOTALL)


def source_digest(path: str | os.PathLike, series: str | None = None) -> str:
    """SHA-256 of an image, which takes half a second a gigabyte.

    Of a file it is that of its bytes; of a DICOM series or slide, and of a header with what belongs to it, that of the
    digests of all files, in alphabetical order.

    Args:
        path: of the file, or of the folder with the series.
        series: its UID, where it is known: else all that lies in the folder.

    Raises:
        DataError: when a file cannot be read.
    """
    path = Path(path)
    files = [path]
    if path.is_dir() and series is not None:
        files = [h.file for s in find_series(path) if s.uid == series for h in s.headers]
    elif path.is_dir():
        files = [p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")]
    elif levels := slide_files(path):
        files = levels
    elif path.suffix.lower() in HEADERS:
        files = files_beside(path)
    digests = [_file_digest(file) for file in sorted(files)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def files_beside(path: Path) -> list[Path]:
    """What belongs to an image that is not one file alone, in alphabetical order; else nothing.

    Of a folder all that lies below it; of a DICOM slice all that lies beside it, and below that; of a header the files
    that it names or that are called like it, itself too.

    Raises:
        DataError: when a header or a folder cannot be read.
    """
    with _named(path):
        if path.is_dir():
            return sorted(files_below(path))
        if (ending := path.suffix.lower()) not in HEADERS:
            return sorted(files_below(path.parent)) if is_dicom(path) else []
        header = b"" if ending == ".img" else path.read_bytes()  # of that one the voxels, whose header is called alike
        beside = [p for p in path.parent.iterdir() if p.stem == path.stem or os.fsencode(p.name) in header]
        files = {*beside, *path.with_suffix("").glob("*"), *_voxel_files(header, path.parent)}
        return sorted(file for file in files if file.is_file())


def _voxel_files(header: bytes, folder: Path) -> Iterator[Path]:
    """What a header names by a path, or by a number in the name."""
    if found := _VOXELS.search(header):
        first, *others = os.fsdecode(found[1]).splitlines()
        for name in others if first.upper().startswith("LIST") else [first]:
            if "%" in name:
                parts = re.split(r"%\d*d", name.split()[0])
                yield from map(Path, glob(os.path.join(escape(str(folder)), "*".join(map(escape, parts)))))
            else:
                yield folder / name.strip()


def _file_digest(path: Path) -> str:
    with _named(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}). Copy it again, or change its permissions.") from e


def weights_digest(ckpt_path: str | os.PathLike) -> str | None:
    """SHA-256 of a file of weights; None where there is none: who loads it will say so."""
    return _file_digest(Path(ckpt_path)) if Path(ckpt_path).is_file() else None


def made_with(ckpt_path: str | os.PathLike, **settings: Any) -> dict[str, Any]:
    """What results depend on beside the image, as it stands in them: `weights`, a SHA-256, and `settings`.

    Args:
        ckpt_path: of the weights.
        settings: of the inference, as a configuration has them.
    """
    return {"weights": weights_digest(ckpt_path), "settings": json.loads(json.dumps(settings, default=str))}


def check_source(place: Path, earlier: Mapping[str, Any], path: str | os.PathLike, series: str | None = None) -> None:
    """Raise a `DataError` where results are of another file, unless that has gone and this one holds the same.

    Args:
        place: where the results are.
        earlier: the `file` that they are of and, unless they are of an older version, its `source_digest`, and of a
            DICOM series its `series_uid`.
        path: of the image.
        series: the UID of the series in it.
    """
    theirs = earlier.get("file")
    other = earlier.get("series_uid")
    same = series is None or other in (None, series)
    if not theirs or (same and os.path.realpath(theirs) == os.path.realpath(path)):
        return
    moved = earlier.get("source_digest") and not os.path.exists(theirs)
    if moved and earlier["source_digest"] == source_digest(path, series):
        return
    theirs, ours = (f"{name} (series {uid})" if uid else name for name, uid in ((theirs, other), (path, series)))
    raise DataError(
        f"{place}: holds the results of {theirs}, another image than {ours}, which has the same name and would replace "
        "them. Choose another --output_dir, or rename one of them."
    )
