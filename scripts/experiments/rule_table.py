"""Compare the class re-weighting rules on synthetic CT over several seeds, and measure what a rule costs."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.bundle import ConfigWorkflow

from shared.utils import DataError, atomic_path, fault_list, write_json

from .runs import bundle_run, describe, file_digests, kept_run, plus_minus, run_all

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "abdominal_unetr_cbs"
RULES = ("plain", "cbs", "prevalence", "pcf", "tcf")
LOSSES = ("dice", "dice_ce")
SAMPLINGS = ("foreground", "class_balanced")
# Most telling first: what does not fit the time is left out from the end, whole cells, never seeds.
CELLS = [(loss, sampling, rule) for rule, loss, sampling in itertools.product(RULES, LOSSES, SAMPLINGS)]
POOR = 0.8
# Evaluations so often that a rule can act several times in a short run; the trigger is the paper's formula.
SCHEDULE = {
    "val_interval": 4,
    "reweighting_trigger": "decline",
    "reweighting_window": 1,
    "reweighting_tolerance": 1e-4,
}


def overlays(loss: str, sampling: str, rule: str) -> list[str]:
    """The variants of a cell; the base configuration is Dice, foreground sampling, CBS."""
    names = ["demo", "demo_schedule"]
    names += [rule] if rule != "cbs" else []
    names += ["dice_ce"] if loss == "dice_ce" else []
    names += ["class_balanced_sampling"] if sampling == "class_balanced" else []
    return [f"configs/variants/{name}.json" for name in names]


def train_and_score(cell: tuple[str, str, str], seed: int, work: Path, data: Path, epochs: int) -> dict[str, Any]:
    """One run: train, evaluate on the test split; its result is kept, so that it is never done twice."""
    folder = _folder(work, cell, seed)
    places = {"dataset_dir": data, "output_dir": folder, "ckpt_dir": folder, "cache_dir": work / "cache"}
    options: dict[str, Any] = {**places, **SCHEDULE, "seed": seed, "cache": "disk"}
    options |= {"max_epochs": epochs} if epochs else {}

    def run() -> dict[str, Any]:
        start = time.monotonic()
        resume = "true" if (folder / "last.pt").is_file() else "false"
        training, evaluation = ["configs/train.json"], ["configs/train.json", "configs/evaluate.json"]
        bundle_run(BUNDLE, training + overlays(*cell), folder / "train.log", {**options, "resume": resume})
        minutes = (time.monotonic() - start) / 60
        bundle_run(BUNDLE, evaluation + overlays(*cell), folder / "evaluate.log", options)
        organs = json.loads((folder / "evaluation" / "summary.json").read_text())["organs"]
        state = torch.load(folder / "last.pt", weights_only=True)["reweighting"]
        dice = {name: row["dice"]["mean"] for name, row in organs.items()}
        return {"cell": cell, "seed": seed, "dice": dice, "firings": int(state["fired"].sum()), "minutes": minutes}

    content = kept_run(folder, _settings(cell, data, epochs), run)
    (folder / "model.pt").unlink(missing_ok=True)
    return content


def _folder(work: Path, cell: tuple[str, str, str], seed: int) -> Path:
    return work / "_".join((*cell, f"seed{seed}"))


def _settings(cell: tuple[str, str, str], data: Path, epochs: int) -> dict[str, Any]:
    """What a result depends on, so that runs of different settings are not mixed."""
    names = ["configs/train.json", "configs/evaluate.json", *overlays(*cell)]
    return {"epochs": epochs, **SCHEDULE} | file_digests([*(BUNDLE / name for name in names), data / "dataset.json"])


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of each cell, and its difference to plain, paired by seed."""
    by_cell: dict[tuple[str, ...], dict[int, dict[str, Any]]] = {}
    for run in runs:
        by_cell.setdefault(tuple(run["cell"]), {})[run["seed"]] = run
    rows = []
    for (loss, sampling, rule), seeds in by_cell.items():
        plain = by_cell.get((loss, sampling, "plain"), {})
        scores = {seed: _means(run, plain.get(seed)) for seed, run in seeds.items()}
        base = {seed: _means(run, run) for seed, run in plain.items() if seed in seeds}
        row: dict[str, Any] = {"loss": loss, "sampling": sampling, "rule": rule, "runs": len(seeds)}
        for i, name in enumerate(("mean_dice", "mean_dice_poor_classes")):
            values = [score[i] for score in scores.values() if score[i] is not None]
            row[name] = describe(values)
            row[f"{name}_minus_plain"] = describe(
                [scores[s][i] - base[s][i] for s in base if None not in (scores[s][i], base[s][i])]
            )
        row["firings"] = {f"seed {seed}": run["firings"] for seed, run in sorted(seeds.items())}
        row["organs_at_0"] = {f"seed {s}": sum(d == 0 for d in r["dice"].values()) for s, r in sorted(seeds.items())}
        rows.append(row)
    return {"runs": len(runs), "cells": rows}


def _means(run: dict[str, Any], plain: dict[str, Any] | None) -> tuple[float, float | None]:
    """Mean Dice over all organs, and over those that the plain run of the same seed leaves under 0.8."""
    poor = [name for name, dice in (plain or run)["dice"].items() if dice < POOR]
    return float(np.mean(list(run["dice"].values()))), float(np.mean([run["dice"][n] for n in poor])) if poor else None


def picture(summary: dict[str, Any], path: Path) -> None:
    cells = summary["cells"]
    figure = Figure(figsize=(8, 1.5 + 0.4 * len(cells)), layout="constrained")
    axes = figure.subplots()
    for y, cell in enumerate(cells):
        for key, colour, offset in (("mean_dice", "tab:blue", -0.12), ("mean_dice_poor_classes", "tab:orange", 0.12)):
            dice = cell[key]
            axes.plot([dice["min"], dice["max"]], [y + offset] * 2, color=colour, lw=2)
            axes.plot(dice["mean"], y + offset, "o", color=colour, label=key.replace("_", " ") if y == 0 else None)
    axes.set_yticks(range(len(cells)), [f"{c['loss']}, {c['sampling']}, {c['rule']} (n={c['runs']})" for c in cells])
    axes.invert_yaxis()
    axes.set(xlabel="Dice on the test split: mean, least and greatest over the seeds", title="Synthetic CT")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def table(summary: dict[str, Any]) -> str:
    head = (
        "loss",
        "sampling",
        "rule",
        "n",
        "mean Dice",
        "difference to plain",
        "classes < 0.8",
        "firings",
        "organs at 0",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for cell in summary["cells"]:
        values = [cell["loss"], cell["sampling"], cell["rule"], str(cell["runs"])]
        for key in ("mean_dice", "mean_dice_minus_plain", "mean_dice_poor_classes"):
            dice = cell[key]
            values.append("–" if dice is None else plus_minus(dice["mean"], dice["std"] or 0))
        values += [", ".join(map(str, cell[key].values())) for key in ("firings", "organs_at_0")]
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines)


def compare(
    data_dir: str,
    output_dir: str,
    seeds: int = 3,
    epochs: int = 0,
    minutes: float = 60,
    jobs: int = 1,
    threads: int = 1,
) -> None:
    """Train and evaluate loss × sampling × rule over seeds on synthetic CT, as far as the time goes; resumable.

    A rule is compared with no rule on the same seed: same initial weights, same crops. Run the same command again to
    go on. Results: summary.json, summary.md and summary.png in the output folder.

    Args:
        data_dir: data set as scripts/make_synthetic.py ct writes it.
        output_dir: where runs and results are kept.
        seeds: runs of each cell.
        epochs: length of a run; 0 leaves it as in configs/variants/demo_schedule.json.
        minutes: no run is started after this time.
        jobs: runs at a time.
        threads: of each run.
    """
    work, data = Path(output_dir).resolve(), Path(data_dir).resolve()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    planned = [(cell, seed) for cell in CELLS for seed in range(seeds)]
    runs = {_folder(work, *job): partial(train_and_score, *job, work, data, epochs) for job in planned}
    finished, failures = run_all(runs, minutes, jobs)
    full = [cell for cell in CELLS if sum(tuple(run["cell"]) == cell for run in finished) == seeds]
    summary = summarise([run for run in finished if tuple(run["cell"]) in full])
    summary |= {"planned_runs": len(planned), "epochs": epochs, "seeds": seeds}
    write_json(work / "summary.json", summary)
    with atomic_path(work / "summary.md") as temporary:
        temporary.write_text(table(summary) + "\n")
    if full:
        picture(summary, work / "summary.png")
    print(
        f"{summary['runs']} of {len(planned)} runs, in {len(full)} complete cells of {seeds} seeds.\n{table(summary)}"
    )
    if failures:
        raise DataError(f"{len(failures)} run(s) failed; the same command tries them again." + fault_list(failures))


def cost(data_dir: str, output_dir: str, epochs: int = 24) -> None:
    """What the rule takes of a training at the demo's size and schedule: its time in the loop over that of the loop.

    Everything it does in an evaluation is counted: arithmetic, weights, log, TensorBoard, CSV.

    Args:
        data_dir: data set as scripts/make_synthetic.py ct writes it.
        output_dir: where the run and cost.json are kept.
        epochs: length of the run.
    """
    data, folder = Path(data_dir).resolve(), Path(output_dir).resolve() / f"cost_{time.time_ns()}"
    os.chdir(BUNDLE)
    workflow = ConfigWorkflow(
        config_file=[f"configs/{n}.json" for n in ("train", "variants/demo", "variants/demo_schedule")],
        logging_file=False,
        dataset_dir=str(data),
        output_dir=str(folder),
        ckpt_dir=str(folder),
        max_epochs=epochs,
    )
    workflow.initialize()
    rule, report = (workflow.parser.get_parsed_content(name) for name in ("reweighting", "report"))
    spent: dict[int, float] = defaultdict(float)  # by the number of the evaluation

    def timed(act: Callable) -> Callable:
        @wraps(act)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = act(*args, **kwargs)
            spent[rule.evaluations] += time.perf_counter() - start
            return result

        return wrapper

    rule.update, report.record_weights = timed(rule.update), timed(report.record_weights)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    start = time.perf_counter()
    trainer.run()
    whole = time.perf_counter() - start
    rule_s, an_evaluation = sum(spent.values()), [seconds for j, seconds in spent.items() if j]
    result = {"evaluations": rule.evaluations, "rule_s": rule_s, "training_s": whole, "share": rule_s / whole}
    write_json(folder.parent / "cost.json", result)
    print(
        f"The rule took {1e3 * np.median(an_evaluation):.2f} ms an evaluation, {1e3 * rule_s / epochs:.2f} ms an epoch "
        f"of {whole / epochs:.1f} s: {result['share']:.4%}."
    )
