"""Studies that come as a zip file."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path

from ..utils import DataError, temporary_folder

MOST_MEMBERS = 100_000
SPARE = 2**30  # bytes that stay free on the disk


def unpack(path: Path, parent: Path | None = None) -> Path:
    """Unpack a zip file into a folder of `parent`; by default one for temporary files (`TMPDIR`), which is removed when
    the process ends.

    Raises:
        DataError: when it is no zip file, damaged, encrypted, or has more members, or more in them, than there is room.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and not _is_hidden(m.filename)]
            _check(path, members)
            folder = (parent or _kept_folder()) / path.stem
            for member in members:
                archive.extract(member, folder)  # which leaves out what would lead out of the folder
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as e:
        raise DataError(f"{path}: cannot be unpacked ({e}). Copy it again, or unpack it and give the folder.") from e
    folder.mkdir(exist_ok=True)
    return folder


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _check(path: Path, members: list[zipfile.ZipInfo]) -> None:
    if any(member.flag_bits & 1 for member in members):
        raise DataError(f"{path}: is encrypted. Unpack it with its password, and give the folder.")
    size, place = sum(member.file_size for member in members), tempfile.gettempdir()
    free = max(0, shutil.disk_usage(place).free - SPARE)
    if len(members) > MOST_MEMBERS or size > free:
        raise DataError(
            f"{path}: holds {len(members):,} files of {size / 1e9:.1f} GB, {place} has room for {MOST_MEMBERS:,} of "
            f"{free / 1e9:.1f} GB. Unpack it elsewhere and give the folder, or set TMPDIR to another place."
        )


def _kept_folder() -> Path:
    """A folder that lives as long as this process; not as long as one that is forked off it."""
    stack, owner = ExitStack(), os.getpid()
    folder = stack.enter_context(temporary_folder(tempfile.gettempdir()))
    atexit.register(lambda: stack.close() if os.getpid() == owner else None)
    return folder
