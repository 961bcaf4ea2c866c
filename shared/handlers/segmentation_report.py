from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import monai
import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure

from ..metrics import segmentation_scores
from ..utils import atomic_path, writable_folder, write_csv, write_json

logger = logging.getLogger(__name__)

METRICS = ("dice", "nsd", "hd95_mm")
COLUMNS = ("case", "organ", "id", *METRICS, "label_ml", "pred_ml", "status")
# Spread over a row of the picture in a fixed, even way, so that equal scores remain visible side by side.
GOLDEN_RATIO = 0.618034


def _means(scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means over cases with NaN left out, (b, n), and their means over classes, (b,); NaN where nothing is.

    scores: (c, n), weights: (b, c).
    """
    present = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        means = (weights @ np.where(present, scores, 0.0)) / (weights @ present)
        there = ~np.isnan(means)
        return means, np.where(there, means, 0.0).sum(axis=1) / there.sum(axis=1)


def bootstrap_means(
    scores: np.ndarray, resamples: int = 1000, seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Mean score of each class, and the mean over classes, with 95 % bootstrap intervals over cases.

    Whole cases are drawn with replacement, so the scores of one patient stay together; the interval reaches from the
    2.5th to the 97.5th percentile of the resamples' means (Efron and Tibshirani 1993, section 13.3). A class is
    averaged over the cases where it has a score; then the classes that have a mean are averaged, each with the same
    weight.

    Args:
        scores: (cases, classes), NaN where a class has no score.
        resamples: number of resamples.
        seed: of the draws.

    Returns:
        A dict for each class, and one for the mean over classes: `mean` or None, `interval` as [low, high] or None,
        `cases` that have a score, and `no_interval_because` where the interval is None.
    """
    n = len(scores)
    draws = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=resamples)
    (class_means,), (mean,) = _means(scores, np.ones((1, n)))
    class_resamples, mean_resamples = _means(scores, draws)

    def entry(mean: float, resampled: np.ndarray, cases: int) -> dict[str, Any]:
        reason = {0: "no case has a score", 1: "a single case has a score"}.get(cases)
        # A resample in which no case has a score has no mean.
        interval = None if reason else np.nanpercentile(resampled, [2.5, 97.5]).tolist()
        content = {"mean": None if cases == 0 else float(mean), "interval": interval, "cases": cases}
        return content | ({"no_interval_because": reason} if reason else {})

    scored = ~np.isnan(scores)
    classes = [entry(m, r, int(c)) for m, r, c in zip(class_means, class_resamples.T, scored.sum(axis=0), strict=True)]
    return classes, entry(mean, mean_resamples, int(scored.any(axis=1).sum()))


def synthetic_warnings(dataset: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """What a report must say in red where the data set, or what the weights were trained on, is made up."""
    return [
        text
        for text, applies in (
            ("These cases are made up: the scores say nothing about real scans.", dataset.get("synthetic")),
            ("The weights were trained on made-up cases: not for real scans.", record.get("synthetic")),
        )
        if applies
    ]


def _notes(tolerance: float) -> list[str]:
    return [
        "An organ is averaged over the cases whose label has it; in the mean over organs each organ weighs the same.",
        "An organ that the label has and the prediction lacks is missed: its Dice is 0, and it takes no part in NSD "
        "and HD95, which so tell about the organs found.",
        f"NSD: share of the surface within {tolerance:g} mm. HD95: 95 % of the surface lies within this distance.",
    ]


def summarise_scores(
    rows: Sequence[Mapping[str, Any]],
    labels: Mapping[str, int],
    tolerance: float,
    bootstrap: int = 1000,
    seed: int = 0,
    dataset: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `summary.json` holds, from the rows of `scores.csv` (NaN or None for a blank score)."""
    cases = sorted({row["case"] for row in rows})
    names = sorted(labels, key=labels.__getitem__)
    table = {(row["case"], row["organ"]): row for row in rows}
    organs: dict[str, dict[str, Any]] = {}
    for name in names:
        states = [table[case, name]["status"] for case in cases]
        counts = {s: states.count(s) for s in ("scored", "missed", "absent", "absent_but_predicted")}
        organs[name] = {"id": labels[name], **counts}
    mean = {}
    for metric in METRICS:
        scores = np.array([[table[case, name][metric] for name in names] for case in cases], dtype=float)
        each, mean[metric] = bootstrap_means(scores, bootstrap, seed)
        for name, entry in zip(names, each, strict=True):
            organs[name][metric] = entry
    dataset, record = dict(dataset or {}), dict(record or {})
    return {
        "dataset": dataset,
        "cases": len(cases),
        "mean_over_organs": mean,
        "organs": organs,
        "missed": sum(o["missed"] for o in organs.values()),
        "never_predicted": [n for n, o in organs.items() if o["missed"] and not o["scored"]],
        "absent_everywhere": [n for n, o in organs.items() if not o["missed"] and not o["scored"]],
        "tolerance_mm": tolerance,
        "intervals": {"level": 0.95, "method": "percentile bootstrap over cases", "resamples": bootstrap, "seed": seed},
        "model": record,
        "warnings": synthetic_warnings(dataset, record),
        "notes": _notes(tolerance),
        "versions": {"monai": monai.__version__, "torch": torch.__version__},
    }


def _title(summary: Mapping[str, Any]) -> str:
    data, cases = summary["dataset"], summary["cases"]
    parts = [str(data.get("name") or "evaluation"), data.get("split"), f"{cases} case{'s' * (cases != 1)}"]
    if data.get("folds"):
        parts.insert(2, f"fold {data['fold']} of {data['folds']}")
    return ", ".join(p for p in parts if p)


def summary_table(summary: Mapping[str, Any]) -> str:
    """The summary as a table to print, with a line on every organ that is still at 0."""
    organs = summary["organs"]
    width = max(len(name) for name in [*organs, "mean over organs"])

    def line(name: str, entry: Mapping[str, Any], cases: int, missed: int) -> str:
        dice, nsd, hd95 = (entry[metric] for metric in METRICS)
        interval = "-" if dice["interval"] is None else "{:.3f} to {:.3f}".format(*dice["interval"])
        distances = f"{_number(nsd['mean'], 3):>5}  {_number(hd95['mean'], 1):>7}"
        return f"{name:{width}}  {_number(dice['mean'], 3):>5}  {interval:^14}  {distances}  {cases:>5}  {missed:>6}"

    lines = [
        _title(summary),
        f"{'':{width}}   Dice   95 % interval    NSD  HD95 mm  cases  missed",
        *(line(name, organ, organ["dice"]["cases"], organ["missed"]) for name, organ in organs.items()),
        line("mean over organs", summary["mean_over_organs"], summary["cases"], summary["missed"]),
    ]
    misplaced = [n for n, o in organs.items() if o["scored"] and o["dice"]["mean"] == 0]
    for names, explanation in (
        (summary["never_predicted"], "never predicted, so Dice 0"),
        (misplaced, "predicted, but nowhere where the label has it, so Dice 0"),
        (summary["absent_everywhere"], "in no label of these cases, so left out"),
    ):
        if names:
            lines.append(f"{explanation}: {', '.join(names)}")
    return "\n".join([*lines, *summary["notes"], *summary["warnings"]])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value


def _figure(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Figure:
    """One row for each organ: the Dice score of every case, with a box over their quartiles."""
    names = list(summary["organs"])
    figure = Figure(figsize=(9, 1.6 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    drawn = [row for row in rows if not math.isnan(row["dice"])]
    for y, name in enumerate(names):
        dice = np.array([row["dice"] for row in drawn if row["organ"] == name])
        missed = np.array([row["status"] == "missed" for row in drawn if row["organ"] == name], dtype=bool)
        height = y + 0.5 * ((np.arange(len(dice)) * GOLDEN_RATIO + 0.5) % 1 - 0.5)
        axes.boxplot([dice], positions=[y], orientation="horizontal", widths=0.6, showfliers=False)
        axes.scatter(dice[~missed], height[~missed], s=12, alpha=0.6, color="tab:blue", zorder=3)
        axes.scatter(dice[missed], height[missed], s=24, marker="x", color="tab:red", zorder=3)
        mean = summary["organs"][name]["dice"]["mean"]
        axes.text(1.03, y, _number(mean, 3), va="center", fontsize=9)
    axes.set(xlim=(-0.03, 1.02), xlabel="Dice (cross: organ missed; number: mean)", title=_title(summary))
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    if summary["warnings"]:
        figure.text(0.01, 0.005, " ".join(summary["warnings"]), color="tab:red", fontsize=8)
        figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.96))
    return figure


class SegmentationReport:
    """Score each case of an evaluation in its native grid, in mm, and write the report.

    For every case of the (decollated) batch it compares `engine.state.output[i]["pred"]`, a label map (1, x, y, z) on
    the grid of the label file, with `engine.state.batch[i]["label"]`, a `MetaTensor` whose affine gives the spacing,
    by `segmentation_scores`. `engine.state.batch[i]["case"]` is its name.

    At the end the rows of all ranks are gathered, a case that several ranks had counts once, and rank 0 writes to
    `output_dir`, each file whole or not at all:

    * `scores.csv`: for each case and organ `dice`, `nsd`, `hd95_mm`, `label_ml`, `pred_ml` and `status`: `scored`,
      `missed` (Dice 0, distances blank), `absent` or `absent_but_predicted` (all blank);
    * `summary.json`: means with 95 % bootstrap intervals over cases (`bootstrap_means`), counts of what was missed,
      the data set, the model's record, whether either is synthetic, the versions;
    * `report.png`: the Dice scores of every organ.

    It logs the table of the summary, and leaves `mean_dice`, `mean_nsd` and `mean_hd95_mm` in `engine.state.metrics`
    on all ranks (NaN where nothing was scored).

    Example::

        SegmentationReport("output", labels={"spleen": 1, "liver": 2}).attach(evaluator)

    Args:
        output_dir: folder of the files.
        labels: organ name → id, 1 to N.
        tolerance: of the NSD, in mm.
        dataset: what `shared.data.dataset_info` says.
        record: what the weights were trained on, as `shared.networks.read_model_record` returns it.
        bootstrap: number of resamples.
        seed: of the resamples.

    Raises:
        ValueError: when `labels` does not number its names from 1 to N, or `bootstrap` is not positive.
        DataError: when the folder cannot be written to.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        labels: Mapping[str, int],
        tolerance: float = 2.0,
        dataset: Mapping[str, Any] | None = None,
        record: Mapping[str, Any] | None = None,
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> None:
        if not labels or sorted(labels.values()) != list(range(1, len(labels) + 1)):
            raise ValueError(f"labels must number its names from 1 to their count, got {dict(labels)}.")
        if bootstrap < 1:
            raise ValueError(f"bootstrap must be at least 1, got {bootstrap}.")
        self.output_dir = writable_folder(output_dir)
        self.labels = dict(sorted(labels.items(), key=lambda item: item[1]))
        self.tolerance = tolerance
        self.dataset = dict(dataset or {})
        self.record = dict(record or {})
        self.bootstrap = bootstrap
        self.seed = seed
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.rows = {}

    def _score(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            self.rows[item["case"]] = self._rows(item["case"], output["pred"], item["label"])

    def _rows(self, case: str, pred: torch.Tensor, label: monai.data.MetaTensor) -> list[dict[str, Any]]:
        spacing = label.pixdim.tolist()
        ml = math.prod(spacing) / 1000
        grids = (x[0].cpu().numpy().astype(np.uint8) for x in (pred, label))
        scores = segmentation_scores(*grids, spacing, len(self.labels), self.tolerance)
        return [
            {
                "case": case,
                "organ": organ,
                "id": i,
                "dice": score.dice,
                "nsd": score.nsd,
                "hd95_mm": score.hd95,
                "label_ml": score.label_voxels * ml,
                "pred_ml": score.pred_voxels * ml,
                "status": score.status,
            }
            for (organ, i), score in zip(self.labels.items(), scores, strict=True)
        ]

    def _finish(self, engine: Engine) -> None:
        gathered: dict[str, list[dict[str, Any]]] = {}
        for part in idist.all_gather(self.rows):
            gathered.update(part)
        rows = [row for case in sorted(gathered) for row in gathered[case]]
        summary = summarise_scores(
            rows, self.labels, self.tolerance, self.bootstrap, self.seed, self.dataset, self.record
        )
        for metric in METRICS:
            mean = summary["mean_over_organs"][metric]["mean"]
            engine.state.metrics[f"mean_{metric}"] = math.nan if mean is None else mean
        if idist.get_rank() == 0:
            self._write(rows, summary)

    def _write(self, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        write_csv(self.output_dir / "scores.csv", [{k: _cell(v) for k, v in row.items()} for row in rows], COLUMNS)
        write_json(self.output_dir / "summary.json", summary)
        with atomic_path(self.output_dir / "report.png") as temporary:
            _figure(rows, summary).savefig(temporary, dpi=120)
        logger.info("%s\nwritten to %s: scores.csv, summary.json, report.png", summary_table(summary), self.output_dir)
