"""The table of what a classifier adds to the detector: plans, steps, scores, text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import cascade_table
from experiments.cascade_table import ALONE, IN, JUDGED, OUT, collect, markdown, plan_pairs, read_findings, time_ratios
from experiments.methods import CLASSIFIER, DETECTOR
from experiments.tables import table_rows

from shared.metrics import Findings, average_precision, detection_f1
from shared.utils import write_csv, write_json

COLUMNS = ("image", "domain", "x", "y", "class", "score", "matched")
NAMES = ("non_mitotic", "mitotic")


def regions() -> list[dict[str, Any]]:
    """Two slides of each of three scanners, two regions a slide."""
    found = []
    for domain in ("CS", "S360", "XR"):
        for i in range(4):
            rng = np.random.default_rng(len(found))
            xy = rng.uniform(30, 470, (6, 2))
            box = np.concatenate([xy - 25, xy + 25], axis=1).tolist()
            names = {"case": f"{domain}/{i}.png", "image": f"{domain}/{i}.png", "domain": domain}
            found.append({**names, "slide": f"s{i // 2}", "box": box, "label": [1, 1, 1, 1, 0, 0]})
    return found


def report(folder: Path, seed: int, right: float, threshold: float) -> dict[str, list[tuple]]:
    """Of each region the figures and as many false detections; the right ones score higher by `right`."""
    found, rows = {}, []
    for number, region in enumerate(regions()):
        rng = np.random.default_rng([seed, number])
        true = np.array(region["box"])[:, :2] + 25
        points = np.concatenate([true + rng.normal(0, 4, true.shape), rng.uniform(0, 500, true.shape)])
        scores = 1 / (1 + np.exp(-(rng.normal(0, 1, 12) + right * (np.arange(12) < 6))))
        labels = [*region["label"], *rng.integers(0, 2, 6).tolist()]
        found[region["case"]] = [(*p, s, k) for p, s, k in zip(points.tolist(), scores.tolist(), labels, strict=True)]
        for x, y, score, label in found[region["case"]]:
            row = (region["case"], region["domain"], x, y, NAMES[label], score, "false")
            rows.append(dict(zip(COLUMNS, row, strict=True)))
    folder.mkdir(parents=True)
    write_csv(folder / "detections.csv", rows, COLUMNS)
    content = {"class_names": NAMES, "class": "mitotic", "threshold": {"value": threshold}, "match_radius": 30.0}
    write_json(folder / "summary.json", content)
    return found


def test_scores_are_those_of_the_detections_and_differences_are_paired(tmp_path: Path) -> None:
    runs, expected = [{"seed": seed} for seed in range(5)], {}
    for seed in range(5):
        for method, folder, right in ((ALONE, Path(ALONE, "report"), 1.0), (JUDGED, Path(JUDGED), 2.5)):
            found = report(tmp_path / f"seed{seed}" / folder / "evaluation", seed, right, 0.5 + 0.02 * seed)
            for group, members in ((IN, {"XR", "S360"}), (OUT, {"CS"}), ("XR", {"XR"})):
                own = [region for region in regions() if region["domain"] in members]
                rows = [found[region["case"]] for region in own]
                both = [[[row[:2] for row in r] for r in rows], [[row[2] for row in r] for r in rows]]
                both += [[[row[3] for row in r] for r in rows]]
                both += [[np.array(region["box"])[:, :2] + 25 for region in own], [region["label"] for region in own]]
                f1 = detection_f1(*both, 30.0, 0.5 + 0.02 * seed)[1]["f1"]
                expected[method, group, seed] = (f1, average_precision(Findings.matched(*both, 30.0), 1))
    cells = collect(runs, tmp_path, regions(), ["XR", "S360"])
    for (method, group, seed), values in expected.items():
        own = [cells[method, group, score][seed] for score in ("f1", "average_precision")]
        assert [score.value for score in own] == pytest.approx(values)
        assert {score.resampled.shape for score in own} == {(1000,)}
    rows = table_rows(cells, cascade_table.FIELDS, ALONE)
    (row,) = [r for r in rows if (r["method"], r["domain"], r["score"]) == (JUDGED, OUT, "f1")]
    differences = [expected[JUDGED, OUT, seed][0] - expected[ALONE, OUT, seed][0] for seed in range(5)]
    assert row["gain"]["mean"] == pytest.approx(np.mean(differences), abs=1e-4)
    assert row["gain"]["interval"][0] <= row["gain"]["mean"] <= row["gain"]["interval"][1]
    text = markdown(rows, [IN, OUT])
    assert f"| F1 | {OUT} |" in text
    assert f"{sum(d > 0 for d in differences)} of 5" in text.splitlines()[3]


def test_few_seeds_have_no_intervals(tmp_path: Path) -> None:
    for folder in (Path(ALONE, "report"), Path(JUDGED)):
        report(tmp_path / "seed0" / folder / "evaluation", 0, 1.0, 0.5)
    cells = collect([{"seed": 0}], tmp_path, regions(), ["XR"])
    assert cells[ALONE, OUT, "f1"][0].resampled is None


def test_findings_of_regions_without_a_detection(tmp_path: Path) -> None:
    report(tmp_path / "e", 0, 1.0, 0.5)
    empty = {**regions()[0], "case": "new.png"}
    findings, threshold = read_findings(tmp_path / "e", [empty, *regions()])
    assert (threshold, findings.count, findings.images.min()) == (0.5, 13, 1)


def test_time_is_compared_by_medians() -> None:
    assert time_ratios([{"seconds": {ALONE: [1.0, 2.0, 9.0], JUDGED: [2.2, 2.0, 3.0]}}]) == [1.1]


def test_both_are_trained_alike_and_the_classifier_on_the_candidates(tmp_path: Path) -> None:
    (tmp_path / "tiles.json").write_text("{}")
    lengths: dict[str, dict[str, int]] = {DETECTOR: {"max_epochs": 3}, CLASSIFIER: {}}
    plan = plan_pairs(tmp_path / "tiles.json", ["XR"], 2, tmp_path / "out", "demo", "jitter", lengths)
    assert list(plan) == [0, 1]
    detector, classifier = plan[1]
    assert detector.places == {"datalist": tmp_path / "tiles.json"}
    assert classifier.places == {"datalist": tmp_path / "out" / "seed1" / "candidates" / "dataset.json"}
    assert detector.options == {"seed": 1, "train_domains": ["XR"], "max_epochs": 3}
    assert classifier.options == {"seed": 1, "train_domains": ["XR"]}
    for training in (detector, classifier):
        assert training.variants == ("demo", "demo_schedule", "no_fusestyle", "stain_jitter")
        assert training.facts["method"] == "jitter"


def test_the_steps_of_a_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier sees what is cut of the training list, and judges in the choice and in the last report."""
    (tmp_path / "tiles.json").write_text("{}")
    (pair,) = plan_pairs(
        tmp_path / "tiles.json", ["XR"], 1, tmp_path, "demo", "jitter", {DETECTOR: {}, CLASSIFIER: {}}
    ).values()
    steps: list[tuple[str, Any]] = []

    def run(training: Any, step: str, configs: list[str], options: dict[str, Any], ranks: int = 1) -> None:
        steps.append((f"{training.folder.name} {step}", options))
        if configs[2:3] == ["configs/cascade.json"]:
            write_json(training.folder / "cascade.json", {"weight": 0.5})

    def cut(*places: Any, **options: Any) -> dict[str, list[dict[str, str]]]:
        steps.append(("cut", places))
        return {
            "training": [{"kind": "figure"}, {"kind": "false_positive"}],
            "validation": [{"kind": "figure"}],
            "test": [],
        }

    monkeypatch.setattr("experiments.runs.Training._run", run)
    monkeypatch.setattr(cascade_table, "cut_candidates", cut)
    monkeypatch.setattr(cascade_table, "in_own_process", lambda *arguments: {ALONE: [1.0], JUDGED: [1.1]})
    result = cascade_table.train_and_judge(*pair, tmp_path / "tiles.json", ["a.png"])
    assert [name for name, _ in steps] == [
        "detector train",
        "detector evaluate",
        "cut",
        "classifier train",
        "detector cascade",
        "detector evaluate",
        "detector evaluate",
    ]
    found = dict(enumerate(options for _, options in steps))
    assert (found[1]["evaluate_split"], found[1]["test_domains"]) == ("training", ["XR"])
    assert found[2] == (
        tmp_path / "tiles.json",
        tmp_path / "seed0" / "found" / "evaluation",
        tmp_path / "seed0" / "candidates",
    )
    weights = tmp_path / "seed0" / "classifier" / "model.pt"
    assert [found[i].get("classifier") for i in (4, 5, 6)] == [weights, None, weights]
    assert result["patches"] == {"false_positive": 1, "figure": 2}
    assert json.loads(json.dumps(result))["chosen"] == {"weight": 0.5}
