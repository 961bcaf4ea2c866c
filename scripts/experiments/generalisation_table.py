"""Does a method hold on domains that were not trained on? Each is left out in turn, over several seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .methods import CLASSIFIER, PLAIN, UNLESS_TOLD, Overlays, chosen_methods, list_methods
from .patch_runs import ALL, FIELDS, IN, OUT, CropSize, Methods, Names, Run, Size, leave_out, left_out_caption
from .runs import AtLeastOne, Epochs, Minutes, tell_failures
from .tables import better, flat, markdown_grid, seeds_cell, write_table

TITLES = {"accuracy": "Accuracy", "auc": "AUC"}
NORM_TITLES = {"plain": "batch norm as trained", "adapted": "batch norm adapted to the domain's unlabelled patches"}


def markdown(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], left_out: Sequence[str]) -> str:
    """Accuracy and AUC, without and with adapted batch norm: a table each, a line a method."""
    found = {(r["method"], r["left_out"], r["domain"], r["batch_norm"], r["score"]): r for r in rows}
    head = ["method", "runs", *left_out, "mean", f"gain over {PLAIN}", "better", f"mean of those {IN}"]
    parts = []
    for norm, treatment in NORM_TITLES.items():
        for score, title in TITLES.items():
            lines = []
            for method in methods:
                outs = [found.get((method, domain, domain, norm, score)) for domain in left_out]
                means = [found.get((method, ALL, kind, norm, score)) for kind in (OUT, IN)]
                gains = [row["gain"] for row in outs if row and row["gain"]]
                counts = f"{sum(map(better, gains))} of {sum(gain['n'] for gain in gains)}" if gains else ""
                line = [
                    method,
                    ", ".join(str(row["n"] if row else 0) for row in outs),
                    *map(seeds_cell, (*outs, means[0])),
                ]
                lines.append([*line, seeds_cell(means[0] and means[0]["gain"], "+"), counts, seeds_cell(means[1])])
            parts.append(f"{title} on the domain left out, {treatment}:\n\n{markdown_grid(head, lines)}")
    parts.append("Runs: of each domain left out. Gain: on the same seeds; better: in how many runs.")
    return "\n\n".join(parts) + "\n"


def picture(runs: Sequence[Run], methods: Sequence[str], title: str) -> Figure:
    """Accuracy and AUC on the domain left out, a dot a run."""
    figure = Figure(figsize=(3 + 0.7 * len(methods), 7), layout="constrained")
    for axes, (score, name) in zip(figure.subplots(2, 1, sharex=True), TITLES.items(), strict=True):
        for offset, norm, colour in ((-0.15, "plain", "tab:blue"), (0.15, "adapted", "tab:orange")):
            for x, method in enumerate(methods):
                own = [run["scores"][norm][run["left_out"]][score] for run in runs if run["method"] == method]
                values = [value for value in own if value is not None]
                axes.plot([x + offset] * len(values), values, ".", color=colour, alpha=0.5)
                mean = np.mean(values) if values else math.nan
                label = NORM_TITLES[norm] if x == 0 else None
                axes.plot(x + offset, mean, "_", color=colour, markersize=14, label=label)
        axes.set_xticks(range(len(methods)), methods, rotation=30, ha="right", fontsize=8)
        axes.set(ylabel=f"{name}, domain left out")
        axes.grid(axis="y", alpha=0.3)
    figure.axes[0].set_title(title)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def generalisation_table(
    dataset_dir: str,
    output_dir: str,
    datalist: str = "dataset.json",
    seeds: AtLeastOne = 5,
    size: Size = "full",
    methods: Methods = UNLESS_TOLD[CLASSIFIER],
    overlays: Overlays = (),
    scanners: Names = (),
    crop_size: CropSize = 0,
    epochs: Epochs = 0,
    minutes: Minutes = math.inf,
    jobs: AtLeastOne = 1,
    threads: AtLeastOne = 1,
) -> None:
    """Leave out each scanner in turn, and score the patch classifier on it, for each method, over seeds.

    Run the same command again to go on: a training resumes from its last checkpoint, and what is finished is kept in
    OUTPUT_DIR/METHOD/SCANNER_seedN/result.json. All of a seed come before the next seed. Results:
    generalisation_table.md, .png, .csv and .json in OUTPUT_DIR. Where runs failed, they are listed, and the exit
    status is 1.

    Args:
        dataset_dir: folder with a datalist of patches, as scripts/prepare_patches.py, prepare_midog.py patches or
            make_synthetic.py histology writes it.
        output_dir: where runs and results are kept.
        datalist: its name. Its own split is of no account.
        seeds: runs of each method and domain left out.
        size: `full` as configured, or `demo`: a small network and a short schedule.
        methods: some of them, separated by commas; macenko, reinhard, stainnet and strap only if named: the third
            trains a StainNet for each run, the last on copies of the images that are made first, in OUTPUT_DIR/data.
        overlays: paths of JSON files, overlays of train.json, for methods of your own; called by the files' names.
        scanners: the domains to leave out in turn, separated by commas; by default all that have labels.
        crop_size: the middle of each patch that is used, in pixels; 0 leaves it as configured.
        epochs: length of a training; 0 leaves it as configured.
        minutes: no run is started after this time.
        jobs: runs at a time.
        threads: of each process.
    """
    source, work = Path(dataset_dir).expanduser().resolve() / datalist, Path(output_dir).expanduser().resolve()
    chosen = chosen_methods(CLASSIFIER, methods, overlays)
    found = leave_out(chosen, source, work, scanners, seeds, size, epochs, crop_size, minutes, jobs, threads)
    if found.runs:
        text = left_out_caption(found, size, epochs) + markdown(found.rows, list(chosen), found.left_out)
        text += f"\n{list_methods(CLASSIFIER, chosen)}"
        title = f"{found.info['name']}{': made-up data' if found.info['synthetic'] else ''}"
        figure = picture(found.runs, list(chosen), title)
        content = {**found.content(), "size": size, "epochs": epochs, "seeds": seeds}
        write_table(work / "generalisation_table", text, figure, content, list(map(flat, found.rows)), FIELDS)
        print(text)
    print(f"{len(found.runs)} of {found.planned} runs are finished: {work}")
    tell_failures(found.failures)
