"""The report of a detection: scores of each domain, a table, curves, a gallery of what went wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import monai
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..data import RegionEntry, open_region
from ..metrics import Findings, bootstrap_detection, detection_scores, precision_recall_curve
from .domains import (
    ALL,
    add_warnings,
    distribution_note,
    domain_label,
    line_style,
    number,
    report_title,
    score_columns,
    slide_remarks,
    summarise_domains,
    with_interval,
    with_values,
)
from .provenance import synthetic_warnings

SCORES = ("precision", "recall", "f1", "average_precision")
COUNTS = ("tp", "fp", "fn")
SCORE_COLUMNS = (
    *("domain", "distribution", "images", "slides", "figures"),
    *score_columns(SCORES),
    *(*COUNTS, "threshold"),
)
DETECTION_COLUMNS = ("image", "domain", "x", "y", "class", "score", "matched")
SHOWN = 12  # crops in each half of the gallery
PER_ROW = 6
CROP = 80  # pixels


class Scoring(NamedTuple):
    """How detections are scored.

    Attributes:
        threshold: a detection counts from this score on.
        class_names: of the classes 0 and 1.
        class_id: the class that the report is about.
        match_radius: in pixels of the image.
        matching: see `detection_f1`.
        bootstrap: number of resamples.
        seed: of the resamples.
    """

    threshold: float = 0.5
    class_names: tuple[str, str] = ("non_mitotic", "mitotic")
    class_id: int = 1
    match_radius: float = 30.0
    matching: str = "one_to_one"
    bootstrap: int = 1000
    seed: int = 0


def _part(findings: Findings, slides: Sequence[Any], how: Scoring) -> dict[str, Any]:
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
        **with_values(values, intervals, SCORES),
        **{name: values[name] for name in COUNTS},
        how.class_names[1 - how.class_id]: {k: None if math.isnan(v) else v for k, v in other.items()},
        "resamples": how.bootstrap,
    }


def _seen_unlabelled(regions: Sequence[RegionEntry], record: Mapping[str, Any]) -> list[str]:
    """Of scored domains whose images training has seen without their figures, for domain-adversarial training."""
    seen = sorted({region["domain"] for region in regions} & set(record.get("unlabelled_domains", [])))
    return [f"In training, images of {', '.join(seen)} were seen without labels: not quite unseen."] if seen else []


def _notes(how: Scoring, score_threshold: float, adapted: bool, known: bool) -> list[str]:
    name = how.class_names[how.class_id]
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
        f"{score_threshold:g} or more.",
        "Brackets: 95 % interval, from drawing whole slides anew; few slides make it unreliable.",
        distribution_note(known),
        *(
            ["Batch norm was adapted to each domain's images, without their labels, before they were searched."]
            if adapted
            else []
        ),
    ]


def _remarks(name: str, part: Mapping[str, Any], how: Scoring) -> list[str]:
    """What a reader must know about the scores of one domain."""
    called = how.class_names[how.class_id]
    if part["figures"] == 0:
        return [f"{name} has no {called} figures: its recall, F1 and AP are undefined, left blank and out of means."]
    return slide_remarks(name, part, SCORES, "images", "figures or detections")


def summarise_detections(
    findings: Findings,
    regions: Sequence[RegionEntry],
    how: Scoring,
    train_domains: Sequence[str] | None = None,
    dataset: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    adapted: bool = False,
    threshold_from: str | None = None,
    score_threshold: float = 0.05,
) -> dict[str, Any]:
    """What `summary.json` holds, see `DetectionReport`."""
    dataset, record = dict(dataset or {}), dict(record or {})

    def part(chosen: Sequence[str]) -> dict[str, Any]:
        own = [i for i, region in enumerate(regions) if region["domain"] in chosen]
        # two scanners may have scanned one slide, or name them alike
        return _part(findings.of(own), [(regions[i]["domain"], regions[i]["slide"]) for i in own], how)

    domains, pooled, means = summarise_domains((r["domain"] for r in regions), train_domains, part, SCORES)
    remarks = [text for name, entry in domains.items() for text in _remarks(name, entry, how)]
    return {
        "dataset": dataset,
        "class_names": list(how.class_names),
        "class": how.class_names[how.class_id],
        "threshold": {"value": how.threshold, "from": threshold_from},
        "match_radius": how.match_radius,
        "matching": how.matching,
        "train_domains": None if train_domains is None else list(train_domains),
        "domains": domains,
        "pooled_images": pooled,
        "mean_over_domains": means,
        "intervals": {
            "level": 0.95,
            "method": "percentile bootstrap over slides",
            "resamples": how.bootstrap,
            "seed": how.seed,
        },
        "adapted_batch_norm": adapted,
        "model": record,
        "warnings": synthetic_warnings(dataset, record),
        "notes": [
            *remarks,
            *_seen_unlabelled(regions, record),
            *_notes(how, score_threshold, adapted, train_domains is not None),
        ],
        "versions": {"monai": monai.__version__, "torch": torch.__version__},
    }


def _title(summary: Mapping[str, Any]) -> str:
    pooled = summary["pooled_images"][ALL]
    return report_title(summary["dataset"], {key: pooled[key] for key in ("images", "slides", "figures")})


def detection_table(summary: Mapping[str, Any]) -> str:
    """The summary as a table to print."""
    rows = {**summary["domains"], **summary["pooled_images"]}
    means = {f"mean of {group}": entry for group, entry in summary["mean_over_domains"].items() if entry["domains"] > 1}
    width = max(len(name) for name in (*rows, *means))

    def line(name: str, entry: Mapping[str, Any]) -> str:
        scores = f"{with_interval(entry['f1'])}  {with_interval(entry['average_precision'])}"
        others = "  ".join(f"{number(entry[s]['value']):>9}" for s in ("precision", "recall"))
        counts = f"{entry['images']:>6}  {entry['figures']:>7}"
        return f"{name:{width}}  {entry.get('distribution', ''):3}  {counts}  {scores}  {others}"

    def mean_line(name: str, entry: Mapping[str, Any]) -> str:
        scores = "  ".join(f"{number(entry[s]):>5}{'':15}" for s in ("f1", "average_precision"))
        others = "  ".join(f"{number(entry[s]):>9}" for s in ("precision", "recall"))
        return f"{name:{width}}  {'':20}  {scores}  {others}"

    lines = [
        _title(summary),
        f"{'':{width}}  {'':3}  images  figures  {'F1':20}  {'AP':20}  precision     recall",
        *(line(name, entry) for name, entry in rows.items()),
        *(mean_line(name, entry) for name, entry in means.items()),
    ]
    return "\n".join([*lines, *summary["notes"], *summary["warnings"]])


def _draw_curves(
    axes: Axes, findings: Findings, regions: Sequence[RegionEntry], how: Scoring, summary: Mapping[str, Any]
) -> None:
    """Precision-recall curve of each domain, with a dot at the threshold."""
    for i, (name, part) in enumerate(summary["domains"].items()):
        style, label = line_style(i, part), domain_label(name, part)
        if part["average_precision"]["value"] is None:
            axes.plot([], [], **style, label=f"{label}: no figures")
            continue
        own = [j for j, region in enumerate(regions) if region["domain"] == name]
        precision, recall, score = precision_recall_curve(findings.of(own), how.class_id)
        axes.plot(
            recall, precision, **style, linewidth=1.5, label=f"{label}: AP {part['average_precision']['value']:.3f}"
        )
        last = np.count_nonzero(score >= how.threshold) - 1
        if last >= 0:
            dot = {"color": style["color"], "markersize": 7, "markeredgecolor": "black", "zorder": 4, "clip_on": False}
            axes.plot(recall[last], precision[last], "o", **dot)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="recall", ylabel="precision")
    axes.set_title(f"{summary['class']} figures; dot: threshold {how.threshold:.3g}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize=8)


def _draw_f1(axes: Axes, summary: Mapping[str, Any]) -> None:
    """F1 of each domain and group, with its interval."""
    rows = {**summary["domains"], **summary["pooled_images"]}
    axes.set_yticks(range(len(rows)), [domain_label(name, {"distribution": "", **part}) for name, part in rows.items()])
    for y, part in enumerate(rows.values()):
        value, interval = part["f1"]["value"], part["f1"]["interval"]
        color = line_style(y, part)["color"] if "distribution" in part else "black"
        if interval is not None:
            axes.plot(interval, [y, y], color=color, linewidth=2)
        if value is None:
            axes.text(0.5, y, "no figures", ha="center", va="center", fontsize=8)
        else:
            axes.plot(value, y, "o", color=color)
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel="F1, 95 % interval")
    axes.grid(alpha=0.3, axis="x")


def _figure(findings: Findings, regions: Sequence[RegionEntry], how: Scoring, summary: Mapping[str, Any]) -> Figure:
    """The precision-recall curves, and to their right the F1 scores."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[6, 4])
    _draw_curves(left, findings, regions, how, summary)
    _draw_f1(right, summary)
    figure.suptitle(_title(summary))
    add_warnings(figure, summary["warnings"])
    return figure


class Crop(NamedTuple):
    """A place of a region to look at."""

    region: int
    x: float
    y: float
    text: str


def _false_positives(findings: Findings, how: Scoring) -> list[Crop]:
    """From the highest score to the lowest."""
    wrong = (findings.match < 0) & (findings.classes == how.class_id) & (findings.scores >= how.threshold)
    order = np.flatnonzero(wrong)[np.argsort(-findings.scores[wrong], kind="stable")]
    return [Crop(int(findings.images[i]), *findings.points[i].tolist(), f"{findings.scores[i]:.2f}") for i in order]


def _false_negatives(findings: Findings, how: Scoring) -> list[Crop]:
    """Region after region."""
    found_at = findings.found_at
    missed = (findings.true_classes == how.class_id) & ~(found_at >= how.threshold)
    return [
        Crop(
            int(findings.true_images[i]),
            *findings.true_points[i].tolist(),
            "not seen" if np.isnan(found_at[i]) else f"{found_at[i]:.2f}",
        )
        for i in np.flatnonzero(missed)
    ]


def _gallery(
    findings: Findings,
    regions: Sequence[RegionEntry],
    how: Scoring,
    summary: Mapping[str, Any],
) -> Figure:
    """The false positives of the highest scores, and false negatives from all over the regions."""
    name = how.class_names[how.class_id]
    wrong, missed = _false_positives(findings, how), _false_negatives(findings, how)
    spread = np.unique(np.linspace(0, len(missed) - 1, min(SHOWN, len(missed))).round().astype(int))
    parts = (
        (f"called {name}, but not, highest scores", wrong[:SHOWN], len(wrong), "no false positives"),
        (f"{name}, but missed", [missed[i] for i in spread], len(missed), "no false negatives"),
    )
    heights = [math.ceil(max(1, len(shown)) / PER_ROW) for _, shown, _, _ in parts]
    figure = Figure(figsize=(1.7 * PER_ROW, 2.0 * sum(heights) + 1.7), layout="constrained")
    halves = figure.subfigures(2, 1, height_ratios=heights)
    for half, height, (title, shown, count, nothing) in zip(halves, heights, parts, strict=True):
        half.suptitle(f"{title}: {len(shown)} of {count}" if shown else nothing, fontsize=11)
        grid = half.subplots(height, PER_ROW, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, crop in zip(grid, shown, strict=False):
            region = regions[crop.region]
            corner = (round(crop.x - CROP / 2), round(crop.y - CROP / 2))
            axes.imshow(open_region(region["image"]).read(*corner, CROP, CROP))
            axes.set_title(f"{crop.text}, {region['domain']}", fontsize=8)
    figure.suptitle(f"{_title(summary)}; threshold {how.threshold:.3g}", fontsize=11)
    add_warnings(figure, summary["warnings"])
    return figure
