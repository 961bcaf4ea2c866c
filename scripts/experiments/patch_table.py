"""Does FuseStyle hold on scanners that were not trained on? Leave-one-scanner-out, over several seeds, resumable."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.bundle import ConfigWorkflow
from scipy.stats import wilcoxon
from tqdm import tqdm

from shared.datasets import make_synthetic_histology, read_patch_table, split_patches
from shared.utils import DataError, atomic_path, write_csv, write_json

from .runs import mean_and_std, plus_minus

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "mitosis_fusestyle_cls"
BASE = ("train", "variants/demo", "variants/demo_schedule")
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


def run(name: str, method: str, held_out: str, seed: int, datalist: Path, folder: Path, epochs: int) -> dict[str, Any]:
    """Train on the other scanners, score on all, without and with adapted batch norm; kept, never done twice."""
    settings = {"set": name, "method": method, "held_out": held_out, "seed": seed, "epochs": epochs}
    settings |= {"made_from": _digest([*overlays_of(method), datalist])}
    work = _folder_of(folder, name, method, held_out, seed)
    result = work / "result.json"
    if result.is_file():
        content = json.loads(result.read_text())
        if {key: content.get(key) for key in settings} != settings:
            raise DataError(f"{result}: holds a run with other settings or data. Choose another --output_dir.")
        return content
    options: dict[str, Any] = {
        "dataset_dir": str(datalist.parent),
        "output_dir": str(work),
        "ckpt_dir": str(work),
        "seed": seed,
    }
    options |= {"crop_size": SETS[name]["crop_size"], "overwrite": True}
    options |= {"train_domains": [scanner for scanner in SCANNERS if scanner != held_out]}
    options |= {"max_epochs": epochs} if epochs else {}
    start = time.monotonic()
    train, *overlays = overlays_of(method)
    workflow([train, *overlays], options)
    scores = {}
    for adapted in (False, True):
        scoring = {"test_domains": list(SCANNERS), "whole_unseen": True, "bootstrap": 1, "adapt_batch_norm": adapted}
        workflow([train, train.with_name("evaluate.json"), *overlays], options | scoring)
        with (work / "evaluation" / "scores.csv").open() as file:
            rows = {row["domain"]: row for row in csv.DictReader(file)}
        key = "adapted" if adapted else "plain"
        scores[key] = {domain: {score: float(rows[domain][score]) for score in SCORES} for domain in SCANNERS}
    content = {**settings, "scores": scores, "seconds": round(time.monotonic() - start, 1)}
    write_json(result, content)
    for path in work.glob("*.pt"):
        path.unlink()
    return content


def _folder_of(folder: Path, *names: object) -> Path:
    return folder / "runs" / "_".join(map(str, names)).replace(" ", "_").replace(",", "")


def overlays_of(method: str) -> list[Path]:
    """The files that a training of this method is configured with."""
    names = [*BASE, *(f"variants/{variant}" for variant in METHODS[method])]
    return [BUNDLE / "configs" / f"{name}.json" for name in names]


def _digest(files: list[Path]) -> str:
    """So that runs of other configs or data are not mixed. (Changes of the code are not seen.)"""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def workflow(configs: list[Path], options: dict[str, Any]) -> None:
    flow = ConfigWorkflow(config_file=[str(path) for path in configs], logging_file=False, **options)
    flow.parser["progress#disable"] = True
    flow.parser["initialize"] = ["$torch.manual_seed(@seed)"]  # and not what changes how a process ends
    flow.initialize()
    flow.run()
    flow.finalize()


def _quiet(log: str) -> None:
    """Of a worker: its messages go to a file, and the progress bar of the whole stays readable."""
    sys.stderr = open(f"{log}.{os.getpid()}", "a", buffering=1)  # noqa: SIM115 - for as long as the process lives
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, force=True)
    torch.set_num_threads(1)


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
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
        row: dict[str, Any] = {"set": name, "method": method, "batch_norm": norm, "runs": len(results)}
        for key in next(iter(results.values())):
            values = [result[key] for result in results.values()]
            differences = [results[pair][key] - base[pair][key] for pair in results if pair in base]
            row[key], row[f"{key}_std"] = mean_and_std(values)
            row[f"{key}_gain"], row[f"{key}_gain_std"] = mean_and_std(differences)
            row[f"{key}_p"] = _p_value(differences)
            row[f"{key}_better"] = sum(difference > 0 for difference in differences)
        for scanner in SCANNERS:
            pairs = [pair for pair in results if pair in base and pair[0] == scanner]
            gains = [results[pair]["accuracy_out"] - base[pair]["accuracy_out"] for pair in pairs]
            row[f"accuracy_gain_{scanner}"], _ = mean_and_std(gains)
        rows.append(row)
    return rows


def _p_value(differences: list[float]) -> float | None:
    """Wilcoxon's signed-rank test of the paired differences.

    A description, not a proof: runs on the same data with other seeds are not independent of each other.
    """
    if len(differences) < 6 or not np.any(differences):
        return None
    return round(float(wilcoxon(differences).pvalue), 4)


def table(rows: list[dict[str, Any]]) -> str:
    head = ("set", "method", "batch norm", "runs")
    for score in ("accuracy", "AUC"):
        head += (f"{score} in", f"{score} out", "gain out", "better", "p")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [row["set"], row["method"], row["batch_norm"], str(row["runs"])]
        for score in ("accuracy", "auc"):
            cells += [_cell(row, f"{score}_in"), _cell(row, f"{score}_out")]
            baseline = row["method"] == BASELINES[row["method"]]
            p, better = row[f"{score}_out_p"], row[f"{score}_out_better"]
            gain = [
                _cell(row, f"{score}_out_gain", "+"),
                str(better),
                "" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001",
            ]
            cells += ["", "", ""] if baseline else gain
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], key: str, sign: str = "") -> str:
    mean, std = row[key], row[f"{key}_std"]
    return "" if mean is None else plus_minus(mean, std, sign)


def picture(runs: list[dict[str, Any]], path: Path) -> None:
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
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def patch_table(
    output_dir: str, data_dir: str = "", seeds: int = 5, epochs: int = 0, minutes: float = 60, jobs: int = 1
) -> None:
    """Train on two scanners, test on the third, for each way of mixing statistics; as far as the time goes.

    ResNet18 from scratch at the demo's schedule, one thread a run. Each seed deals out the slides anew and draws the
    weights anew; methods are compared on the same seed and held-out scanner. The held-out scanner is scored on all
    its patches, the others on their test slides. Run the same command again to go on. Results: runs/*/result.json,
    summary.csv, summary.md, summary.png.

    Args:
        output_dir: where runs and results are kept.
        data_dir: folder with mitosis_vs_nucleus and patches, each with an index.csv; without it the synthetic set
            alone is used.
        seeds: runs of each method and held-out scanner.
        epochs: length of a run; 0 leaves it as in configs/variants/demo_schedule.json.
        minutes: no run is started after this time.
        jobs: runs at a time.
    """
    folder, end = Path(output_dir).resolve(), time.monotonic() + 60 * minutes
    source = Path(data_dir).resolve() if data_dir else None
    planned = [
        (name, method, scanner, seed)
        for line in PLAN
        for seed in range(seeds)
        for name, methods in line
        if source or name == "synthetic"
        for scanner in SCANNERS
        for method in methods
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    folder.mkdir(parents=True, exist_ok=True)
    datalists = {
        (name, seed): prepare(name, seed, None if name == "synthetic" else source, folder)
        for name, seed in sorted({(name, seed) for name, _, _, seed in planned})
    }
    runs = []
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_quiet, initargs=(str(folder / "log"),)
    ) as pool:
        bar = tqdm(total=len(planned), unit="run")
        for each in pool.map(_attempt, [(*job, datalists[job[0], job[3]], folder, epochs, end) for job in planned]):
            runs += [each] if each else []
            bar.update()
        bar.close()
    rows = summarise(runs)
    if rows:
        write_csv(folder / "summary.csv", rows, list(rows[0]))
        with atomic_path(folder / "summary.md") as temporary:
            temporary.write_text(table(rows) + "\n")
        picture(runs, folder / "summary.png")
    print(f"{len(runs)} of {len(planned)} runs.\n{table(rows)}")


def _attempt(job: tuple[Any, ...]) -> dict[str, Any] | None:
    *arguments, end = job
    done = _folder_of(arguments[5], *arguments[:4]) / "result.json"
    # CLOCK_MONOTONIC is one for all processes of a machine
    return None if time.monotonic() > end and not done.is_file() else run(*arguments)
