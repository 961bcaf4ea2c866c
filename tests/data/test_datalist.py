from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shared.data import data_digest, dataset_info, load_datalist, write_datalist
from shared.utils import DataError


def write(folder: Path, **content: Any) -> Path:
    path = folder / "dataset.json"
    path.write_text(json.dumps({"name": "toy", "training": [], **content}))
    return path


def test_info(tmp_path: Path) -> None:
    assert dataset_info(write(tmp_path)) == {"name": "toy", "synthetic": False}
    assert not dataset_info(write(tmp_path, synthetic=False))["synthetic"]
    info = dataset_info(write(tmp_path, name="", synthetic=True), "validation", 0, 3)
    assert info == {"name": tmp_path.name, "synthetic": True, "split": "validation", "fold": 0, "folds": 3}


@pytest.mark.parametrize("read", [dataset_info, partial(load_datalist, split="test")])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file.* Check `dataset_dir` and `datalist`"),
        ("{", "not readable as JSON"),
        ("[1]", "holds a JSON list"),
    ],
)
def test_bad_files(tmp_path: Path, content: str | None, message: str, read: Callable[[Path], Any]) -> None:
    path = tmp_path / "dataset.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        read(path)


def test_datalist_with_a_line_for_each_entry(tmp_path: Path) -> None:
    content = {"name": "x", "labels": {"0": "a"}, "training": [{"image": "ä"}, {"image": "b"}], "test": []}
    path = tmp_path / "dataset.json"
    write_datalist(path, content)
    assert json.loads(path.read_text()) == content
    assert len(path.read_text().splitlines()) == 9
    path.write_text(json.dumps(content))  # the same, in another form
    write_datalist(path, content)
    assert path.read_text() == json.dumps(content)
    with pytest.raises(DataError, match="holds another datalist"):
        write_datalist(path, content | {"name": "y"})
    write_datalist(path, content | {"name": "y"}, overwrite=True)
    assert json.loads(path.read_text())["name"] == "y"
    with pytest.raises(DataError, match=r"a datalist is a \.json file"):
        write_datalist(tmp_path / "metadata.csv", content, overwrite=True)


def test_the_digest_is_of_the_entries_wherever_their_folder_is() -> None:
    def digest(folder: str = "images", name: str = "a.png", label: int = 1, *more: Any) -> str:
        return data_digest([{"image": f"{folder}/{name}", "label": label, "slide": "s1"}], *more)

    assert digest(folder="/elsewhere/images") == digest()
    assert (
        len({digest(), digest(name="b.png"), digest(label=0), digest("images", "a.png", 1, [{"image": "a.png"}])}) == 4
    )
