"""The abdominal CT of the MICCAI 2015 multi-atlas labelling challenge (BTCV), and its numbering of 13 organs."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

from tqdm.contrib.concurrent import thread_map

from ..utils import DataError, atomic_path
from .ct_cases import CtCase, match_cases
from .preparation import refuse, repeated

# Folders of images and of their label maps, below the folder that the user gives.
_ARRANGEMENTS = (
    ("RawData/Training/img", "RawData/Training/label"),
    ("Training/img", "Training/label"),
    ("img", "label"),
    ("imagesTr", "labelsTr"),
    ("RawData/imagesTr", "RawData/labelsTr"),
)
_MOST_UNPACKED = 100  # bytes of a member for a byte of it in the archive: the volumes are compressed themselves
_MEMBER = re.compile(r"(?:.*/)?Training/(img|label)/((?:img|label)\d+\.nii\.gz)")


def find_btcv(data_dir: str | os.PathLike, exclude: Collection[str] = ()) -> list[CtCase]:
    """The labelled cases of an unpacked BTCV: `img0001.nii.gz` and `label0001.nii.gz` are the case `0001`.

    The files are in `img` and `label` in `RawData/Training`, or in `imagesTr` and `labelsTr`. Files go together by the
    number that ends their names, nnU-Net's channel `_0000` left aside. Images for testing have no labels and no part.

    Raises:
        DataError: no such folders are there, an image has no label map or a label map no image, two of them have the
            same number, or a case to be left out is not there.
    """
    root = Path(data_dir)
    found = [(root / a, root / b) for a, b in _ARRANGEMENTS if (root / a).is_dir() and (root / b).is_dir()]
    if not found:
        raise DataError(
            f"{root}: holds no BTCV. Expected RawData.zip, or the folders RawData/Training/img and "
            "RawData/Training/label, or imagesTr and labelsTr."
        )
    images, labels = (_by_number(folder) for folder in found[0])
    if not images and not labels:
        raise DataError(f"{found[0][0]}: holds no .nii.gz file. Unpack the archive again.")
    return match_cases(root, images, labels, exclude)


def _by_number(folder: Path) -> dict[str, Path]:
    paths = sorted(folder.glob("[!.]*.nii.gz"))
    found = [re.search(r"(\d+)(?:_0000)?\.nii\.gz$", path.name) for path in paths]
    strange = [path.name for path, match in zip(paths, found, strict=True) if not match]
    refuse(folder, strange, "{few} has no number. Expected names such as img0001.nii.gz.")
    numbers = [match[1] for match in found if match]
    twice = repeated(numbers)
    if twice:
        raise DataError(f"{folder}: {numbers.count(twice[0])} files have the number {twice[0]}. Keep one of them.")
    return dict(zip(numbers, paths, strict=True))


def _missing(archive: str | os.PathLike, folder: Path) -> dict[Path, zipfile.ZipInfo]:
    """Where in a folder those files of the labelled cases belong that are not there in full size."""
    try:
        with zipfile.ZipFile(archive) as file:
            wanted = [(_MEMBER.fullmatch(info.filename), info) for info in file.infolist()]
    except (OSError, zipfile.BadZipFile) as e:
        raise DataError(f"{archive}: cannot be read as a zip file ({e}). Download it again, or remove it.") from e
    # The paths are made of what fits the pattern alone, so no member can escape from the folder.
    members = {folder / "RawData" / "Training" / match[1] / match[2]: info for match, info in wanted if match}
    if not members:
        raise DataError(f"{archive}: holds no RawData/Training/img/img0001.nii.gz. Expected the RawData.zip of BTCV.")
    return {path: m for path, m in members.items() if not path.is_file() or path.stat().st_size != m.file_size}


def _check_sizes(archive: Path, members: Collection[zipfile.ZipInfo], target: Path) -> None:
    """See that what is to be unpacked is as large as volumes that are compressed already, and fits on the disk."""
    swollen = [m.filename for m in members if m.file_size > _MOST_UNPACKED * max(m.compress_size, 2**10)]
    message = "{0} claims more than {most} times its size in the archive ({count} such). Download it again."
    refuse(archive, swollen, message, most=_MOST_UNPACKED)
    needed = sum(m.file_size for m in members)
    free = shutil.disk_usage(next(p for p in (target, *target.absolute().parents) if p.is_dir())).free
    if needed > free:
        raise DataError(
            f"{archive}: {needed / 1e9:.1f} GB are to be unpacked, and {target} has {free / 1e9:.1f} GB free. Free "
            "space, or choose another --output_dir."
        )


def unpack_btcv(data_dir: str | os.PathLike, output_dir: str | os.PathLike, num_workers: int = 4) -> Path:
    """The folder for `find_btcv`: `data_dir` where it holds no `RawData.zip`, or all labelled cases of it in `RawData`.

    Else the archive's labelled cases are unpacked into `output_dir`; files that are there in full size are kept.
    `data_dir` may be the archive itself.

    Raises:
        DataError: when the archive is no zip file, holds no BTCV, is damaged, or becomes larger than the disk allows.
    """
    source, target = Path(data_dir), Path(output_dir)
    archive = source / "RawData.zip" if source.is_dir() else source
    if not archive.is_file() or not _missing(archive, source):
        return source
    missing = _missing(archive, target)
    _check_sizes(archive, missing.values(), target)

    def extract(path: Path, info: zipfile.ZipInfo) -> None:
        try:
            with (
                zipfile.ZipFile(archive) as file,
                file.open(info) as packed,
                atomic_path(path) as temporary,
                temporary.open("wb") as unpacked,
            ):
                shutil.copyfileobj(packed, unpacked, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, EOFError) as e:
            raise DataError(f"{archive}: {info.filename} is damaged ({e}). Download the archive again.") from e

    thread_map(extract, missing.keys(), missing.values(), max_workers=num_workers, desc="unpacking", unit="file")
    return target
