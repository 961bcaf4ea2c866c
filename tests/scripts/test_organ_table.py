from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import commands
import nibabel as nib
import numpy as np
import pytest
from command_line.parser import read_words
from experiments import organ_table as module
from experiments.organ_table import (
    COLUMNS,
    MEAN,
    POOR_MEAN,
    SIZES,
    Column,
    markdown,
    organ_table,
    paired_bootstrap,
    picture,
    plan_trainings,
    summarise,
)
from experiments.runs import BUNDLES
from matplotlib.image import imread

from shared.datasets.ct_cases import BTCV_LABELS
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

    monkeypatch.setattr("experiments.runs.bundle_run", bundle_run)
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
        ("--seeds=0", "--seeds is 0, expected a whole number of 1 or above"),
        ("--jobs=1.5", r"--jobs is 1\.5"),
        ("--epochs=-1", "--epochs is -1, expected a whole number of 0 or above"),
        ("--nproc_per_node=True", "--nproc_per_node is True"),
        ("--minutes=0", "--minutes is 0, expected a number above 0"),
        ("--size=tiny", "--size is 'tiny', expected full or demo"),
        ("--columns=unetr_cbs,unetr", r"--columns is \['unetr_cbs', 'unetr'\], expected a list, each unetr_plain, "),
        ("--columns=", r"--columns is \[\]"),
    ],
)
def test_options_are_checked(wrong: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_words(organ_table, ["data", "out", wrong], "")


def test_input_is_checked_first(tmp_path: Path, started: list) -> None:
    with pytest.raises(DataError, match=r"nowhere/dataset\.json: no such file"):
        organ_table("nowhere", str(tmp_path / "out"))
    assert started == []
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_is_wrong_in_a_line(tmp_path: Path) -> None:
    options = ["--dataset_dir", tmp_path, "--output_dir", tmp_path / "out"]
    result = commands.run(ROOT / "scripts" / "reproduce.py", "organ_table", *options, python=sys.executable)
    assert result.returncode == 1
    assert result.stderr.strip().startswith(f"Error: {tmp_path}/dataset.json: no such file")


def test_every_column_names_configs_that_exist(tmp_path: Path, data: Path) -> None:
    for size in SIZES:
        for training in plan_trainings(list(COLUMNS), 1, data, tmp_path, size, 0, 2):
            for config in (*training.training_configs, *training.configs("evaluate")):
                assert (BUNDLES / training.bundle / config).is_file(), (training.folder, config)


@pytest.mark.slow
def test_a_short_table_goes_all_the_way(tmp_path: Path, data: Path) -> None:
    options = ["--dataset_dir", data, "--output_dir", tmp_path / "out", "--seeds", 1, "--size", "demo", "--epochs", 2]
    options += ["--columns", "unet3d_plain,unet3d_cbs", "--jobs", 2]
    result = commands.run(ROOT / "scripts" / "reproduce.py", "organ_table", *options)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "| organ | voxels % | paper's % | 3D U-Net | 3D U-Net + CBS |" in result.stdout
    for name in ("unet3d_plain", "unet3d_cbs"):
        folder = tmp_path / "out" / name / "seed0"
        assert {"result.json", "model.pt", "model.json"} < {path.name for path in folder.iterdir()}
        assert not (folder / "last.pt").exists()
        dice = json.loads((folder / "result.json").read_text())["dice"]
        assert 0 <= dice["liver"]["image_2"] <= 1
        assert dice["pancreas"] == {"image_2": None, "image_3": None}


MADE_UP = {
    "plain": Column("UNETR", "plain", 0.777, "b", ()),
    "tcf": Column("UNETR", "tcf", 0.787, "b", ()),
    "cbs": Column("UNETR", "cbs", 0.792, "b", ()),
    "lambda_plain": Column("Lambda3D", "plain", 0.707, "b", ()),
    "lambda_cbs": Column("Lambda3D", "cbs", 0.725, "b", ()),
}
VOXELS = {"spleen": 30, "liver": 60, "pancreas": 10, "gallbladder": 0}


def run(
    column: str, seed: int, spleen: list[float | None], liver: list[float], pancreas: list[float]
) -> dict[str, Any]:
    organs = {"spleen": spleen, "liver": liver, "pancreas": pancreas, "gallbladder": [None, None]}
    dice = {organ: {"case a": a, "case b": b} for organ, (a, b) in organs.items()}
    if column == "cbs":  # no two runs need to list the cases in the same order
        dice = {organ: dict(reversed(scores.items())) for organ, scores in dice.items()}
    return {"column": column, "seed": seed, "firings": 2 * seed, "dice": dice}


def runs() -> list[dict[str, Any]]:
    return [
        run("cbs", 1, [0.9, None], [0.7, 0.9], [0.5, 0.7]),
        run("plain", 0, [0.9, None], [0.8, 0.9], [0.2, 0.4]),
        run("plain", 1, [0.8, None], [0.8, 0.9], [0.4, 0.6]),
        run("cbs", 0, [0.9, None], [0.8, 0.8], [0.3, 0.5]),
        run("tcf", 1, [0.8, None], [0.8, 0.9], [0.4, 0.6]),
    ]


def table(**more: Any) -> dict[str, Any]:
    return {"caption": "Made up.", "seeds": 2, **summarise(runs(), MADE_UP, VOXELS)} | more


def test_rows_are_means_over_cases_then_seeds() -> None:
    columns = table()["columns"]
    assert list(columns) == ["plain", "tcf", "cbs"], "a column without runs is left out"
    plain, cbs = columns["plain"]["rows"], columns["cbs"]["rows"]
    assert list(plain) == ["liver", "spleen", "pancreas", "gallbladder", MEAN, POOR_MEAN], "most voxels first"
    # seeds: 0.3 and 0.5
    expected = {"mean": 0.4, "std": 0.1414, "min": 0.3, "max": 0.5, "n": 2, "poor": True, "better_than_plain": False}
    assert plain["pancreas"] == expected
    assert plain["spleen"]["mean"] == 0.85, "the case without a spleen has no part"
    assert plain["gallbladder"] is None
    assert plain[MEAN]["mean"] == pytest.approx((0.85 + 0.85 + 0.4) / 3, abs=1e-4)
    assert plain[MEAN]["std"] == pytest.approx(
        np.std([(0.85 + 0.9 + 0.3) / 3, (0.85 + 0.8 + 0.5) / 3], ddof=1), abs=1e-4
    )
    assert columns["plain"]["poor_organs"] == columns["cbs"]["poor_organs"] == ["pancreas"]
    assert cbs[POOR_MEAN]["mean"] == cbs["pancreas"]["mean"] == 0.5
    assert [organ for organ, dice in cbs.items() if dice and dice["poor"]] == ["pancreas", MEAN, POOR_MEAN]
    assert columns["cbs"]["firings"] == {"0": 0, "1": 2}
    assert columns["cbs"]["reported_mean_dice"] == 0.792


def test_better_than_plain_is_judged_on_the_same_seeds() -> None:
    columns = table()["columns"]
    better = {
        name: [row for row, dice in c["rows"].items() if dice and dice["better_than_plain"]]
        for name, c in columns.items()
    }
    assert better["cbs"] == ["spleen", "pancreas", MEAN, POOR_MEAN]
    # TCF's only seed equals plain's, though its means (0.5 of the pancreas) are above plain's over both seeds (0.4).
    assert columns["tcf"]["rows"]["pancreas"]["mean"] == 0.5
    assert better["tcf"] == better["plain"] == []


def test_poor_organs_are_chosen_without_favour() -> None:
    """Neither column alone says which; the liver is poor in one of them, and in the mean of both it is not."""
    plain, cbs = (
        run("plain", 0, [0.9, None], [0.78, 0.78], [0.1, 0.1]),
        run("cbs", 0, [0.9, None], [0.9] * 2, [0.1] * 2),
    )
    for poor_liver, other in ((plain, cbs), (cbs | {"column": "plain"}, plain | {"column": "cbs"})):
        columns = summarise([poor_liver, other], MADE_UP, VOXELS)["columns"]
        assert columns["plain"]["poor_organs"] == columns["cbs"]["poor_organs"] == ["pancreas"]


def test_without_the_plain_column_nothing_is_better() -> None:
    found = summarise([run("lambda_cbs", 0, [0.1, None], [0.2, 0.3], [0.1, 0.1])], MADE_UP, VOXELS)
    column = found["columns"]["lambda_cbs"]
    assert column["rows"]["liver"]["better_than_plain"] is False
    assert column["minus_plain"] is None


def test_voxel_shares_stand_beside_the_papers() -> None:
    shares = table()["voxel_shares"]
    assert shares["liver"] == {"percent": 60.0, "paper": 55.2}
    assert shares["gallbladder"] == {"percent": 0.0, "paper": 0.9}


def slow_bootstrap(difference: np.ndarray, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw by draw, with lists; returns the mean of each organ and over organs, and the resampled ones."""
    seeds, cases, organs = difference.shape
    rng = np.random.default_rng(0)
    drawn = [rng.multinomial(n, [1 / n] * n, size=resamples) for n in (seeds, cases)]

    def means(picked_seeds: list[int], picked_cases: list[int]) -> list[float]:
        each = []
        for organ in range(organs):
            values = [difference[s, c, organ] for s in picked_seeds for c in picked_cases]
            values = [v for v in values if not np.isnan(v)]
            each.append(sum(values) / len(values) if values else np.nan)
        there = [v for v in each if not np.isnan(v)]
        return [*each, sum(there) / len(there) if there else np.nan]

    picks = [[[i for i, k in enumerate(counts) for _ in range(k)] for counts in each] for each in drawn]
    found = means(list(range(seeds)), list(range(cases)))
    return np.array(found), np.array([means(s, c) for s, c in zip(*picks, strict=True)])


def test_bootstrap_equals_its_literal_transcription() -> None:
    difference = np.random.default_rng(1).normal(0.1, 0.3, (3, 5, 4))
    difference[:, [0, 3], 1] = np.nan
    difference[:, :, 2] = np.nan
    difference[:, 1:, 3] = np.nan
    means, resampled = slow_bootstrap(difference, 200)
    result = paired_bootstrap(difference, resamples=200)
    assert [entry["cases"] for entry in result] == [5, 3, 0, 1, 5]
    assert result[2] == {"difference": None, "interval": None, "seeds": 3, "cases": 0}
    assert result[3]["interval"] is None, "one case says nothing about others"
    for i in (0, 1, 3, 4):
        assert result[i]["difference"] == pytest.approx(means[i], abs=5e-5)
    for i in (0, 1, 4):
        assert result[i]["interval"] == pytest.approx(np.nanpercentile(resampled[:, i], [2.5, 97.5]), abs=5e-5)


def test_interval_tells_a_steady_gain_from_one_of_a_single_seed() -> None:
    steady, lucky = np.full((3, 4, 1), 0.1), np.zeros((3, 4, 1))
    lucky[0] = 0.3
    (entry, _), (other, _) = paired_bootstrap(steady), paired_bootstrap(lucky)
    assert entry["difference"] == other["difference"] == 0.1
    assert entry["interval"] == [0.1, 0.1]
    assert other["interval"] == [0.0, 0.3]
    assert paired_bootstrap(steady[:1])[0]["interval"] is None


def test_differences_are_paired_by_seed_and_case() -> None:
    entries = table()["columns"]["cbs"]["minus_plain"]
    assert entries["liver"] == {"difference": -0.05, "interval": [-0.1, 0.0], "seeds": 2, "cases": 2}
    assert entries["pancreas"]["difference"] == entries[POOR_MEAN]["difference"] == 0.1
    assert entries["pancreas"]["interval"] == [0.1, 0.1]
    assert entries["gallbladder"]["difference"] is None
    assert entries[MEAN]["difference"] == pytest.approx((-0.05 + 0.05 + 0.1) / 3, abs=5e-5)
    assert table()["columns"]["tcf"]["minus_plain"] is None, "the paper's claim is about CBS"


def test_markdown() -> None:
    lines = markdown(table()).splitlines()
    assert lines[0] == "Made up."
    assert lines[2] == "| organ | voxels % | paper's % | UNETR | UNETR + TCF (n = 1) | UNETR + CBS |"
    rows = {line.split(" | ")[0].strip("| "): line for line in lines[4:12]}
    assert rows["pancreas"] == "| pancreas | 10.0 | 2.8 | 0.400 ± 0.141 ★ | 0.500 ★ | **0.500 ± 0.141 ★** |"
    assert rows["liver"] == "| liver | 60.0 | 55.2 | 0.850 ± 0.000 | 0.850 | 0.800 ± 0.000 |"
    assert rows["gallbladder"].endswith("| – | – | – |")
    assert "★" not in rows[MEAN]
    assert rows["firings, seed by seed"].endswith("| 0, 2 | 2 | 0, 2 |")
    assert rows["mean over organs, as reported"].endswith("| 0.777 | 0.787 | 0.792 |")
    assert "| organ | UNETR (n = 2) |" in lines
    assert "| liver | -0.050 [-0.100, +0.000] |" in lines
    assert "| gallbladder | – |" in lines


def test_picture_shows_every_cell() -> None:
    heat, dots = picture(table()).axes
    texts = {(text.get_position(), text.get_text(), text.get_weight()) for text in heat.texts}
    assert len(heat.texts) == 6 * 3
    assert ((2, 2), "0.500 ± 0.141 ★", "bold") in texts
    assert ((0, 3), "–", "normal") in texts
    assert [label.get_text() for label in dots.get_legend().get_texts()] == ["UNETR"]
    one = [r for r in runs() if (r["column"], r["seed"]) == ("plain", 0)]
    assert module.picture({"caption": "", "seeds": 1, **summarise(one, MADE_UP, VOXELS)}).axes[1].get_legend() is None
