"""The report of a segmentation: means with intervals, a table, a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import monai
import numpy as np
import torch
from matplotlib.figure import Figure

from ..metrics.bootstrap import bootstrap_means
from .provenance import synthetic_warnings

METRICS = ("dice", "nsd", "hd95_mm")
COLUMNS = ("case", "organ", "id", *METRICS, "label_ml", "pred_ml", "status")
# Spread over a row of the picture in a fixed, even way, so that equal scores remain visible side by side.
GOLDEN_RATIO = 0.618034


def _notes(tolerance: float) -> list[str]:
    return [
        "An organ is averaged over the cases whose label has it; in the mean over organs each organ weighs the same.",
        "An organ that the label has and the prediction lacks is missed: its Dice is 0, and it takes no part in NSD "
        "and HD95, which so tell about the organs found.",
        f"NSD: share of the surface within {tolerance:g} mm. HD95: 95 % of the surface lies within this distance.",
    ]


def summarise_scores(
    rows: Sequence[Mapping[str, Any]],
    labels: Mapping[str, int],
    tolerance: float,
    bootstrap: int = 1000,
    seed: int = 0,
    dataset: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `summary.json` holds, from the rows of `scores.csv` (NaN or None for a blank score)."""
    cases = sorted({row["case"] for row in rows})
    names = sorted(labels, key=labels.__getitem__)
    table = {(row["case"], row["organ"]): row for row in rows}
    organs: dict[str, dict[str, Any]] = {}
    for name in names:
        states = [table[case, name]["status"] for case in cases]
        counts = {s: states.count(s) for s in ("scored", "missed", "absent", "absent_but_predicted")}
        organs[name] = {"id": labels[name], **counts}
    mean = {}
    for metric in METRICS:
        scores = np.array([[table[case, name][metric] for name in names] for case in cases], dtype=float)
        each, mean[metric] = bootstrap_means(scores, bootstrap, seed)
        for name, entry in zip(names, each, strict=True):
            organs[name][metric] = entry
    dataset, record = dict(dataset or {}), dict(record or {})
    return {
        "dataset": dataset,
        "cases": len(cases),
        "mean_over_organs": mean,
        "organs": organs,
        "missed": sum(o["missed"] for o in organs.values()),
        "never_predicted": [n for n, o in organs.items() if o["missed"] and not o["scored"]],
        "absent_everywhere": [n for n, o in organs.items() if not o["missed"] and not o["scored"]],
        "tolerance_mm": tolerance,
        "intervals": {"level": 0.95, "method": "percentile bootstrap over cases", "resamples": bootstrap, "seed": seed},
        "model": record,
        "warnings": synthetic_warnings(dataset, record),
        "notes": _notes(tolerance),
        "versions": {"monai": monai.__version__, "torch": torch.__version__},
    }


def _title(summary: Mapping[str, Any]) -> str:
    data, cases = summary["dataset"], summary["cases"]
    parts = [str(data.get("name") or "evaluation"), data.get("split"), f"{cases} case{'s' * (cases != 1)}"]
    if data.get("folds"):
        parts.insert(2, f"fold {data['fold']} of {data['folds']}")
    return ", ".join(p for p in parts if p)


def summary_table(summary: Mapping[str, Any]) -> str:
    """The summary as a table to print, with a line on every organ that is still at 0."""
    organs = summary["organs"]
    width = max(len(name) for name in [*organs, "mean over organs"])

    def line(name: str, entry: Mapping[str, Any], cases: int, missed: int) -> str:
        dice, nsd, hd95 = (entry[metric] for metric in METRICS)
        interval = "-" if dice["interval"] is None else "{:.3f} to {:.3f}".format(*dice["interval"])
        distances = f"{_number(nsd['mean'], 3):>5}  {_number(hd95['mean'], 1):>7}"
        return f"{name:{width}}  {_number(dice['mean'], 3):>5}  {interval:^14}  {distances}  {cases:>5}  {missed:>6}"

    lines = [
        _title(summary),
        f"{'':{width}}   Dice   95 % interval    NSD  HD95 mm  cases  missed",
        *(line(name, organ, organ["dice"]["cases"], organ["missed"]) for name, organ in organs.items()),
        line("mean over organs", summary["mean_over_organs"], summary["cases"], summary["missed"]),
    ]
    misplaced = [n for n, o in organs.items() if o["scored"] and o["dice"]["mean"] == 0]
    for names, explanation in (
        (summary["never_predicted"], "never predicted, so Dice 0"),
        (misplaced, "predicted, but nowhere where the label has it, so Dice 0"),
        (summary["absent_everywhere"], "in no label of these cases, so left out"),
    ):
        if names:
            lines.append(f"{explanation}: {', '.join(names)}")
    return "\n".join([*lines, *summary["notes"], *summary["warnings"]])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value


def _figure(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Figure:
    """One row for each organ: the Dice score of every case, with a box over their quartiles."""
    names = list(summary["organs"])
    figure = Figure(figsize=(9, 1.6 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    drawn = [row for row in rows if not math.isnan(row["dice"])]
    for y, name in enumerate(names):
        dice = np.array([row["dice"] for row in drawn if row["organ"] == name])
        missed = np.array([row["status"] == "missed" for row in drawn if row["organ"] == name], dtype=bool)
        height = y + 0.5 * ((np.arange(len(dice)) * GOLDEN_RATIO + 0.5) % 1 - 0.5)
        axes.boxplot([dice], positions=[y], orientation="horizontal", widths=0.6, showfliers=False)
        axes.scatter(dice[~missed], height[~missed], s=12, alpha=0.6, color="tab:blue", zorder=3)
        axes.scatter(dice[missed], height[missed], s=24, marker="x", color="tab:red", zorder=3)
        mean = summary["organs"][name]["dice"]["mean"]
        axes.text(1.03, y, _number(mean, 3), va="center", fontsize=9)
    axes.set(xlim=(-0.03, 1.02), xlabel="Dice (cross: organ missed; number: mean)", title=_title(summary))
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    if summary["warnings"]:
        figure.text(0.01, 0.005, " ".join(summary["warnings"]), color="tab:red", fontsize=8)
        figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.96))
    return figure
