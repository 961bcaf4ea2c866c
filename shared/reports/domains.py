"""What the reports of a classifier and of a detector have in common: scores by domain, in and out of distribution.

A part is what is known of the items of some domains: counts, and for each score a dict with its `value` or None and
its `interval` as [low, high] or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from ..metrics.bootstrap import Interval
from ..utils import flag, text_table
from .summary import Scoring, Summary, format_number, round_score

Part = dict[str, Any]
Curve = tuple[np.ndarray, np.ndarray, tuple[float, float] | None]  # x and y, (n,), and the point at the threshold

IN, OUT, ALL = "in distribution", "out of distribution", "all"
CHOICE = "chosen by"  # not trained on, but the epoch was chosen by it
SHORT = {IN: "in", CHOICE: "choice", OUT: "out"}  # of a domain
# A note is due where an interval rests on fewer than this share of the resamples.
MANY_LEFT_OUT = 0.05


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


@dataclass(kw_only=True, eq=False)
class DomainScoring(Scoring):
    """How items of two classes from several domains are scored.

    Args:
        dataset, record, bootstrap, seed: see `Scoring`.
        threshold: an item is of class 1 from this score on, in [0, 1].
        class_names: of the classes 0 and 1.
        train_domains: what the network was trained on; None: `train_domains` of the record, and where it has none
            nothing is known to be in or out of distribution. `val_domains` of the record, by which the epoch was
            chosen, are strangers no longer: those that were not trained on are neither in nor out.
        adapted: whether batch norm was adapted to each domain.
        threshold_from: where the threshold comes from, such as the path of its file.
        positive_rate: the share of positives that was stated of each domain; None: none was.

    Attributes:
        shifts: what was added to the logits, by domain, see `shared.handlers.MatchPositiveRate`.

    Raises:
        ValueError: when the threshold, the class names or `bootstrap` are out of range.
    """

    threshold: float = 0.5
    class_names: Sequence[str] = ("negative", "positive")
    train_domains: Sequence[str] | None = None
    adapted: bool = False
    threshold_from: str | None = None
    positive_rate: float | None = None
    shifts: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.class_names = check_classes(self.threshold, self.class_names)
        self.threshold = float(self.threshold)
        if self.train_domains is None:
            self.train_domains = self.record.get("train_domains")
        else:
            self.train_domains = list(self.train_domains)
        self.adapted = flag("adapted", self.adapted)

    @property
    def chosen_by(self) -> list[str]:
        """The domains by which the epoch was chosen, of those that were not trained on."""
        return [name for name in self.record.get("val_domains") or [] if name not in (self.train_domains or [])]

    def group(self, domain: str) -> str:
        """`IN`, `OUT` or `CHOICE`; `ALL` where nothing is known."""
        if self.train_domains is None:
            return ALL
        return IN if domain in self.train_domains else CHOICE if domain in self.chosen_by else OUT

    def settings(self) -> dict[str, Any]:
        """What `summary.json` says of them."""
        return {
            "class_names": list(self.class_names),
            "threshold": {"value": self.threshold, "from": self.threshold_from},
        }

    def notes(self, done: str) -> list[str]:
        """What a reader must know of the intervals, of the domains, and of what went before images were `done`."""
        known = "In distribution: domains (scanners) that the network was trained on. Out of distribution: all others."
        if chosen_by := ", ".join(self.chosen_by):
            known += f' The epoch was chosen by {chosen_by}, not trained on: marked "choice", and counted in neither.'
        unknown = "What domains (scanners) the network was trained on is not known, so none is marked in or out."
        adapted = f"Batch norm was adapted to each domain's images, without their labels, before they were {done}."
        shifted = (
            "Logits were shifted by domain, so that the threshold fits the share of positives that was stated, "
            f"{self.positive_rate}."
        )
        return [
            "Brackets: 95 % interval, from drawing whole slides anew; few slides make it unreliable.",
            unknown if self.train_domains is None else known,
            *([adapted] if self.adapted else []),
            *([shifted] if self.shifts else []),
        ]


class Column(NamedTuple):
    """Of a printed table.

    Attributes:
        key: of a count or a score of a part.
        header: as wide as a score is to be.
        interval: whether the interval stands behind the score.
    """

    key: str
    header: str
    interval: bool = False

    def cell(self, part: Mapping[str, Any]) -> int | str:
        score = part.get(self.key, "")
        if not isinstance(score, Mapping):
            return score
        value = format_number(score["value"])
        if not self.interval:
            return value.rjust(len(self.header))
        interval = "" if score["interval"] is None else "[{:.3f}, {:.3f}]".format(*score["interval"])
        return f"{value:>5} {interval:14}"


class Layout(NamedTuple):
    """What is known of each part, and in what order it is written.

    Attributes:
        counts: of the items, whose plural is the first, of `slides`, and of what else there is.
        titled: those of them that the title names.
        scores: each with its interval.
        outcomes: counts of what was right and wrong.
        columns: of the printed table.
    """

    counts: tuple[str, ...]
    titled: tuple[str, ...]
    scores: tuple[str, ...]
    outcomes: tuple[str, ...]
    columns: tuple[Column, ...]

    def score(self, values: Mapping[str, float], intervals: Mapping[str, Interval]) -> Part:
        """The scores and the outcomes of a part."""
        scores = {s: {"value": None if math.isnan(values[s]) else values[s], **intervals[s]} for s in self.scores}
        return scores | {name: values[name] for name in self.outcomes}

    def remark_slides(self, name: str, part: Part, lacking: str) -> list[str]:
        """What a reader must know of a domain whose items are from too few slides."""
        if part["slides"] == 1:
            return [f"{name} has {self.counts[0]} from a single slide: no intervals."]
        left_out = max(part[score]["resamples_left_out"] for score in self.scores)
        if left_out > MANY_LEFT_OUT * part["resamples"]:
            return [
                f"{name} has too few slides for good intervals: {left_out} of {part['resamples']} resamples lack "
                f"{lacking} and are left out."
            ]
        return []


@dataclass(kw_only=True)
class DomainSummary(Summary):
    """What an evaluation of several domains found.

    Attributes:
        how: it was scored.
        layout: of the parts.
        domains: the part of each domain, with its `distribution`: `"in"`, `"out"`, `"choice"`, or `""` where nothing
            is known.
        pooled: the part of each group, its domains taken together: `IN`, `CHOICE` and `OUT`, where that is known, and
            `ALL`. A group without domains is left out.
        means: for each group how many `domains` it has and the mean of each score over them. Each domain weighs the
            same, those where a score is undefined are left out; None where it is undefined in all.
        notes: what the scores mean, and what a reader must know about them.
    """

    how: DomainScoring
    layout: Layout
    domains: dict[str, Part]
    pooled: dict[str, Part]
    means: dict[str, dict[str, Any]]

    @property
    def parts(self) -> dict[str, Part]:
        """Of the domains, then of the groups."""
        return {**self.domains, **self.pooled}

    def counts(self) -> dict[str, int]:
        return {name: self.pooled[ALL][name] for name in self.layout.titled}

    def results(self) -> dict[str, Any]:
        trained = self.how.train_domains
        return {
            **self.how.settings(),
            "train_domains": None if trained is None else list(trained),
            "domains": self.domains,
            f"pooled_{self.layout.counts[0]}": self.pooled,
            "mean_over_domains": self.means,
            "intervals": self.intervals("slides"),
            "adapted_batch_norm": self.how.adapted,
            **self.shifted(),
        }

    def shifted(self) -> dict[str, Any]:
        """The share of positives that was stated, and what was added to the logits for it, where one was."""
        if self.how.positive_rate is None:
            return {}
        return {"positive_rate": self.how.positive_rate, "logit_shifts": self.how.shifts}

    def metrics(self, scores: Sequence[str], each: str) -> dict[str, float]:
        """For an engine: scores of all items, and one of `each` domain, as `accuracy_XR`; NaN where undefined."""
        entries = {score: self.pooled[ALL][score] for score in scores}
        entries |= {f"{each}_{name}": self.domains[name][each] for name in sorted(self.domains)}
        return {name: math.nan if entry["value"] is None else entry["value"] for name, entry in entries.items()}

    def score_table(self) -> str:
        means = {
            f"mean of {group}": {score: {"value": mean[score], "interval": None} for score in self.layout.scores}
            for group, mean in self.means.items()
            if mean["domains"] > 1
        }
        rows = []
        for name, part in {**self.parts, **means}.items():
            named = {"": name, "   ": part.get("distribution", "")}  # `in` or `out`, in a column without a header
            rows.append(named | {column.header: column.cell(part) for column in self.layout.columns})
        return text_table(rows)

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "domain": name,
                "distribution": part.get("distribution", SHORT.get(name, "")),
                **{count: part[count] for count in self.layout.counts},
                **{column: value for score in self.layout.scores for column, value in _columns(score, part).items()},
                **{outcome: part[outcome] for outcome in self.layout.outcomes},
                "threshold": self.how.threshold,
            }
            for name, part in self.parts.items()
        ]


def _columns(score: str, part: Part) -> dict[str, float | None]:
    """Of `scores.csv`: a score with the two ends of its interval."""
    low, high = part[score]["interval"] or (None, None)
    values = {score: part[score]["value"], f"{score}_low": low, f"{score}_high": high}
    return {column: round_score(value) for column, value in values.items()}


def _mean_scores(parts: Sequence[Part], scores: Sequence[str]) -> dict[str, Any]:
    defined = {s: [part[s]["value"] for part in parts if part[s]["value"] is not None] for s in scores}
    means = {score: float(np.mean(values)) if values else None for score, values in defined.items()}
    return {"domains": len(parts), **means}


def summarise_domains(
    domains: Sequence[str],
    how: DomainScoring,
    layout: Layout,
    part: Callable[[list[int]], Part],
    remark: Callable[[str, Part], list[str]],
    notes: Sequence[str],
) -> DomainSummary:
    """Score each domain, and the domains that were trained on, the choosing ones, the others and all of them, pooled.

    Args:
        domains: of the items, one name for each.
        how: they are scored.
        layout: of the parts.
        part: what is known of the items with these numbers.
        remark: what a reader must know of the domain of this name.
        notes: on the scores of all domains.
    """
    names = sorted(set(domains))
    groups = {group: [n for n in names if how.group(n) == group] for group in SHORT}
    groups[ALL] = [n for chosen in groups.values() for n in chosen] or names
    groups = {group: chosen for group, chosen in groups.items() if chosen}

    def score(chosen: Sequence[str]) -> Part:
        return {**part([i for i, name in enumerate(domains) if name in chosen]), "resamples": how.bootstrap}

    parts = {n: {"distribution": SHORT.get(how.group(n), ""), **score([n])} for n in groups.get(ALL, [])}
    return DomainSummary(
        how=how,
        layout=layout,
        domains=parts,
        pooled={group: score(chosen) for group, chosen in groups.items()},
        means={group: _mean_scores([parts[n] for n in chosen], layout.scores) for group, chosen in groups.items()},
        notes=[text for name, own in parts.items() for text in remark(name, own)] + list(notes),
    )


def domain_colour(i: int) -> tuple[float, ...]:
    """Of the domain with the number i."""
    return colormaps["tab10"](i % 10)


def domain_label(name: str, part: Part) -> str:
    """Such as "XR (in)"; the name alone of a group, or where nothing is known."""
    return f"{name} ({part['distribution']})" if part.get("distribution") else name


def draw_curves(
    axes: Axes,
    summary: DomainSummary,
    area: Column,
    curve: Callable[[str, Part], Curve],
    lacking: str,
) -> None:
    """Draw the curve of each domain, dashed out of distribution, with a dot at the threshold.

    Args:
        axes: for shares, from 0 to 1.
        summary: of the domains.
        area: under the curve, which the legend tells.
        curve: gives that of a domain.
        lacking: what to say of a domain whose area is undefined.
    """
    for i, (name, part) in enumerate(summary.domains.items()):
        style = {"color": domain_colour(i), "linestyle": "--" if part["distribution"] == "out" else "-"}
        value, label = part[area.key]["value"], domain_label(name, part)
        if value is None:
            axes.plot([], [], **style, label=f"{label}: {lacking}")
            continue
        x, y, dot = curve(name, part)
        axes.plot(x, y, **style, linewidth=1.5, label=f"{label}: {area.header.strip()} {value:.3f}")
        if dot:
            look = {"markersize": 7, "markeredgecolor": "black", "zorder": 4, "clip_on": False}
            axes.plot(*dot, "o", color=style["color"], **look)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.grid(alpha=0.3)
