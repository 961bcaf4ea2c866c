from __future__ import annotations

import csv
import json
import os
import shutil
import types
from contextlib import nullcontext
from errno import EBADF, EINVAL, EIO, ENOSPC
from pathlib import Path

import pytest
import torch

from shared.utils import (
    DataError,
    DiskFullError,
    append_csv,
    atomic_path,
    read_csv,
    read_json_object,
    writable_folder,
    write_csv,
    write_json,
)

FULL = Path("/dev/full")  # a file of Linux that is always full


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "new" / "volume.nii.gz"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.name.endswith(".nii.gz")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("file", "file/output", "file/a/b"):
        with pytest.raises(
            DataError, match=r"cannot be written to, as .*/file is a file\. Choose another output folder"
        ):
            writable_folder(tmp_path / folder)


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    assert list(writable_folder(tmp_path / "a" / "b").iterdir()) == []


def test_tables(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "t.csv", [{"organ": "liver", "dice": 0.5}, {"organ": "spleen", "dice": None}], ["organ", "dice"]
    )
    assert (tmp_path / "t.csv").read_text().splitlines() == ["organ,dice", "liver,0.5", "spleen,"]
    write_json(tmp_path / "t.json", {"a": [1, None]})
    assert json.loads((tmp_path / "t.json").read_text()) == {"a": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "t.json", {"a": float("nan")})
    assert json.loads((tmp_path / "t.json").read_text()) == {"a": [1, None]}


RISKY = ["=cmd|' /C calc'!A0", "+1+1", "-", "@SUM(A1)", "\tx", "\r=1", "'=x", "''-y", "-x,\n"]
SAFE = ["'quoted'", "plain", "a=b", ""]
NUMBERS = ["-1.5", "+2", "-1e-3", "-inf"]  # as text


def test_names_that_look_like_formulas(tmp_path: Path) -> None:
    """They are written so that a spreadsheet takes them for text, and read as they are; numbers stay numbers."""
    path, rows = tmp_path / "t.csv", [{"=name": name, "score": -0.5} for name in RISKY + SAFE + NUMBERS]
    write_csv(path, rows[:2], ["=name", "score"])
    append_csv(path, rows[2:], ["=name", "score"])
    with path.open(newline="") as file:
        header, *found = csv.reader(file)
    assert header == ["'=name", "score"]
    assert [cells[0] for cells in found] == [*(f"'{name}" for name in RISKY), *SAFE, *NUMBERS]
    assert {cells[1] for cells in found} == {"-0.5"}
    assert read_csv(path) == [{**row, "score": "-0.5"} for row in rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_with_a_mark_of_its_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"name": "Köln"}', encoding=encoding)
    assert read_json_object(tmp_path / "t.json", "", "") == {"name": "Köln"}


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.symlink_to(FULL)
            temporary.write_text("new")

    with pytest.raises(DiskFullError, match=r"scores.json: could not be written, the disk is full. Free space"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(DiskFullError, match=r"^/dev/full: could not be written, the disk is full"):
        append_csv(FULL, [{"a": 1}], ["a"])


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(("free", "error"), [(0, DiskFullError), (2**30, RuntimeError)])
def test_a_checkpoint_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, error: type[Exception]
) -> None:
    """torch does not say why a file could not be written; what is free on the disk does."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=free))

    def write() -> None:
        with atomic_path(tmp_path / "last.pt") as temporary:
            temporary.symlink_to(FULL)
            torch.save({"weight": torch.zeros(10**5)}, temporary)

    with pytest.raises(error, match="last.pt: could not be written" if free == 0 else "unexpected pos|iostream"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_on_a_full_disk_an_error_in_the_data_is_still_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=0))
    with pytest.raises(DataError, match=r"^scan.nii.gz: is empty$") as caught, atomic_path(tmp_path / "label.nii.gz"):
        raise DataError("scan.nii.gz: is empty")
    assert not isinstance(caught.value, DiskFullError)


def test_json_that_is_nested_too_deeply_is_told(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_bytes(b"[" * 200_000)
    with pytest.raises(DataError, match=r"deep\.json: not readable as JSON \(nested too deeply\)\. Expected a list"):
        read_json_object(tmp_path / "deep.json", "a list", "")


def test_what_is_no_json_object_is_told_with_what_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match=r"a\.json: no such file\. Expected a list of fruit\. Look elsewhere\."):
        read_json_object(path, "a list of fruit", "Look elsewhere.")
    for content, message in (
        ("{", r"not readable as JSON \(.*\)"),
        ("\xff", "not readable"),
        ("[1]", "holds a JSON list"),
    ):
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(DataError, match=rf"a\.json: {message}.*\. Expected a list of fruit\."):
            read_json_object(path, "a list of fruit", "Look elsewhere.")
    path.write_text('{"apples": 3}')
    assert read_json_object(path, "a list of fruit", "") == {"apples": 3}


def test_what_cannot_be_made_again_is_on_the_disk_before_the_older_file_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        done.append(("replace", os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_json(tmp_path / "a.json", {}, durable=True)
    assert done == [("fsync", "a.json"), ("replace", "a.json"), ("fsync", tmp_path.name)]
    write_json(tmp_path / "b.json", {})
    assert done[3:] == [("replace", "b.json")]


@pytest.mark.parametrize(("error", "passes"), [(EINVAL, True), (EBADF, True), (EIO, False), (ENOSPC, False)])
def test_where_nothing_can_be_synchronised_files_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, passes: bool
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", refuse)
    with nullcontext() if passes else pytest.raises((OSError, DataError)):
        write_json(tmp_path / "a.json", {}, durable=True)
    assert (tmp_path / "a.json").is_file() == passes
