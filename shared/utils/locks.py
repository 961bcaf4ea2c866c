"""Folders that one process at a time writes to."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from errno import EACCES, EAGAIN
from pathlib import Path

from .errors import DataError

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

logger = logging.getLogger(__name__)

NAME = ".lock"
# Open files, by path. A process gives up its lock on a file when it closes any descriptor of it: each is opened once.
_held: dict[Path, int] = {}


def lock_folder(folder: str | os.PathLike, option: str, wait: float = 0.0) -> None:
    """Keep a folder for this process until `unlock_folder`, or until the process ends, however it does.

    The lock is advisory: it holds off those who ask for it. A process that holds it may ask again. Processes that it
    forks do not hold it. Where the file system knows no locks, a warning says that nothing is held off.

    Args:
        folder: it exists.
        option: of the command line, which sets the folder: for the message.
        wait: seconds to wait for another process.

    Raises:
        DataError: when another process holds it; the message names its machine, process id and start.
    """
    path = Path(folder).resolve() / NAME
    if path in _held:
        return
    if fcntl is None:
        logger.warning("%s: this system knows no locks: nothing keeps another run out of this folder", folder)
        return
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as e:
            if e.errno not in (EACCES, EAGAIN):
                os.close(file)
                logger.warning("%s: cannot be locked (%s): nothing keeps another run out of it", folder, e.strerror)
                return
            if time.monotonic() >= end:
                holder = _read(file)
                os.close(file)
                raise DataError(
                    f"{folder}: another run writes here{holder}. Wait for its end, or choose another {option}."
                ) from None
        time.sleep(0.2)
    _held[path] = file
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}).encode(), 0)


def unlock_folder(folder: str | os.PathLike) -> None:
    """Give the lock on a folder up, where this process holds it."""
    file = _held.pop(Path(folder).resolve() / NAME, None)
    if file is not None:
        os.close(file)


def _read(file: int) -> str:
    """Who holds the lock, as far as the file says it."""
    try:
        holder = json.loads(os.pread(file, 1000, 0))
        return f" (process {holder['pid']} on {holder['host']}, since {holder['since']})"
    except (ValueError, KeyError, TypeError):  # it is just being written
        return ""
