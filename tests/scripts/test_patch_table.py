from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import patch_table as benchmark
from experiments.runs import BUNDLES, run_trainings
from scipy.stats import wilcoxon

from shared.datasets.synthetic_histology import make_synthetic_histology
from shared.utils import DataError


def made_up(method: str, held_out: str, seed: int, accuracy: dict[str, float]) -> dict[str, Any]:
    scores = {scanner: dict.fromkeys(benchmark.SCORES, value) for scanner, value in accuracy.items()}
    content = {"set": "synthetic", "method": method, "held_out": held_out, "seed": seed}
    return content | {"scores": {"plain": scores, "adapted": scores}}


def test_methods_are_compared_run_by_run() -> None:
    rng = np.random.default_rng(0)
    out = {method: rng.uniform(size=6).round(3) for method in ("none", "dot 1,4")}
    runs = [
        made_up(method, held_out, seed, {"XR": 0.9, "S360": 0.7, "CS": 0.8} | {held_out: values[2 * i + seed]})
        for method, values in out.items()
        for i, held_out in enumerate(("XR", "CS", "S360"))
        for seed in (0, 1)
    ]
    none, _, dot, _ = benchmark.summarise(runs)
    assert (none["method"], dot["method"], dot["batch_norm"], dot["runs"]) == ("none", "dot 1,4", "plain", 6)
    gain = out["dot 1,4"] - out["none"]
    assert dot["auc_out_gain"] == pytest.approx(gain.mean(), abs=1e-4)
    assert dot["auc_out_gain_std"] == pytest.approx(gain.std(ddof=1), abs=1e-4)
    assert dot["auc_out_p"] == pytest.approx(wilcoxon(gain).pvalue, abs=1e-4)
    assert none["accuracy_in"] == pytest.approx(0.8, abs=1e-4)  # mean of (0.7, 0.8), (0.9, 0.7), (0.9, 0.8)
    assert dot["accuracy_in_gain"] == 0
    assert "| synthetic | dot 1,4 | plain | 6 | 0.800" in benchmark.markdown([none, dot])


def test_without_the_baseline_of_a_run_there_is_no_gain() -> None:
    runs = [made_up("dot 1,4 + jitter", "XR", 0, {"XR": 0.9, "S360": 0.7, "CS": 0.8})]
    runs.append(made_up("none", "XR", 0, {"XR": 0.8, "S360": 0.7, "CS": 0.8}))
    gains = {row["method"]: row["accuracy_out_gain"] for row in benchmark.summarise(runs)}
    assert gains == {
        "none": 0,
        "dot 1,4 + jitter": None,
    }  # with jitter it is compared with the plain network with jitter


def test_every_method_names_variants_that_exist() -> None:
    variants = BUNDLES / "mitosis_fusestyle_cls" / "configs" / "variants"
    for method, names in benchmark.METHODS.items():
        assert all((variants / f"{name}.json").is_file() for name in (*benchmark.BASE, *names)), method
    assert {method for line in benchmark.PLAN for _, methods in line for method in methods} == set(benchmark.METHODS)


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
def test_a_run_is_scored_on_all_scanners_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    planned = [("synthetic", "none", "CS", 0)]
    make_synthetic_histology(
        tmp_path / "data" / "synthetic_0", slides=3, patches_per_slide=8, tiles_per_slide=0, processes=1
    )
    trainings = benchmark.plan_trainings(planned, None, tmp_path, 1)
    dropped = ("last.pt", "best.pt", "model.pt")
    (first,), failures = run_trainings(trainings, benchmark.train_and_score, 60, 1, 1, dropped)
    assert failures == []
    assert set(first["scores"]) == {"plain", "adapted"}
    for scores in first["scores"].values():
        assert set(scores) == {"XR", "S360", "CS"}
        assert all(0 <= value <= 1 for each in scores.values() for value in each.values())
    assert first["scores"]["plain"] != first["scores"]["adapted"]
    (result,) = tmp_path.glob("runs/*/result.json")
    assert not list(result.parent.glob("*.pt"))
    assert json.loads((result.parent / "evaluation" / "summary.json").read_text())["train_domains"] == ["S360", "XR"]
    written = result.stat().st_mtime_ns
    assert run_trainings(trainings, benchmark.train_and_score, 60, 1, 1, dropped) == ([first], [])
    assert result.stat().st_mtime_ns == written
    with pytest.raises(DataError, match="differs from this one in max_epochs"):
        run_trainings(benchmark.plan_trainings(planned, None, tmp_path, 2), benchmark.train_and_score, 60, 1, 1)
    assert benchmark.picture([first]).axes[0].lines
