from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from commands import PYTHON, run
from matplotlib.image import imread
from small_runs import histology_data

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_stylized.py"


@pytest.mark.parametrize(
    ("boxes", "processes", "python"),
    [pytest.param(False, 2, sys.executable, marks=pytest.mark.slow), (True, 1, PYTHON)],
)
def test_copies_and_a_contact_sheet_are_made(tmp_path: Path, boxes: bool, processes: int, python: str) -> None:
    """Of patches by two processes, and of regions."""
    histology_data(tmp_path, 80, 4, boxes=boxes)
    places = ("--datalist", tmp_path / "dataset.json", "--output", tmp_path / "new" / "strap.json")
    options = ("--style_size", 64, "--batch_size", 2, "--processes", processes)
    done = run(SCRIPT, *places, *options, python=python)
    assert done.returncode == 0, done.stderr
    assert "4 images redrawn, Laplacian pyramids, styles: textures" in done.stdout
    assert imread(tmp_path / "new" / "strap" / "contact_sheet.png").std() > 0.05
    content = json.loads((tmp_path / "new" / "strap.json").read_text())
    assert content["stylized"]["method"] == "Laplacian pyramids"
    for entry in content["training"]:
        assert (tmp_path / "new" / entry["stylized"]).is_file()
        assert (tmp_path / "new" / entry["image"]).samefile(tmp_path / Path(entry["image"]).name)


def test_the_datalist_is_not_replaced_by_its_copy(tmp_path: Path) -> None:
    done = run(SCRIPT, "--datalist", tmp_path / "a.json", "--output", tmp_path / "a.json")
    assert done.returncode == 1
    assert "expected another .json file than --datalist" in done.stderr
