from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOLCK
from pathlib import Path

import pytest
from commands import PYTHON

from shared.utils import EARLIER, atomic_path, temporary, temporary_folder, write_json

WRITE = """
import os, sys, time
from pathlib import Path
from shared.utils import EARLIER, temporary_folder
with temporary_folder(sys.argv[1]) as folder:
    (folder / "half.bin").write_bytes(b"x" * 1000)
    result = Path(sys.argv[1]) / "case"
    if result.exists():
        (folder / EARLIER).mkdir()
        result.rename(folder / EARLIER / "case")
    print(os.getpid(), folder, flush=True)
    time.sleep(600)
"""


@contextmanager
def writing(parent: Path) -> Iterator[Path]:
    """While another process writes: its temporary folder. It is killed at the end."""
    with subprocess.Popen([PYTHON, "-c", WRITE, str(parent)], stdout=subprocess.PIPE, text=True) as process:
        pid, folder = process.stdout.readline().split()
        try:
            yield Path(folder)
        finally:
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "_swept", set())


def result(parent: Path, text: str = "whole") -> Path:
    (parent / "case").mkdir()
    (parent / "case" / "organs.json").write_text(text)
    return parent / "case" / "organs.json"


def test_what_a_killed_process_leaves_is_removed_and_what_it_was_to_replace_is_put_back(tmp_path: Path) -> None:
    kept = result(tmp_path)
    with writing(tmp_path) as folder:
        assert not kept.exists()
    assert (folder / "half.bin").exists()
    with atomic_path(tmp_path / "new.txt") as path:
        path.touch()
    assert kept.read_text() == "whole"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case", "new.txt"]


def test_a_newer_result_is_not_replaced_by_what_is_left(tmp_path: Path) -> None:
    result(tmp_path, "older")
    with writing(tmp_path):
        newer = result(tmp_path, "newer")
    with temporary_folder(tmp_path):
        assert len(list(tmp_path.glob(".writing-*"))) == 1
    assert newer.read_text() == "newer"


def test_living_processes_and_threads_leave_each_other_alone(tmp_path: Path) -> None:
    with writing(tmp_path) as one, temporary_folder(tmp_path) as mine:
        thread = threading.Thread(target=lambda: write_json(tmp_path / "a.json", {}))
        thread.start()
        thread.join()
        with writing(tmp_path / ".") as two:
            assert {one, mine, two} <= {*tmp_path.iterdir()}
            assert (one / "half.bin").exists()


def test_a_folder_that_has_no_lock_yet_is_left_for_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    young, old, other = (tmp_path / name for name in (".writing-abcdefgh", ".writing-12345678", ".writing-notes"))
    for folder in (young, old, other):
        folder.mkdir()
        (folder / "file").touch()
    for folder in (old, other):
        os.utime(folder, (1, 1))
    (tmp_path / ".writing-linked00").symlink_to(other)

    def unsupported(*arguments: object) -> None:
        raise OSError(ENOLCK, "No locks available")

    with monkeypatch.context() as context:
        context.setattr(fcntl, "lockf", unsupported)
        with temporary_folder(tmp_path):
            assert old.exists()
    os.utime(old, (1, 1))
    temporary._swept.clear()
    with temporary_folder(tmp_path):
        assert young.exists()
        assert other.exists()
        assert not old.exists()


def test_a_folder_of_another_machine_is_left_for_a_day(tmp_path: Path) -> None:
    """Some network file systems keep locks to each machine: those of others look free."""
    for name, age in (("new", 3600), ("old", 2 * 86400)):
        folder = tmp_path / f".writing-{name:_<8}"
        folder.mkdir()
        (folder / ".lock").write_text("another machine")
        os.utime(folder, (time.time() - age,) * 2)
    with temporary_folder(tmp_path):
        assert [path.name for path in tmp_path.glob(".writing-*_")] == [".writing-new_____"]


def test_nothing_is_put_back_beside_what_is_whole(tmp_path: Path) -> None:
    """A block that ends, or fails, leaves nothing, whatever was moved into it."""
    with temporary_folder(tmp_path) as folder:
        (folder / EARLIER).mkdir()
        result(folder / EARLIER)
    assert not list(tmp_path.iterdir())
