"""A table of the detector's scores on each scanner, by method, over several seeds: its runs, arithmetic and picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure

from shared.data import dataset_info, domain_names, load_regions
from shared.reports.provenance import MADE_UP_SLIDES
from shared.utils.values import Choice, Several, Text

from .runs import AtLeastOne, Epochs, Minutes, Training, file_digest, run_trainings, tell_failures
from .tables import describe, markdown_grid, mean_and_std, write_table

METHODS: dict[str, tuple[str, ...]] = {
    "none": ("no_fusestyle",),
    "fusestyle": (),
    "mixstyle": ("mixstyle",),
    "domain_adversarial": ("domain_adversarial",),
    "jitter": ("no_fusestyle", "stain_jitter"),
    "fusestyle_jitter": ("stain_jitter",),
}
PLAIN = "none"
SIZES: dict[str, tuple[str, ...]] = {"full": ("pretrained",), "demo": ("demo", "demo_schedule")}
SCORES = ("f1", "precision", "recall", "average_precision")
Run = Mapping[str, Any]


def train_and_score(training: Training) -> dict[str, Any]:
    """Train and score each scanner of the test split."""
    trained, report = training.train(), training.evaluate()
    domains = json.loads((report / "summary.json").read_text())["domains"]
    scores = {name: {score: row[score]["value"] for score in SCORES} for name, row in domains.items()}
    return {"method": training.facts["method"], "seed": training.facts["seed"], **trained, "scores": scores}


def summarise(runs: Sequence[Run], domains: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each method, domain and score: its spread over seeds, and that of the gain over the plain network.

    The gain is that of runs with the same seed. Undefined scores (a precision without detections) are left out.
    """
    found = {(run["method"], run["seed"], name): scores for run in runs for name, scores in run["scores"].items()}
    rows = []
    for method in METHODS:
        for domain in domains:
            for score in SCORES:
                own = {s: v[score] for (m, s, d), v in found.items() if (m, d) == (method, domain)}
                plain = {s: v[score] for (m, s, d), v in found.items() if (m, d) == (PLAIN, domain)}
                own = {seed: value for seed, value in own.items() if value is not None}
                gains = [value - plain[seed] for seed, value in own.items() if plain.get(seed) is not None]
                values = describe(list(own.values()))
                if values:
                    gain = describe(gains) if method != PLAIN else None
                    rows.append({"method": method, "domain": domain, "score": score, **values, "gain": gain})
    return rows


def markdown(rows: Sequence[Mapping[str, Any]], domains: Sequence[str], train_domains: Sequence[str]) -> str:
    """F1 of each method and scanner, with the gain over the plain network where the scanner was left out."""
    titles = [f"{name}{'' if name in train_domains else ' (left out)'}" for name in domains]
    found = {(row["method"], row["domain"]): row for row in rows if row["score"] == "f1"}

    def cell(row: Mapping[str, Any] | None, with_gain: bool) -> str:
        gain = f" (gain {mean_and_std(row['gain'], '+')})" if row and with_gain and row["gain"] else ""
        return mean_and_std(row) + gain

    lines = [
        [method, *(cell(found.get((method, domain)), domain not in train_domains) for domain in domains)]
        for method in METHODS
    ]
    return markdown_grid(["method", *titles], [line for line in lines if any(line[1:])]) + "\n"


def picture(runs: Sequence[Run], domains: Sequence[str], train_domains: Sequence[str]) -> Figure:
    """F1 of each run, a panel for each scanner."""
    figure = Figure(figsize=(2.6 * len(domains) + 1.5, 4), layout="constrained")
    methods = [method for method in METHODS if any(run["method"] == method for run in runs)]
    for axes, domain in zip(figure.subplots(1, len(domains), sharey=True, squeeze=False)[0], domains, strict=True):
        for i, method in enumerate(methods):
            values = [run["scores"].get(domain, {}).get("f1") for run in runs if run["method"] == method]
            values = [value for value in values if value is not None]
            axes.plot([i] * len(values), values, "o", alpha=0.6)
            axes.hlines(np.mean(values) if values else math.nan, i - 0.3, i + 0.3, colors="black")
        axes.set_xticks(range(len(methods)), methods, rotation=60, ha="right")
        axes.set_title(domain if domain in train_domains else f"{domain} (left out)")
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("F1 of mitotic figures")
    return figure


def caption(info: Mapping[str, Any], train_domains: Sequence[str], seeds: int) -> str:
    made_up = f" {MADE_UP_SLIDES}" if info["synthetic"] else ""
    return (
        f"F1 of mitotic figures on the test split of {info['name']}, trained on {', '.join(train_domains)}; mean "
        f"± standard deviation over {seeds} seed(s), gain over no FuseStyle on the same seeds.{made_up}\n\n"
    )


def plan_trainings(
    names: Sequence[str],
    seeds: int,
    datalist: Path,
    train_domains: Sequence[str],
    work: Path,
    size: str,
    epochs: int,
    ranks: int,
) -> list[Training]:
    """All methods of a seed before the next seed."""
    digest, length = file_digest(datalist), {"max_epochs": epochs} if epochs else {}
    return [
        Training(
            bundle="mitosis_retinanet_fusestyle",
            variants=(*SIZES[size], *METHODS[method]),
            folder=work / method / f"seed{seed}",
            places={"datalist": datalist},
            options={"seed": seed, "train_domains": list(train_domains), **length},
            facts={"method": method, "seed": seed, "size": size, "data": digest},
            ranks=ranks,
        )
        for seed in range(seeds)
        for method in METHODS
        if method in names
    ]


def detection_table(
    dataset_dir: str,
    output_dir: str,
    train_domains: Annotated[Sequence[str], Several(Text(), distinct=True)],
    datalist: str = "dataset.json",
    seeds: AtLeastOne = 3,
    size: Annotated[str, Choice(tuple(SIZES))] = "full",
    minutes: Minutes = math.inf,
    jobs: AtLeastOne = 1,
    threads: AtLeastOne = 1,
    nproc_per_node: AtLeastOne = 1,
    epochs: Epochs = 0,
    methods: Annotated[Sequence[str], Several(Choice(tuple(METHODS)), distinct=True)] = tuple(METHODS),
) -> None:
    """F1 of the detector on each scanner, with and without FuseStyle and other methods, over seeds.

    Run the same command again to go on: a training resumes from its last checkpoint, and what is finished is kept in
    OUTPUT_DIR/METHOD/seedN/result.json. All methods of a seed come before the next seed. Results:
    detection_table.md, .png, .csv and .json in OUTPUT_DIR. Where runs failed, they are listed, and the exit status is
    1.

    Args:
        dataset_dir: folder with the datalist, as scripts/prepare_midog.py tiles writes it.
        output_dir: where runs and results are kept.
        train_domains: the scanners to train on, as XR,CS for the paper's table; the others are left out.
        datalist: its name; tiles.json for synthetic tiles.
        seeds: runs of each method.
        size: `full` as configured, from models/pretrained.safetensors in the bundle's folder; or `demo`: a small
            network from scratch, for synthetic tiles.
        minutes: no run is started after this time.
        jobs: runs at a time.
        threads: of each process.
        nproc_per_node: processes of each training, as for torchrun.
        epochs: length of a training; 0 leaves it as configured.
        methods: some of them, separated by commas.
    """
    scanners = list(train_domains)
    path, work = Path(dataset_dir).expanduser().resolve() / datalist, Path(output_dir).expanduser().resolve()
    load_regions(path, "training", scanners)
    domains = domain_names(load_regions(path, "test"))
    trainings = plan_trainings(methods, seeds, path, scanners, work, size, epochs, nproc_per_node)
    finished, failures = run_trainings(trainings, train_and_score, minutes, jobs, threads)
    if finished:
        info = dataset_info(path, "test")
        rows = summarise(finished, domains)
        content = {"dataset": info, "train_domains": scanners, "size": size, "epochs": epochs, "seeds": seeds}
        content |= {"planned_runs": len(trainings), "runs": len(finished), "rows": rows}
        text = caption(info, scanners, seeds) + markdown(rows, domains, scanners)
        flat = [{**row, **{f"gain_{key}": value for key, value in (row["gain"] or {}).items()}} for row in rows]
        fields = ("method", "domain", "score", "mean", "std", "min", "max", "n", "gain_mean", "gain_std", "gain_n")
        write_table(work / "detection_table", text, picture(finished, domains, scanners), content, flat, fields)
        print(text)
    print(f"{len(finished)} of {len(trainings)} runs are finished: {work}")
    tell_failures(failures)
