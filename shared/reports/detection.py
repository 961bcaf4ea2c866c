"""The report of a detection: scores of each domain, a table, curves, a gallery of what went wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..data import RegionEntry, open_region
from ..metrics import Findings, bootstrap_detection, detection_scores, precision_recall_curve
from ..metrics.detection import MATCHINGS
from ..networks import ModelRecord
from .domains import (
    Column,
    Curve,
    DomainScoring,
    DomainSummary,
    Layout,
    Part,
    domain_colour,
    domain_label,
    draw_curves,
    summarise_domains,
)
from .gallery import BAR, add_scale_bar, add_warnings, draw_gallery

AP = Column("average_precision", "AP", interval=True)
LAYOUT = Layout(
    counts=("images", "slides", "figures"),
    titled=("images", "slides", "figures"),
    scores=("precision", "recall", "f1", "average_precision"),
    outcomes=("tp", "fp", "fn"),
    columns=(
        Column("images", "images"),
        Column("figures", "figures"),
        Column("f1", "F1", interval=True),
        AP,
        Column("precision", "precision"),
        Column("recall", "   recall"),
    ),
)
DETECTION_COLUMNS = ("image", "domain", "x", "y", "class", "score", "matched")
SHOWN = 12  # crops in each half of the gallery
CROP = 80  # pixels


@dataclass(kw_only=True, eq=False)
class DetectionScoring(DomainScoring):
    """How detections are scored.

    Args:
        dataset, record, bootstrap, seed, threshold, class_names, train_domains, adapted, threshold_from: see
            `DomainScoring`.
        class_id: the class that the report is about.
        match_radius: how far from a figure a detection of it may lie, in pixels of the image.
        matching: see `detection_f1`.
        score_threshold: detections of a lower score were dropped.
        classifier: what judged the detections, see `shared.inferers.CandidateJudge`; None: nothing.

    Raises:
        ValueError: as `DomainScoring`, or when `matching` or `class_id` is none that there is.
    """

    class_names: Sequence[str] = ("non_mitotic", "mitotic")
    class_id: int = 1
    match_radius: float = 30.0
    matching: str = "one_to_one"
    score_threshold: float = 0.05
    classifier: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.matching not in MATCHINGS:
            raise ValueError(f"matching is {self.matching!r}, expected one of {', '.join(MATCHINGS)}.")
        if self.class_id not in (0, 1):
            raise ValueError(f"class_id must be 0 or 1, got {self.class_id}.")
        self.match_radius = float(self.match_radius)

    @property
    def class_name(self) -> str:
        return self.class_names[self.class_id]

    @property
    def records(self) -> list[ModelRecord]:
        return [*super().records, *([self.classifier["record"]] if self.classifier else [])]

    def settings(self) -> dict[str, Any]:
        threshold = super().settings()["threshold"]
        return {
            "class_names": list(self.class_names),
            "class": self.class_name,
            "threshold": threshold,
            "match_radius": self.match_radius,
            "matching": self.matching,
            **({"classifier": dict(self.classifier)} if self.classifier else {}),
        }


def _score_part(findings: Findings, slides: Sequence[Any], how: DetectionScoring) -> Part:
    """Counts of some regions, each score with its interval, and what the other class scores."""
    values, other = (
        detection_scores(findings, i, how.threshold, how.matching) for i in (how.class_id, 1 - how.class_id)
    )
    intervals = bootstrap_detection(
        findings, how.class_id, how.threshold, how.matching, slides, how.bootstrap, how.seed
    )
    return {
        "images": len(slides),
        "slides": len(set(slides)),
        "figures": values["tp"] + values["fn"],
        **LAYOUT.score(values, intervals),
        how.class_names[1 - how.class_id]: {k: None if math.isnan(v) else v for k, v in other.items()},
    }


def _note_unlabelled(regions: Sequence[RegionEntry], how: DetectionScoring) -> list[str]:
    """Of scored domains whose images training has seen without their figures, for domain-adversarial training."""
    seen = sorted({region["domain"] for region in regions} & set(how.record.get("unlabelled_domains", [])))
    return [f"In training, images of {', '.join(seen)} were seen without labels: not quite unseen."] if seen else []


def _notes(how: DetectionScoring) -> list[str]:
    name = how.class_name
    counted = {
        "one_to_one": f"A detection is right when a {name} figure that no other detection has found lies within "
        f"{how.match_radius:g} px of its centre (one-to-one, the highest score first).",
        "many_to_one": f"A detection is right when a {name} figure lies about {how.match_radius:g} px or less from its "
        "centre; several may share a figure (many-to-one, as in the repository of the MIDOG challenge). Average "
        "precision, the curves, the gallery and detections.csv are one-to-one.",
    }
    return [
        counted[how.matching],
        f"A detection counts when its score is at least {how.threshold:g}. Precision: share of those that are right. "
        "Recall: share of the figures that are found. F1: 2 tp / (2 tp + fp + fn), of all images together.",
        f"AP: average precision, the area under the precision-recall curve of the detections that score "
        f"{how.score_threshold:g} or more.",
        *([_judged(how.classifier, how.dataset.get("split"))] if how.classifier else []),
        *how.notes(done="searched"),
    ]


def _judged(classifier: Mapping[str, Any], split: str | None) -> str:
    weight, floor = classifier["weight"], classifier.get("floor")
    text = (
        f"A classifier ({classifier['file']}) has judged each detection: its score is {1 - weight:.3g} of the "
        f"detector's probability of a mitotic figure and {weight:.3g} of the classifier's."
    )
    if floor:
        text += f" Where the detector's is below {floor:.3g}, the classifier is not asked, and its own counts as 0."
    if split and classifier.get("chosen_on") == split:
        text += " Weight and threshold were chosen on what is scored here: the scores are too good."
    if not classifier["record"].get("slides"):
        text += " Its record does not say which slides it was trained on: whether some are scored here, nobody knows."
    return text


def summarise_detections(findings: Findings, regions: Sequence[RegionEntry], how: DetectionScoring) -> DomainSummary:
    """The scores of each domain, of the pooled images, and their means, see `DetectionReport`."""
    # two scanners may have scanned one slide, or name them alike
    slides = [(region["domain"], region["slide"]) for region in regions]

    def remark(name: str, part: Part) -> list[str]:
        if part["figures"] == 0:
            return [
                f"{name} has no {how.class_name} figures: its recall, F1 and AP are undefined, left blank and out of "
                "means."
            ]
        return LAYOUT.remark_slides(name, part, lacking="figures or detections")

    return summarise_domains(
        [region["domain"] for region in regions],
        how,
        LAYOUT,
        part=lambda chosen: _score_part(findings.of(chosen), [slides[i] for i in chosen], how),
        remark=remark,
        notes=[*_note_unlabelled(regions, how), *_notes(how)],
    )


def detection_rows(findings: Findings, regions: Sequence[RegionEntry], summary: DomainSummary) -> list[dict[str, Any]]:
    """Of `detections.csv`; the scores in full, so that those of the report can be worked out from them again."""
    rows = []
    for i, image in enumerate(findings.images):
        region, matched = regions[image], bool(findings.match[i] >= 0)
        place = [round(coordinate, 2) for coordinate in findings.points[i].tolist()]
        found = (summary.how.class_names[findings.classes[i]], float(findings.scores[i]), str(matched).lower())
        row = (region.get("case", region["image"]), region["domain"], *place, *found)
        rows.append(dict(zip(DETECTION_COLUMNS, row, strict=True)))
    return rows


def _draw_curves(axes: Axes, findings: Findings, regions: Sequence[RegionEntry], summary: DomainSummary) -> None:
    """Precision-recall curve of each domain."""
    how = summary.how

    def curve(name: str, _: Part) -> Curve:
        own = [i for i, region in enumerate(regions) if region["domain"] == name]
        precision, recall, score = precision_recall_curve(findings.of(own), how.class_id)
        last = np.count_nonzero(score >= how.threshold) - 1
        return recall, precision, (recall[last], precision[last]) if last >= 0 else None

    draw_curves(axes, summary, AP, curve, lacking="no figures")
    axes.set(xlabel="recall", ylabel="precision")
    axes.set_title(f"{how.class_name} figures; dot: threshold {how.threshold:.3g}", fontsize=10)
    axes.legend(loc="lower left", fontsize=8)


def _draw_f1(axes: Axes, summary: DomainSummary) -> None:
    """F1 of each domain and group, with its interval."""
    rows = summary.parts
    axes.set_yticks(range(len(rows)), [domain_label(name, part) for name, part in rows.items()])
    for y, part in enumerate(rows.values()):
        value, interval = part["f1"]["value"], part["f1"]["interval"]
        color = domain_colour(y) if "distribution" in part else "black"
        if interval is not None:
            axes.plot(interval, [y, y], color=color, linewidth=2)
        if value is None:
            axes.text(0.5, y, "no figures", ha="center", va="center", fontsize=8)
        else:
            axes.plot(value, y, "o", color=color)
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel="F1, 95 % interval")
    axes.grid(alpha=0.3, axis="x")


def draw_detections(findings: Findings, regions: Sequence[RegionEntry], summary: DomainSummary) -> Figure:
    """The precision-recall curves, and to their right the F1 scores."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[6, 4])
    _draw_curves(left, findings, regions, summary)
    _draw_f1(right, summary)
    figure.suptitle(summary.title)
    add_warnings(figure, summary.warnings)
    return figure


class Crop(NamedTuple):
    """A place of a region to look at, the score there, and the true class."""

    region: int
    x: float
    y: float
    text: str
    true: str


def false_positives(findings: Findings, how: DetectionScoring) -> list[Crop]:
    """From the highest score to the lowest."""
    wrong = (findings.match < 0) & (findings.classes == how.class_id) & (findings.scores >= how.threshold)
    order = np.flatnonzero(wrong)[np.argsort(-findings.scores[wrong], kind="stable")]
    images, points, texts = findings.images.tolist(), findings.points.tolist(), [f"{s:.2f}" for s in findings.scores]
    return [Crop(images[i], *points[i], texts[i], _truth(findings, i, how)) for i in order]


def _truth(findings: Findings, i: int, how: DetectionScoring) -> str:
    """What lies where a false positive was found."""
    distance = np.linalg.norm(findings.true_points - findings.points[i], axis=1)
    near = (findings.true_images == findings.images[i]) & (distance <= how.match_radius)
    if not near.any():
        return "nothing"
    true = findings.true_classes[np.where(near, distance, np.inf).argmin()]
    return "found twice" if true == how.class_id else how.class_names[true]


def false_negatives(findings: Findings, how: DetectionScoring) -> list[Crop]:
    """Region after region, with the score of what has found it, below the threshold."""
    found_at, images, points = findings.found_at, findings.true_images, findings.true_points
    missed = np.flatnonzero((findings.true_classes == how.class_id) & ~(found_at >= how.threshold))
    scores = ["not seen" if np.isnan(score) else f"{score:.2f}" for score in found_at[missed]]
    return [
        Crop(int(images[i]), *points[i].tolist(), score, how.class_name)
        for i, score in zip(missed, scores, strict=True)
    ]


def draw_errors(findings: Findings, regions: Sequence[RegionEntry], summary: DomainSummary) -> Figure:
    """The false positives of the highest scores, and false negatives from all over the regions."""
    how = summary.how
    wrong, missed = false_positives(findings, how), false_negatives(findings, how)
    spread = np.unique(np.linspace(0, len(missed) - 1, min(SHOWN, len(missed))).round().astype(int))
    parts = (
        (f"called {how.class_name}, but not, highest scores", wrong[:SHOWN], len(wrong), "no false positives"),
        (f"{how.class_name}, but missed", [missed[i] for i in spread], len(missed), "no false negatives"),
    )
    sections = {f"{title}: {len(shown)} of {n}" if shown else nothing: shown for title, shown, n, nothing in parts}

    def draw(axes: Axes, crop: Crop) -> None:
        entry = regions[crop.region]
        region = open_region(entry["image"], entry.get("mpp"))
        corner = (round(crop.x - CROP / 2), round(crop.y - CROP / 2))
        axes.imshow(region.read(*corner, CROP, CROP))
        name = Path(entry["image"]).name
        place = f"{name if len(name) <= 14 else f'…{name[-13:]}'} {crop.x:.0f}, {crop.y:.0f}"
        axes.set_title(f"{crop.text} {entry['domain']}: {crop.true}\n{place}", fontsize=7)
        if region.mpp:
            add_scale_bar(axes, region.mpp)

    meaning = f"threshold {how.threshold:.3g}; score, domain: true class, file and x, y; bar: {BAR:g} µm"
    return draw_gallery(sections, draw, f"{summary.title}; {meaning}", summary.warnings)
