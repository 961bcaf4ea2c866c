"""Does FuseStyle hold on scanners that were not trained on? Leave-one-scanner-out, over several seeds, resumable."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import wilcoxon

from shared.datasets.patch_table import read_patch_table
from shared.datasets.splits import split_patches
from shared.datasets.synthetic_histology import make_synthetic_histology
from shared.utils import read_csv, write_json

from .runs import AtLeastOne, Epochs, Minutes, Training, file_digest, run_trainings, tell_failures
from .tables import describe, markdown_grid, mean_and_std, write_table

BASE = ("demo", "demo_schedule")
# What a method adds to the plain network. The names of the overlays say the places 1 and 4, or "shallow" 1 and 2.
METHODS: dict[str, tuple[str, ...]] = {
    "none": ("no_fusestyle",),
    "dot 1,4": (),
    "dot 1,2": ("shallow",),
    "random 1,4": ("mixstyle",),
    "random 1,2": ("mixstyle", "shallow"),
    "none + jitter": ("no_fusestyle", "stain_jitter"),
    "dot 1,4 + jitter": ("stain_jitter",),
    "dot 1,2 + jitter": ("shallow", "stain_jitter"),
    "euclidean 1,4": ("euclidean",),
    "euclidean 1,2": ("euclidean", "shallow"),
    "kl 1,4": ("kl",),
    "kl 1,2": ("kl", "shallow"),
}
SCANNERS = ("XR", "S360", "CS")
# image side in pixels that is cut out, and how a folder's table names its classes
SETS: dict[str, dict[str, Any]] = {
    "mitosis_vs_nucleus": {"crop_size": 40, "positive": "mitotic", "negative": "non_mitotic"},
    "patches": {"crop_size": 64, "positive": "Atypical", "negative": "Normal"},
    "synthetic": {"crop_size": 64},
}
SCORES = ("accuracy", "balanced_accuracy", "auc")
# What a run is compared with, on the same seed and scanner.
BASELINES = {method: "none + jitter" if "jitter" in method else "none" for method in METHODS}
# Most telling first. Within a line a seed is done with for all, so that its cells hold equally many runs at any time.
PLAN: tuple[tuple[tuple[str, tuple[str, ...]], ...], ...] = (
    (("mitosis_vs_nucleus", ("none", "dot 1,4", "dot 1,2", "random 1,4", "random 1,2")),),
    (
        ("mitosis_vs_nucleus", ("none + jitter", "dot 1,4 + jitter")),
        ("synthetic", ("none", "dot 1,4")),
        ("patches", ("none", "dot 1,4")),
    ),
    (("mitosis_vs_nucleus", ("dot 1,2 + jitter", "euclidean 1,4", "kl 1,4", "euclidean 1,2", "kl 1,2")),),
)


Run = tuple[str, str, str, int]  # data set, method, held-out scanner, seed


def prepare(name: str, seed: int, source: Path | None, folder: Path) -> Path:
    """The data set as it is dealt out for a seed: other slides are tested with each."""
    target = folder / "data" / f"{name}_{seed}" / "dataset.json"
    if target.is_file():
        return target
    if source is None:
        return make_synthetic_histology(target.parent, slides=10, patches_per_slide=40, tiles_per_slide=0, seed=seed)
    options = SETS[name]
    patches = read_patch_table(
        source / name / "index.csv", source / name, options["positive"], options["negative"], num_workers=2
    )
    splits = split_patches(patches, seed=seed)
    labels = {"0": options["negative"], "1": options["positive"]}
    write_json(target, {"name": name, "synthetic": False, "labels": labels, **splits})
    return target


def plan_trainings(planned: Sequence[Run], source: Path | None, work: Path, epochs: int) -> list[Training]:
    datalists = {
        (name, seed): prepare(name, seed, None if name == "synthetic" else source, work)
        for name, seed in sorted({(name, seed) for name, _, _, seed in planned})
    }
    length = {"max_epochs": epochs} if epochs else {}
    return [
        Training(
            bundle="mitosis_fusestyle_cls",
            variants=(*BASE, *METHODS[method]),
            folder=work / "runs" / f"{name}_{method}_{held_out}_{seed}".replace(" ", "_").replace(",", ""),
            places={"dataset_dir": datalists[name, seed].parent},
            options={
                "seed": seed,
                "crop_size": SETS[name]["crop_size"],
                "train_domains": [scanner for scanner in SCANNERS if scanner != held_out],
                **length,
            },
            facts={
                "set": name,
                "method": method,
                "held_out": held_out,
                "seed": seed,
                "data": file_digest(datalists[name, seed]),
            },
        )
        for name, method, held_out, seed in planned
    ]


def train_and_score(training: Training) -> dict[str, Any]:
    """Train on the other scanners, score on all, without and with adapted batch norm."""
    trained, scores = training.train(), {}
    for norm, adapted in (("plain", False), ("adapted", True)):
        scoring = {"test_domains": list(SCANNERS), "whole_unseen": True, "bootstrap": 1, "adapt_batch_norm": adapted}
        rows = {row["domain"]: row for row in read_csv(training.evaluate(**scoring) / "scores.csv")}
        scores[norm] = {domain: {score: float(rows[domain][score]) for score in SCORES} for domain in SCANNERS}
    known = {key: training.facts[key] for key in ("set", "method", "held_out", "seed")}
    return {**known, "scores": scores, **trained}


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a set, method and treatment of batch norm: means and spreads over seeds and held-out scanners."""
    cells: dict[tuple[str, str, str], dict[tuple[str, int], dict[str, float]]] = defaultdict(dict)
    for each in runs:
        for norm, scores in each["scores"].items():
            values = {}
            for score in SCORES:
                seen = [scores[scanner][score] for scanner in SCANNERS if scanner != each["held_out"]]
                values[f"{score}_in"] = float(np.mean(seen))
                values[f"{score}_out"] = scores[each["held_out"]][score]
            cells[each["set"], each["method"], norm][each["held_out"], each["seed"]] = values
    rows = []
    order = {method: i for i, method in enumerate(METHODS)}
    for (name, method, norm), results in sorted(cells.items(), key=lambda cell: (cell[0][0], order[cell[0][1]])):
        base = cells.get((name, BASELINES[method], norm), {})
        gains = {
            pair: {key: value - base[pair][key] for key, value in result.items()}
            for pair, result in results.items()
            if pair in base
        }
        row: dict[str, Any] = {"set": name, "method": method, "batch_norm": norm, "runs": len(results)}
        for key in next(iter(results.values())):
            differences = [gain[key] for gain in gains.values()]
            row |= _flat(key, [result[key] for result in results.values()]) | _flat(f"{key}_gain", differences)
            row[f"{key}_p"] = _p_value(differences)
            row[f"{key}_better"] = sum(difference > 0 for difference in differences)
        for scanner in SCANNERS:
            own = describe([gain["accuracy_out"] for pair, gain in gains.items() if pair[0] == scanner])
            row[f"accuracy_gain_{scanner}"] = own and own["mean"]
        rows.append(row)
    return rows


def _flat(key: str, values: Sequence[float]) -> dict[str, float | int | None]:
    found = describe(values) or {"mean": None, "std": None}
    return {key: found["mean"], f"{key}_std": found["std"]}


def _p_value(differences: list[float]) -> float | None:
    """Wilcoxon's signed-rank test of the paired differences.

    A description, not a proof: runs on the same data with other seeds are not independent of each other.
    """
    if len(differences) < 6 or not np.any(differences):
        return None
    return round(float(wilcoxon(differences).pvalue), 4)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["set", "method", "batch norm", "runs"]
    for score in ("accuracy", "AUC"):
        head += [f"{score} in", f"{score} out", "gain out", "better", "p"]
    lines = []
    for row in rows:
        cells = [row["set"], row["method"], row["batch_norm"], str(row["runs"])]
        for score in ("accuracy", "auc"):
            cells += [_cell(row, f"{score}_in"), _cell(row, f"{score}_out")]
            p = row[f"{score}_out_p"]
            written = "" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"
            gain = [_cell(row, f"{score}_out_gain", "+"), str(row[f"{score}_out_better"]), written]
            cells += ["", "", ""] if row["method"] == BASELINES[row["method"]] else gain
        lines.append(cells)
    return markdown_grid(head, lines) + "\n"


def _cell(row: Mapping[str, Any], key: str, sign: str = "") -> str:
    return mean_and_std(None if row[key] is None else {"mean": row[key], "std": row[f"{key}_std"]}, sign)


def picture(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy and AUC on the held-out scanner, a dot a run."""
    sets = sorted({each["set"] for each in runs})
    figure = Figure(figsize=(11, 3.2 * len(sets)), layout="constrained")
    for panels, name in zip(figure.subplots(len(sets), 2, squeeze=False), sets, strict=True):
        own = [each for each in runs if each["set"] == name]
        methods = [method for method in METHODS if any(each["method"] == method for each in own)]
        for axes, score in zip(panels, ("accuracy", "auc"), strict=True):
            for x, method in enumerate(methods):
                for offset, norm, colour in ((-0.15, "plain", "tab:blue"), (0.15, "adapted", "tab:orange")):
                    values = [e["scores"][norm][e["held_out"]][score] for e in own if e["method"] == method]
                    axes.plot([x + offset] * len(values), values, ".", color=colour, alpha=0.5)
                    axes.plot(
                        x + offset, np.mean(values), "_", color=colour, markersize=14, label=norm if x == 0 else None
                    )
            axes.set_xticks(range(len(methods)), methods, rotation=30, ha="right", fontsize=8)
            axes.set(ylabel=f"{score}, held-out scanner", title=name)
            axes.grid(axis="y", alpha=0.3)
    figure.axes[0].legend(title="batch norm", frameon=False)
    return figure


def patch_table(
    output_dir: str,
    data_dir: str = "",
    seeds: AtLeastOne = 5,
    epochs: Epochs = 0,
    minutes: Minutes = 60,
    jobs: AtLeastOne = 1,
) -> None:
    """Train on two scanners, test on the third, for each way of mixing statistics; as far as the time goes.

    ResNet18 from scratch at the demo's schedule, one thread a run. Each seed deals out the slides anew and draws the
    weights anew; methods are compared on the same seed and held-out scanner. The held-out scanner is scored on all
    its patches, the others on their test slides. Run the same command again to go on. Results: runs/*/result.json,
    summary.csv, .md, .png and .json.

    Args:
        output_dir: where runs and results are kept.
        data_dir: folder with mitosis_vs_nucleus and patches, each with an index.csv; without it the synthetic set
            alone is used.
        seeds: runs of each method and held-out scanner.
        epochs: length of a run; 0 leaves it as in configs/variants/demo_schedule.json.
        minutes: no run is started after this time.
        jobs: runs at a time.
    """
    work, source = Path(output_dir).resolve(), Path(data_dir).resolve() if data_dir else None
    planned = [
        (name, method, scanner, seed)
        for line in PLAN
        for seed in range(seeds)
        for name, methods in line
        if source or name == "synthetic"
        for scanner in SCANNERS
        for method in methods
    ]
    trainings = plan_trainings(planned, source, work, epochs)
    dropped = ("last.pt", "best.pt", "model.pt")
    runs, failures = run_trainings(trainings, train_and_score, minutes, jobs, 1, dropped)
    rows = summarise(runs)
    if rows:
        write_table(work / "summary", markdown(rows), picture(runs), rows, rows, list(rows[0]))
    print(f"{len(runs)} of {len(planned)} runs.\n{markdown(rows)}")
    tell_failures(failures)
