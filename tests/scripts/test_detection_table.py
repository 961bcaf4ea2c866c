from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import prepare_midog
import pytest
from command_line.parser import read_words
from experiments.detection_table import SCORES, SIZES, collect, count_by_slide, detection_table
from experiments.methods import DETECTOR, UNLESS_TOLD
from experiments.tables import RESAMPLES
from matplotlib.image import imread
from midog_tree import write_tree
from PIL import Image

from shared.data import load_regions
from shared.utils import DataError, write_csv, write_json


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    lists: dict[str, list[dict[str, Any]]] = {"training": [], "validation": [], "test": []}
    for split, entries in lists.items():
        for scanner in ("XR", "CS", "S360"):
            name = f"{scanner}_{split}.png"
            Image.new("RGB", (8, 8)).save(folder / name)
            entries.append({"image": name, "box": [[0, 0, 4, 4]], "label": [1], "domain": scanner, "slide": name})
    head = {"name": "dots", "synthetic": True, "labels": {"0": "non_mitotic", "1": "mitotic"}, "box_mode": "xyxy"}
    write_json(folder / "dataset.json", head | lists)
    return folder


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Mapping[str, Any], list[str]]]:
    """A bundle that trains at once; FuseStyle gains 0.1 on S360 with seed 0 and loses 0.3 with seed 1."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    calls = []

    def bundle_run(bundle: Path, configs: list[str], log: Path, options: Mapping[str, Any], ranks: int = 1) -> None:
        folder: Path = options["output_dir"]
        method, seed = folder.parent.name, options["seed"]
        calls.append((f"{method} {folder.name}", log.stem, options, configs))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "last.pt").touch()
        if os.environ.get("FAIL") == method:
            raise DataError(f"{log}: the run failed")
        gain = {"fusestyle": (0.1, -0.3)}.get(method, (0, 0))[seed]
        f1 = {"XR": 0.8, "CS": 0.7, "S360": 0.5 + gain + 0.02 * seed}
        domains = {name: {score: {"value": value} for score in SCORES} for name, value in f1.items()}
        if method == "mixstyle":
            domains["CS"]["f1"]["value"] = None
        write_json(folder / "evaluation" / "summary.json", {"domains": domains})

    monkeypatch.setattr("experiments.runs.bundle_run", bundle_run)
    return calls


def test_a_gain_is_that_of_the_same_seed(tmp_path: Path, data: Path, started: list) -> None:
    detection_table(str(data), str(tmp_path / "out"), ("XR", "CS"), seeds=2, size="demo")
    assert [(run, step) for run, step, *_ in started] == [
        (f"{name} seed{seed}", step)
        for seed in (0, 1)
        for name in UNLESS_TOLD[DETECTOR]
        for step in ("train", "evaluate")
    ]
    assert all(options["train_domains"] == ["XR", "CS"] for _, step, options, _ in started if step == "train")
    content = json.loads((tmp_path / "out" / "detection_table.json").read_text())
    assert content["runs"] == content["planned_runs"] == 2 * len(UNLESS_TOLD[DETECTOR])
    rows = {(r["method"], r["domain"]): r for r in content["rows"] if r["score"] == "f1"}
    assert (rows["erm", "S360"]["mean"], rows["erm", "S360"]["gain"]) == (0.51, None)
    gain = rows["fusestyle", "S360"]["gain"]
    assert (gain["mean"], gain["std"], gain["n"]) == (-0.1, 0.2828, 2)
    assert ("mixstyle", "CS") not in rows  # undefined in both runs
    text = (tmp_path / "out" / "detection_table.md").read_text()
    left_out = "0.410 (0.220 to 0.600: 0.600, 0.220); gain -0.100 (-0.300 to +0.100: +0.100, -0.300)"
    cell = "0.{0}00 (0.{0}00 to 0.{0}00: 0.{0}00, 0.{0}00)".format
    assert f"| fusestyle | 2, 2, 2 | {cell(7)} | {left_out} | {cell(8)} |" in text
    assert "| fusestyle, as reported for MIDOG'21, trained on XR and CS |  | 0.90 | 0.83 | 0.87 |" in text
    assert "| erm | fusestyle_places [] |" in text
    assert "Made-up data" in text
    assert imread(tmp_path / "out" / "detection_table.png").std() > 0.02


def test_a_run_is_trained_as_its_method_says(tmp_path: Path, data: Path, started: list) -> None:
    detection_table(str(data), str(tmp_path / "out"), ["XR", "CS"], seeds=1, methods=["jitter"], epochs=2)
    (_, _, options, configs), (*_, evaluation) = started
    assert options["max_epochs"] == 2
    assert configs == [
        "configs/train.json",
        "configs/variants/pretrained.json",
        "configs/variants/no_fusestyle.json",
        "configs/variants/stain_jitter.json",
    ]
    assert "configs/evaluate.json" in evaluation


def test_strap_is_trained_on_copies_of_the_training_regions(tmp_path: Path, data: Path, started: list) -> None:
    detection_table(str(data), str(tmp_path / "out"), ["XR", "CS"], seeds=1, methods=["erm", "strap"], jobs=1)
    lists = {run: options["datalist"] for run, step, options, _ in started if step == "train"}
    copied = load_regions(lists["strap seed0"], "training", ["XR", "CS"], stylized=True)
    assert [Path(region["stylized"]).name for region in copied] == ["XR_training.tif", "CS_training.tif"]
    assert lists["erm seed0"] == data / "dataset.json"
    text = (tmp_path / "out" / "detection_table.md").read_text()
    assert "| strap, as reported for MIDOG'21, trained on XR and CS |  | 0.92 | 0.79 | 0.87 |" in text


def test_what_is_finished_is_kept_and_a_failure_is_told(
    tmp_path: Path, data: Path, started: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"seeds": 1, "size": "demo", "methods": ("erm", "fusestyle")}
    monkeypatch.setenv("FAIL", "fusestyle")
    with pytest.raises(DataError, match="1 run"):
        detection_table(str(data), str(tmp_path / "out"), ("XR", "CS"), **options)
    monkeypatch.delenv("FAIL")
    started.clear()
    detection_table(str(data), str(tmp_path / "out"), ("XR", "CS"), **options)
    assert [(run, step) for run, step, *_ in started] == [("fusestyle seed0", "train"), ("fusestyle seed0", "evaluate")]
    assert started[0][2]["resume"] == "true"
    with pytest.raises(DataError, match="differs from this one in max_epochs"):
        detection_table(str(data), str(tmp_path / "out"), ("XR", "CS"), epochs=3, **options)


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
def test_a_run_on_midog_is_counted_slide_by_slide_as_its_report_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    annotated, images = write_tree(tmp_path / "midog")
    prepare_midog.tiles(str(annotated), str(images), str(tmp_path / "data"), workers=1)
    small = tmp_path / "small.json"
    write_json(small, {"tiles_per_epoch": 24, "batch_size": 6, "learning_rate": 0.003})
    monkeypatch.setitem(SIZES, "demo", (*SIZES["demo"], str(small)))
    options = {"seeds": 1, "size": "demo", "methods": ("erm",), "epochs": 2}
    detection_table(str(tmp_path / "data"), str(tmp_path / "out"), ("XR", "S360"), **options)
    report = tmp_path / "out" / "erm" / "seed0" / "evaluation"
    counts = count_by_slide(report, load_regions(tmp_path / "data" / "dataset.json", "test"))
    domains = json.loads((report / "summary.json").read_text())["domains"]
    assert [*counts] == ["CS", "S360", "XR"]
    for name, found in counts.items():
        assert found.shape == (domains[name]["slides"], 3)
        assert found.sum(axis=0).tolist() == [domains[name][count] for count in ("tp", "fp", "fn")]
    assert sum(int(found[:, :2].sum()) for found in counts.values()) > 0, "nothing was detected"


def test_of_five_seeds_there_are_intervals(tmp_path: Path, data: Path) -> None:
    """Two slides of each scanner with a figure each; with each seed fewer are found, with seed 3 false alarms alone."""
    regions, runs = load_regions(data / "dataset.json", "test"), []
    regions += [{**region, "case": f"{region['case']}_2", "slide": "other"} for region in regions]
    for seed in range(5):
        report = tmp_path / "erm" / f"seed{seed}" / "evaluation"
        write_json(report / "summary.json", {"class": "mitotic", "threshold": {"value": 0.5}})
        found = [(r, "mitotic", 0.4 + 0.2 * (i > seed), seed != 3) for i, r in enumerate(regions)]
        found.append((regions[0], "non_mitotic", 0.9, True))
        keys = ("image", "domain", "class", "score", "matched")
        rows = [
            dict(zip(keys, (r["case"], r["domain"], *rest, str(ok).lower()), strict=True)) for r, *rest, ok in found
        ]
        write_csv(report / "detections.csv", rows, keys)
        runs.append({"method": "erm", "seed": seed, "scores": {"CS": {"f1": 0.5, "average_precision": 0.6}}})
    counts = count_by_slide(tmp_path / "erm" / "seed0" / "evaluation", regions)
    assert counts["CS"].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert counts["XR"].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert count_by_slide(tmp_path / "erm" / "seed3" / "evaluation", regions)["S360"].tolist() == [[0, 0, 1], [0, 1, 1]]
    cells = collect(runs, tmp_path, regions)
    resampled = cells["erm", "CS", "f1"][0].resampled
    assert resampled.shape == (RESAMPLES,)
    assert set(resampled) == {1.0}
    assert cells["erm", "CS", "average_precision"][0].resampled is None
    assert cells["erm", "CS", "f1"][1].resampled.mean() < 1
    assert collect(runs[:4], tmp_path, regions)["erm", "CS", "f1"][0].resampled is None


def test_wrong_options(tmp_path: Path, data: Path) -> None:
    with pytest.raises(DataError, match=r"--methods is \['magic'\], expected a list, each erm, fusestyle"):
        read_words(detection_table, ["data", "out", "XR,CS", "--methods", "magic"], "")
    assert read_words(detection_table, ["data", "out", "XR, CS"], "").arguments["train_domains"] == ["XR", "CS"]
    with pytest.raises(DataError, match="there is no domain Leica"):
        detection_table(str(data), str(tmp_path / "out"), ["Leica"])
