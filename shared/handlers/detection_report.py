from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ignite.distributed as idist
import monai
import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..data import open_region
from ..metrics import (
    average_precision,
    bootstrap_detection,
    detection_f1,
    match_detections,
    precision_recall_curve,
)
from ..metrics.detection import MATCHINGS
from ..networks import PyramidAnchors
from ..utils import atomic_path, flag, writable_folder, write_csv, write_json
from .classification_report import check_classes
from .domain_report import (
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
from .region_detections import Findings, RegionDetections
from .segmentation_report import synthetic_warnings

logger = logging.getLogger(__name__)

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


def _values(findings: Findings, how: Scoring, class_id: int) -> dict[str, Any]:
    scored = detection_f1(*findings, how.match_radius, how.threshold, how.matching, class_ids=[class_id])[class_id]
    return scored | {"average_precision": average_precision(*findings, how.match_radius, class_id)}


def _part(findings: Findings, slides: Sequence[Any], how: Scoring) -> dict[str, Any]:
    """Counts of some regions, each score with its interval, and what the other class scores."""
    values, other = (_values(findings, how, i) for i in (how.class_id, 1 - how.class_id))
    intervals = bootstrap_detection(
        *findings, how.match_radius, how.class_id, how.threshold, how.matching, slides, how.bootstrap, how.seed
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


def _seen_unlabelled(regions: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> list[str]:
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
    regions: Sequence[Mapping[str, Any]],
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
    axes: Axes, findings: Findings, regions: Sequence[Mapping[str, Any]], how: Scoring, summary: Mapping[str, Any]
) -> None:
    """Precision-recall curve of each domain, with a dot at the threshold."""
    for i, (name, part) in enumerate(summary["domains"].items()):
        style, label = line_style(i, part), domain_label(name, part)
        if part["average_precision"]["value"] is None:
            axes.plot([], [], **style, label=f"{label}: no figures")
            continue
        own = [j for j, region in enumerate(regions) if region["domain"] == name]
        precision, recall, score = precision_recall_curve(*findings.of(own), how.match_radius, how.class_id)
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


def _figure(
    findings: Findings, regions: Sequence[Mapping[str, Any]], how: Scoring, summary: Mapping[str, Any]
) -> Figure:
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


def _matches(findings: Findings, radius: float) -> list[np.ndarray]:
    """For each region the figure that each detection found, or -1: `match_detections`."""
    return [
        match_detections(points, scores, classes, true_points, true_classes, radius)
        for points, scores, classes, true_points, true_classes in zip(*findings, strict=True)
    ]


def _false_positives(findings: Findings, matches: Sequence[np.ndarray], how: Scoring) -> list[Crop]:
    """From the highest score to the lowest."""
    found = []
    for i, (points, scores, classes, *_) in enumerate(zip(*findings, strict=True)):
        wrong = (matches[i] < 0) & (classes == how.class_id) & (scores >= how.threshold)
        found += [(float(scores[j]), i, *points[j].tolist()) for j in np.flatnonzero(wrong)]
    return [Crop(i, x, y, f"{score:.2f}") for score, i, x, y in sorted(found, key=lambda f: -f[0])]


def _false_negatives(findings: Findings, matches: Sequence[np.ndarray], how: Scoring) -> list[Crop]:
    """Region after region."""
    missed = []
    for i, (_, scores, _, true_points, true_classes) in enumerate(zip(*findings, strict=True)):
        best = np.full(len(true_points), -np.inf)
        hits = matches[i] >= 0
        best[matches[i][hits]] = scores[hits]
        for j in np.flatnonzero((true_classes == how.class_id) & (best < how.threshold)):
            missed.append(Crop(i, *true_points[j].tolist(), "not seen" if best[j] < 0 else f"{best[j]:.2f}"))
    return missed


def _gallery(
    findings: Findings,
    matches: Sequence[np.ndarray],
    regions: Sequence[Mapping[str, Any]],
    how: Scoring,
    summary: Mapping[str, Any],
) -> Figure:
    """The false positives of the highest scores, and false negatives from all over the regions."""
    name = how.class_names[how.class_id]
    wrong, missed = _false_positives(findings, matches, how), _false_negatives(findings, matches, how)
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


class DetectionReport:
    """Score a detector on each domain of an evaluation, and write the report.

    Attach it to a `DetectionEvaluator` over the `shared.data.RegionTiles` of the regions. At the end the tiles of all
    ranks are put together, see `RegionDetections`, and rank 0 writes to `output_dir`, each file whole or not at all:

    * `detections.csv`: each detection with its image, the centre in pixels, its class and score, and whether it is
      matched with a figure of its class (one-to-one, at any threshold);
    * `scores.csv`: a row for each domain, then the pooled images `in distribution`, `out of distribution` and of `all`
      domains: the scores of `detection_f1` and the average precision, with 95 % intervals over slides
      (`bootstrap_detection`); a score that is undefined is blank. A group without images has no row;
    * `summary.json`: the same, the other class at the same threshold, means over domains, the data set, the model's
      record, whether either is synthetic, where the threshold comes from, the versions, and what the scores mean;
    * `report.png`: precision-recall curves (dashed: out of distribution) with the threshold, and the F1 scores;
    * `gallery.png`: false positives and false negatives, each with its score and domain.

    It logs the table of the summary, and leaves in `engine.state.metrics` on all ranks `precision`, `recall`, `f1` and
    `average_precision` of all images (NaN where undefined) and `f1_<domain>` of each domain.

    Args:
        output_dir: folder of the files.
        regions: as `RegionTiles` has them, see `shared.data.load_regions`.
        anchors: as the network has them.
        threshold: a detection counts from this score on, in [0, 1].
        class_names: of class 0 and class 1.
        class_id: the class that the report is about.
        match_radius: how far from a figure a detection of it may lie, in pixels of the image.
        matching: `"one_to_one"` or `"many_to_one"`, see `detection_f1`.
        train_domains: what the network was trained on; None: `train_domains` of the record, and where it has none
            nothing is known to be in or out of distribution.
        dataset: what `shared.data.dataset_info` says.
        record: what the weights were trained on, as `shared.networks.read_model_record` returns it.
        bootstrap: number of resamples.
        seed: of the resamples.
        adapted: whether batch norm was adapted to each domain, for the report.
        threshold_from: where the threshold comes from, for the report, such as the path of its file.
        merging: options of `RegionDetections`.

    Raises:
        ValueError: when the threshold, the class, its names, `matching` or `bootstrap` are out of range.
        DataError: when the folder cannot be written to; in the run, when the network's output is not finite.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        regions: Sequence[Mapping[str, Any]],
        anchors: PyramidAnchors,
        threshold: float = 0.5,
        class_names: Sequence[str] = ("non_mitotic", "mitotic"),
        class_id: int = 1,
        match_radius: float = 30.0,
        matching: str = "one_to_one",
        train_domains: Sequence[str] | None = None,
        dataset: Mapping[str, Any] | None = None,
        record: Mapping[str, Any] | None = None,
        bootstrap: int = 1000,
        seed: int = 0,
        adapted: bool = False,
        threshold_from: str | None = None,
        **merging: Any,
    ) -> None:
        if bootstrap < 1:
            raise ValueError(f"bootstrap must be at least 1, got {bootstrap}.")
        if matching not in MATCHINGS:
            raise ValueError(f"matching is {matching!r}, expected one of {', '.join(MATCHINGS)}.")
        if class_id not in (0, 1):
            raise ValueError(f"class_id must be 0 or 1, got {class_id}.")
        names = check_classes(threshold, class_names)
        self.output_dir = writable_folder(output_dir)
        self.how = Scoring(float(threshold), names, class_id, float(match_radius), matching, bootstrap, seed)
        self.detections = RegionDetections(regions, anchors, **merging)
        self.dataset = dict(dataset or {})
        self.record = dict(record or {})
        self.train_domains = self.record.get("train_domains") if train_domains is None else list(train_domains)
        self.adapted = flag("adapted", adapted)
        self.threshold_from = threshold_from

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.detections.add)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.detections.clear()

    def _finish(self, engine: Engine) -> None:
        findings = self.detections.findings()
        engine.state.metrics.update(self._metrics(findings))
        if idist.get_rank() == 0:
            self._write(findings)

    def _metrics(self, findings: Findings) -> dict[str, float]:
        values = _values(findings, self.how, self.how.class_id)
        domains = [region["domain"] for region in self.detections.regions]
        for domain in sorted(set(domains)):
            own = findings.of([i for i, other in enumerate(domains) if other == domain])
            values[f"f1_{domain}"] = _values(own, self.how, self.how.class_id)["f1"]
        return {name: value for name, value in values.items() if name not in COUNTS}

    def _write(self, findings: Findings) -> None:
        regions = self.detections.regions
        summary = summarise_detections(
            findings,
            regions,
            self.how,
            self.train_domains,
            self.dataset,
            self.record,
            self.adapted,
            self.threshold_from,
            self.detections.merger.score_threshold,
        )
        matches = _matches(findings, self.how.match_radius)
        copied = ("images", "slides", "figures", *COUNTS)
        rows = score_rows(summary["domains"], summary["pooled_images"], copied, SCORES)
        rows = [{**row, "threshold": self.how.threshold} for row in rows]
        write_csv(self.output_dir / "detections.csv", self._rows(findings, matches), DETECTION_COLUMNS)
        write_csv(self.output_dir / "scores.csv", rows, SCORE_COLUMNS)
        write_json(self.output_dir / "summary.json", summary)
        with atomic_path(self.output_dir / "report.png") as temporary:
            _figure(findings, regions, self.how, summary).savefig(temporary, dpi=120)
        with atomic_path(self.output_dir / "gallery.png") as temporary:
            _gallery(findings, matches, regions, self.how, summary).savefig(temporary, dpi=120)
        logger.info(
            "%s\nwritten to %s: detections.csv, scores.csv, summary.json, report.png, gallery.png",
            detection_table(summary),
            self.output_dir,
        )

    def _rows(self, findings: Findings, matches: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """The rows of `detections.csv`; scores in full, so that the scores of the report can be worked out again."""
        return [
            {
                "image": region.get("case", region["image"]),
                "domain": region["domain"],
                "x": round(float(x), 2),
                "y": round(float(y), 2),
                "class": self.how.class_names[class_id],
                "score": float(score),
                "matched": str(bool(match >= 0)).lower(),
            }
            for region, points, scores, classes, matched in zip(
                self.detections.regions, *findings[:3], matches, strict=True
            )
            for (x, y), score, class_id, match in zip(points, scores, classes, matched, strict=True)
        ]
