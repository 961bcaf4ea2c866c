"""Tables over seeds: means, values, spreads and intervals, as Markdown, and as files of one name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shared.metrics.bootstrap import draw, percentiles
from shared.utils import atomic_path, write_csv, write_json

Described = Mapping[str, Any]  # see `describe`
RESAMPLES = 1000
INTERVALS_FROM = 5  # seeds; of fewer the values are shown
SPREAD = (
    f"Fewer than {INTERVALS_FROM} seeds: mean (least to greatest: the seeds in their order). From {INTERVALS_FROM} on: "
    "mean and, in brackets, the 95 % interval of a bootstrap over seeds and slides."
)


def describe(values: Sequence[float]) -> dict[str, float | int | None] | None:
    """Mean, standard deviation (None of one value), least, greatest and number of values; None where there are none."""
    if not len(values):
        return None
    return {
        "mean": round(float(np.mean(values)), 4),
        "std": round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None,
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "n": len(values),
    }


def mean_and_std(entry: Described | None, sign: str = "", nothing: str = "") -> str:
    """Such as "0.712 ± 0.013"; `nothing` where there is none."""
    if entry is None:
        return nothing
    return f"{entry['mean']:{sign}.3f}" + (f" ± {entry['std']:.3f}" if entry["std"] is not None else "")


class Score(NamedTuple):
    """Of a run, or the difference of two.

    Attributes:
        value: what it is.
        resampled: what it is of the slides of each resample, (R,), NaN where undefined; None where none are drawn.
    """

    value: float
    resampled: np.ndarray | None = None


def mean_score(scores: Sequence[Score]) -> Score:
    """Of several domains."""
    drawn = [score.resampled for score in scores]
    known = all(each is not None for each in drawn)
    return Score(float(np.mean([score.value for score in scores])), np.mean(drawn, axis=0) if known else None)


def differences(own: Mapping[int, Score], base: Mapping[int, Score]) -> dict[int, Score]:
    """Of the runs of the same seed, of the same slides in each resample."""

    def minus(one: Score, other: Score) -> Score:
        known = one.resampled is not None and other.resampled is not None
        return Score(one.value - other.value, one.resampled - other.resampled if known else None)

    return {seed: minus(score, base[seed]) for seed, score in own.items() if seed in base}


def over_seeds(scores: Mapping[int, Score]) -> dict[str, Any] | None:
    """What `describe` says of a run's score over seeds, the `values` by seed, and from five seeds on the `interval`.

    A resample draws seeds with replacement, and slides with replacement, the same ones in all seeds: the slides of a
    domain that is left out are those of every seed, so to draw them in each run by itself would average away what is
    chance in them. The interval reaches from the 2.5th to the 97.5th percentile of the resamples' means.

    Args:
        scores: by the seed of the run.

    Returns:
        None where there is no run; `interval` is [low, high], or None.
    """
    found = describe([score.value for score in scores.values()])
    if found is None:
        return None
    means_R = resampled_means(scores)
    interval = None if means_R is None else percentiles(means_R)
    values = {str(number): round(score.value, 4) for number, score in sorted(scores.items())}
    return {**found, "values": values, "interval": interval and [round(end, 4) for end in interval]}


def resampled_means(scores: Mapping[int, Score]) -> np.ndarray | None:
    """The means over seeds, (R,), in the resamples of `over_seeds`; None of too few seeds, or if no slides are drawn.

    Args:
        scores: see `over_seeds`.
    """
    drawn = [score.resampled for score in scores.values()]
    if len(scores) < INTERVALS_FROM or any(each is None for each in drawn):
        return None
    resampled_RS = np.stack(drawn, axis=1)
    # slides are drawn by 0: by the same number as many seeds as slides would be drawn as these are
    weights_RS = draw(len(scores), len(resampled_RS), 1) * ~np.isnan(resampled_RS)
    with np.errstate(invalid="ignore"):  # 0 / 0 where no drawn seed has a score
        return (weights_RS * np.nan_to_num(resampled_RS)).sum(axis=1) / weights_RS.sum(axis=1)


def p_value(scores: Mapping[int, Score]) -> float | None:
    """Of differences over seeds, two-sided: twice the share of resamples, or of one more, beyond 0 on the rarer side.

    Args:
        scores: see `over_seeds`.
    """
    means_R = resampled_means(scores)
    if means_R is None:
        return None
    known = means_R[~np.isnan(means_R)]
    rarer = min(np.count_nonzero(known <= 0), np.count_nonzero(known >= 0))
    return min(1.0, 2 * (rarer + 1) / (len(known) + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p values of several hypotheses, adjusted so that all are held together (Holm, Scand. J. Stat. 1979;6:65-70).

    Args:
        p_values: by name.
    """
    adjusted, least = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = least
    return adjusted


def seeds_cell(entry: Mapping[str, Any] | None, sign: str = "") -> str:
    """What `over_seeds` has found, as `SPREAD` says."""
    if entry is None:
        return ""
    text = f"{entry['mean']:{sign}.3f}"
    if entry["interval"]:
        return text + " [{:{s}.3f}, {:{s}.3f}]".format(*entry["interval"], s=sign)
    if entry["n"] == 1:
        return text
    ends = f"{entry['min']:{sign}.3f} to {entry['max']:{sign}.3f}"
    values = ", ".join(f"{value:{sign}.3f}" for value in entry["values"].values())
    return f"{text} ({ends}{f': {values}' if entry['n'] < INTERVALS_FROM else ''})"


SEEDS_FIELDS = ("mean", "std", "min", "max", "n", "values", "low", "high", "gain", "gain_low", "gain_high", "better")


def table_rows(
    cells: Mapping[tuple[str, ...], Mapping[int, Score]], fields: Sequence[str], plain: str
) -> list[dict[str, Any]]:
    """A row for each cell that has a run: see `over_seeds`, with the `gain` over plain training on the same seeds.

    Args:
        cells: the scores by seed, by the method and what else tells a cell from others.
        fields: the names of these.
        plain: the method that the others are compared with.
    """
    rows = []
    for key, own in cells.items():
        base = cells.get((plain, *key[1:]), {}) if key[0] != plain else {}
        if found := over_seeds(own):
            rows.append({**dict(zip(fields, key, strict=False)), **found, "gain": over_seeds(differences(own, base))})
    return rows


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with what `over_seeds` has found, and `gain`, that of the differences or None, as a row of a CSV table."""
    gain = row["gain"] or {}
    low, high = row["interval"] or (None, None)
    gain_low, gain_high = gain.get("interval") or (None, None)
    values = " ".join(map(str, row["values"].values()))
    cells = {"values": values, "low": low, "high": high, "gain": gain.get("mean"), "better": better(gain)}
    return {**row, **cells, "gain_low": gain_low, "gain_high": gain_high}


def better(gain: Mapping[str, Any]) -> int | None:
    """In how many runs there was a gain."""
    return sum(value > 0 for value in gain["values"].values()) if gain else None


def markdown_grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def draw_runs(
    axes: Axes,
    values: Mapping[str, Sequence[float]],
    reported: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> None:
    """A dot for each run, by method, with a line at the mean; triangles at what papers report of the method.

    Args:
        axes: to draw into.
        values: of the runs, by method.
        reported: by paper, or table of one, and by method; two of them at most.
    """
    for x, own in enumerate(values.values()):
        axes.plot([x] * len(own), own, "o", color="tab:blue", alpha=0.6)
        axes.hlines(np.mean(own) if len(own) else np.nan, x - 0.3, x + 0.3, colors="black")
    for (label, figures), marker in zip(reported.items(), "^v", strict=False):
        axes.plot(range(len(values)), [figures.get(m, np.nan) for m in values], marker, color="tab:red", label=label)
    axes.set_xticks(range(len(values)), values, rotation=60, ha="right")
    axes.grid(axis="y", alpha=0.3)


def write_table(
    stem: Path, text: str, figure: Figure, content: Any, rows: Sequence[Mapping[str, Any]], fields: Sequence[str]
) -> None:
    """Write a table as STEM.md, its picture as .png, its content as .json, and the `fields` of its rows as .csv."""
    write_json(stem.with_suffix(".json"), content)
    write_csv(stem.with_suffix(".csv"), [{key: row.get(key) for key in fields} for row in rows], fields)
    with atomic_path(stem.with_suffix(".md")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic_path(stem.with_suffix(".png")) as temporary:
        figure.savefig(temporary, dpi=120)
