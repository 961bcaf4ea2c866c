"""What is told of a classification: scores of each domain, ROC curves, confusion matrices; a preview of predictions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ..data import read_rgb
from ..metrics import bootstrap_scores, classification_scores, roc_curve
from ..metrics.classification import COUNTS, SCORES
from ..utils import DataError
from ..utils.errors import NO_NUMBER
from .domains import (
    Column,
    Curve,
    DomainScoring,
    DomainSummary,
    Layout,
    Part,
    domain_label,
    draw_curves,
    summarise_domains,
)
from .gallery import add_warnings, draw_gallery

AUC = Column("auc", "  AUC")
LAYOUT = Layout(
    counts=("patches", "slides", "positive"),
    titled=("patches", "slides"),
    scores=SCORES,
    outcomes=COUNTS,
    columns=(
        Column("patches", "patches"),
        Column("accuracy", "accuracy", interval=True),
        Column("balanced_accuracy", "balanced accuracy", interval=True),
        AUC,
        Column("f1", "   F1"),
        Column("sensitivity", "sens."),
        Column("specificity", "spec."),
    ),
)
PREDICTION_COLUMNS = ("case", "domain", "slide", "label", "probability", "predicted", "in_distribution")
SHOWN = 12  # predictions in each half of the preview
THUMBNAIL = 128  # pixels


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


# What an inference says of an image; `class` is the name of the one that it was called.
Prediction = TypedDict(
    "Prediction", {"case": str, "file": str, "probability": float, "class": str, "source_digest": NotRequired[str]}
)


def checked_probabilities(probabilities: torch.Tensor, cases: Sequence[str]) -> list[float]:
    """A batch's probabilities, (B, 1), as numbers.

    Raises:
        DataError: when one is NaN.
    """
    probabilities = probabilities.detach().double().reshape(-1).tolist()
    bad = [case for case, p in zip(cases, probabilities, strict=True) if math.isnan(p)]
    if bad:
        raise DataError(f"{bad[0]}: the network gives no number ({len(bad)} such patches in this batch). {NO_NUMBER}")
    return probabilities


def _score_part(patches: Sequence[Patch], how: DomainScoring) -> Part:
    """Counts of some patches, and each score with its interval."""
    label, prob = [p.label for p in patches], [p.probability for p in patches]
    slides = [(p.domain, p.slide) for p in patches]  # two scanners may have scanned one slide, or name them alike
    values = classification_scores(prob, label, how.threshold)
    intervals = bootstrap_scores(prob, label, slides, how.threshold, how.bootstrap, how.seed)
    counts = {"patches": len(patches), "slides": len(set(slides)), "positive": sum(label)}
    return counts | LAYOUT.score(values, intervals)


def _notes(how: DomainScoring) -> list[str]:
    negative, positive = how.class_names
    return [
        f"A patch is called {positive} when its probability is at least {how.threshold:g}, else {negative}.",
        "Accuracy: share of all patches called correctly; it depends on how many of them are "
        f"{positive}. Balanced accuracy: mean of sensitivity and specificity; 0.5 is guessing.",
        f"Sensitivity: share of the {positive} patches called so. Specificity: share of the {negative} patches called "
        "so.",
        f"AUC: how often a {positive} patch gets a higher probability than a {negative} one, whatever the threshold; "
        "0.5 is guessing.",
        f"F1: mean, in the harmonic sense, of sensitivity and of the share of correct ones among those called "
        f"{positive}.",
        *how.notes(done="classified"),
    ]


def summarise_patches(patches: Sequence[Patch], how: DomainScoring) -> DomainSummary:
    """The scores of each domain, of the pooled patches, and their means, see `ClassificationReport`."""
    negative, positive = how.class_names

    def remark(name: str, part: Part) -> list[str]:
        for count, missing, lost in (
            (part["positive"], positive, "balanced accuracy, AUC, F1 and sensitivity"),
            (part["patches"] - part["positive"], negative, "balanced accuracy, AUC and specificity"),
        ):
            if count == 0:
                return [f"{name} has no {missing} patches: its {lost} are undefined, left blank and out of means."]
        return LAYOUT.remark_slides(name, part, lacking="a class")

    return summarise_domains(
        [patch.domain for patch in patches],
        how,
        LAYOUT,
        part=lambda chosen: _score_part([patches[i] for i in chosen], how),
        remark=remark,
        notes=_notes(how),
    )


def prediction_rows(patches: Sequence[Patch], how: DomainScoring) -> list[dict[str, Any]]:
    """Of `predictions.csv`; the probabilities in full, so that the scores can be worked out from them again."""
    trained = how.train_domains
    return [
        {
            **patch._asdict(),
            "label": how.class_names[patch.label],
            "predicted": how.class_names[patch.probability >= how.threshold],
            "in_distribution": None if trained is None else str(patch.domain in trained).lower(),
        }
        for patch in patches
    ]


def _draw_curves(axes: Axes, patches: Sequence[Patch], summary: DomainSummary) -> None:
    """ROC curve of each domain."""

    def curve(name: str, part: Part) -> Curve:
        own = [p for p in patches if p.domain == name]
        dot = (1 - part["specificity"]["value"], part["sensitivity"]["value"])
        return *roc_curve([p.probability for p in own], [p.label for p in own]), dot

    draw_curves(axes, summary, AUC, curve, lacking="one class only")
    axes.plot([0, 1], [0, 1], ":", color="grey", linewidth=1)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity")
    axes.set_title(f"ROC curves; dot: threshold {summary.how.threshold:.3g}", fontsize=10)
    axes.legend(loc="lower right", fontsize=8)


def _draw_matrix(axes: Axes, name: str, part: Part, class_names: Sequence[str]) -> None:
    """Confusion matrix: a row for each true class, the counts over the share of the row."""
    counts = np.array([[part["tn"], part["fp"]], [part["fn"], part["tp"]]])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        share = f"\n{shares[i, j]:.0%}" if counts[i].any() else ""
        colour = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, f"{count}{share}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks([0, 1], class_names, fontsize=7)
    axes.set_yticks([0, 1], class_names, fontsize=7, rotation=90, va="center")
    axes.set_xlabel("called", fontsize=8)
    axes.set_ylabel("true", fontsize=8)
    axes.set_title(textwrap.fill(domain_label(name, part), 22), fontsize=9)


def draw_patches(patches: Sequence[Patch], summary: DomainSummary) -> Figure:
    """The ROC curves, and to their right a confusion matrix for each domain."""
    domains = summary.domains
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
        _draw_matrix(axes, name, part, summary.how.class_names)
    figure.suptitle(summary.title)
    add_warnings(figure, summary.warnings)
    return figure


def draw_predictions(
    predictions: Sequence[Prediction],
    threshold: float,
    class_names: Sequence[str],
    warning: str | None = None,
    crop_size: int | None = None,
) -> Figure:
    """The most probable images, and of the others those nearest to the threshold.

    With `crop_size`, of the square of so many pixels in their middle, which the network saw, the outline.
    """
    ranked = sorted(predictions, key=lambda p: -p["probability"])
    uncertain = sorted(ranked[SHOWN:], key=lambda p: abs(p["probability"] - threshold))[:SHOWN]
    first, rest = ranked[:SHOWN], ranked[SHOWN:]
    sections = {f"most probably {class_names[1]}: {len(first)} of {len(ranked)} patches": first}
    if uncertain:
        name = f"least certain of the others (threshold {threshold:.3g}): {len(uncertain)} of {len(rest)}"
        sections[name] = uncertain
    title = "yellow: what the network saw" if crop_size else ""
    draw = partial(_draw_prediction, crop_size=crop_size)
    return draw_gallery(sections, draw, title, warnings=[warning] if warning else [])


def _draw_prediction(axes: Axes, prediction: Prediction, crop_size: int | None) -> None:
    image = read_rgb(prediction["file"])
    width, height = image.size
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    axes.imshow(image, extent=(0, width, height, 0))
    if crop_size:
        corner = ((width - crop_size) // 2, (height - crop_size) // 2)
        seen = {"facecolor": "none", "edgecolor": "yellow", "linewidth": 1.5, "clip_on": False}
        axes.add_patch(Rectangle(corner, crop_size, crop_size, **seen))
    name = Path(prediction["case"]).name
    name = name if len(name) <= 20 else f"…{name[-19:]}"
    axes.set_title(f"{prediction['probability']:.3f}\n{name}", fontsize=7)
