"""The report of a segmentation: means of each organ with intervals, a table, the scores of all cases as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from matplotlib.figure import Figure

from ..metrics.bootstrap import bootstrap_means
from ..utils import text_table
from .gallery import add_warnings
from .summary import Scoring, Summary, format_number, round_score

METRICS = ("dice", "nsd", "hd95_mm")
STATES = ("scored", "missed", "absent", "absent_but_predicted")
# Spread over a row of the picture in a fixed, even way, so that equal scores remain visible side by side.
GOLDEN_RATIO = 0.618034


class OrganScore(TypedDict):
    """Of an organ in a case, a row of `scores.csv`; see `shared.metrics.segmentation_scores`, NaN where undefined."""

    case: str
    organ: str
    id: int
    dice: float
    nsd: float
    hd95_mm: float
    label_ml: float
    pred_ml: float
    status: str


@dataclass(kw_only=True, eq=False)
class SegmentationScoring(Scoring):
    """How a segmentation is scored.

    Args:
        dataset, record, bootstrap, seed: see `Scoring`.
        labels: organ name → id, 1 to N; put in the order of the ids.
        tolerance: of the NSD, in mm.

    Raises:
        ValueError: when `labels` does not number its names from 1 to N, or `bootstrap` is not positive.
    """

    labels: Mapping[str, int]
    tolerance: float = 2.0

    def __post_init__(self) -> None:
        if not self.labels or sorted(self.labels.values()) != list(range(1, len(self.labels) + 1)):
            raise ValueError(f"labels must number its names from 1 to their count, got {dict(self.labels)}.")
        super().__post_init__()
        self.labels = dict(sorted(self.labels.items(), key=lambda item: item[1]))


@dataclass(kw_only=True)
class SegmentationSummary(Summary):
    """What an evaluation of a segmentation found.

    Attributes:
        how: it was scored.
        scores: of each case and organ.
        cases: how many there are.
        organs: of each organ its `id`, in how many cases it has each of `STATES`, and for each of `METRICS` the mean
            over cases, see `bootstrap_means`.
        mean: for each of `METRICS`, over the organs.
        notes: what the scores mean.
    """

    how: SegmentationScoring
    scores: Sequence[OrganScore]
    cases: int
    organs: dict[str, dict[str, Any]]
    mean: dict[str, dict[str, Any]]

    def counts(self) -> dict[str, int]:
        return {"cases": self.cases}

    def results(self) -> dict[str, Any]:
        organs = self.organs.items()
        return {
            "cases": self.cases,
            "mean_over_organs": self.mean,
            "organs": self.organs,
            "missed": sum(organ["missed"] for organ in self.organs.values()),
            "never_predicted": [name for name, organ in organs if organ["missed"] and not organ["scored"]],
            "absent_everywhere": [name for name, organ in organs if not organ["missed"] and not organ["scored"]],
            "tolerance_mm": self.how.tolerance,
            "intervals": self.intervals("cases"),
        }

    def metrics(self) -> dict[str, float]:
        """For an engine: the means over the organs, NaN where nothing was scored."""
        means = {f"mean_{metric}": entry["mean"] for metric, entry in self.mean.items()}
        return {name: math.nan if mean is None else mean for name, mean in means.items()}

    def score_table(self) -> str:
        """With a line on the organs that are still at 0."""
        found, organs = self.results(), self.organs.items()
        rows = [_table_row(name, organ, organ["dice"]["cases"], organ["missed"]) for name, organ in organs]
        lines = [text_table([*rows, _table_row("mean over organs", self.mean, self.cases, found["missed"])])]
        for names, explanation in (
            (found["never_predicted"], "never predicted, so Dice 0"),
            (
                [name for name, organ in organs if organ["scored"] and organ["dice"]["mean"] == 0],
                "predicted, but nowhere where the label has it, so Dice 0",
            ),
            (found["absent_everywhere"], "in no label of these cases, so left out"),
        ):
            if names:
                lines.append(f"{explanation}: {', '.join(names)}")
        return "\n".join(lines)

    def rows(self) -> list[dict[str, Any]]:
        return [{k: round_score(v) if isinstance(v, float) else v for k, v in row.items()} for row in self.scores]


def _table_row(name: str, means: Mapping[str, Any], cases: int, missed: int) -> dict[str, Any]:
    dice, nsd, hd95 = (means[metric] for metric in METRICS)
    interval = "-" if dice["interval"] is None else "{:.3f} to {:.3f}".format(*dice["interval"])
    return {
        "": name,
        " Dice": format_number(dice["mean"]).rjust(5),
        " 95 % interval": interval.center(14),
        "  NSD": format_number(nsd["mean"]).rjust(5),
        "HD95 mm": format_number(hd95["mean"], 1).rjust(7),
        "cases": cases,
        "missed": missed,
    }


def _notes(tolerance: float) -> list[str]:
    return [
        "An organ is averaged over the cases whose label has it; in the mean over organs each organ weighs the same.",
        "An organ that the label has and the prediction lacks is missed: its Dice is 0, and it takes no part in NSD "
        "and HD95, which so tell about the organs found.",
        f"NSD: share of the surface within {tolerance:g} mm. HD95: 95 % of the surface lies within this distance.",
    ]


def summarise_scores(scores: Sequence[OrganScore], how: SegmentationScoring) -> SegmentationSummary:
    """The means of the scores of each case and organ, with intervals, see `SegmentationReport`."""
    cases = sorted({row["case"] for row in scores})
    table = {(row["case"], row["organ"]): row for row in scores}
    organs: dict[str, dict[str, Any]] = {}
    for name, i in how.labels.items():
        states = [table[case, name]["status"] for case in cases]
        organs[name] = {"id": i, **{state: states.count(state) for state in STATES}}
    mean = {}
    for metric in METRICS:
        values = np.array([[table[case, name][metric] for name in organs] for case in cases], dtype=float)
        each, mean[metric] = bootstrap_means(values, how.bootstrap, how.seed)
        for organ, entry in zip(organs.values(), each, strict=True):
            organ[metric] = entry
    notes = _notes(how.tolerance)
    return SegmentationSummary(how=how, scores=scores, cases=len(cases), organs=organs, mean=mean, notes=notes)


def draw_scores(summary: SegmentationSummary) -> Figure:
    """One row for each organ: the Dice score of every case, with a box over their quartiles."""
    names = list(summary.organs)
    figure = Figure(figsize=(9, 1.6 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    drawn = [row for row in summary.scores if not math.isnan(row["dice"])]
    for y, name in enumerate(names):
        dice = np.array([row["dice"] for row in drawn if row["organ"] == name])
        missed = np.array([row["status"] == "missed" for row in drawn if row["organ"] == name], dtype=bool)
        height = y + 0.5 * ((np.arange(len(dice)) * GOLDEN_RATIO + 0.5) % 1 - 0.5)
        axes.boxplot([dice], positions=[y], orientation="horizontal", widths=0.6, showfliers=False)
        axes.scatter(dice[~missed], height[~missed], s=12, alpha=0.6, color="tab:blue", zorder=3)
        axes.scatter(dice[missed], height[missed], s=24, marker="x", color="tab:red", zorder=3)
        mean = summary.organs[name]["dice"]["mean"]
        axes.text(1.03, y, format_number(mean), va="center", fontsize=9)
    axes.set(xlim=(-0.03, 1.02), xlabel="Dice (cross: organ missed; number: mean)", title=summary.title)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    add_warnings(figure, summary.warnings)
    return figure
