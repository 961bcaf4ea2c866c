from __future__ import annotations

import logging
import zlib
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from ..utils import DataError

logger = logging.getLogger(__name__)


def check_archive(path: Path, remedy: str) -> None:
    """See that a file of `torch.save` is as it was written, by the checksums in it: torch itself does not look at them.

    About half a second a gigabyte. Files in the format before torch 1.6 hold none; a warning says so.

    Raises:
        DataError: with `remedy`, when it was cut short or has changed.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if start and start != b"PK":
        logger.warning("%s: an old format without checksums: whether it is whole is not checked", path)
        return
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()
    except (BadZipFile, EOFError, OSError, ValueError, RuntimeError, zlib.error) as e:  # by what has changed
        raise DataError(f"{path}: is cut short or damaged ({e}). {remedy}") from e
    if damaged:
        raise DataError(f"{path}: is damaged: {damaged} in it has changed since it was written. {remedy}")
