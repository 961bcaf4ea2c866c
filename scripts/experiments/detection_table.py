"""A table of the detector's scores on each scanner, by method, over several seeds: its runs, arithmetic and picture."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure

from shared.data import RegionEntry, dataset_info, domain_names, load_regions
from shared.metrics.bootstrap import draw
from shared.metrics.detection import scores_of_counts
from shared.reports.provenance import MADE_UP_SLIDES
from shared.utils import read_csv, read_json_object
from shared.utils.values import Choice, Several, Text

from .methods import (
    DETECTOR,
    METHODS,
    PLAIN,
    UNLESS_TOLD,
    Overlays,
    chosen_methods,
    list_methods,
    plan_by_seed,
    seed_folder,
)
from .runs import AtLeastOne, Epochs, Minutes, Training, run_trainings, tell_failures
from .tables import (
    INTERVALS_FROM,
    RESAMPLES,
    SEEDS_FIELDS,
    SPREAD,
    Score,
    draw_runs,
    flat,
    markdown_grid,
    seeds_cell,
    table_rows,
    write_table,
)

SIZES: dict[str, tuple[str, ...]] = {"full": ("pretrained",), "demo": ("demo", "demo_schedule")}
SCORES = ("f1", "precision", "recall", "average_precision")
FIELDS = ("method", "domain", "score", *SEEDS_FIELDS)
# F1 on MIDOG'21 after training on XR and CS: table 3 of Khamankar et al., arXiv 2310.20638.
REPORTED = {
    "strap": {"XR": 0.87, "S360": 0.79, "CS": 0.92},
    "fusestyle": {"XR": 0.87, "S360": 0.83, "CS": 0.90},
}
Run = Mapping[str, Any]


def train_and_score(training: Training) -> dict[str, Any]:
    """Train and score each scanner of the test split."""
    trained, report = training.train(), training.evaluate()
    domains = json.loads((report / "summary.json").read_text())["domains"]
    scores = {name: {score: row[score]["value"] for score in SCORES} for name, row in domains.items()}
    return {"method": training.facts["method"], "seed": training.facts["seed"], **trained, "scores": scores}


def count_by_slide(report: Path, regions: Sequence[RegionEntry]) -> dict[str, np.ndarray]:
    """True and false positives and missed figures on each slide, (slides, 3), by domain, from an evaluation's folder.

    Args:
        report: the folder.
        regions: those that were searched.
    """
    summary = read_json_object(report / "summary.json", "the summary of an evaluation", "Remove the run's result.json.")
    places = {region["case"]: (region["domain"], region["slide"]) for region in regions}
    counts = {place: np.zeros(3, int) for place in sorted(set(places.values()))}
    for region in regions:
        counts[places[region["case"]]][2] += list(region["label"]).count(1)
    for row in read_csv(report / "detections.csv"):
        if row["class"] == summary["class"] and float(row["score"]) >= summary["threshold"]["value"]:
            right = row["matched"] == "true"
            counts[places[row["image"]]] += [right, not right, -right]
    domains = sorted({domain for domain, _ in counts})
    return {name: np.array([own for (domain, _), own in counts.items() if domain == name]) for name in domains}


def collect(runs: Sequence[Run], work: Path, regions: Sequence[RegionEntry]) -> dict[tuple[str, ...], dict[int, Score]]:
    """The scores by method, domain and score, and by seed; resampled where there are seeds enough for intervals.

    Average precision is not resampled. Undefined scores (a precision without detections) are left out.
    """
    enough = len({run["seed"] for run in runs}) >= INTERVALS_FROM
    cells: dict[tuple[str, ...], dict[int, Score]] = defaultdict(dict)
    for run in runs:
        report = seed_folder(work, run["method"], run["seed"]) / "evaluation"
        counts = count_by_slide(report, regions) if enough else {}
        for domain, scores in run["scores"].items():
            slides = counts.get(domain, np.zeros((0, 3), int))
            drawn = draw(len(slides), RESAMPLES, 0) @ slides if len(slides) > 1 else None
            resampled = {} if drawn is None else scores_of_counts(drawn)
            for score, value in scores.items():
                if value is not None:
                    cells[run["method"], domain, score][run["seed"]] = Score(value, resampled.get(score))
    return cells


def markdown(
    rows: Sequence[Mapping[str, Any]], methods: Sequence[str], domains: Sequence[str], train_domains: Sequence[str]
) -> str:
    """F1 of each method and scanner, with the gain over the plain network where the scanner was left out."""
    found = {(row["method"], row["domain"]): row for row in rows if row["score"] == "f1"}

    def cell(row: Mapping[str, Any] | None, with_gain: bool) -> str:
        return seeds_cell(row) + (f"; gain {seeds_cell(row['gain'], '+')}" if row and with_gain and row["gain"] else "")

    lines = []
    for method in methods:
        own = [found.get((method, domain)) for domain in domains]
        cells = [cell(row, domain not in train_domains) for row, domain in zip(own, domains, strict=True)]
        lines.append([method, ", ".join(str(row["n"] if row else 0) for row in own), *cells])
    for name, figures in REPORTED.items():
        shown = [f"{figures[domain]:.2f}" if domain in figures else "" for domain in domains]
        lines.append([f"{name}, as reported for MIDOG'21, trained on XR and CS", "", *shown])
    titles = [f"{name}{'' if name in train_domains else ' (left out)'}" for name in domains]
    return markdown_grid(["method", "runs", *titles], lines) + "\n"


def picture(
    runs: Sequence[Run], methods: Sequence[str], domains: Sequence[str], train_domains: Sequence[str]
) -> Figure:
    """F1 of each run, a panel for each scanner."""
    figure = Figure(figsize=(2.6 * len(domains) + 1.5, 4), layout="constrained")
    for axes, domain in zip(figure.subplots(1, len(domains), sharey=True, squeeze=False)[0], domains, strict=True):
        found = {m: [run["scores"].get(domain, {}).get("f1") for run in runs if run["method"] == m] for m in methods}
        draw_runs(axes, {m: [v for v in values if v is not None] for m, values in found.items()})
        axes.set_title(domain if domain in train_domains else f"{domain} (left out)")
        axes.set_ylim(-0.02, 1.02)
    figure.axes[0].set_ylabel("F1 of mitotic figures")
    return figure


def caption(info: Mapping[str, Any], train_domains: Sequence[str], runs: int, planned: int) -> str:
    made_up = f" {MADE_UP_SLIDES}" if info["synthetic"] else ""
    return (
        f"F1 of mitotic figures on the test split of {info['name']}, trained on {', '.join(train_domains)}, {runs} of "
        f"{planned} runs; epoch and threshold are chosen on validation regions of these. {SPREAD} Runs: of each "
        f"scanner, those whose F1 is defined. Gain: over {PLAIN}, no FuseStyle, on the same seeds.{made_up}\n\n"
    )


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
    methods: Annotated[Sequence[str], Several(Choice(tuple(METHODS[DETECTOR])), distinct=True)] = UNLESS_TOLD[DETECTOR],
    overlays: Overlays = (),
) -> None:
    """F1 of the detector on each scanner, by FuseStyle and other methods, over seeds.

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
        methods: some of them, separated by commas; macenko, reinhard, stainnet and strap only if named: the third
            trains a StainNet for each run, the last on copies of the images that are made first, in OUTPUT_DIR/data.
        overlays: paths of JSON files, overlays of train.json, for methods of your own; called by the files' names.
    """
    scanners = list(train_domains)
    path, work = Path(dataset_dir).expanduser().resolve() / datalist, Path(output_dir).expanduser().resolve()
    load_regions(path, "training", scanners)
    regions = load_regions(path, "test")
    domains, chosen = domain_names(regions), chosen_methods(DETECTOR, methods, overlays)
    options = dict.fromkeys(chosen, {"train_domains": scanners} | ({"max_epochs": epochs} if epochs else {}))
    facts = {"size": size}
    trainings = plan_by_seed(DETECTOR, SIZES[size], chosen, seeds, path, work, jobs, facts, options, nproc_per_node)
    finished, failures = run_trainings(trainings, train_and_score, minutes, jobs, threads)
    if finished:
        info = dataset_info(path, "test")
        rows = table_rows(collect(finished, work, regions), FIELDS, PLAIN)
        content = {"dataset": info, "train_domains": scanners, "size": size, "epochs": epochs, "seeds": seeds}
        content |= {"planned_runs": len(trainings), "runs": len(finished), "rows": rows, "reported": REPORTED}
        text = caption(info, scanners, len(finished), len(trainings))
        text += markdown(rows, list(chosen), domains, scanners) + f"\n{list_methods(DETECTOR, chosen)}"
        figure = picture(finished, list(chosen), domains, scanners)
        write_table(work / "detection_table", text, figure, content, list(map(flat, rows)), FIELDS)
        print(text)
    print(f"{len(finished)} of {len(trainings)} runs are finished: {work}")
    tell_failures(failures)
