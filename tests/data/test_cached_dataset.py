from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from dicom_files import write_series
from monai.transforms import MapTransform, RandShiftIntensityd, Transform

from shared.data import cached_dataset
from shared.data.cached_dataset import prepared_cases
from shared.utils import DataError, DiskFullError


class ReadNumberd(MapTransform):
    """Reads a number from a text file and counts how often."""

    reads: list[str] = []  # noqa: RUF012

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__("image")
        self.factor = factor

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        self.reads.append(Path(data["image"]).name)
        text = Path(data["image"]).read_text()
        if not text:
            raise DataError(f"{data['image']}: is empty")
        return {**data, "image": torch.tensor([float(text)]) * self.factor}


@pytest.fixture
def data(tmp_path: Path) -> list[dict[str, str]]:
    ReadNumberd.reads.clear()
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(str(i))
    return [{"image": str(tmp_path / f"{i}.txt"), "case": str(i)} for i in range(3)]


def values(dataset: torch.utils.data.Dataset) -> list[float]:
    return [dataset[i]["image"].item() for i in range(3)]


def transforms(factor: float = 1.0, offset: float = 0.0) -> list[Transform]:
    return [ReadNumberd(factor), RandShiftIntensityd("image", offsets=(offset, offset), prob=1.0)]


@pytest.mark.parametrize(("cache", "reads"), [("disk", 3), ("memory", 3), ("none", 6)])
def test_all_caches_give_the_same_and_read_once(
    data: list[dict[str, str]], tmp_path: Path, cache: str, reads: int
) -> None:
    dataset = cached_dataset(data, transforms(offset=10), cache=cache, cache_dir=tmp_path / "cache")
    assert values(dataset) == values(dataset) == [10, 11, 12]
    assert len(ReadNumberd.reads) == reads
    assert dataset[0]["case"] == "0"


@pytest.mark.parametrize(("cache", "reads"), [("disk", 0), ("memory", 0), ("none", 3)])
def test_cases_are_looked_at_before_anything_random(
    data: list[dict[str, str]], tmp_path: Path, cache: str, reads: int
) -> None:
    dataset = cached_dataset(data, transforms(offset=10), cache=cache, cache_dir=tmp_path / "cache")
    ReadNumberd.reads.clear()
    assert prepared_cases(dataset, lambda case: (case["case"], case["image"].item())) == [("0", 0), ("1", 1), ("2", 2)]
    assert len(ReadNumberd.reads) == reads


def test_the_disk_cache_is_found_again_by_a_later_run(data: list[dict[str, str]], tmp_path: Path) -> None:
    for _ in range(2):
        assert values(cached_dataset(data, transforms(), cache_dir=tmp_path / "cache")) == [0, 1, 2]
    assert len(ReadNumberd.reads) == 3


def test_changed_preprocessing_is_not_read_from_the_cache(data: list[dict[str, str]], tmp_path: Path) -> None:
    cached_dataset(data, transforms(), cache_dir=tmp_path / "cache")
    assert values(cached_dataset(data, transforms(factor=2), cache_dir=tmp_path / "cache")) == [0, 2, 4]
    assert values(cached_dataset(data, transforms(offset=5), cache_dir=tmp_path / "cache")) == [5, 6, 7]
    assert len(ReadNumberd.reads) == 6


def test_a_replaced_file_is_read_again(data: list[dict[str, str]], tmp_path: Path) -> None:
    cached_dataset(data, transforms(), cache_dir=tmp_path / "cache")
    (tmp_path / "1.txt").write_text("7")
    os.utime(tmp_path / "1.txt", ns=(0, 1))
    assert values(cached_dataset(data, transforms(), cache_dir=tmp_path / "cache")) == [0, 7, 2]


HEADERS = {
    "ct.mhd": "NDims = 3\nElementDataFile = voxels.raw",
    "below.mhd": "ElementDataFile = raw/ct 1.raw\n",
    "numbered.mhd": "ElementDataFile = raw/s%03d.raw 0 39 1",
    "listed.mhd": "ElementDataFile = LIST\nvoxels.raw\nraw/ct 1.raw",
    "ct.nhdr": "NRRD0004\ntype: short\ndata file: raw/ct 1.raw",
    "numbered.nhdr": "NRRD0004\ndata file: raw/s%03d.raw 0 39 1 2",
}


@pytest.mark.parametrize(
    ("image", "changed"),
    [
        ("series", "series/b/2.dcm"),
        ("series", "elsewhere/3.dcm"),  # by a link
        ("series/b/1.dcm", "series/b/2.dcm"),
        ("by_uid/1.2.392.1", "by_uid/1.2.392.2"),
        ("ct.mhd", "voxels.raw"),
        ("below.mhd", "raw/ct 1.raw"),
        ("numbered.mhd", "raw/s007.raw"),
        ("listed.mhd", "raw/ct 1.raw"),
        ("ct.nhdr", "raw/ct 1.raw"),
        ("numbered.nhdr", "raw/s007.raw"),
    ],
)
def test_what_belongs_to_an_image_and_is_replaced_in_place_is_noticed(tmp_path: Path, image: str, changed: str) -> None:
    """Neither the folder of a series nor a header changes with it."""
    voxels = ("voxels.raw", "other.raw", "raw/ct 1.raw", "raw/s007.raw")
    for name in ("series/b/1.dcm", "series/b/2.dcm", "elsewhere/3.dcm", *voxels):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("0")
    (tmp_path / "series" / "link").symlink_to(tmp_path / "elsewhere")
    write_series(tmp_path / "by_uid", 2, "1.2.392.{}")
    for name, text in HEADERS.items():
        (tmp_path / name).write_text(text)
    item = {"image": str(tmp_path / image), "case": "1"}
    cache = partial(
        cached_dataset, [item], [lambda item: {**item, "image": torch.ones(1)}], cache_dir=tmp_path / "made"
    )
    cache()
    (tmp_path / "other.raw").write_text("another")
    cache()
    assert len(list((tmp_path / "made").glob("*.pt"))) == 1
    (tmp_path / changed).write_text("another")
    cache()
    assert len(list((tmp_path / "made").glob("*.pt"))) == 2


def test_a_cache_file_is_not_changed_by_what_follows(data: list[dict[str, str]], tmp_path: Path) -> None:
    dataset = cached_dataset(data, transforms(), cache_dir=tmp_path / "cache")
    dataset[1]["image"].add_(100)
    assert values(dataset) == [0, 1, 2]


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_every_bad_case_is_named_before_training(data: list[dict[str, str]], tmp_path: Path, cache: str) -> None:
    for i in (0, 2):
        (tmp_path / f"{i}.txt").write_text("")
    with pytest.raises(DataError, match=r"2 of 3 cases cannot be used:\n  .*0\.txt: is empty\n  .*2\.txt: is empty"):
        cached_dataset(data, transforms(), cache=cache, cache_dir=tmp_path / "cache")
    (tmp_path / "0.txt").write_text("0")
    with pytest.raises(DataError, match=r"^.*2\.txt: is empty$"):
        cached_dataset(data, transforms(), cache=cache, cache_dir=tmp_path / "cache")


def test_a_full_disk_ends_the_preprocessing_at_once(
    data: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(content: object, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(DiskFullError, match=r"\.pt: could not be written, the disk is full"):
        cached_dataset(data * 100, transforms(), cache="disk", cache_dir=tmp_path / "cache", num_workers=1)
    assert len(ReadNumberd.reads) < 150


def test_another_cache_is_refused(data: list[dict[str, str]]) -> None:
    with pytest.raises(ValueError, match="disk, memory, none, got 'tape'"):
        cached_dataset(data, transforms(), cache="tape")
