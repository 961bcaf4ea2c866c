"""The paper's table 1: Camelyon17-WILDS, accuracy on a hospital that nothing was trained or chosen on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from shared.data import dataset_info, domain_names, load_patches
from shared.reports.provenance import MADE_UP_SLIDES

from .methods import (
    CLASSIFIER,
    PLAIN,
    UNLESS_TOLD,
    Overlays,
    chosen_methods,
    list_methods,
    plan_by_seed,
    seed_folder,
)
from .patch_runs import Methods, Run, Size, collect, read_scores
from .runs import AtLeastOne, Epochs, Minutes, Training, run_trainings, tell_failures
from .tables import SEEDS_FIELDS, SPREAD, draw_runs, flat, markdown_grid, seeds_cell, table_rows, write_table

# Accuracy of Khamankar et al., arXiv 2310.20638, table 1.
REPORTED = {
    "strap": 0.937,
    "fusestyle": 0.9049,
    "lisa": 0.771,
    "fish": 0.747,
    PLAIN: 0.703,
    "vrex": 0.715,
    "domain_mix": 0.697,
    "ib_irm": 0.689,
    "group_dro": 0.684,
}
COMPARED = tuple(name for name in REPORTED if name in UNLESS_TOLD[CLASSIFIER])
SIZES: dict[str, tuple[str, ...]] = {
    "full": ("camelyon17", "wilds", "densenet121"),
    "demo": ("camelyon17", "demo_schedule", "wilds", "demo"),
}
SIZE_NOTES = {"full": "DenseNet-121 from scratch, WILDS' schedule.", "demo": "ResNet18 from scratch, WILDS' schedule."}
# What is published for this data set, and differs from the overlays, which are made for short trainings.
PUBLISHED: dict[str, dict[str, Any]] = {
    "fish": {"trainer_class#step_size": 0.01, "warm_up": 10000},
    "lisa": {"mixing#p_sel": 1.0},
    "vrex": {"warm_up": 500},
    "ib_irm": {"warm_up": 500},
}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {"full": PUBLISHED, "demo": {}}
CHOOSING, TEST = "ood_validation", "test"  # lists of the datalist, a hospital each
FIELDS = ("method", "hospital", "domain", "list", "score", *SEEDS_FIELDS, "reported")


def train_and_score(training: Training) -> dict[str, Any]:
    """Train, and score the hospital that chose the epoch and the one of the test."""
    trained, scores = training.train(), {}
    for name in (CHOOSING, TEST):
        domains = domain_names(load_patches(training.places["datalist"], name))
        report = training.evaluate(evaluate_split=name, bootstrap=1, output_dir=training.folder / name)
        scores[name] = read_scores(report, domains)
    known = {"method": training.facts["method"], "left_out": TEST, "seed": training.facts["seed"]}
    return {**known, "seconds_an_epoch": training.seconds_an_epoch(), **trained, "scores": scores}


def markdown(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> str:
    """Accuracy of each method on both hospitals, beside the paper's."""
    found = {(row["method"], row["list"]): row for row in rows if row["score"] == "accuracy"}
    lines = []
    for method in methods:
        test, chose = found.get((method, TEST)), found.get((method, CHOOSING))
        cells = [seeds_cell(test), seeds_cell(test and test["gain"], "+"), seeds_cell(chose)]
        paper = f"{REPORTED[method]:.3f}" if method in REPORTED else ""
        lines.append([method, str(test["n"] if test else 0), *cells, paper])
    if "strap" not in methods:
        lines.append(["strap", "", "", "", "", f"{REPORTED['strap']:.3f}"])
    head = [
        "method",
        "runs",
        "test hospital",
        f"gain over {PLAIN}",
        "hospital that chose the epoch",
        "test, as reported",
    ]
    return markdown_grid(head, lines) + "\n"


def caption(info: Mapping[str, Any], domains: Mapping[str, str], runs: str, size: str, epochs: int) -> str:
    length = f" {epochs} epochs." if epochs else ""
    made_up = f" {MADE_UP_SLIDES}" if info["synthetic"] else ""
    return (
        f"Accuracy at a threshold of 0.5 on {info['name']}, {runs} runs: of the test hospital ({domains[TEST]}), by "
        f"the epoch that was best on the out-of-domain validation hospital ({domains[CHOOSING]}); trained on the "
        f"others (the protocol of WILDS). {SPREAD} Gain: on the same seeds. {SIZE_NOTES[size]}{length} As reported by "
        "Khamankar et al.: all but FuseStyle and STRAP are the figures of the LISA paper with a DenseNet-121, whose "
        f"spread over seeds is 6 to 8 points.{made_up}\n\n"
    )


def picture(runs: Sequence[Run], methods: Sequence[str], title: str) -> Figure:
    """Accuracy on the test hospital: a dot a run, and the paper's."""
    figure = Figure(figsize=(2.5 + 0.9 * len(methods), 4.5), layout="constrained")
    axes = figure.subplots()
    values = {
        method: [v["accuracy"] for run in runs if run["method"] == method for v in run["scores"][TEST].values()]
        for method in methods
    }
    draw_runs(axes, values, {"as reported": REPORTED})
    axes.set(ylabel="accuracy on the test hospital", title=title)
    axes.legend(frameon=False)
    return figure


def camelyon_table(
    dataset_dir: str,
    output_dir: str,
    datalist: str = "dataset.json",
    seeds: AtLeastOne = 5,
    size: Size = "full",
    methods: Methods = COMPARED,
    overlays: Overlays = (),
    epochs: Epochs = 0,
    minutes: Minutes = math.inf,
    jobs: AtLeastOne = 1,
    threads: AtLeastOne = 1,
) -> None:
    """Accuracy on the test hospital of Camelyon17-WILDS by its protocol, for each method, over seeds.

    The paper's table 1, whose figures stand beside. Run the same command again to go on: a training resumes from its
    last checkpoint, and what is finished is kept in OUTPUT_DIR/METHOD/seedN/result.json. All methods of a seed come
    before the next seed. Results: camelyon_table.md, .png, .csv and .json in OUTPUT_DIR. Where runs failed, they are
    listed, and the exit status is 1.

    Args:
        dataset_dir: folder with the datalist, as scripts/prepare_camelyon17.py writes it.
        output_dir: where runs and results are kept.
        datalist: its name.
        seeds: runs of each method.
        size: `full`: DenseNet-121, with the values published for this data set; or `demo`: a small network, and
            values for short trainings.
        methods: some of those of generalisation_table, separated by commas; by default the paper's, but for strap,
            which trains on copies of the images that are made first, in OUTPUT_DIR/data.
        overlays: paths of JSON files, overlays of train.json, for methods of your own; called by the files' names.
        epochs: length of a training; 0 leaves it as in WILDS.
        minutes: no run is started after this time.
        jobs: runs at a time.
        threads: of each process.
    """
    path, work = Path(dataset_dir).expanduser().resolve() / datalist, Path(output_dir).expanduser().resolve()
    chosen = chosen_methods(CLASSIFIER, methods, overlays)
    domains = {name: ", ".join(domain_names(load_patches(path, name))) for name in (CHOOSING, TEST)}
    length = {"max_epochs": epochs} if epochs else {}
    options = {name: OPTIONS[size].get(name, {}) | length for name in chosen}
    trainings = plan_by_seed(CLASSIFIER, SIZES[size], chosen, seeds, path, work, jobs, {"size": size}, options)
    runs, failures = run_trainings(trainings, train_and_score, minutes, jobs, threads)
    if runs:
        keys = [(run["method"], TEST, run["seed"], name) for run in runs for name in (CHOOSING, TEST)]
        reports = {(m, t, seed, name): seed_folder(work, m, seed) / name / "evaluation" for m, t, seed, name in keys}
        rows = [
            {**row, "reported": REPORTED.get(row["method"]) if row["score"] == "accuracy" else None}
            for row in table_rows(collect(runs, reports), FIELDS, PLAIN)
        ]
        info = dataset_info(path, TEST)
        text = caption(info, domains, f"{len(runs)} of {len(trainings)}", size, epochs) + markdown(rows, list(chosen))
        text += f"\n{list_methods(CLASSIFIER, chosen, OPTIONS[size])}"
        content = {"dataset": info, "hospitals": domains, "size": size, "epochs": epochs, "seeds": seeds}
        content |= {"planned_runs": len(trainings), "runs": len(runs), "rows": rows, "reported": REPORTED}
        figure = picture(runs, list(chosen), info["name"] + (": made-up data" if info["synthetic"] else ""))
        write_table(work / "camelyon_table", text, figure, content, list(map(flat, rows)), FIELDS)
        print(text)
    print(f"{len(runs)} of {len(trainings)} runs are finished: {work}")
    tell_failures(failures)
