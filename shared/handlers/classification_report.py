from __future__ import annotations

import logging
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ignite.distributed as idist
import monai
import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..metrics import bootstrap_scores, classification_scores, roc_curve
from ..metrics.classification import COUNTS, SCORES
from ..utils import DataError, atomic_path, flag, writable_folder, write_csv, write_json
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
from .segmentation_report import synthetic_warnings

logger = logging.getLogger(__name__)

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


class ClassificationReport:
    """Score a binary patch classifier on each domain of an evaluation, and write the report.

    It reads `engine.state.output["pred"]`, logits (B, 1), and `["label"]`, (B, 1) of 0 and 1, and of
    `engine.state.batch` the lists `case` (names that no two patches share), `domain` and `slide`: attach it to a
    `SupervisedEvaluator` with `decollate=False`.

    At the end the patches of all ranks are gathered, one that several ranks had counts once, and rank 0 writes to
    `output_dir`, each file whole or not at all:

    * `predictions.csv`: each patch with its label, its probability and the class it was called;
    * `scores.csv`: a row for each domain, then the pooled patches `in distribution`, `out of distribution` and of
      `all` domains: the scores of `classification_scores` with 95 % intervals over slides (`bootstrap_scores`); a
      score that is undefined is blank. A group without patches has no row;
    * `summary.json`: the same, means over domains, the data set, the model's record, whether either is synthetic,
      where the threshold comes from, the versions, and what the scores mean;
    * `report.png`: ROC curves (dashed: out of distribution) and confusion matrices.

    It logs the table of the summary, and leaves in `engine.state.metrics` on all ranks `accuracy`,
    `balanced_accuracy` and `auc` of all patches (NaN where undefined) and `accuracy_<domain>` of each domain.

    Example::

        ClassificationReport("output", threshold=0.4, train_domains=["XR", "CS"]).attach(evaluator)

    Args:
        output_dir: folder of the files.
        threshold: a patch is positive from this probability on, in [0, 1].
        class_names: of class 0 and class 1.
        train_domains: what the network was trained on; None: `train_domains` of the record, and where it has none
            nothing is known to be in or out of distribution.
        dataset: what `shared.data.dataset_info` says.
        record: what the weights were trained on, as `shared.networks.read_model_record` returns it.
        bootstrap: number of resamples.
        seed: of the resamples.
        adapted: whether batch norm was adapted to each domain, for the report.
        threshold_from: where the threshold comes from, for the report, such as the path of its file.

    Raises:
        ValueError: when the threshold, the class names or `bootstrap` are out of range.
        DataError: when the folder cannot be written to; in the run, when a logit is not a number.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        threshold: float = 0.5,
        class_names: Sequence[str] = ("negative", "positive"),
        train_domains: Sequence[str] | None = None,
        dataset: Mapping[str, Any] | None = None,
        record: Mapping[str, Any] | None = None,
        bootstrap: int = 1000,
        seed: int = 0,
        adapted: bool = False,
        threshold_from: str | None = None,
    ) -> None:
        if bootstrap < 1:
            raise ValueError(f"bootstrap must be at least 1, got {bootstrap}.")
        self.class_names = check_classes(threshold, class_names)
        self.output_dir = writable_folder(output_dir)
        self.threshold = float(threshold)
        self.dataset = dict(dataset or {})
        self.record = dict(record or {})
        self.train_domains = self.record.get("train_domains") if train_domains is None else list(train_domains)
        self.bootstrap = bootstrap
        self.seed = seed
        self.adapted = flag("adapted", adapted)
        self.threshold_from = threshold_from
        self.patches: dict[str, Patch] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.patches = {}

    def _collect(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        labels = output["label"].reshape(-1).int().tolist()
        probabilities = checked_probabilities(torch.sigmoid(output["pred"].double()), batch["case"])
        columns = (batch["case"], batch["domain"], batch["slide"], labels, probabilities)
        self.patches.update({patch.case: patch for patch in map(Patch, *columns)})

    def _finish(self, engine: Engine) -> None:
        gathered: dict[str, Patch] = {}
        for part in idist.all_gather(self.patches):
            gathered.update(part)
        patches = [gathered[case] for case in sorted(gathered)]
        engine.state.metrics.update(self._metrics(patches))
        if idist.get_rank() == 0:
            self._write(patches)

    def _metrics(self, patches: Sequence[Patch]) -> dict[str, float]:
        def scores(chosen: Sequence[Patch]) -> dict[str, Any]:
            return classification_scores([p.probability for p in chosen], [p.label for p in chosen], self.threshold)

        pooled = scores(patches)
        metrics = {name: pooled[name] for name in ("accuracy", "balanced_accuracy", "auc")}
        for domain in sorted({p.domain for p in patches}):
            metrics[f"accuracy_{domain}"] = scores([p for p in patches if p.domain == domain])["accuracy"]
        return metrics

    def _write(self, patches: Sequence[Patch]) -> None:
        summary = summarise_patches(
            patches,
            self.threshold,
            self.class_names,
            self.train_domains,
            self.bootstrap,
            self.seed,
            self.dataset,
            self.record,
            self.adapted,
            self.threshold_from,
        )
        write_csv(self.output_dir / "predictions.csv", [self._prediction(p) for p in patches], PREDICTION_COLUMNS)
        write_csv(self.output_dir / "scores.csv", _score_rows(summary), SCORE_COLUMNS)
        write_json(self.output_dir / "summary.json", summary)
        with atomic_path(self.output_dir / "report.png") as temporary:
            _figure(patches, summary).savefig(temporary, dpi=120)
        logger.info(
            "%s\nwritten to %s: predictions.csv, scores.csv, summary.json, report.png",
            classification_table(summary),
            self.output_dir,
        )

    def _prediction(self, patch: Patch) -> dict[str, Any]:
        """A row of `predictions.csv`; the probability in full, so that the scores can be worked out from it again."""
        known = self.train_domains is not None
        return {
            **patch._asdict(),
            "label": self.class_names[patch.label],
            "predicted": self.class_names[patch.probability >= self.threshold],
            "in_distribution": str(patch.domain in self.train_domains).lower() if known else None,
        }
