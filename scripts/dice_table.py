"""A table of Dice scores, organs by columns, over several seeds: its arithmetic, as Markdown and as a picture.

A run is a dict with the `column` and `seed` that it belongs to, its `firings` (evaluations in which the class
re-weighting fired) and `dice`: organ → case → Dice, or None where the case's label lacks the organ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from bundle_runs import spread
from matplotlib.figure import Figure

from shared.datasets import PAPER_VOXEL_SHARES

POOR = 0.8  # "poorly performing" below it
MEAN, POOR_MEAN = "mean over organs", "mean over poor organs"
Run = Mapping[str, Any]


class Column(NamedTuple):
    """A network and what re-weights its classes in training.

    Attributes:
        network, rule: the rule is `plain` for none.
        reported: mean Dice over organs, as reported by Willoughby & Voiculescu, arXiv 2406.08217.
        bundle, variants: what trains it.
    """

    network: str
    rule: str
    reported: float
    bundle: str
    variants: tuple[str, ...]


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is there, NaN where nothing is, without a warning."""
    return np.ma.filled(np.ma.masked_invalid(values).mean(axis), np.nan)


def dice_array(runs: Sequence[Run], organs: Sequence[str]) -> np.ndarray:
    """The Dice of runs on the same cases, (seeds, cases, organs), NaN where a label lacks the organ."""
    cases = sorted(runs[0]["dice"][organs[0]])
    return np.array([[[run["dice"][organ][case] for organ in organs] for case in cases] for run in runs], float)


def paired_bootstrap(difference_SCO: np.ndarray, resamples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """Mean difference of two columns for each organ, and at last for the mean over organs, with 95 % intervals.

    The differences are paired: the same seed, the same case. A resample draws seeds with replacement and cases with
    replacement, and takes every drawn case in every drawn seed, all its organs together; each organ is averaged over
    them, then the organs that have a mean, each weighing the same. The interval reaches from the 2.5th to the 97.5th
    percentile of the resamples' means. Of few seeds it comes out too narrow: of three whose spread is large beside that
    of the cases, it held the truth in three of four simulated tables; what is chance in each pair of seed and case, on
    the other hand, counts twice (Owen 2007, doi 10.1214/07-AOAS122).

    Args:
        difference_SCO: (seeds, cases, organs), NaN where the label lacks the organ.
        resamples: number of resamples.
        seed: of the draws.

    Returns:
        dicts with `difference` or None, `interval` as [low, high] or None (of one seed, or one case with a score),
        `seeds` and `cases`.
    """
    seeds, cases, _ = difference_SCO.shape
    present_CO = ~np.isnan(difference_SCO).any(axis=0)
    scores_SCO = np.where(present_CO, difference_SCO, 0)
    rng = np.random.default_rng(seed)
    drawn_BS, drawn_BC = (rng.multinomial(n, [1 / n] * n, size=resamples) for n in (seeds, cases))

    def means(weights_BS: np.ndarray, weights_BC: np.ndarray) -> np.ndarray:
        total_BO = np.einsum("bs,bc,sco->bo", weights_BS, weights_BC, scores_SCO, optimize=True)
        with np.errstate(invalid="ignore"):  # 0 / 0 where no case has a score
            means_BO = total_BO / (seeds * (weights_BC @ present_CO))
        return np.column_stack([means_BO, nan_mean(means_BO, 1)])

    counts = [*present_CO.sum(axis=0).tolist(), int(present_CO.any(axis=1).sum())]
    (found,), resampled = means(np.ones((1, seeds)), np.ones((1, cases))), means(drawn_BS, drawn_BC)
    return [
        {
            "difference": round(float(mean), 4) if count else None,
            "interval": np.nanpercentile(each, [2.5, 97.5]).round(4).tolist() if seeds > 1 and count > 1 else None,
            "seeds": seeds,
            "cases": count,
        }
        for mean, each, count in zip(found, resampled.T, counts, strict=True)
    ]


def _rows(runs: Sequence[Run], organs: Sequence[str], poor: Sequence[str] = ()) -> np.ndarray:
    """The Dice of runs in the rows of the table, (seeds, rows): organs, mean over organs, mean over the poor ones."""
    means_SO = nan_mean(dice_array(runs, organs), 1)
    poor_SO = np.where([organ in poor for organ in organs], means_SO, np.nan)
    return np.column_stack([means_SO, nan_mean(means_SO, 1), nan_mean(poor_SO, 1)])


def _differences(ours: Sequence[Run], plain: Sequence[Run], organs: list[str], poor: list[str]) -> dict[str, Any]:
    difference_SCO = dice_array(ours, organs) - dice_array(plain, organs)
    rows = dict(zip([*organs, MEAN], paired_bootstrap(difference_SCO), strict=True))
    of_poor = difference_SCO[..., [organs.index(organ) for organ in poor]]
    return rows | ({POOR_MEAN: paired_bootstrap(of_poor)[-1]} if poor else {})


def _poor(columns: Sequence[Sequence[Run]], organs: Sequence[str]) -> list[str]:
    """The organs below 0.8 in the mean of a network's columns.

    In the paper it is the plain column alone that says which; of few runs, that is in favour of the other columns:
    organs that the plain one had bad luck with are chosen, and the same runs are compared.
    """
    means_RO = np.array([_rows(own, organs).mean(axis=0)[: len(organs)] for own in columns])
    return [organ for organ, mean in zip(organs, means_RO.mean(axis=0), strict=True) if mean < POOR]


def _column(
    column: Column, own: Sequence[Run], plain: Sequence[Run], organs: list[str], poor: list[str]
) -> dict[str, Any]:
    pairs = [(ours, theirs) for ours in own for theirs in plain if ours["seed"] == theirs["seed"]]
    ours, theirs = ([*runs] for runs in zip(*pairs, strict=True)) if pairs else ([], [])
    gains = (_rows(ours, organs, poor) - _rows(theirs, organs, poor)).mean(axis=0) if pairs else None
    rows: dict[str, Any] = {}
    for i, (row, values) in enumerate(zip((*organs, MEAN, POOR_MEAN), _rows(own, organs, poor).T, strict=True)):
        dice = spread(values[~np.isnan(values)].tolist())
        better = gains is not None and bool(gains[i] >= 0.0005)
        rows[row] = dice and {**dice, "poor": dice["mean"] < POOR, "better_than_plain": better}
    return {
        "title": column.network + (f" + {column.rule.upper()}" if column.rule != "plain" else ""),
        "network": column.network,
        "reported_mean_dice": column.reported,
        "runs": len(own),
        "poor_organs": poor,
        "rows": rows,
        "firings": {str(run["seed"]): run["firings"] for run in own},
        "minus_plain": _differences(ours, theirs, organs, poor) if pairs and column.rule == "cbs" else None,
    }


def summarise(runs: Sequence[Run], columns: Mapping[str, Column], voxels: Mapping[str, int]) -> dict[str, Any]:
    """The table's content: the voxel shares, and of each column that has a run its rows, firings and CBS − plain.

    Organs are in the order of their voxels. The poor ones are, in all columns of a network, those below 0.8 in the
    mean of these columns. A row is better than plain by the mean over the seeds that both columns have, and by
    0.0005 at least.

    Args:
        runs: in any order, on the same cases.
        columns: by the name that the runs give.
        voxels: organ → number of its voxels in the labels of the cases.
    """
    organs = sorted(voxels, key=lambda organ: -voxels[organ])
    total = max(1, sum(voxels.values()))
    shares = {o: {"percent": round(100 * voxels[o] / total, 2), "paper": PAPER_VOXEL_SHARES[o]} for o in organs}
    own = {n: sorted((r for r in runs if r["column"] == n), key=lambda r: r["seed"]) for n in columns}
    plain = {column.network: own[name] for name, column in columns.items() if column.rule == "plain"}
    networks = {column.network for name, column in columns.items() if own[name]}
    poor = {n: _poor([own[c] for c in columns if columns[c].network == n and own[c]], organs) for n in networks}
    content = {n: _column(c, own[n], plain[c.network], organs, poor[c.network]) for n, c in columns.items() if own[n]}
    return {"voxel_shares": shares, "columns": content}


def _cell(dice: Mapping[str, Any] | None, star: bool) -> str:
    if dice is None:
        return "–"
    text = f"{dice['mean']:.3f}" + (f" ± {dice['std']:.3f}" if dice["std"] is not None else "")
    return text + (" ★" if star and dice["poor"] else "")


def _difference(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["difference"] is None:
        return "–"
    return f"{entry['difference']:+.3f}" + (
        " [{:+.3f}, {:+.3f}]".format(*entry["interval"]) if entry["interval"] else ""
    )


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def markdown(table: Mapping[str, Any]) -> str:
    """The caption, the table, and the table of paired differences where there are any."""
    columns, shares = list(table["columns"].values()), table["voxel_shares"]
    names = {row: row.replace("_", " ") for row in (*shares, MEAN, POOR_MEAN)}
    rows = []
    for row, name in names.items():
        percent = [f"{shares[row][key]:.1f}" if row in shares else "" for key in ("percent", "paper")]
        cells = [(column["rows"][row], _cell(column["rows"][row], row in shares)) for column in columns]
        bold = [f"**{text}**" if dice and dice["better_than_plain"] else text for dice, text in cells]
        rows.append([name, *percent, *bold])
    rows.append(["firings, seed by seed", "", "", *(", ".join(map(str, c["firings"].values())) for c in columns)])
    rows.append(["mean over organs, as reported", "", "", *(f"{c['reported_mean_dice']:.3f}" for c in columns)])
    titles = [c["title"] + (f" (n = {c['runs']})" if c["runs"] < table["seeds"] else "") for c in columns]
    parts = [table["caption"], _grid(["organ", "voxels %", "paper's %", *titles], rows)]
    if compared := {c["network"]: c["minus_plain"] for c in columns if c["minus_plain"]}:
        parts.append(
            "CBS − plain, paired by seed and case, with the 95 % interval of a bootstrap over seeds and cases, too "
            "narrow where these are few (of three seeds, it may hold the truth only three times in four):"
        )
        rows = [[name, *(_difference(d.get(row)) for d in compared.values())] for row, name in names.items()]
        titles = [f"{network} (n = {d[MEAN]['seeds']})" for network, d in compared.items()]
        parts.append(_grid(["organ", *titles], rows))
    return "\n\n".join(parts) + "\n"


def picture(table: Mapping[str, Any]) -> Figure:
    """A heat map of the table, and beside it the paired differences with their intervals."""
    columns, shares = list(table["columns"].values()), table["voxel_shares"]
    names = {row: row.replace("_", " ") for row in (*shares, MEAN, POOR_MEAN)}
    names |= {o: f"{names[o]} ({share['percent']:.1f} %, paper {share['paper']:.1f} %)" for o, share in shares.items()}
    figure = Figure(figsize=(7.5 + 1.1 * len(columns), 2.4 + 0.38 * len(names)), layout="constrained")
    heat, dots = figure.subplots(1, 2, sharey=True, width_ratios=(max(2, len(columns)), 3))
    cells = [[column["rows"][row] for column in columns] for row in names]
    heat.imshow([[dice["mean"] if dice else np.nan for dice in line] for line in cells], vmin=0, vmax=1, aspect="auto")
    for y, line in enumerate(cells):
        for x, dice in enumerate(line):
            style = {"color": "white" if dice and dice["mean"] < 0.6 else "black", "ha": "center", "va": "center"}
            weight = "bold" if dice and dice["better_than_plain"] else "normal"
            heat.text(x, y, _cell(dice, y < len(shares)), fontsize=7.5, weight=weight, **style)
    titles = [f"{c['title']}\nn = {c['runs']}\nreported\n{c['reported_mean_dice']}" for c in columns]
    titles = [title.replace(" + ", "\n+ ") for title in titles]
    heat.set_xticks(range(len(columns)), titles, fontsize=8)
    heat.set_yticks(range(len(names)), list(names.values()), fontsize=8)
    heat.set_title("Dice: mean ± standard deviation over seeds", fontsize=9)
    for i, column in enumerate(c for c in columns if c["minus_plain"]):
        entries = column["minus_plain"]
        shown = [(y, entries[row]) for y, row in enumerate(names) if row in entries]
        shown = [(y + 0.22 * (i - 1), entry) for y, entry in shown if entry["difference"] is not None]
        dots.plot([e["difference"] for _, e in shown], [y for y, _ in shown], f"C{i}o", ms=4, label=column["network"])
        for y, entry in shown:
            if entry["interval"]:
                dots.plot(entry["interval"], [y, y], f"C{i}")
        dots.legend(fontsize=8)
    dots.axvline(0, color="black", lw=0.8)
    dots.grid(axis="x", alpha=0.3)
    dots.tick_params(axis="x", labelsize=8)
    dots.set_title("CBS − plain, 95 % interval", fontsize=9)
    figure.supxlabel(table["caption"], fontsize=8, wrap=True)
    return figure
