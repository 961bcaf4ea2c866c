"""Temporary folders beside what is written in them, and what processes that were killed have left of theirs."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

logger = logging.getLogger(__name__)

PREFIX = ".writing-"
EARLIER = "earlier"  # in a temporary folder: what stands beside it, under its name, while it is being replaced
LOCK = ".lock"
YOUNG = 60.0  # seconds in which a folder gets its lock
DAY = 86400.0  # seconds; younger ones of another machine may be in use although their lock looks free, as on some NFS
_ours = re.compile(re.escape(PREFIX) + r"\w{8}")
# Folders that this process has looked through, by device and inode. It does so before it makes its first temporary
# folder there: its own locks are free to itself, and closing such a file would give them up.
_swept: set[tuple[int, int]] = set()
_sweeping = threading.Lock()
if hasattr(os, "register_at_fork"):  # what is forked in the middle would wait for ever
    os.register_at_fork(before=_sweeping.acquire, after_in_parent=_sweeping.release, after_in_child=_sweeping.release)


@contextmanager
def temporary_folder(parent: str | os.PathLike) -> Iterator[Path]:
    """A folder in `parent` for the length of the block. What is moved out of it stays.

    It holds a locked file, by which other processes know that its own is alive. Before the first one of this process
    in `parent`, those are removed whose process was killed, and what stands in `EARLIER` of them is put back where its
    place is empty. Where the file system knows no locks, nothing is removed.

    Raises:
        OSError: when it cannot be made.
    """
    parent = Path(parent)
    with _sweeping:
        found = parent.stat()
        if (key := (found.st_dev, found.st_ino)) not in _swept:
            _sweep(parent)
            _swept.add(key)
    folder, lock = Path(tempfile.mkdtemp(dir=parent, prefix=PREFIX)), None
    try:
        lock = _lock(folder)
        yield folder
    finally:
        if lock is not None:
            os.close(lock)  # first: NFS keeps a file that is open, and so its folder
        shutil.rmtree(folder, ignore_errors=True)  # what cannot be removed now is a leftover, removed by a later run


def _lock(folder: Path) -> int | None:
    """The opened lock of a new folder; it gets its name when it is held."""
    if fcntl is None:
        return None
    file = os.open(folder / f"{LOCK}-new", os.O_RDWR | os.O_CREAT, 0o666)
    os.write(file, socket.gethostname().encode())
    with suppress(OSError):  # without locks, nobody else gets this one either
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.rename(folder / f"{LOCK}-new", folder / LOCK)
    return file


def _sweep(parent: Path) -> None:
    if fcntl is None:
        return
    with suppress(OSError), os.scandir(parent) as entries:
        found = [Path(e.path) for e in entries if _ours.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
        for folder in found:
            with suppress(OSError):  # it is in use, no longer there, another user's, or there are no locks
                _remove_leftover(folder)


def _remove_leftover(folder: Path) -> None:
    """Remove a temporary folder whose lock is free; otherwise raise an `OSError`."""
    age = time.time() - folder.stat().st_mtime
    if not (folder / LOCK).exists() and age < YOUNG:
        return
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if os.read(file, 1000) not in (b"", socket.gethostname().encode()) and age < DAY:
            return
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for kept in sorted((folder / EARLIER).iterdir()) if (folder / EARLIER).is_dir() else []:
            place = folder.parent / kept.name
            if not os.path.lexists(place):
                kept.rename(place)
                logger.warning("%s: put back; a run that was to replace it was killed", place)
        shutil.rmtree(folder)
        logger.info("%s: removed; the run that wrote here was killed", folder)
    finally:
        os.close(file)
