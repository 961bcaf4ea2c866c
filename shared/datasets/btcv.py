"""The abdominal CT of the MICCAI 2015 multi-atlas labelling challenge (BTCV), and its numbering of 13 organs."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import IO

from tqdm.contrib.concurrent import thread_map

from ..utils import DataError, atomic_path
from ..utils.text import first_few
from .ct_cases import CtCase, match_cases

BTCV_LABELS: dict[str, int] = {
    "spleen": 1,
    "right_kidney": 2,
    "left_kidney": 3,
    "gallbladder": 4,
    "oesophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior_vena_cava": 9,
    "portal_and_splenic_veins": 10,
    "pancreas": 11,
    "right_adrenal_gland": 12,
    "left_adrenal_gland": 13,
}

# Folders of images and of their label maps, below the folder that the user gives.
_ARRANGEMENTS = (
    ("RawData/Training/img", "RawData/Training/label"),
    ("Training/img", "Training/label"),
    ("img", "label"),
    ("imagesTr", "labelsTr"),
    ("RawData/imagesTr", "RawData/labelsTr"),
)
_MEMBER = re.compile(r"(?:.*/)?Training/(img|label)/((?:img|label)\d+\.nii\.gz)")


def find_btcv(data_dir: str | os.PathLike, exclude: Collection[str] = ()) -> list[CtCase]:
    """The labelled cases of an unpacked BTCV: `img0001.nii.gz` and `label0001.nii.gz` are the case `0001`.

    The files are in `img` and `label` in `RawData/Training`, or in `imagesTr` and `labelsTr`. Files go together by the
    number that ends their names, nnU-Net's channel `_0000` left aside. Images for testing have no labels and no part.

    Args:
        data_dir: the folder above them.
        exclude: names of cases to be left out.

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
    numbers = match_cases(root, images, labels, exclude)
    return [CtCase(number, images[number], labels[number]) for number in numbers]


def _by_number(folder: Path) -> dict[str, Path]:
    paths = sorted(folder.glob("[!.]*.nii.gz"))
    found = [re.search(r"(\d+)(?:_0000)?\.nii\.gz$", path.name) for path in paths]
    strange = [path.name for path, match in zip(paths, found, strict=True) if not match]
    if strange:
        raise DataError(f"{folder}: {first_few(strange)} has no number. Expected names such as img0001.nii.gz.")
    numbers = [match[1] for match in found if match]
    number, count = Counter(numbers).most_common(1)[0] if numbers else ("", 0)
    if count > 1:
        raise DataError(f"{folder}: {count} files have the number {number}. Keep one of them.")
    return dict(zip(numbers, paths, strict=True))


def _copy(source: IO[bytes], path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


def _members(archive: str | os.PathLike, folder: Path) -> dict[Path, zipfile.ZipInfo]:
    """Where in a folder the files of the labelled cases belong."""
    try:
        with zipfile.ZipFile(archive) as file:
            wanted = [(_MEMBER.fullmatch(info.filename), info) for info in file.infolist()]
    except (OSError, zipfile.BadZipFile) as e:
        raise DataError(f"{archive}: cannot be read as a zip file ({e}). Download it again, or remove it.") from e
    # The paths are made of what fits the pattern alone, so no member can escape from the folder.
    members = {folder / "RawData" / "Training" / match[1] / match[2]: info for match, info in wanted if match}
    if not members:
        raise DataError(f"{archive}: holds no RawData/Training/img/img0001.nii.gz. Expected the RawData.zip of BTCV.")
    return members


def _is_there(path: Path, member: zipfile.ZipInfo) -> bool:
    return path.is_file() and path.stat().st_size == member.file_size


def is_unpacked_btcv(archive: str | os.PathLike, data_dir: str | os.PathLike) -> bool:
    """Whether all labelled cases of `RawData.zip` are in `RawData` in a folder, in full size.

    Raises:
        DataError: when the archive is no zip file, or holds no BTCV.
    """
    return all(_is_there(path, member) for path, member in _members(archive, Path(data_dir)).items())


def extract_btcv(archive: str | os.PathLike, output_dir: str | os.PathLike, num_workers: int = 4) -> Path:
    """Unpack the labelled cases of `RawData.zip` below `output_dir`; files that are there in full size are kept.

    Returns:
        the folder for `find_btcv`.

    Raises:
        DataError: when it is no zip file, holds no BTCV, or is damaged.
    """
    members = _members(archive, Path(output_dir))

    def extract(path: Path) -> None:
        info = members[path]
        if _is_there(path, info):
            return
        try:
            with zipfile.ZipFile(archive) as file, file.open(info) as source, atomic_path(path) as temporary:
                _copy(source, temporary)
        except (zipfile.BadZipFile, zlib.error, EOFError) as e:
            raise DataError(f"{archive}: {info.filename} is damaged ({e}). Download the archive again.") from e

    thread_map(extract, list(members), max_workers=num_workers, desc="unpacking", unit="file")
    return Path(output_dir)
