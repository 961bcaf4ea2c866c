from __future__ import annotations

import os
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from commands import PYTHON, run

ROOT = Path(__file__).resolve().parents[2]


def demo(*options: object, python: str = PYTHON) -> CompletedProcess[str]:
    # on one core, so that no process is spawned for the data: its start takes longer than its share of the little data
    core = [max(os.sched_getaffinity(0))] if hasattr(os, "sched_getaffinity") else []
    single = {"preexec_fn": lambda: os.sched_setaffinity(0, core)} if core else {}
    return run(ROOT / "scripts" / "demo.py", *options, python=python, **single)


@pytest.mark.slow
def test_a_short_demo_goes_all_the_way(tmp_path: Path) -> None:
    """The other abdominal bundle's is the same in another folder; `test_verify_bundles.py` runs its commands."""
    folder = tmp_path / "demo"
    result = demo("--output_dir", folder, "--cases", 4, "--epochs", 4)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    table = result.stdout[result.stdout.index("voxel classifier ") :]
    assert "left_adrenal_gland" in table
    assert "mean, above 1 % share" in table
    assert "Still at 0: " in table
    for path in ("report/evaluation/summary.json", "report/training.png", "models/model.pt"):
        assert (folder / path).is_file(), path
    assert list((folder / "segmentations").glob("*/preview.png"))


@pytest.mark.slow
def test_a_short_demo_of_the_classifier(tmp_path: Path) -> None:
    result = demo("mitosis_fusestyle_cls", "--output_dir", tmp_path / "demo", "--cases", 3, "--epochs", 1)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    table = result.stdout[result.stdout.index("batch norm adapted\nscanner") :]
    for scanner, where in (("XR", "trained on"), ("S360", "trained on"), ("CS", "never seen"), ("GT450", "never seen")):
        (line,) = [line for line in table.splitlines() if line.startswith(f"{scanner} ")]
        assert where in line
        assert all(0 <= float(value) <= 1 for value in line.split()[-4:])
    for path in ("report/evaluation/report.png", "report/training.png", "predictions/predictions.csv"):
        assert (tmp_path / "demo" / path).is_file(), path


@pytest.mark.slow
def test_a_short_demo_of_the_detector(tmp_path: Path) -> None:
    result = demo("mitosis_retinanet_fusestyle", "--output_dir", tmp_path / "demo", "--cases", 3, "--epochs", 1)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    table = result.stdout[result.stdout.index("average precision") :]
    for scanner, where in (("XR", "trained on"), ("S360", "trained on"), ("CS", "never seen"), ("GT450", "never seen")):
        (line,) = [line for line in table.splitlines() if line.startswith(f"{scanner} ") and where in line]
        assert all(value == "-" or 0 <= float(value) <= 1 for value in line.split()[-4:])
    for path in ("report/evaluation/report.png", "report/evaluation/gallery.png", "detections/summary.csv"):
        assert (tmp_path / "demo" / path).is_file(), path
    assert len(list((tmp_path / "demo" / "detections").glob("*.geojson"))) == 8


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    result = demo("--output_dir", tmp_path, python=sys.executable)
    assert result.returncode == 1
    assert "Choose another --output_dir" in result.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_unknown_demo_lists_the_known() -> None:
    result = demo("mitosis")
    assert result.returncode == 1
    known = "abdominal_unetr_cbs, abdominal_lambda3d_cbs, mitosis_fusestyle_cls or mitosis_retinanet_fusestyle"
    assert result.stderr == f"\nError: NAME is 'mitosis', expected {known}.\n"


@pytest.mark.parametrize("wrong", [("--epoch", 3), ("--cases", 2), ("--epochs", "many")])
def test_a_wrong_option_leaves_the_earlier_demo(wrong: tuple[str, object], tmp_path: Path) -> None:
    (tmp_path / ".demo").touch()
    (tmp_path / "model.pt").touch()
    result = demo("--output_dir", tmp_path, *wrong)
    assert (result.returncode, result.stderr[:10]) == (1, f"\nError: {wrong[0][:2]}")
    assert (tmp_path / "model.pt").is_file()
