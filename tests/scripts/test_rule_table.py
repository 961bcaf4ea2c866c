from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from experiments import rule_table as benchmark
from experiments.runs import run_trainings

from shared.utils import DataError, write_json

ROOT = Path(__file__).resolve().parents[2]


def run(rule: str, seed: int, good: float, poor: float, firings: int = 0) -> dict[str, Any]:
    cell = ["dice", "foreground", rule]
    return {"cell": cell, "seed": seed, "dice": {"liver": good, "adrenal": poor}, "firings": firings, "minutes": 1.0}


def test_rules_are_compared_seed_by_seed() -> None:
    runs = [
        run("plain", 0, 0.9, 0.1),
        run("plain", 1, 0.9, 0.3),
        run("cbs", 0, 0.8, 0.3, 2),
        run("cbs", 1, 0.9, 0.4, 5),
    ]
    plain, cbs = benchmark.summarise(runs)["cells"]
    assert plain["mean_dice_minus_plain"]["mean"] == 0
    assert plain["mean_dice"] == {"mean": 0.55, "std": 0.0707, "min": 0.5, "max": 0.6, "n": 2}
    assert cbs["mean_dice_minus_plain"]["mean"] == pytest.approx(0.05)
    assert cbs["mean_dice_minus_plain"]["std"] == 0
    assert cbs["mean_dice_poor_classes_minus_plain"]["mean"] == pytest.approx(0.15)
    assert cbs["firings"] == {"seed 0": 2, "seed 1": 5}


def test_poor_classes_are_those_of_the_plain_run_of_the_seed() -> None:
    runs = [run("plain", 0, 0.9, 0.1), run("cbs", 0, 0.7, 0.85)]
    _, cbs = benchmark.summarise(runs)["cells"]
    assert cbs["mean_dice_poor_classes"]["mean"] == 0.85


def test_a_kept_run_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cell, data = ("dice", "foreground", "plain"), tmp_path / "data"
    write_json(data / "dataset.json", {"name": "none"})
    (training,) = trainings = benchmark.plan_trainings([cell], 1, data, tmp_path, 1)
    write_json(training.folder / "settings.json", training.settings)
    write_json(training.folder / "result.json", run("plain", 0, 0.9, 0.1))
    (kept,), _ = run_trainings(trainings, benchmark.train_and_score, minutes=1, jobs=1, threads=1)
    assert kept["dice"] == {"liver": 0.9, "adrenal": 0.1}
    with pytest.raises(DataError, match="differs from this one in max_epochs"):
        run_trainings(
            benchmark.plan_trainings([cell], 1, data, tmp_path, 2),
            benchmark.train_and_score,
            minutes=1,
            jobs=1,
            threads=1,
        )


def test_every_cell_names_variants_that_exist() -> None:
    bundle = ROOT / "bundles" / "abdominal_unetr_cbs"
    assert len(benchmark.CELLS) == len(set(benchmark.CELLS)) == 20
    for cell in benchmark.CELLS:
        variants = [bundle / "configs" / "variants" / f"{name}.json" for name in benchmark.variants(*cell)]
        assert all(path.is_file() for path in variants), cell
