from __future__ import annotations

from pathlib import Path

import pytest

from shared.datasets.preparation import resolve_folders, worker_count
from shared.utils import DataError


def test_folders_and_workers(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert resolve_folders(tmp_path / "data/../data", tmp_path / "data2") == (tmp_path / "data", tmp_path / "data2")
    for output in ("data", "data/a/b"):
        with pytest.raises(DataError, match="is inside of --data_dir, which stays as it is"):
            resolve_folders(tmp_path / "data", tmp_path / output)
    with pytest.raises(DataError, match="there is no such file or folder"):
        resolve_folders(tmp_path / "none", tmp_path)
    assert worker_count(3) == 3
    assert 1 <= worker_count(None) <= 8
