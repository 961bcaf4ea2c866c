from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from commands import PYTHON, run
from PIL import Image

from shared.datasets.histology_entries import count_patches
from shared.datasets.patch_table import read_patch_table
from shared.datasets.splits import split_patches
from shared.utils import DataError

ROOT = Path(__file__).resolve().parents[2]
CROPS = ROOT / "../shared/data/histology/mitosis_vs_nucleus"
SCANNERS = ("Hamamatsu XR", "Aperio CS2")


def make_table(folder: Path, slides: int = 5, per_slide: int = 4, **changes: Any) -> Path:
    """A table of small PNG files from two scanners; `changes` sets cells of its first row."""
    rows = []
    (folder / "png").mkdir(parents=True)
    for scanner in SCANNERS:
        for slide in range(slides):
            for i in range(per_slide):
                name = f"png/{scanner[-2:]}_{slide}_{i}.png"
                Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(folder / name)
                label = "mitotic" if i % 2 else "other"
                rows.append({"file": name, "label": label, "scanner": scanner, "slide": f"{slide}.tiff", "x": i})
    rows[0] |= changes
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "index.csv"


def test_table(tmp_path: Path) -> None:
    patches = read_patch_table(make_table(tmp_path), tmp_path, "mitotic")
    assert len(patches) == 40
    expected = {"image": str(tmp_path / "png/XR_0_1.png"), "label": 1, "domain": "XR", "slide": "0.tiff", "x": "1"}
    assert patches[1] == expected
    assert [p["label"] for p in patches[:4]] == [0, 1, 0, 1]
    other_way_round = read_patch_table(tmp_path / "index.csv", tmp_path, "other", "mitotic")
    assert [p["label"] for p in other_way_round[:4]] == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"positive": "mitosis"}, r"its labels are 'other' \(20\), 'mitotic' \(20\), expected 'mitosis' and one"),
        ({"label": "unsure"}, {}, r"'unsure' \(1\), .*expected 'mitotic' and one other value"),
        ({"label": "unsure"}, {"negative": "other"}, r"'unsure' \(1\), .*expected 'mitotic' and 'other'"),
        ({"slide": ""}, {}, "the column 'slide' is empty in line 2"),
        ({"file": "png/XR_0_1.png"}, {}, "XR_0_1.png more than once"),
        ({"file": "png/none.png"}, {}, r"(?s)1 of 40 images cannot be used.*none.png: there is no such file"),
        ({}, {"slide_column": "patient"}, "has no column 'patient' for the slide. It has: file, label, scanner"),
    ],
)
def test_bad_tables(tmp_path: Path, changes: dict[str, str], options: dict[str, str], message: str) -> None:
    table = make_table(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        read_patch_table(table, tmp_path, **{"positive": "mitotic"} | options)


def test_grey_images_are_found_before_training(tmp_path: Path) -> None:
    table = make_table(tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "png/XR_0_0.png")
    with pytest.raises(DataError, match=r"(?s)1 of 40 images cannot be used.*XR_0_0.png: found a grey image"):
        read_patch_table(table, tmp_path, "mitotic")


def test_broken_image_and_missing_or_empty_table(tmp_path: Path) -> None:
    table = make_table(tmp_path)
    whole = (tmp_path / "png/XR_0_0.png").read_bytes()
    (tmp_path / "png/XR_0_0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"(?s)1 of 40 images cannot be used.*XR_0_0.png: cannot be read as an image"):
        read_patch_table(table, tmp_path, "mitotic")
    with pytest.raises(DataError, match="there is no such table"):
        read_patch_table(tmp_path / "none.csv", tmp_path, "mitotic")
    table.write_text("file,label\n")
    with pytest.raises(DataError, match="holds no rows"):
        read_patch_table(table, tmp_path, "mitotic")
    table.write_bytes(b"\x89PNG\r\n\0\0")
    with pytest.raises(DataError, match=r"index.csv: no text, or UTF-16 .* Give the path of a CSV file"):
        read_patch_table(table, tmp_path, "mitotic")


def prepare(*arguments: object, python: str = PYTHON) -> CompletedProcess[str]:
    return run(ROOT / "scripts" / "prepare_patches.py", *arguments, python=python)


def test_command_line(tmp_path: Path) -> None:
    table, output = make_table(tmp_path / "source"), tmp_path / "out" / "dataset.json"
    arguments = ("--table", table, "--image_dir", table.parent, "--output", output, "--positive", "mitotic")
    done = prepare(*arguments, python=sys.executable)
    assert done.returncode == 0, done.stderr
    assert "40 patches" in done.stdout
    content = json.loads(output.read_text())
    assert content["labels"] == {"0": "not mitotic", "1": "mitotic"}
    assert all((output.parent / p["image"]).is_file() for p in content["training"])
    assert not Path(content["test"][0]["image"]).is_absolute()
    before = output.read_bytes()
    assert prepare(*arguments).returncode == 0  # again, with the same result
    other = prepare(*arguments, "--seed", 1)
    assert other.returncode == 1
    assert "holds another datalist" in other.stderr
    assert output.read_bytes() == before
    assert prepare(*arguments, "--seed", 1, "--overwrite").returncode == 0
    assert output.read_bytes() != before


def test_names_that_may_mislead_are_pointed_out(tmp_path: Path) -> None:
    table = make_table(tmp_path, scanner="Hamamatsu_XR")
    done = prepare("--table", table, "--image_dir", tmp_path, "--output", tmp_path / "d.json", "--positive", "mitotic")
    assert done.returncode == 0, done.stderr
    assert "Warning: Hamamatsu XR, Hamamatsu_XR are taken for one domain, XR." in done.stdout
    assert "Warning: 5 slide names, such as 0.tiff, occur in several domains." in done.stdout


@pytest.mark.skipif(not CROPS.is_dir(), reason="../shared/data is not here")
def test_real_crops(tmp_path: Path) -> None:
    found = read_patch_table(CROPS / "index.csv", CROPS, "mitotic", "non_mitotic")
    counts = count_patches(split_patches(found))
    assert {row["domain"] for row in counts} == {"XR", "S360", "CS"}
    assert all(row["positive"] > 10 and row["negative"] > 10 for row in counts)
