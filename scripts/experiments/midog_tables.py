"""The paper's tables of MIDOG: accuracy on each scanner when one is left out, and the time of an epoch.

The figures are those of Khamankar et al., arXiv 2310.20638.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

from matplotlib.figure import Figure

from shared.utils.values import Choice

from .methods import CLASSIFIER, PLAIN, Overlays, chosen_methods, list_methods
from .patch_runs import FIELDS, CropSize, LeftOut, Names, Size, leave_out, left_out_caption
from .runs import AtLeastOne, Epochs, Minutes, tell_failures
from .tables import describe, draw_runs, flat, markdown_grid, seeds_cell, write_table

TESTED = ("XR", "S360", "CS")


class Published(NamedTuple):
    """A table of the paper.

    Attributes:
        titles: of its methods, by their names, in their order.
        accuracy: in %, by data set, scanner left out and method, on each of `TESTED`.
        note: what else is to be said of it.
        seconds: an epoch, by data set and method.
    """

    titles: Mapping[str, str]
    accuracy: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
    note: str
    seconds: Mapping[str, Mapping[str, float]] = MappingProxyType({})

    def reported(self, data: str, left_out: str, method: str) -> dict[str, float]:
        """The accuracy, from 0 to 1, by scanner, and its `seconds` an epoch; empty where the paper has none."""
        figures = self.accuracy[data].get(left_out, {}).get(method)
        if not figures:
            return {}
        found = {name: round(figure / 100, 4) for name, figure in zip(TESTED, figures, strict=True)}
        return found | ({"seconds": self.seconds[data][method]} if data in self.seconds else {})


def _four(*figures: Any) -> dict[str, Any]:
    """By method: M1, RA, M2 and M3."""
    return dict(zip(("mixstyle", "fusestyle", "euclidean", "kl"), figures, strict=True))


_SET_UP = "As reported: ResNet50, split by patch, GeForce GTX 2080Ti."
PARTNERS = Published(
    titles={
        PLAIN: "none",
        "mixstyle": "M1, random",
        "fusestyle": "RA, least dot product",
        "euclidean": "M2, largest Euclidean distance",
        "kl": "M3, largest KL divergence",
    },
    accuracy={
        "MIDOG'21": {
            "XR": _four((76.42, 89.45, 88.76), (77.56, 91.07, 90.46), (67.05, 88.64, 90.29), (74.43, 87.18, 88.76)),
            "S360": _four((84.09, 71.59, 85.18), (90.06, 75.16, 92.16), (90.34, 75.65, 91.65), (83.07, 78.90, 89.95)),
            "CS": _four((88.64, 89.45, 72.40), (86.65, 88.96, 74.10), (87.78, 90.91, 76.32), (86.34, 87.34, 78.02)),
        },
        "MIDOG'22": {
            "XR": _four((75.10, 81.16, 80.58), (74.27, 83.59, 79.74), (76.78, 75.68, 68.80), (78.74, 83.28, 81.24)),
            "S360": _four((77.06, 80.24, 78.89), (80.84, 80.24, 81.62), (75.94, 81.76, 81.53), (81.26, 81.76, 79.26)),
            "CS": _four((81.12, 81.46, 82.28), (81.34, 84.19, 82.75), (73.71, 76.60, 73.42), (80.14, 83.89, 74.08)),
        },
    },
    note=_SET_UP,
    seconds={"MIDOG'21": _four(8, 8, 8, 111), "MIDOG'22": _four(28, 28, 28, 331)},
)
_RA = {scanner: figures["fusestyle"] for scanner, figures in PARTNERS.accuracy["MIDOG'21"].items()}
STYLES = Published(
    titles={PLAIN: "neither", "strap": "STRAP", "fusestyle": "FuseStyle"},
    accuracy={
        "MIDOG'21": {
            "XR": {"strap": (67.33, 85.28, 87.38), "fusestyle": _RA["XR"]},
            "S360": {"fusestyle": _RA["S360"]},
            "CS": {"strap": (88.92, 92.70, 74.28), "fusestyle": _RA["CS"]},
        }
    },
    note=f"{_SET_UP} FuseStyle is table 4's; STRAP without XR is what the paper's text says it is below that, and "
    "without S360 cannot be read in our copy. STRAP there is AdaIN with paintings, 75 hours for the copies.",
)
TABLES = {"partner": PARTNERS, "strap": STYLES}


def seconds(found: LeftOut, left_out: str, method: str) -> dict[str, Any] | None:
    """What `describe` says of the runs' seconds an epoch."""
    runs = [run for run in found.runs if (run["left_out"], run["method"]) == (left_out, method)]
    return describe([run["seconds_an_epoch"] for run in runs if run["seconds_an_epoch"] is not None])


def markdown(paper: Published, found: LeftOut, methods: Sequence[str]) -> str:
    """A line for each scanner left out and method, and below it those of the paper."""
    rows = {(r["left_out"], r["method"], r["domain"]): r for r in chosen_rows(paper, found)}
    lines = []
    for out in found.left_out:
        for method in methods:
            own = [rows.get((out, method, domain)) for domain in found.domains]
            time = seconds(found, out, method)
            cells = [", ".join(str(row["n"] if row else 0) for row in own), *map(seeds_cell, own)]
            shown = f"{time['mean']:.1f} ({time['min']:.1f} to {time['max']:.1f})" if time else ""
            lines.append([out, paper.titles.get(method, method), *cells, shown])
            for data in paper.accuracy:
                if figures := paper.reported(data, out, method):
                    values = [f"{figures[name]:.3f}" if name in figures else "" for name in found.domains]
                    epoch = f"{figures['seconds']:g}" if "seconds" in figures else ""
                    lines.append(["", f"as reported, {data}", "", *values, epoch])
    head = ["left out", "method", "runs", *found.domains, "seconds an epoch"]
    return f"Accuracy on each scanner:\n\n{markdown_grid(head, lines)}\n"


def chosen_rows(paper: Published, found: LeftOut) -> list[dict[str, Any]]:
    """Accuracy of each scanner left out and tested, batch norm as trained, with the paper's."""
    return [
        {
            **row,
            **{
                f"reported {data}": paper.reported(data, row["left_out"], row["method"]).get(row["domain"])
                for data in paper.accuracy
            },
        }
        for row in found.rows
        if (row["batch_norm"], row["score"]) == ("plain", "accuracy") and row["left_out"] in found.left_out
    ]


def picture(paper: Published, found: LeftOut, methods: Sequence[str]) -> Figure:
    """Accuracy on the scanner left out: a dot a run, and the paper's."""
    figure = Figure(figsize=(2 + 3 * len(found.left_out), 4.5), layout="constrained")
    panels = figure.subplots(1, len(found.left_out), sharey=True, squeeze=False)[0]
    for axes, out in zip(panels, found.left_out, strict=True):
        values = {
            m: [r["scores"]["plain"][out]["accuracy"] for r in found.runs if (r["left_out"], r["method"]) == (out, m)]
            for m in methods
        }
        papers = {
            data: {m: paper.reported(data, out, m).get(out, math.nan) for m in methods} for data in paper.accuracy
        }
        draw_runs(axes, values, {f"as reported, {data}": figures for data, figures in papers.items()})
        axes.set_xticks(range(len(methods)), [paper.titles.get(m, m).split(",")[0] for m in methods])
        axes.set_title(f"{out} left out")
    panels[0].set_ylabel("accuracy on it")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def midog_table(
    table: Annotated[str, Choice(tuple(TABLES))],
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
    """A table of the paper, whose figures stand beside: accuracy on each scanner left out, and the time of an epoch.

    `partner` (tables 4 and 5) is FuseStyle with four ways to choose the partner, and without. `strap` (table 2) is
    STRAP and FuseStyle, and neither. Where an image has no copy in another style yet, all are redrawn first, in
    Laplacian pyramids with made-up textures, into OUTPUT_DIR/data: the datalist of scripts/make_stylized.py with
    weights and paintings, made with --lists all, has those of the paper.

    Runs are those of generalisation_table: given the same OUTPUT_DIR and options, each takes what the other has done.
    Run the same command again to go on. Results: partner_table or strap_table.md, .png, .csv and .json in OUTPUT_DIR.
    Where runs failed, they are listed, and the exit status is 1.

    Args:
        table: partner or strap.
        dataset_dir: folder with a datalist of patches, as scripts/prepare_midog.py patches writes it.
        output_dir: where copies, runs and results are kept.
        datalist: its name. Its own split is of no account.
        seeds: runs of each method and scanner left out.
        size: `full` as configured, or `demo`: a small network and a short schedule.
        overlays: paths of JSON files, overlays of train.json, for methods of your own; called by the files' names.
        scanners: the domains to leave out in turn, separated by commas; by default all that have labels.
        crop_size: the middle of each patch that is used, in pixels; 0 leaves it as configured.
        epochs: length of a training; 0 leaves it as configured.
        minutes: no run is started after this time.
        jobs: runs, or images that are redrawn, at a time; of several the seconds an epoch are those of runs that share
            the machine.
        threads: of each process.
    """
    source, work = Path(dataset_dir).expanduser().resolve() / datalist, Path(output_dir).expanduser().resolve()
    paper = TABLES[table]
    chosen = chosen_methods(CLASSIFIER, tuple(paper.titles), overlays)
    found = leave_out(chosen, source, work, scanners, seeds, size, epochs, crop_size, minutes, jobs, threads)
    if found.runs:
        text = left_out_caption(found, size, epochs) + markdown(paper, found, list(chosen))
        text += (
            "\nRuns: of each scanner. Seconds an epoch: mean (least to greatest) of the runs' medians, validation "
            f"included, {jobs} run(s) at a time. {paper.note}\n\n{list_methods(CLASSIFIER, chosen)}"
        )
        rows = chosen_rows(paper, found)
        times = {out: {m: seconds(found, out, m) for m in chosen} for out in found.left_out}
        content = {**found.content(), "size": size, "epochs": epochs, "seeds": seeds, "jobs": jobs, "rows": rows}
        content["seconds_an_epoch"] = times
        fields = (*FIELDS, *(f"reported {data}" for data in paper.accuracy))
        figure = picture(paper, found, list(chosen))
        write_table(work / f"{table}_table", text, figure, content, list(map(flat, rows)), fields)
        print(text)
    print(f"{len(found.runs)} of {found.planned} runs are finished: {work}")
    tell_failures(found.failures)
