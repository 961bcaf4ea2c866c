"""The report of a classification: scores of each domain, a table, curves and matrices."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import monai
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..metrics import bootstrap_scores, classification_scores, roc_curve
from ..metrics.classification import COUNTS, SCORES
from ..utils import DataError
from .domains import (
    ALL,
    add_warnings,
    distribution_note,
    domain_label,
    line_style,
    number,
    report_title,
    score_columns,
    score_rows,
    slide_remarks,
    summarise_domains,
    with_interval,
    with_values,
)
from .provenance import synthetic_warnings

PREDICTION_COLUMNS = ("case", "domain", "slide", "label", "probability", "predicted", "in_distribution")
SCORE_COLUMNS = (
    *("domain", "distribution", "patches", "slides", "positive"),
    *score_columns(SCORES),
    *(*COUNTS, "threshold"),
)


class Patch(NamedTuple):
    """A classified patch.

    Attributes:
        case: its name, which no other has.
        domain: the scanner or centre that it comes from.
        slide: the slide, a name within the domain.
        label: 0 or 1.
        probability: of class 1.
    """

    case: str
    domain: str
    slide: str
    label: int
    probability: float


def checked_probabilities(probabilities: torch.Tensor, cases: Sequence[str]) -> list[float]:
    """A batch's probabilities, (B, 1), as numbers.

    Raises:
        DataError: when one is NaN.
    """
    probabilities = probabilities.detach().double().reshape(-1).tolist()
    bad = [case for case, p in zip(cases, probabilities, strict=True) if math.isnan(p)]
    if bad:
        raise DataError(
            f"{bad[0]}: the network gives no number ({len(bad)} such patches in this batch). Its weights are damaged, "
            "or overflow in half precision: try another checkpoint, or --amp false."
        )
    return probabilities


def check_classes(threshold: float, class_names: Sequence[str]) -> tuple[str, str]:
    """The names of the classes 0 and 1.

    Raises:
        ValueError: when they are not two different ones, or the threshold is not in [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}.")
    if isinstance(class_names, str) or len(class_names) != 2 or class_names[0] == class_names[1]:
        raise ValueError(f"class_names must be two names, of class 0 and class 1, got {class_names!r}.")
    return class_names[0], class_names[1]


def _part(patches: Sequence[Patch], threshold: float, bootstrap: int, seed: int) -> dict[str, Any]:
    """Counts of some patches, and each score with its interval."""
    label, prob = [p.label for p in patches], [p.probability for p in patches]
    slides = [(p.domain, p.slide) for p in patches]  # two scanners may have scanned one slide, or name them alike
    values = classification_scores(prob, label, threshold)
    intervals = bootstrap_scores(prob, label, slides, threshold, bootstrap, seed)
    return {
        "patches": len(patches),
        "slides": len(set(slides)),
        "positive": sum(label),
        **with_values(values, intervals, SCORES),
        **{name: values[name] for name in COUNTS},
    }


def _notes(class_names: Sequence[str], threshold: float, adapted: bool, known: bool) -> list[str]:
    negative, positive = class_names
    return [
        f"A patch is called {positive} when its probability is at least {threshold:g}, else {negative}.",
        "Accuracy: share of all patches called correctly; it depends on how many of them are "
        f"{positive}. Balanced accuracy: mean of sensitivity and specificity; 0.5 is guessing.",
        f"Sensitivity: share of the {positive} patches called so. Specificity: share of the {negative} patches called "
        "so.",
        f"AUC: how often a {positive} patch gets a higher probability than a {negative} one, whatever the threshold; "
        "0.5 is guessing.",
        f"F1: mean, in the harmonic sense, of sensitivity and of the share of correct ones among those called "
        f"{positive}.",
        "Brackets: 95 % interval, from drawing whole slides anew; few slides make it unreliable.",
        distribution_note(known),
        *(
            ["Batch norm was adapted to each domain's images, without their labels, before they were classified."]
            if adapted
            else []
        ),
    ]


def _remarks(name: str, part: Mapping[str, Any], class_names: Sequence[str]) -> list[str]:
    """What a reader must know about the scores of one domain or group."""
    for count, missing, lost in (
        (part["positive"], class_names[1], "balanced accuracy, AUC, F1 and sensitivity"),
        (part["patches"] - part["positive"], class_names[0], "balanced accuracy, AUC and specificity"),
    ):
        if count == 0:
            return [f"{name} has no {missing} patches: its {lost} are undefined, left blank and out of means."]
    return slide_remarks(name, part, SCORES, "patches", "a class")


def summarise_patches(
    patches: Sequence[Patch],
    threshold: float = 0.5,
    class_names: Sequence[str] = ("negative", "positive"),
    train_domains: Sequence[str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    dataset: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    adapted: bool = False,
    threshold_from: str | None = None,
) -> dict[str, Any]:
    """What `summary.json` holds, see `ClassificationReport`."""
    dataset, record = dict(dataset or {}), dict(record or {})

    def part(chosen: Sequence[str]) -> dict[str, Any]:
        own = [p for p in patches if p.domain in chosen]
        return {**_part(own, threshold, bootstrap, seed), "resamples": bootstrap}

    domains, groups, means = summarise_domains((p.domain for p in patches), train_domains, part, SCORES)
    remarks = [text for name, entry in domains.items() for text in _remarks(name, entry, class_names)]
    return {
        "dataset": dataset,
        "class_names": list(class_names),
        "threshold": {"value": threshold, "from": threshold_from},
        "train_domains": None if train_domains is None else list(train_domains),
        "domains": domains,
        "pooled_patches": groups,
        "mean_over_domains": means,
        "intervals": {
            "level": 0.95,
            "method": "percentile bootstrap over slides",
            "resamples": bootstrap,
            "seed": seed,
        },
        "adapted_batch_norm": adapted,
        "model": record,
        "warnings": synthetic_warnings(dataset, record),
        "notes": [*remarks, *_notes(class_names, threshold, adapted, train_domains is not None)],
        "versions": {"monai": monai.__version__, "torch": torch.__version__},
    }


def _title(summary: Mapping[str, Any]) -> str:
    pooled = summary["pooled_patches"][ALL]
    return report_title(summary["dataset"], {key: pooled[key] for key in ("patches", "slides")})


def classification_table(summary: Mapping[str, Any]) -> str:
    """The summary as a table to print."""
    rows = {**summary["domains"], **summary["pooled_patches"]}
    means = {f"mean of {group}": entry for group, entry in summary["mean_over_domains"].items() if entry["domains"] > 1}
    width = max(len(name) for name in (*rows, *means))

    def line(name: str, entry: Mapping[str, Any]) -> str:
        scores = f"{with_interval(entry['accuracy'])}  {with_interval(entry['balanced_accuracy'])}"
        others = "  ".join(f"{number(entry[s]['value']):>5}" for s in ("auc", "f1", "sensitivity", "specificity"))
        return f"{name:{width}}  {entry.get('distribution', ''):3}  {entry['patches']:>7}  {scores}  {others}"

    def mean_line(name: str, entry: Mapping[str, Any]) -> str:
        accuracies = "  ".join(f"{number(entry[s]):>5}{'':15}" for s in ("accuracy", "balanced_accuracy"))
        others = "  ".join(f"{number(entry[s]):>5}" for s in ("auc", "f1", "sensitivity", "specificity"))
        return f"{name:{width}}  {'':12}  {accuracies}  {others}"

    lines = [
        _title(summary),
        f"{'':{width}}  {'':3}  patches  {'accuracy':20}  {'balanced accuracy':20}    AUC     F1  sens.  spec.",
        *(line(name, entry) for name, entry in rows.items()),
        *(mean_line(name, entry) for name, entry in means.items()),
    ]
    return "\n".join([*lines, *summary["notes"], *summary["warnings"]])


def _score_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of `scores.csv`."""
    copied = ("patches", "slides", "positive", *COUNTS)
    rows = score_rows(summary["domains"], summary["pooled_patches"], copied, SCORES)
    return [{**row, "threshold": summary["threshold"]["value"]} for row in rows]


def _draw_curves(axes: Axes, patches: Sequence[Patch], summary: Mapping[str, Any]) -> None:
    """ROC curve of each domain, with a dot at the threshold."""
    for i, (name, part) in enumerate(summary["domains"].items()):
        style, label = line_style(i, part), domain_label(name, part)
        if part["auc"]["value"] is None:
            axes.plot([], [], **style, label=f"{label}: one class only")
            continue
        own = [p for p in patches if p.domain == name]
        curve = roc_curve([p.probability for p in own], [p.label for p in own])
        axes.plot(*curve, **style, linewidth=1.5, label=f"{label}: AUC {part['auc']['value']:.3f}")
        axes.plot(
            1 - part["specificity"]["value"],
            part["sensitivity"]["value"],
            "o",
            color=style["color"],
            markersize=7,
            markeredgecolor="black",
            zorder=4,
            clip_on=False,
        )
    axes.plot([0, 1], [0, 1], ":", color="grey", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="1 - specificity", ylabel="sensitivity")
    axes.set_title(f"ROC curves; dot: threshold {summary['threshold']['value']:.3g}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)


def _draw_matrix(axes: Axes, name: str, part: Mapping[str, Any], class_names: Sequence[str], threshold: float) -> None:
    """Confusion matrix: a row for each true class, the counts over the share of the row."""
    counts = np.array([[part["tn"], part["fp"]], [part["fn"], part["tp"]]])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        share = f"\n{shares[i, j]:.0%}" if counts[i].any() else ""
        axes.text(
            j,
            i,
            f"{count}{share}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if shares[i, j] > 0.5 else "black",
        )
    axes.set_xticks([0, 1], class_names, fontsize=7)
    axes.set_yticks([0, 1], class_names, fontsize=7, rotation=90, va="center")
    axes.set_xlabel("called", fontsize=8)
    axes.set_ylabel("true", fontsize=8)
    axes.set_title(textwrap.fill(domain_label(name, part), 22), fontsize=9)


def _figure(patches: Sequence[Patch], summary: Mapping[str, Any]) -> Figure:
    """The ROC curves, and to their right a confusion matrix for each domain."""
    domains = summary["domains"]
    columns = math.ceil(math.sqrt(len(domains)))
    rows = math.ceil(len(domains) / columns)
    height = max(6.0, 2.1 * rows)
    figure = Figure(figsize=(6 + max(2.1 * columns, 3.0), height + 0.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[6, max(2.1 * columns, 3.0)])
    _draw_curves(left.subplots(), patches, summary)
    grid = right.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(domains) :]:
        axes.set_axis_off()
    for axes, (name, part) in zip(grid, domains.items(), strict=False):
        _draw_matrix(axes, name, part, summary["class_names"], summary["threshold"]["value"])
    figure.suptitle(_title(summary))
    add_warnings(figure, summary["warnings"])
    return figure
