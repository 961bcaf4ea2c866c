from __future__ import annotations

import fcntl
import logging
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOLCK
from pathlib import Path

import pytest
from commands import PYTHON

from shared.utils import DataError, lock_folder, unlock_folder

HOLD = """
import os, sys, time
from shared.utils import lock_folder
lock_folder(sys.argv[1], "--ckpt_dir")
child = os.fork()
if child == 0:
    os.execvp("sleep", ["sleep", "600"])
print(os.getpid(), child, flush=True)
time.sleep(600)
"""


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """While another process, whose id is given, and which has left a process of its own, holds the folder."""
    with subprocess.Popen([PYTHON, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        pid, child = map(int, process.stdout.readline().split())
        try:
            yield pid
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


def test_another_process_is_held_off_and_told_by_whom(tmp_path: Path) -> None:
    with held(tmp_path) as pid, pytest.raises(DataError) as error:
        lock_folder(tmp_path, "--ckpt_dir")
    assert re.fullmatch(
        rf"{tmp_path}: another run writes here \(process {pid} on \S+, since [\d: -]+\)\. Wait for its end, or choose "
        r"another --ckpt_dir\.",
        str(error.value),
    )


def test_the_end_of_a_process_gives_its_folder_free_whatever_it_has_started(tmp_path: Path) -> None:
    with held(tmp_path) as pid:
        with pytest.raises(DataError, match="another run writes here"):
            lock_folder(tmp_path, "--ckpt_dir", wait=0.3)
        os.kill(pid, signal.SIGKILL)
        lock_folder(tmp_path, "--ckpt_dir", wait=60)  # its child lives on
    unlock_folder(tmp_path)


def test_a_process_may_take_a_folder_again_and_again(tmp_path: Path) -> None:
    for _ in range(3):
        lock_folder(tmp_path, "--ckpt_dir")
        lock_folder(tmp_path, "--ckpt_dir")
        unlock_folder(tmp_path)
        unlock_folder(tmp_path)


def test_where_there_are_no_locks_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*arguments: object) -> None:
        raise OSError(ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with caplog.at_level(logging.WARNING):
        lock_folder(tmp_path, "--ckpt_dir")
    assert "cannot be locked (No locks available): nothing keeps another run out of it" in caplog.text
