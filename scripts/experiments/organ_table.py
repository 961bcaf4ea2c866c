"""The paper's table: Dice of each organ by network and rule, over several seeds; its runs, arithmetic and picture.

A run is a dict with the `column` and `seed` that it belongs to, its `firings` (evaluations in which the class
re-weighting fired) and `dice`: organ → case → Dice, or None where the case's label lacks the organ.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from shared.data import dataset_info, load_datalist
from shared.datasets.ct_cases import BTCV_LABELS, PAPER_VOXEL_SHARES
from shared.losses import label_voxel_counts
from shared.metrics.bootstrap import draw, percentiles
from shared.reports.provenance import MADE_UP_CASES
from shared.utils import read_csv
from shared.utils.values import Choice, Several

from .runs import AtLeastOne, Epochs, Minutes, Training, count_firings, run_trainings, tell_failures
from .tables import describe, markdown_grid, mean_and_std, write_table

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


COLUMNS = {
    "unetr_plain": Column("UNETR", "plain", 0.777, "abdominal_unetr_cbs", ("plain",)),
    "unetr_tcf": Column("UNETR", "tcf", 0.787, "abdominal_unetr_cbs", ("tcf",)),
    "unetr_pcf": Column("UNETR", "pcf", 0.765, "abdominal_unetr_cbs", ("pcf",)),
    "unetr_cbs": Column("UNETR", "cbs", 0.792, "abdominal_unetr_cbs", ()),
    "unet3d_plain": Column("3D U-Net", "plain", 0.484, "abdominal_unetr_cbs", ("unet3d", "plain")),
    "unet3d_cbs": Column("3D U-Net", "cbs", 0.588, "abdominal_unetr_cbs", ("unet3d",)),
    "lambda3d_plain": Column("Lambda3D", "plain", 0.707, "abdominal_lambda3d_cbs", ("plain",)),
    "lambda3d_cbs": Column("Lambda3D", "cbs", 0.725, "abdominal_lambda3d_cbs", ()),
}
# The variants that come before a column's own.
SIZES: dict[str, tuple[str, ...]] = {"full": (), "demo": ("demo", "demo_schedule", "dice_plain_ce")}
NOTES = {
    "full": "Networks, grid, loss and schedule as in the bundles' train.json.",
    "demo": "At the demo's size: small networks, a 6 mm grid, the demo's schedule and trigger, and Dice with a little "
    "unweighted cross-entropy (variants/dice_plain_ce), for all columns alike.",
}


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
    drawn_BS, drawn_BC = (draw(n, resamples, rng) for n in (seeds, cases))

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
            "interval": np.round(percentiles(each), 4).tolist() if seeds > 1 and count > 1 else None,
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
        dice = describe(values[~np.isnan(values)].tolist())
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
    return mean_and_std(dice, nothing="–") + (" ★" if dice and star and dice["poor"] else "")


def show_gain(entry: Mapping[str, Any] | None) -> str:
    """A difference and its interval."""
    if entry is None or entry["difference"] is None:
        return "–"
    interval = " [{:+.3f}, {:+.3f}]".format(*entry["interval"]) if entry["interval"] else ""
    return f"{entry['difference']:+.3f}{interval}"


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
    parts = [table["caption"], markdown_grid(["organ", "voxels %", "paper's %", *titles], rows)]
    if compared := {c["network"]: c["minus_plain"] for c in columns if c["minus_plain"]}:
        parts.append(
            "CBS − plain, paired by seed and case, with the 95 % interval of a bootstrap over seeds and cases, too "
            "narrow where these are few (of three seeds, it may hold the truth only three times in four):"
        )
        rows = [[name, *(show_gain(d.get(row)) for d in compared.values())] for row, name in names.items()]
        titles = [f"{network} (n = {d[MEAN]['seeds']})" for network, d in compared.items()]
        parts.append(markdown_grid(["organ", *titles], rows))
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


def data_digest(datalist: Path) -> str:
    """Of the datalist and of the sizes of the files that it names."""
    cases = [case for split in ("training", "validation", "test") for case in load_datalist(datalist, split)]
    sizes = [os.stat(case[key]).st_size for case in cases for key in ("image", "label")]
    return hashlib.sha256(datalist.read_bytes() + str(sizes).encode()).hexdigest()


def train_and_score(training: Training) -> dict[str, Any]:
    """Train and score each case of the test split."""
    trained, report = training.train(), training.evaluate()
    dice: dict[str, dict[str, float | None]] = {organ: {} for organ in BTCV_LABELS}
    for row in read_csv(report / "scores.csv"):
        dice[row["organ"]][row["case"]] = float(row["dice"]) if row["dice"] else None
    known = {key: training.facts[key] for key in ("column", "seed")}
    return {**known, "firings": count_firings(training.folder / "class_weights.csv"), **trained, "dice": dice}


def plan_trainings(
    names: Sequence[str], seeds: int, data: Path, work: Path, size: str, epochs: int, ranks: int
) -> list[Training]:
    """All columns of a seed before the next seed."""
    digest = data_digest(data / "dataset.json")
    # The 3D U-Net's own overlay is of the full size.
    small: dict[str, Any] = {"network_def#features": [8, 8, 16, 32, 64, 8]}
    length = {"max_epochs": epochs} if epochs else {}
    return [
        Training(
            bundle=column.bundle,
            variants=(*SIZES[size], *column.variants),
            folder=work / name / f"seed{seed}",
            places={"dataset_dir": data, "cache": "disk", "cache_dir": work / "cache"},
            options={"seed": seed, **(small if size == "demo" and column.network == "3D U-Net" else {}), **length},
            facts={"column": name, "seed": seed, "size": size, "data": digest},
            ranks=ranks,
        )
        for seed in range(seeds)
        for name, column in COLUMNS.items()
        if name in names
    ]


def table_rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each row and column of the table."""
    return [
        {"organ": row, "column": name, **(dice or {"n": 0})}
        for name, column in table["columns"].items()
        for row, dice in {**column["rows"], "firings": describe(list(column["firings"].values()))}.items()
    ]


def caption(info: Mapping[str, Any], cases: int, seeds: int, size: str, epochs: int) -> str:
    length = f" {epochs} epochs." if epochs else ""
    made_up = f" {MADE_UP_CASES}" if info["synthetic"] else ""
    return (
        f"Dice on {cases} test cases of {info['name']}, mean ± standard deviation over {seeds} seed(s). "
        f"★: below {POOR}. Bold: above the plain network on the same seeds, by however little. Poor organs: below "
        f"{POOR} in the mean of the network's columns. {NOTES[size]}{length}{made_up}"
    )


def organ_table(
    dataset_dir: str,
    output_dir: str,
    seeds: AtLeastOne = 3,
    size: Annotated[str, Choice(tuple(SIZES))] = "full",
    minutes: Minutes = math.inf,
    jobs: AtLeastOne = 1,
    threads: AtLeastOne = 1,
    nproc_per_node: AtLeastOne = 1,
    epochs: Epochs = 0,
    columns: Annotated[Sequence[str], Several(Choice(tuple(COLUMNS)), distinct=True)] = tuple(COLUMNS),
) -> None:
    """The paper's table: Dice of each organ under UNETR, 3D U-Net and Lambda3D, plain and re-weighted, over seeds.

    Run the same command again to go on: a training resumes from its last checkpoint, and what is finished is kept in
    OUTPUT_DIR/COLUMN/seedN/result.json. All columns of a seed come before the next seed. Results: organ_table.md,
    .png, .csv and .json in OUTPUT_DIR. Where runs failed, they are listed, and the exit status is 1.

    Args:
        dataset_dir: folder with dataset.json, as scripts/prepare_btcv.py or make_synthetic.py ct writes it.
        output_dir: where runs and results are kept.
        seeds: runs of each column.
        size: `full` as configured, or `demo`: small networks on a coarse grid, for synthetic CT.
        minutes: no run is started after this time.
        jobs: runs at a time. All of them use the same GPU; for several, start one command for each with its own
            CUDA_VISIBLE_DEVICES and `columns`, or let each training take all (`nproc_per_node`).
        threads: of each process.
        nproc_per_node: processes of each training, as for torchrun.
        epochs: length of a training; 0 leaves it as configured.
        columns: some of them, separated by commas.
    """
    data, work = Path(dataset_dir).expanduser().resolve(), Path(output_dir).expanduser().resolve()
    test = load_datalist(data / "dataset.json", "test", labels=BTCV_LABELS)
    trainings = plan_trainings(columns, seeds, data, work, size, epochs, nproc_per_node)
    finished, failures = run_trainings(trainings, train_and_score, minutes, jobs, threads)
    if finished:
        info = dataset_info(data / "dataset.json", "test")
        table = {"caption": caption(info, len(test), seeds, size, epochs), "dataset": info, "size": size}
        table |= {"epochs": epochs, "seeds": seeds, "planned_runs": len(trainings), "runs": len(finished)}
        table |= summarise(finished, COLUMNS, label_voxel_counts(test, BTCV_LABELS))
        fields = ("organ", "column", "mean", "std", "min", "max", "n", "poor", "better_than_plain")
        write_table(work / "organ_table", markdown(table), picture(table), table, table_rows(table), fields)
        print(markdown(table))
    print(f"{len(finished)} of {len(trainings)} runs are finished: {work}")
    tell_failures(failures)
