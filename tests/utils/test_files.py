from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.utils import DataError, atomic_path, writable_folder, write_csv, write_json


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
    with pytest.raises(DataError, match=r"file/output: cannot be written to .*another output folder"):
        writable_folder(tmp_path / "file" / "output")


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
