"""What the reports of a classifier and of a detector have in common: scores by domain, in and out of distribution.

A part is what is known of the items of some domains: counts, and for each score a dict with its `value` or None and
its `interval` as [low, high] or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

IN, OUT, ALL = "in distribution", "out of distribution", "all"
# A note is due where an interval rests on fewer than this share of the resamples.
MANY_LEFT_OUT = 0.05


def group_domains(
    domains: Iterable[str], train_domains: Sequence[str] | None
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Which domains were trained on.

    Returns:
        For each domain, in the order of a report, `"in"` or `"out"`, or `""` where nothing is known; and the domains of
        the groups `IN` and `OUT`, where that is known, and `ALL`; a group without domains is left out.
    """
    names = sorted(set(domains))
    if train_domains is None:
        return dict.fromkeys(names, ""), {ALL: names} if names else {}
    members = {IN: [n for n in names if n in train_domains], OUT: [n for n in names if n not in train_domains]}
    members[ALL] = members[IN] + members[OUT]
    distribution = {name: "in" if name in members[IN] else "out" for name in members[ALL]}
    return distribution, {group: chosen for group, chosen in members.items() if chosen}


def summarise_domains(
    domains: Iterable[str],
    train_domains: Sequence[str] | None,
    part: Callable[[Sequence[str]], dict[str, Any]],
    scores: Sequence[str],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The part of each domain, the part of each group, its domains pooled, and the mean over the domains of a group.

    Args:
        domains: of the items.
        train_domains: what the network was trained on; None: not known.
        part: gives the part of some domains.
        scores: what to average; each domain weighs the same, those where a score is undefined are left out.
    """
    distribution, members = group_domains(domains, train_domains)
    parts = {name: {"distribution": where, **part([name])} for name, where in distribution.items()}
    pooled = {group: part(chosen) for group, chosen in members.items()}
    means = {group: _mean_scores([parts[name] for name in chosen], scores) for group, chosen in members.items()}
    return parts, pooled, means


def _mean_scores(parts: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> dict[str, Any]:
    means: dict[str, Any] = {"domains": len(parts)}
    for name in scores:
        values = [part[name]["value"] for part in parts if part[name]["value"] is not None]
        means[name] = float(np.mean(values)) if values else None
    return means


def with_values(
    values: Mapping[str, float], intervals: Mapping[str, Mapping[str, Any]], scores: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Of a part, its scores."""
    return {name: {"value": None if math.isnan(values[name]) else values[name], **intervals[name]} for name in scores}


def distribution_note(known: bool) -> str:
    if known:
        return "In distribution: domains (scanners) that the network was trained on. Out of distribution: all others."
    return "What domains (scanners) the network was trained on is not known, so none is marked in or out."


def slide_remarks(name: str, part: Mapping[str, Any], scores: Sequence[str], items: str, lacking: str) -> list[str]:
    """What a reader must know where the items are from too few slides."""
    if part["slides"] == 1:
        return [f"{name} has {items} from a single slide: no intervals."]
    left_out = max(part[score]["resamples_left_out"] for score in scores)
    if left_out > MANY_LEFT_OUT * part["resamples"]:
        return [
            f"{name} has too few slides for good intervals: {left_out} of {part['resamples']} resamples lack {lacking} "
            "and are left out."
        ]
    return []


def report_title(dataset: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    """Such as "MIDOG, test, 12 images, 1 slide"."""
    counted = (f"{count} {name if count != 1 else name[:-1]}" for name, count in counts.items())
    parts = (str(dataset.get("name") or "evaluation"), dataset.get("split"), *counted)
    return ", ".join(part for part in parts if part)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def with_interval(entry: Mapping[str, Any]) -> str:
    interval = "" if entry["interval"] is None else "[{:.3f}, {:.3f}]".format(*entry["interval"])
    return f"{number(entry['value']):>5} {interval:14}"


def score_columns(scores: Sequence[str]) -> list[str]:
    """Of a CSV file: each score with the two ends of its interval."""
    return [column for score in scores for column in (score, f"{score}_low", f"{score}_high")]


def score_rows(
    domains: Mapping[str, Any], pooled: Mapping[str, Any], copied: Sequence[str], scores: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows of a CSV file: for each part `domain`, `distribution`, some counts as they are, and the scores."""
    groups = {name: {**part, "distribution": {IN: "in", OUT: "out"}.get(name, "")} for name, part in pooled.items()}
    rows = []
    for name, part in {**domains, **groups}.items():
        row = {"domain": name} | {key: part[key] for key in ("distribution", *copied)}
        values = [v for s in scores for v in (part[s]["value"], *(part[s]["interval"] or (None, None)))]
        rounded = (None if v is None else round(v, 4) for v in values)
        rows.append(row | dict(zip(score_columns(scores), rounded, strict=True)))
    return rows


def line_style(i: int, part: Mapping[str, Any]) -> dict[str, Any]:
    """Of the curve of the domain with the number i: dashed out of distribution."""
    return {"color": colormaps["tab10"](i % 10), "linestyle": "--" if part["distribution"] == "out" else "-"}


def domain_label(name: str, part: Mapping[str, Any]) -> str:
    return f"{name} ({part['distribution']})" if part["distribution"] else name


def add_warnings(figure: Figure, warnings: Sequence[str]) -> None:
    """In red at the foot of a figure whose layout is constrained."""
    if warnings:
        figure.text(0.01, 0.01, " ".join(warnings), color="tab:red", fontsize=9)
        figure.get_layout_engine().set(rect=(0, 0.05, 1, 0.95))
