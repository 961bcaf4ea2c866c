"""Where to put the threshold on a scanner never seen, from its unlabelled images: docs/experiments/new_scanner.md."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure

from shared.metrics import POINTS, matched_threshold
from shared.utils import DataError
from shared.utils.values import Choice, Number, Several, Text, Whole

from .kept_runs import read_runs, unpacked
from .methods import CLASSIFIER, METHODS, PLAIN
from .patch_runs import NORMS, Predictions
from .runs import AtLeastOne
from .tables import Score, draw_runs, flat, markdown_grid, seeds_cell, table_rows, write_table

CHOSEN = "as chosen"
FIELDS = (
    "point",
    "start",
    "method",
    "batch_norm",
    "positives",
    "stated",
    "images",
    "mean",
    "min",
    "max",
    "n",
    "values",
    "gain",
)
Methods = Annotated[Sequence[str], Several(Choice(tuple(METHODS[CLASSIFIER])), distinct=True)]


def draw_images(labels: np.ndarray, rate: float, images: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of images without their order, `rate` of them positive; as many as there can be where `images` is 0.

    Of more than there are, as many as there can be, too.
    """
    kinds = np.flatnonzero(labels), np.flatnonzero(labels == 0)
    most = int(min(len(kinds[0]) / rate, len(kinds[1]) / (1 - rate)))
    count = min(images or most, most)
    positive = round(rate * count)
    return np.concatenate([rng.choice(kinds[0], positive, False), rng.choice(kinds[1], count - positive, False)])


def balanced_accuracy(predictions: Predictions, threshold: float) -> float:
    found, labels = predictions.probabilities >= threshold, predictions.labels == 1
    return float((found[labels].mean() + (~found[~labels]).mean()) / 2)


def score_points(predictions: Predictions, rate: float, stated: float, images: int, draws: int) -> dict[str, float]:
    """Balanced accuracy on all images, by how the threshold was found: the mean over draws of unlabelled ones."""
    rng = np.random.default_rng(0)  # the same images for all methods
    found = defaultdict(list)
    for _ in range(draws):
        seen = predictions.probabilities[draw_images(predictions.labels, rate, images, rng)]
        for point in POINTS:
            found[point].append(balanced_accuracy(predictions, matched_threshold(seen, stated, point)))
    means = {point: float(np.mean(scores)) for point, scores in found.items()}
    return {CHOSEN: balanced_accuracy(predictions, predictions.threshold), **means}


def points_of_runs(
    runs: Sequence[Mapping[str, Any]],
    labels: Mapping[str, Mapping[str, str]],
    rates: Sequence[tuple[float, float]],
    images: Sequence[int],
    draws: int,
) -> dict[tuple[str, ...], dict[int, Score]]:
    """By point, start, method, treatment of batch norm, true and stated share of positives, and images: the runs, each
    with a number that is that of the scanner left out and the seed.
    """
    found: dict[tuple[str, ...], dict[int, Score]] = defaultdict(dict)
    pairs = sorted({(run["seed"], run["left_out"]) for run in runs})
    for run in runs:
        number = pairs.index((run["seed"], run["left_out"]))
        for norm in NORMS:
            kept = run["predictions"][norm]
            predictions = unpacked(kept["logits"], labels[run["left_out"]], kept["threshold"])
            for rate, stated in rates:
                for count in images:
                    told = (f"{rate:g}", f"{stated:g}", str(count or "all"))
                    for point, score in score_points(predictions, rate, stated, count, draws).items():
                        found[point, run["start"], run["method"], norm, *told][number] = Score(score)
    return found


def operating_point(
    results: str,
    output_dir: str,
    starts: Annotated[Sequence[str], Several(Text("a name"), empty=True)] = (),
    methods: Methods = (PLAIN, "jitter"),
    positives: Annotated[Sequence[float], Several(Number(0.01, 0.99))] = (0.1, 0.3, 0.5),
    stated: Annotated[Sequence[float], Several(Number(0.01, 0.99), empty=True)] = (),
    images: Annotated[Sequence[int], Several(Whole(0))] = (25, 100, 0),
    draws: AtLeastOne = 100,
) -> None:
    """What a threshold is worth that is found from unlabelled images of the scanner left out, of which the share of
    positives is stated, beside the one chosen on scanners trained on. No run is needed but those kept by new_scanner.

    Tables: operating_point.md, .png, .csv and .json in OUTPUT_DIR.

    Args:
        results: the file that new_scanner keeps.
        output_dir: where the tables are written.
        starts: of which runs, separated by commas; by default all.
        methods: of which runs, separated by commas.
        positives: shares of positives among the unlabelled images.
        stated: shares that are stated in each case; by default the true one alone.
        images: how many unlabelled images there are; 0: as many as the scanner has.
        draws: of such images; the mean over them is reported.
    """
    file, work = Path(results).expanduser().resolve(), Path(output_dir).expanduser().resolve()
    kept = [r for r in read_runs(file, {}) if r["method"] in methods and (not starts or r["start"] in starts)]
    if not kept:
        raise DataError(
            f"{file}: holds no run of {', '.join(methods)}" + (f" from {', '.join(starts)}" if starts else "") + ". "
            "Give the --results of new_scanner, and --methods and --starts that it holds."
        )
    with file.open(encoding="utf-8") as lines:
        labels = json.loads(next(lines))["labels"]
    rates = [(rate, other) for rate in positives for other in (stated or [rate])]
    cells = points_of_runs(kept, labels, rates, images, draws)
    rows = table_rows(cells, FIELDS, CHOSEN)
    text = markdown(rows, len(kept), draws)
    figure = Figure(figsize=(8, 4), layout="constrained")
    of_all = {
        f"{r['point']}, {r['positives']} as {r['stated']}": list(r["values"].values())
        for r in rows
        if r["images"] == "all"
    }
    axes = figure.add_subplot(ylabel="balanced accuracy")
    draw_runs(axes, of_all)
    content = {"runs": len(kept), "rows": rows}
    write_table(work / "operating_point", text, figure, content, list(map(flat, rows)), FIELDS)
    print(text)


def markdown(rows: Sequence[Mapping[str, Any]], runs: int, draws: int) -> str:
    """A line for each start, method, treatment, share and number of images; how the threshold was found across."""
    lines: dict[tuple[str, ...], dict[str, Any]] = defaultdict(dict)
    for row in rows:
        lines[tuple(row[key] for key in FIELDS[1:7])][row["point"]] = row
    grid = []
    for key, of in lines.items():
        found = [(seeds_cell(of[point]), seeds_cell(of[point]["gain"], "+")) for point in POINTS]
        grid.append([*key, seeds_cell(of[CHOSEN]), *(text for pair in found for text in pair)])
    head = [
        "start",
        "method",
        "batch norm",
        "positives",
        "stated",
        "images",
        CHOSEN,
        *(x for p in POINTS for x in (p, "gain")),
    ]
    caption = (
        f"Balanced accuracy on the scanner left out, {runs} runs; threshold as chosen on the others, or matched to the "
        f"stated share of positives among unlabelled images of it, mean over {draws} draws of them; mean (least to "
        "greatest) over runs.\n\n"
    )
    return f"{caption}{markdown_grid(head, grid)}\n"
