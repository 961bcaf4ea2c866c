from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from camelyon17_tree import make_tree
from commands import PYTHON, run
from PIL import Image

from shared.data import load_patches
from shared.datasets.camelyon17 import read_camelyon17
from shared.utils import DataError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prepare_camelyon17.py"


def test_default_split_of_wilds(tmp_path: Path) -> None:
    splits = read_camelyon17(make_tree(tmp_path))
    found = {split: Counter(p["domain"] for p in patches) for split, patches in splits.items()}
    assert found == {
        "training": {"centre 0": 10, "centre 3": 10, "centre 4": 10},
        "validation": {"centre 0": 2, "centre 3": 2, "centre 4": 2},
        "ood_validation": {"centre 1": 12},  # whatever its column `split` says
        "test": {"centre 2": 12},
    }
    assert splits["training"][0] == {
        "image": "patches/patient_004_node_0/patch_patient_004_node_0_x_3360_y_21792.png",
        "label": 1,
        "domain": "centre 0",
        "slide": "patient_004_node_0",
        "patient": 4,
        "node": 0,
        "x_coord": 3360,
        "y_coord": 21792,
        "center": 0,
        "slide_number": 0,
        "wilds_split": 0,
    }


def test_a_patient_without_its_zeros(tmp_path: Path) -> None:
    splits = read_camelyon17(make_tree(tmp_path, patient="4"))
    assert splits["validation"][0]["slide"] == "patient_004_node_0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tumor": 2}, "tumor is 2 in line 2, expected 0 to 1"),
        ({"center": 5}, "center is 5 in line 2, expected 0 to 4"),
        ({"split": 3}, "split is 3 in line 2, expected 0 to 1"),
        ({"x_coord": "a"}, "line 2 holds no whole number"),
        ({"x_coord": 3360}, r"line 3 lists patches/patient_004_node_0/.*_x_3360_y_21792.png again"),
        ({"node": 7}, r"1 of 60 patches are missing: patches/patient_004_node_7/patch_patient_004_node_7_x_3328_y"),
    ],
)
def test_bad_metadata(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make_tree(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        read_camelyon17(tmp_path)


def test_no_metadata(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no such table\. Give the folder that WILDS makes"):
        read_camelyon17(tmp_path)
    (tmp_path / "metadata.csv").write_text("patient,node\n")
    with pytest.raises(DataError, match="has no column 'x_coord'"):
        read_camelyon17(tmp_path)
    (tmp_path / "metadata.csv").write_text("patient,node,x_coord,y_coord,tumor,slide,center,split\n")
    with pytest.raises(DataError, match="holds no rows"):
        read_camelyon17(tmp_path)


def test_missing_patches(tmp_path: Path) -> None:
    make_tree(tmp_path)
    gone = sorted((tmp_path / "patches/patient_044_node_0").iterdir())[:2]
    for path in gone:
        path.unlink()
    with pytest.raises(DataError, match=rf"2 of 60 patches are missing: .*{gone[0].name}.*--allow_missing"):
        read_camelyon17(tmp_path)
    splits = read_camelyon17(tmp_path, allow_missing=True)
    assert len(splits["test"]) == 10
    assert not {path.name for path in gone} & {Path(p["image"]).name for p in splits["test"]}
    (tmp_path / "patches").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="60 of 60 patches are missing"):
        read_camelyon17(tmp_path, allow_missing=True)


def prepare(*arguments: object, python: str = PYTHON) -> CompletedProcess[str]:
    return run(SCRIPT, *arguments, python=python)


def test_command_line(tmp_path: Path) -> None:
    source, output = make_tree(tmp_path / "camelyon17_v1.0"), tmp_path / "out" / "dataset.json"
    done = prepare("--data_dir", source, "--output", output, python=sys.executable)
    assert done.returncode == 0, done.stderr
    assert "centre 0  training             2         4         6" in done.stdout
    assert f"60 patches: {output}" in done.stdout
    content = json.loads(output.read_text())
    assert content["labels"] == {"0": "normal", "1": "tumour"}
    patches = load_patches(output, "ood_validation")
    assert len(patches) == 12
    assert not Path(content["test"][0]["image"]).is_absolute()

    broken = next((source / "patches/patient_004_node_0").iterdir())
    Image.new("RGB", (64, 96)).save(broken)
    before = output.read_bytes()
    done = prepare("--data_dir", source, "--output", output, "--check_images")
    assert done.returncode == 1
    assert f"{broken.name}: has 64 × 96 pixels, expected 96 × 96" in done.stderr
    assert "Traceback" not in done.stderr
    assert output.read_bytes() == before
