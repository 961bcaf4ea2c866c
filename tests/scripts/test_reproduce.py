from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from experiments import organ_table as reproduce
from experiments.organ_table import COLUMNS, organ_table
from matplotlib.image import imread

from shared.datasets import BTCV_LABELS
from shared.utils import DataError, write_csv, write_json

ROOT = Path(__file__).resolve().parents[2]
BOXES = {6: (slice(4, 16), slice(6, 24), slice(8, 24)), 1: (slice(26, 34), slice(6, 14), slice(10, 20))}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four bodies with a box for a liver and one for a spleen."""
    folder, rng = tmp_path / "data", np.random.default_rng(0)
    folder.mkdir()
    cases = []
    for i in range(4):
        image, label = np.full((40, 34, 32), -1000.0), np.zeros((40, 34, 32), np.uint8)
        image[2:38, 2:30] = -90
        for value, box in BOXES.items():
            label[box], image[box] = value, 200 if value == 6 else 60
        image += rng.normal(0, 10, image.shape)
        cases.append({key: f"{key}_{i}.nii.gz" for key in ("image", "label")})
        for key, array in (("image", image.astype(np.int16)), ("label", label)):
            nib.save(nib.Nifti1Image(array, np.diag([5.0, 5.5, 6.0, 1.0])), folder / cases[-1][key])
    splits = {"training": cases[:1], "validation": cases[1:2], "test": cases[2:]}
    write_json(folder / "dataset.json", {"name": "boxes", "synthetic": True, **splits})
    return folder


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Mapping[str, Any], list[str], int]]:
    """A bundle that trains at once, to a Dice of the liver of 0.5 and, with CBS, 0.75; a list of what was started."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    calls = []

    def bundle_run(bundle: Path, configs: list[str], log: Path, options: Mapping[str, Any], ranks: int = 1) -> None:
        folder: Path = options["output_dir"]
        column = folder.parent.name
        calls.append((f"{column} {folder.name}", log.stem, options, configs, ranks))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "last.pt").touch()
        if os.environ.get("FAIL") == column:
            raise DataError(f"{log}: the run failed")
        write_csv(folder / "class_weights.csv", [{"evaluation": 1, "fired": 1}], ["evaluation", "fired"])
        liver = 0.75 if column.endswith("cbs") else 0.5
        rows = [
            {"case": f"image_{i}", "organ": organ, "dice": liver if organ == "liver" else None}
            for i in (2, 3)
            for organ in BTCV_LABELS
        ]
        write_csv(folder / "evaluation" / "scores.csv", rows, ["case", "organ", "dice"])

    monkeypatch.setattr(reproduce, "bundle_run", bundle_run)
    return calls


def test_all_columns_of_a_seed_come_before_the_next(tmp_path: Path, data: Path, started: list) -> None:
    organ_table(str(data), str(tmp_path / "out"), seeds=2, size="demo")
    assert [(run, step) for run, step, *_ in started] == [
        (f"{name} seed{seed}", step) for seed in (0, 1) for name in COLUMNS for step in ("train", "evaluate")
    ]
    assert {run: options["seed"] for run, _, options, *_ in started}["unetr_cbs seed1"] == 1
    table = json.loads((tmp_path / "out" / "organ_table.json").read_text())
    assert table["runs"] == table["planned_runs"] == 16
    with (tmp_path / "out" / "organ_table.csv").open() as file:
        rows = {(row["organ"], row["column"]): row for row in csv.DictReader(file)}
    assert rows["liver", "lambda3d_cbs"] == {
        "organ": "liver", "column": "lambda3d_cbs", "mean": "0.75", "std": "0.0", "min": "0.75", "max": "0.75",
        "n": "2", "poor": "True", "better_than_plain": "True",
    }  # fmt: skip
    assert rows["spleen", "lambda3d_cbs"]["n"] == "0"
    assert rows["firings", "lambda3d_cbs"]["mean"] == "1.0"
    assert "| liver | 84.4 | 55.2 | 0.500 ± 0.000 ★ |" in (tmp_path / "out" / "organ_table.md").read_text()
    assert imread(tmp_path / "out" / "organ_table.png").std() > 0.02


def test_the_demos_overlays_come_before_the_network(tmp_path: Path, data: Path, started: list) -> None:
    organ_table(str(data), str(tmp_path / "out"), 1, "demo", nproc_per_node=2, columns="unet3d_plain", epochs=3)
    (_, _, options, training, ranks), (_, _, scoring, evaluation, one) = started
    variants = [f"configs/variants/{n}.json" for n in ("demo", "demo_schedule", "dice_plain_ce", "unet3d", "plain")]
    assert training == ["configs/train.json", "configs/multi_gpu_train.json", *variants]
    assert evaluation == ["configs/train.json", "configs/evaluate.json", *variants]
    assert (ranks, one) == (2, 1)
    for each in (options, scoring):
        assert each["network_def#features"] == [8, 8, 16, 32, 64, 8]
        assert each["max_epochs"] == 3


def test_the_full_size_is_left_as_configured(tmp_path: Path, data: Path, started: list) -> None:
    organ_table(str(data), str(tmp_path / "out"), 1, columns=("unetr_cbs", "unet3d_cbs"))
    (_, _, options, unetr, _), _, (_, _, others, unet3d, _), _ = started
    assert unetr == ["configs/train.json"]
    assert unet3d == ["configs/train.json", "configs/variants/unet3d.json"]
    for each in (options, others):
        assert {"network_def#features", "max_epochs"}.isdisjoint(each)


def test_what_failed_is_tried_again_and_nothing_else(
    tmp_path: Path, data: Path, started: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = {"seeds": 1, "size": "demo", "columns": ["unetr_plain", "unetr_tcf", "unetr_cbs"]}
    monkeypatch.setenv("FAIL", "unetr_tcf")
    with pytest.raises(DataError, match=r"1 run\(s\) failed[^\n]*\n.*unetr_tcf/seed0/train.log: the run failed"):
        organ_table(str(data), str(tmp_path / "out"), **arguments)
    assert "2 of 3 runs are finished" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "out" / "organ_table.json").read_text())["columns"]) == [
        "unetr_plain",
        "unetr_cbs",
    ]
    assert all(options["resume"] == "false" for _, step, options, *_ in started if step == "train")
    started.clear()
    monkeypatch.delenv("FAIL")
    organ_table(str(data), str(tmp_path / "out"), **arguments)
    assert [(run, step) for run, step, *_ in started] == [("unetr_tcf seed0", "train"), ("unetr_tcf seed0", "evaluate")]
    assert started[0][2]["resume"] == "true"
    assert "3 of 3 runs are finished" in capsys.readouterr().out


def test_runs_of_other_settings_or_data_are_refused_before_any_starts(
    tmp_path: Path, data: Path, started: list
) -> None:
    def again(seeds: int = 1, size: str = "demo", **more: Any) -> None:
        organ_table(str(data), str(tmp_path / "out"), seeds, size, columns=["unetr_plain", "unetr_cbs"], **more)

    again()
    started.clear()
    with pytest.raises(DataError, match="unetr_plain/seed0: holds a run that differs from this one in max_epochs"):
        again(2, epochs=5)
    with pytest.raises(DataError, match=r"in .*, size"):
        again(size="full")
    with pytest.raises(DataError, match=r"in multi_gpu_train\.json, nproc_per_node"):
        again(nproc_per_node=2)
    label = nib.load(data / "label_0.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), data / "label_0.nii.gz")
    with pytest.raises(DataError, match="in data"):
        again()
    assert started == []


def test_a_spent_budget_starts_nothing(
    tmp_path: Path, data: Path, started: list, capsys: pytest.CaptureFixture
) -> None:
    organ_table(str(data), str(tmp_path / "out"), 1, "demo", minutes=1e-9)
    assert started == []
    assert "0 of 8 runs are finished" in capsys.readouterr().out
    assert not (tmp_path / "out" / "organ_table.md").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": 0}, "--seeds is 0, expected a whole number of 1 or above"),
        ({"seeds": "three"}, "--seeds is three"),
        ({"jobs": 1.5}, "--jobs is 1.5"),
        ({"epochs": -1}, "--epochs is -1, expected a whole number of 0 or above"),
        ({"nproc_per_node": True}, "--nproc_per_node is True"),
        ({"minutes": 0}, "--minutes is 0, expected a number above 0"),
        ({"size": "tiny"}, "--size is tiny, expected full, demo"),
        ({"columns": "unetr_cbs,unetr"}, "--columns is unetr, expected unetr_plain, "),
        ({"columns": ()}, "--columns is empty"),
        ({"dataset_dir": "nowhere"}, "nowhere/dataset.json: no such file"),
    ],
)
def test_input_is_checked_first(tmp_path: Path, data: Path, started: list, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        organ_table(**{"dataset_dir": str(data), "output_dir": str(tmp_path / "out"), **wrong})
    assert started == []
    assert not (tmp_path / "out").exists()


def test_every_column_names_configs_that_exist() -> None:
    for size in reproduce.SIZES:
        for name, column in COLUMNS.items():
            setup = reproduce.Setup(Path(), Path(), size, 0, 2)
            for config in (*setup.training(name), *setup.configs(name, "evaluate")):
                assert (reproduce.BUNDLES / column.bundle / config).is_file(), (name, config)


@pytest.mark.slow
def test_a_short_table_goes_all_the_way(tmp_path: Path, data: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "reproduce.py"), "organ_table", "--dataset_dir", str(data)]
    command += ["--output_dir", str(tmp_path / "out"), "--seeds", "1", "--size", "demo", "--epochs", "2"]
    command += ["--columns", "unet3d_plain,unet3d_cbs", "--jobs", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "| organ | voxels % | paper's % | 3D U-Net | 3D U-Net + CBS |" in result.stdout
    for name in ("unet3d_plain", "unet3d_cbs"):
        folder = tmp_path / "out" / name / "seed0"
        assert {"result.json", "model.pt", "model.json"} < {path.name for path in folder.iterdir()}
        assert not (folder / "last.pt").exists()
        dice = json.loads((folder / "result.json").read_text())["dice"]
        assert 0 <= dice["liver"]["image_2"] <= 1
        assert dice["pancreas"] == {"image_2": None, "image_3": None}
