"""The paper's tables 4 and 5: FuseStyle by its way to choose a partner, accuracy by scanner, and the time of an epoch.

The figures are those of Khamankar et al., arXiv 2310.20638.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .methods import CLASSIFIER, PLAIN, Overlays, chosen_methods, list_methods
from .patch_runs import FIELDS, CropSize, LeftOut, Names, Size, leave_out, left_out_caption
from .runs import AtLeastOne, Epochs, Minutes, tell_failures
from .tables import describe, draw_runs, flat, markdown_grid, seeds_cell, write_table

# method → how it chooses the partner
PARTNERS = {
    PLAIN: "none",
    "mixstyle": "M1, random",
    "fusestyle": "RA, least dot product",
    "euclidean": "M2, largest Euclidean distance",
    "kl": "M3, largest KL divergence",
}
TESTED = ("XR", "S360", "CS")
# Accuracy in % on these, by the scanner left out, of M1, RA, M2 and M3; below, seconds an epoch of the four.
REPORTED = {
    "MIDOG'21": {
        "XR": ((76.42, 89.45, 88.76), (77.56, 91.07, 90.46), (67.05, 88.64, 90.29), (74.43, 87.18, 88.76)),
        "S360": ((84.09, 71.59, 85.18), (90.06, 75.16, 92.16), (90.34, 75.65, 91.65), (83.07, 78.90, 89.95)),
        "CS": ((88.64, 89.45, 72.40), (86.65, 88.96, 74.10), (87.78, 90.91, 76.32), (86.34, 87.34, 78.02)),
    },
    "MIDOG'22": {
        "XR": ((75.10, 81.16, 80.58), (74.27, 83.59, 79.74), (76.78, 75.68, 68.80), (78.74, 83.28, 81.24)),
        "S360": ((77.06, 80.24, 78.89), (80.84, 80.24, 81.62), (75.94, 81.76, 81.53), (81.26, 81.76, 79.26)),
        "CS": ((81.12, 81.46, 82.28), (81.34, 84.19, 82.75), (73.71, 76.60, 73.42), (80.14, 83.89, 74.08)),
    },
}
REPORTED_SECONDS = {"MIDOG'21": (8, 8, 8, 111), "MIDOG'22": (28, 28, 28, 331)}


def reported(data: str, left_out: str, method: str) -> dict[str, float]:
    """The paper's accuracy, from 0 to 1, by scanner, and its `seconds` an epoch; empty where it has none."""
    if method == PLAIN or method not in PARTNERS or left_out not in REPORTED[data]:
        return {}
    i = [*PARTNERS].index(method) - 1
    figures = dict(zip(TESTED, REPORTED[data][left_out][i], strict=True))
    return {**{name: round(f / 100, 4) for name, f in figures.items()}, "seconds": REPORTED_SECONDS[data][i]}


def seconds(found: LeftOut, left_out: str, method: str) -> dict[str, Any] | None:
    """What `describe` says of the runs' seconds an epoch."""
    runs = [run for run in found.runs if (run["left_out"], run["method"]) == (left_out, method)]
    return describe([run["seconds_an_epoch"] for run in runs if run["seconds_an_epoch"] is not None])


def markdown(found: LeftOut, methods: Sequence[str]) -> str:
    """A line for each scanner left out and partner, and below it those of the paper."""
    rows = {(r["left_out"], r["method"], r["domain"]): r for r in chosen_rows(found)}
    lines = []
    for out in found.left_out:
        for method in methods:
            own = [rows.get((out, method, domain)) for domain in found.domains]
            time = seconds(found, out, method)
            cells = [", ".join(str(row["n"] if row else 0) for row in own), *map(seeds_cell, own)]
            shown = f"{time['mean']:.1f} ({time['min']:.1f} to {time['max']:.1f})" if time else ""
            lines.append([out, PARTNERS.get(method, method), *cells, shown])
            for data in REPORTED:
                if paper := reported(data, out, method):
                    figures = [f"{paper[name]:.3f}" if name in paper else "" for name in found.domains]
                    lines.append(["", f"as reported, {data}", "", *figures, f"{paper['seconds']:g}"])
    head = ["left out", "partner", "runs", *found.domains, "seconds an epoch"]
    return f"Accuracy on each scanner:\n\n{markdown_grid(head, lines)}\n"


def chosen_rows(found: LeftOut) -> list[dict[str, Any]]:
    """Accuracy of each scanner left out and tested, batch norm as trained, with the paper's."""
    return [
        {
            **row,
            **{
                f"reported {data}": reported(data, row["left_out"], row["method"]).get(row["domain"])
                for data in REPORTED
            },
        }
        for row in found.rows
        if (row["batch_norm"], row["score"]) == ("plain", "accuracy") and row["left_out"] in found.left_out
    ]


def picture(found: LeftOut, methods: Sequence[str]) -> Figure:
    """Accuracy on the scanner left out: a dot a run, and the paper's."""
    figure = Figure(figsize=(2 + 3 * len(found.left_out), 4.5), layout="constrained")
    panels = figure.subplots(1, len(found.left_out), sharey=True, squeeze=False)[0]
    for axes, out in zip(panels, found.left_out, strict=True):
        values = {
            m: [r["scores"]["plain"][out]["accuracy"] for r in found.runs if (r["left_out"], r["method"]) == (out, m)]
            for m in methods
        }
        papers = {data: {m: reported(data, out, m).get(out, math.nan) for m in methods} for data in REPORTED}
        draw_runs(axes, values, {f"as reported, {data}": figures for data, figures in papers.items()})
        axes.set_xticks(range(len(methods)), [PARTNERS.get(m, m).split(",")[0] for m in methods])
        axes.set_title(f"{out} left out")
    panels[0].set_ylabel("accuracy on it")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def partner_table(
    dataset_dir: str,
    output_dir: str,
    datalist: str = "dataset.json",
    seeds: AtLeastOne = 5,
    size: Size = "full",
    overlays: Overlays = (),
    scanners: Names = (),
    crop_size: CropSize = 0,
    epochs: Epochs = 0,
    minutes: Minutes = math.inf,
    jobs: AtLeastOne = 1,
    threads: AtLeastOne = 1,
) -> None:
    """FuseStyle with four ways to choose the partner, and without: accuracy on each scanner, and the time of an epoch.

    The paper's tables 4 and 5, whose figures stand beside. Runs are those of generalisation_table: given the same
    OUTPUT_DIR and options, each takes what the other has done. Run the same command again to go on. Results:
    partner_table.md, .png, .csv and .json in OUTPUT_DIR. Where runs failed, they are listed, and the exit status is 1.

    Args:
        dataset_dir: folder with a datalist of patches, as scripts/prepare_midog.py patches writes it.
        output_dir: where runs and results are kept.
        datalist: its name. Its own split is of no account.
        seeds: runs of each partner and scanner left out.
        size: `full` as configured, or `demo`: a small network and a short schedule.
        overlays: paths of JSON files, overlays of train.json, for methods of your own; called by the files' names.
        scanners: the domains to leave out in turn, separated by commas; by default all that have labels.
        crop_size: the middle of each patch that is used, in pixels; 0 leaves it as configured.
        epochs: length of a training; 0 leaves it as configured.
        minutes: no run is started after this time.
        jobs: runs at a time; of several the seconds an epoch are those of runs that share the machine.
        threads: of each process.
    """
    source, work = Path(dataset_dir).expanduser().resolve() / datalist, Path(output_dir).expanduser().resolve()
    chosen = chosen_methods(CLASSIFIER, tuple(PARTNERS), overlays)
    found = leave_out(chosen, source, work, scanners, seeds, size, epochs, crop_size, minutes, jobs, threads)
    if found.runs:
        text = left_out_caption(found, size, epochs) + markdown(found, list(chosen))
        text += (
            "\nRuns: of each scanner. Seconds an epoch: mean (least to greatest) of the runs' medians, validation "
            f"included, {jobs} run(s) at a time. As reported: ResNet50, split by patch, GeForce GTX 2080Ti.\n"
        )
        text += f"\n{list_methods(CLASSIFIER, chosen)}"
        rows, times = chosen_rows(found), {out: {m: seconds(found, out, m) for m in chosen} for out in found.left_out}
        content = {**found.content(), "size": size, "epochs": epochs, "seeds": seeds, "rows": rows}
        content |= {"seconds_an_epoch": times, "jobs": jobs}
        fields = (*FIELDS, *(f"reported {data}" for data in REPORTED))
        write_table(work / "partner_table", text, picture(found, list(chosen)), content, list(map(flat, rows)), fields)
        print(text)
    print(f"{len(found.runs)} of {found.planned} runs are finished: {work}")
    tell_failures(found.failures)
