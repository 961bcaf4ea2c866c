"""The class re-weighting rules on synthetic CT over several seeds, by loss and sampling; and what a rule costs."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from monai.bundle import ConfigWorkflow

from shared.utils import write_json

from .runs import (
    BUNDLES,
    AtLeastOne,
    Epochs,
    Minutes,
    Training,
    count_firings,
    file_digest,
    run_trainings,
    tell_failures,
)
from .tables import describe, markdown_grid, mean_and_std, write_table

BUNDLE = "abdominal_unetr_cbs"
Cell = tuple[str, str, str]  # loss, sampling, rule
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


def variants(loss: str, sampling: str, rule: str) -> list[str]:
    """Those of a cell; the base configuration is Dice, foreground sampling, CBS."""
    names = ["demo", "demo_schedule"]
    names += [rule] if rule != "cbs" else []
    names += ["dice_ce"] if loss == "dice_ce" else []
    return names + (["class_balanced_sampling"] if sampling == "class_balanced" else [])


def plan_trainings(cells: Sequence[Cell], seeds: int, data: Path, work: Path, epochs: int) -> list[Training]:
    length, digest = {"max_epochs": epochs} if epochs else {}, file_digest(data / "dataset.json")
    return [
        Training(
            bundle=BUNDLE,
            variants=variants(*cell),
            folder=work / "_".join((*cell, f"seed{seed}")),
            places={"dataset_dir": data, "cache": "disk", "cache_dir": work / "cache"},
            options={**SCHEDULE, "seed": seed, **length},
            facts={"cell": list(cell), "seed": seed, "data": digest},
        )
        for cell in cells
        for seed in range(seeds)
    ]


def train_and_score(training: Training) -> dict[str, Any]:
    trained, report = training.train(), training.evaluate()
    organs = json.loads((report / "summary.json").read_text())["organs"]
    dice = {name: row["dice"]["mean"] for name, row in organs.items()}
    known = {key: training.facts[key] for key in ("cell", "seed")}
    return {**known, "dice": dice, "firings": count_firings(training.folder / "class_weights.csv"), **trained}


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


def picture(cells: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(8, 1.5 + 0.4 * len(cells)), layout="constrained")
    axes = figure.subplots()
    for y, cell in enumerate(cells):
        for key, colour, offset in (("mean_dice", "tab:blue", -0.12), ("mean_dice_poor_classes", "tab:orange", 0.12)):
            if dice := cell[key]:
                axes.plot([dice["min"], dice["max"]], [y + offset] * 2, color=colour, lw=2)
                axes.plot(dice["mean"], y + offset, "o", color=colour, label=key.replace("_", " ") if y == 0 else None)
    axes.set_yticks(range(len(cells)), [f"{c['loss']}, {c['sampling']}, {c['rule']} (n={c['runs']})" for c in cells])
    axes.invert_yaxis()
    axes.set(xlabel="Dice on the test split: mean, least and greatest over the seeds", title="Synthetic CT")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def markdown(cells: Sequence[Mapping[str, Any]]) -> str:
    head = ["loss", "sampling", "rule", "n"]
    head += ["mean Dice", "difference to plain", "classes < 0.8", "firings", "organs at 0"]
    dice = ("mean_dice", "mean_dice_minus_plain", "mean_dice_poor_classes")
    rows = [
        [cell["loss"], cell["sampling"], cell["rule"], str(cell["runs"])]
        + [mean_and_std(cell[key], nothing="–") for key in dice]
        + [", ".join(map(str, cell[key].values())) for key in ("firings", "organs_at_0")]
        for cell in cells
    ]
    return markdown_grid(head, rows) + "\n"


def table_rows(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each cell and score."""
    scores = [f"mean_dice{part}{minus}" for part in ("", "_poor_classes") for minus in ("", "_minus_plain")]
    return [
        {"loss": cell["loss"], "sampling": cell["sampling"], "rule": cell["rule"], "score": score, **cell[score]}
        for cell in cells
        for score in scores
        if cell[score]
    ]


def compare(
    data_dir: str,
    output_dir: str,
    seeds: AtLeastOne = 3,
    epochs: Epochs = 0,
    minutes: Minutes = 60,
    jobs: AtLeastOne = 1,
    threads: AtLeastOne = 1,
) -> None:
    """Train and evaluate loss × sampling × rule over seeds on synthetic CT, as far as the time goes; resumable.

    A rule is compared with no rule on the same seed: same initial weights, same crops. Run the same command again to
    go on. Results: summary.json, .md, .png and .csv in the output folder, once a cell has all its seeds.

    Args:
        data_dir: data set as scripts/make_synthetic.py ct writes it.
        output_dir: where runs and results are kept.
        seeds: runs of each cell.
        epochs: length of a run; 0 leaves it as in configs/variants/demo_schedule.json.
        minutes: no run is started after this time.
        jobs: runs at a time.
        threads: of each run.
    """
    work, data = Path(output_dir).expanduser().resolve(), Path(data_dir).expanduser().resolve()
    trainings = plan_trainings(CELLS, seeds, data, work, epochs)
    dropped = ("last.pt", "best.pt", "model.pt")
    finished, failures = run_trainings(trainings, train_and_score, minutes, jobs, threads, dropped)
    full = [cell for cell in CELLS if sum(tuple(run["cell"]) == cell for run in finished) == seeds]
    summary = summarise([run for run in finished if tuple(run["cell"]) in full])
    summary |= {"planned_runs": len(trainings), "epochs": epochs, "seeds": seeds}
    text = markdown(summary["cells"])
    if full:
        fields = ("loss", "sampling", "rule", "score", "mean", "std", "min", "max", "n")
        write_table(work / "summary", text, picture(summary["cells"]), summary, table_rows(summary["cells"]), fields)
    print(f"{summary['runs']} of {len(trainings)} runs, in {len(full)} complete cells of {seeds} seeds.\n{text}")
    tell_failures(failures)


def cost(data_dir: str, output_dir: str, epochs: AtLeastOne = 24) -> None:
    """What the rule takes of a training at the demo's size and schedule: its time in the loop over that of the loop.

    Everything it does in an evaluation is counted: arithmetic, weights, log, TensorBoard, CSV.

    Args:
        data_dir: data set as scripts/make_synthetic.py ct writes it.
        output_dir: where the run and cost.json are kept.
        epochs: length of the run.
    """
    data, folder = Path(data_dir).resolve(), Path(output_dir).resolve() / f"cost_{time.time_ns()}"
    os.chdir(BUNDLES / BUNDLE)
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
