from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from errno import EDQUOT, EIO, ENOSPC
from pathlib import Path
from typing import Any, TextIO

from .errors import FREE_SPACE, DataError, DiskFullError, is_disk_full
from .temporary import temporary_folder

FULL = 2**20  # bytes that are free on a disk where a large file has just failed to fit
FORMULA = re.compile(r"'*[=+\-@\t\r\n]")  # how a cell begins that a spreadsheet would run, or one written for it


@contextmanager
def name_full_disk(path: str | os.PathLike) -> Iterator[None]:
    """While `path` is written in the block: raise an error that says so where its disk is full.

    Raises:
        DiskFullError: in place of the writer's own error. torch's, of a checkpoint that did not fit, is "unexpected pos
            25877184 vs 25877080".
    """
    path = Path(path)
    try:
        yield
    except DataError:
        raise
    except Exception as e:
        # What writes in C++ does not tell why it failed.
        if not is_disk_full(e) and shutil.disk_usage(path.parent).free >= FULL:
            raise
        raise DiskFullError(f"{path}: could not be written, the disk is full. {FREE_SPACE}") from e


@contextmanager
def atomic_path(path: str | os.PathLike, durable: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; rename it to `path` when the block ends without an exception.

    The temporary name ends as `path` does (`.nii.gz`), because writers choose the format by it. Missing folders are
    made. After an exception, or an interrupt, nothing is left behind and an older `path` is untouched; after a kill,
    the next process that writes there removes what is left, see `temporary_folder`.

    Args:
        path: of the file.
        durable: have the disk hold the file, and its name, before the older one is gone: for what cannot be made again,
            should the machine lose its power. About half a second a gigabyte.

    Raises:
        DataError: when the folder cannot be made or written to.
        DiskFullError: when the file does not fit on the disk.
    """
    path = Path(path)
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(temporary_folder(path.parent))
        except OSError as e:
            file = file_in_the_way(path.parent)
            why = f", as {file} is a file" if file else f" ({e.strerror})"
            raise DataError(
                f"{path.parent}: cannot be written to{why}. Choose another output folder or change its permissions."
            ) from e
        stack.enter_context(name_full_disk(path))
        temporary = folder / path.name
        yield temporary
        if durable:
            _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)
        if durable:
            _sync(path.parent, os.O_RDONLY)


def _sync(path: Path, mode: int) -> None:
    """Have the disk hold what a file, or a folder's list of names, holds, where the system can."""
    try:
        descriptor = os.open(path, mode)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as e:
        if e.errno in (EDQUOT, EIO, ENOSPC):  # others say that folders, or files there, cannot be synchronised
            raise


def file_in_the_way(folder: Path) -> Path | None:
    """What is no folder and stands where this folder, or one that it is to lie in, is expected."""
    return next((p for p in (folder, *folder.parents) if os.path.exists(p) and not os.path.isdir(p)), None)


def read_json_object(path: str | os.PathLike, expected: str, remedy: str) -> dict[str, Any]:
    """The content of a JSON file, in UTF-8 or UTF-16, with or without a byte order mark.

    Args:
        path: of the file.
        expected: what it should be, for the message.
        remedy: what to do where it is missing.

    Raises:
        DataError: when it is missing, or anything but a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {found}. Expected {expected}. {remedy}")
    try:
        content = parse_json(path)
    except ValueError as e:
        raise DataError(f"{path}: not readable as JSON ({e}). Expected {expected}.") from e
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a JSON {type(content).__name__}. Expected {expected}.")
    return content


def parse_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds. A `ValueError` where it is none, or lists in lists are too deep to be read."""
    try:
        return json.loads(Path(path).read_bytes())
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def write_json(path: str | os.PathLike, content: Any, durable: bool = False) -> None:
    """Write `content` as indented JSON, atomically; `durable` as in `atomic_path`. NaN is refused: it is not JSON."""
    with atomic_path(path, durable) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]], fieldnames: Sequence[str]) -> None:
    """Write rows under a header, atomically. A value of None is left blank.

    Text that a spreadsheet would take for a formula is written with a `'` before it, which `read_csv` takes off.
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        _write_rows(file, [dict(zip(fieldnames, fieldnames, strict=True)), *rows], fieldnames)


def append_csv(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]], fieldnames: Sequence[str]) -> None:
    """Add rows to a file that `write_csv` has written with the same fields, at a cost that does not grow with it.

    Raises:
        DataError: when the file cannot be written to.
    """
    try:
        with name_full_disk(path), Path(path).open("a", newline="", encoding="utf-8") as file:
            _write_rows(file, rows, fieldnames)
    except OSError as e:
        raise DataError(f"{path}: cannot be written to ({e.strerror}). Change its permissions.") from e


def _write_rows(file: TextIO, rows: Sequence[Mapping[str, Any]], fieldnames: Sequence[str]) -> None:
    writer = csv.DictWriter(file, fieldnames=list(fieldnames))
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    if not isinstance(value, str) or not FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def cell_text(cell: str) -> str:
    """What `write_csv` wrote as this cell: without the `'` before what looks like a formula."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def read_csv(path: str | os.PathLike) -> list[dict[str, str]]:
    """The rows of a file that `write_csv` has written, as text."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        header, *rows = [list(map(cell_text, row)) for row in csv.reader(file)]
    return [dict(zip(header, row, strict=True)) for row in rows]


def writable_folder(path: str | os.PathLike) -> Path:
    """Make the folder if it is missing, and see that files can be written to it, before hours of work depend on it.

    Raises:
        DataError: when it cannot be made or written to.
    """
    with atomic_path(Path(path) / ".writable") as temporary:
        temporary.touch()
    (Path(path) / ".writable").unlink(missing_ok=True)
    return Path(path)
