from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from experiments import benchmark_nnunet as module
from experiments.benchmark_nnunet import ENTRANTS, ENVIRONMENT, benchmark_nnunet, dice_of_files, find_nnunet, summarise
from experiments.runs import ROOT, Cost, logged_run
from matplotlib.image import imread
from small_runs import ct_data

from shared.datasets.ct_cases import BTCV_LABELS
from shared.datasets.nnunet import read_nnunet
from shared.utils import DataError, write_csv

CLASSES = {"liver": 1, "spleen": 2}
ORGANS_OF_CASES = [name for name, i in BTCV_LABELS.items() if i in (1, 2)]
# Takes what it is given down, and finds each label map as it is.
PRETENDED = """#!{python}
import json, os, pathlib, shutil, sys

step, options = sys.argv[3], json.loads(sys.argv[4])
with open({log!r}, "a") as file:
    print(json.dumps([step, options, os.environ["OMP_NUM_THREADS"]]), file=file)
if step == "plan":
    (raw,) = pathlib.Path(os.environ["nnUNet_raw"]).iterdir()
    (pathlib.Path(os.environ["nnUNet_preprocessed"]) / raw.name).mkdir(parents=True)
if step == "train":
    (pathlib.Path(os.environ["nnUNet_results"]) / "a").mkdir(parents=True)
if step == "train" and options["seed"] == 2:
    sys.exit("ValueError: no luck")
if step == "predict":
    for image in options["images"]:
        label = image.replace("imagesTs", "labelsTs").replace("_0000.", ".")
        os.makedirs(options["output"], exist_ok=True)
        shutil.copy(label, options["output"])
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    ct_data(folder)
    return folder


@pytest.fixture
def python(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(PRETENDED.format(python=sys.executable, log=str(tmp_path / "steps")))
    path.chmod(0o700)
    return path


def steps(tmp_path: Path) -> list[tuple[str, dict[str, Any], str]]:
    return [tuple(json.loads(line)) for line in (tmp_path / "steps").read_text().splitlines()]


@pytest.fixture
def bundles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Bundles that find the half of everything."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    calls = []

    def bundle_run(bundle: Path, configs: list[str], log: Path, options: Mapping[str, Any], ranks: int = 1) -> Cost:
        folder: Path = options["output_dir"]
        calls.append((folder.parent.name, log.stem, options))
        rows = [
            {"case": case, "organ": organ, "dice": 0.5 if organ in ORGANS_OF_CASES else None}
            for case in ("image_5", "image_4")
            for organ in BTCV_LABELS
        ]
        write_csv(folder / "evaluation" / "scores.csv", rows, ["case", "organ", "dice"])
        return Cost(12.0, 1.5)

    monkeypatch.setattr("experiments.runs.bundle_run", bundle_run)
    return calls


def test_bundles_and_nnunet_get_the_same_cases(
    tmp_path: Path, data: Path, python: Path, bundles: list, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    networks = ("unetr", "nnunet", "nnunet_small", "nnunet_crops")
    options = {"networks": networks, "nnunet_python": str(python), "epochs": 3}
    benchmark_nnunet(str(data), str(out), **options, seeds=1)
    assert [(name, step) for name, step, _ in bundles] == [("unetr", "train"), ("unetr", "evaluate")]
    assert bundles[0][2].items() >= {"max_epochs": 3, "seed": 0, "dataset_dir": data}.items()
    found = steps(tmp_path)
    assert [step for step, *_ in found] == ["plan", *("train", "predict") * 3]
    assert found[0][1:] == ({"spacing": [6.0, 6.0, 6.0]}, "1")
    assert found[1][1].items() >= {"features": 1.0, "seed": 0, "epochs": 3, "iterations": 10}.items()
    assert [found[i][1].get("crop") for i in (1, 3, 5)] == [None, None, 32]
    assert [found[i][1]["features"] for i in (3, 5)] == [0.25, 0.25]
    text = (out / "nnunet.md").read_text()
    assert "2 test cases of boxes, 4 of 4 runs. " in text
    assert "| unetr | 1 | – | – |" in text  # no case has one of the small organs
    assert "0.500 (0.500 to 0.500) | 12.0 | 1.5 |" in text
    assert "| unetr | -0.500 |" in text
    assert imread(out / "nnunet.png").std() > 0.02
    networks = json.loads((out / "nnunet.json").read_text())["networks"]
    assert networks["nnunet"]["dice"]["mean over organs"]["mean"] == 1.0

    facts, labels, cases, test = read_nnunet(out / "nnunet" / "raw" / module.DATASET)
    assert facts["modality"] == {"0": "CT"}
    assert labels == BTCV_LABELS
    assert [case.name for case in cases] == [f"image_{i}" for i in range(4)]
    assert [case.name for case in test] == ["image_4", "image_5"]
    planned = out / "nnunet" / "preprocessed" / module.DATASET / "splits_final.json"
    assert json.loads(planned.read_text()) == [{"train": ["image_0", "image_1"], "val": ["image_2", "image_3"]}]

    # what is there is not done again, and a run that fails is told of
    with pytest.raises(DataError, match=r"1 run\(s\) failed.*\n.*train\.log: the run failed .*: ValueError: no luck"):
        benchmark_nnunet(str(data), str(out), **options | {"networks": ("unetr", "nnunet")}, seeds=3)
    assert [step for step, *_ in steps(tmp_path)][7:] == ["train", "predict", "train"]
    assert "**Incomplete: no verdict" in capsys.readouterr().out


def test_dice_is_that_of_each_class_on_the_labels_grid(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label, found = rng.integers(0, 3, (2, 7, 6, 5)).astype(np.uint8)
    for name, array in (("label", label), ("found", found)):
        nib.save(nib.Nifti1Image(array, np.diag([-2, 1, 3, 1])), tmp_path / f"{name}.nii.gz")
    dice = dice_of_files(tmp_path / "label.nii.gz", tmp_path / "found.nii.gz", {**CLASSES, "stomach": 7})
    for name, i in CLASSES.items():
        both = sum(a == b == i for a, b in zip(label.flat, found.flat, strict=True))
        assert dice[name] == round(2 * both / (list(label.flat).count(i) + list(found.flat).count(i)), 4)
    assert dice["stomach"] is None
    nib.save(nib.Nifti1Image(found, np.diag([2, 1, 3, 1])), tmp_path / "found.nii.gz")
    with pytest.raises(DataError, match=r"found\.nii\.gz: its grid differs"):
        dice_of_files(tmp_path / "label.nii.gz", tmp_path / "found.nii.gz", CLASSES)


def test_what_a_resumed_training_cost_is_not_all_known() -> None:
    dice = {organ: [0.5] for organ in BTCV_LABELS}
    run = {"network": "nnunet", "epochs": 3, "dice": dice, "peak_gib": 1.0}
    runs = [{**run, "seed": i, "cpu_minutes": m, "resumed": m < 30} for i, m in enumerate((31.0, 4.0))]
    assert summarise(runs, ENTRANTS)["nnunet"]["cpu_minutes"] == 31.0
    assert "cpu_minutes" not in summarise(runs[1:], ENTRANTS)["nnunet"]


def test_a_command_says_what_it_cost(tmp_path: Path) -> None:
    mine = bytearray(1_500_000_000)  # the child's is not counted from there
    mine[::4096] = b"x" * len(mine[::4096])
    work = "x = bytearray(200_000_000); x[::4096] = b'x' * len(x[::4096])\nwhile time.process_time() < 0.7: pass"
    program = (
        f"import subprocess, sys, time\n{work}\nsubprocess.run([sys.executable, '-c', {'import time; ' + work!r}])"
    )
    cost = logged_run(["-c", program], tmp_path, tmp_path / "log", python=sys._base_executable)
    assert 1.4 / 60 <= cost.cpu_minutes < 0.2  # with what it starts
    assert 0.18 < cost.peak_gib < 0.3


def test_it_says_how_to_get_nnunet(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENVIRONMENT", tmp_path / ".venv-nnunet")
    with pytest.raises(DataError, match=r"bin/python: is not there\. .*pip install --requirement requirements-nnunet"):
        benchmark_nnunet(str(data), str(tmp_path / "out"), seeds=1)
    (data / "image_0.nii.gz").rename(data / "image_0.nii")
    listed = data / "dataset.json"
    listed.write_text(listed.read_text().replace("image_0.nii.gz", "image_0.nii"))
    with pytest.raises(DataError, match=r"image_0\.nii: expected a \.nii\.gz file"):
        benchmark_nnunet(str(data), str(tmp_path / "out"), seeds=1, nnunet_python=sys.executable)


@pytest.mark.slow
@pytest.mark.skipif(not (ENVIRONMENT / "bin" / "python").is_file(), reason=f"needs {ENVIRONMENT.name}")
def test_nnunet_itself(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, axes, remove = {"networks": ("nnunet_small",), "seeds": 1, "epochs": 2}, [], shutil.rmtree

    def look_and_remove(folder: Path, **options: Any) -> None:
        for path in Path(folder).rglob("checkpoint_final.pth"):
            axes.append(torch.load(path, weights_only=False)["inference_allowed_mirroring_axes"])
        remove(folder, **options)

    monkeypatch.setattr(module.shutil, "rmtree", look_and_remove)
    benchmark_nnunet(str(data), str(tmp_path / "out"), **options)
    (run,) = json.loads((tmp_path / "out" / "nnunet.json").read_text())["networks"].values()
    assert run["cpu_minutes"] > 0
    assert axes == [(0, 1)]  # of z, y and x: left and right stay apart
    log = next((tmp_path / "out").rglob("train.log")).read_text()
    assert "2 training and 2 validation cases" in log
    assert find_nnunet("") == ROOT / ".venv-nnunet" / "bin" / "python"
