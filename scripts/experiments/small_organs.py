"""What finds the smallest organs: sampling by the rule, cumulative weights, other scores.

The protocol is docs/experiments/small_organs.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from shared.data import dataset_info, load_datalist
from shared.data.rule_sampler import AT_ZERO
from shared.datasets.ct_cases import BTCV_LABELS
from shared.reports.provenance import MADE_UP_CASES
from shared.utils import read_csv
from shared.utils.values import Choice, Several

from .kept_runs import complete, kept_runs
from .organ_table import MEAN, SIZES, nan_mean, paired_bootstrap, show_gain
from .runs import AtLeastOne, Epochs, Minutes, Training, count_firings, file_digest, tell_failures
from .tables import describe, draw_runs, markdown_grid, write_table
from .voxel_classifier import voxel_classifier

ORGANS = ("gallbladder", "oesophagus", "right_adrenal_gland", "left_adrenal_gland")
LIVER = "liver"
FOUND_BY_VOXELS = 0.1  # Dice of the voxel classifier from which on an organ must not be at 0
LIVER_LOSS = 0.01  # at the interval's bound
KEY = ("network", "seed", "arm")
DROPPED = ("last.pt", "best.pt", "model.pt")
Run = Mapping[str, Any]


class Arm(NamedTuple):
    """What is compared: overlays and options that come last."""

    variants: tuple[str, ...]
    what: str
    options: Mapping[str, Any] = MappingProxyType({})


ARMS = {
    "plain": Arm(("plain",), "no re-weighting; half of the crops around an organ's voxel, whichever organ"),
    "cbs": Arm((), "the class boost strategy"),
    "class_balanced": Arm(("plain", "class_balanced_sampling"), "no re-weighting; organs equally often"),
    "cbs_sampling": Arm(("cbs_sampling",), "CBS in the loss and in the sampling"),
    "sampling_alone": Arm(("cbs_sampling",), "CBS in the sampling alone", {"reweighting#loss": None}),
    "cumulative": Arm((), "CBS with cumulative weights", {"reweighting_cumulative": True}),
    "score_found": Arm(("score_found",), "CBS by the share of cases in which an organ is found"),
    "score_surface": Arm(("score_surface",), "CBS by the surface distance"),
    "log_dice": Arm(("plain", "log_dice"), "no re-weighting; the logarithm of the Dice"),
    "cbs_log_dice": Arm(("log_dice",), "CBS; the logarithm of the Dice"),
}
BASES = ("plain", "cbs")  # what the others are compared with


class Network(NamedTuple):
    bundle: str
    variants: tuple[str, ...] = ()
    small: Mapping[str, Any] = MappingProxyType({})  # options at the demo's size: the overlays are of the full size


NETWORKS = {
    "unetr": Network("abdominal_unetr_cbs"),
    "lambda3d": Network("abdominal_lambda3d_cbs"),
    "unet3d": Network("abdominal_unetr_cbs", ("unet3d",), {"network_def#features": [8, 8, 16, 32, 64, 8]}),
    "dynunet": Network("abdominal_unetr_cbs", ("dynunet",), {"network_def#filters": [8, 16, 32, 64, 80]}),
}


def plan_trainings(
    network: str, arms: Sequence[str], seeds: int, data: Path, work: Path, size: str, epochs: int
) -> list[Training]:
    """All arms of a seed before the next seed."""
    chosen, digest = NETWORKS[network], file_digest(data / "dataset.json")
    options = dict(chosen.small) if size == "demo" else {}
    options |= {"max_epochs": epochs} if epochs else {}
    return [
        Training(
            bundle=chosen.bundle,
            variants=(*SIZES[size], *chosen.variants, *ARMS[arm].variants),
            folder=work / network / f"{arm}_seed{seed}",
            places={"dataset_dir": data, "cache": "disk", "cache_dir": work / "cache"},
            options={**options, "seed": seed, **ARMS[arm].options},
            facts={"network": network, "arm": arm, "seed": seed, "size": size, "data": digest},
        )
        for seed in range(seeds)
        for arm in ARMS
        if arm in arms
    ]


def dice_of_report(report: Path) -> dict[str, list[float | None]]:
    """Of an evaluation the Dice of each organ in the test cases, in the order of their names."""
    dice: dict[str, list[float | None]] = {organ: [] for organ in BTCV_LABELS}
    for row in sorted(read_csv(report / "scores.csv"), key=lambda row: row["case"]):
        dice[row["organ"]].append(round(float(row["dice"]), 4) if row["dice"] else None)
    return dice


def train_and_score(training: Training) -> dict[str, Any]:
    trained, dice = training.train(), dice_of_report(training.evaluate())
    known = {key: training.facts[key] for key in KEY}
    return {**known, **trained, "firings": count_firings(training.folder / "class_weights.csv"), "dice": dice}


def dice_array(runs: Sequence[Run], organs: Sequence[str]) -> np.ndarray:
    """(seeds, cases, organs), NaN where a label lacks the organ."""
    return np.array([[run["dice"][organ] for organ in organs] for run in runs], float).transpose(0, 2, 1)


def compare(own: Sequence[Run], base: Sequence[Run], organs: Sequence[str]) -> dict[str, Any] | None:
    """The mean difference on the same seeds and cases, with its interval; of one organ or of the mean over several."""
    of_base = {run["seed"]: run for run in base}
    paired = [run for run in own if run["seed"] in of_base]
    if not paired:
        return None
    theirs = dice_array([of_base[run["seed"]] for run in paired], organs)
    return paired_bootstrap(dice_array(paired, organs) - theirs)[-1]


def dice_rows(runs: Sequence[Run]) -> dict[str, Any]:
    """The Dice of runs over seeds, organ by organ and in the mean, and how often organs of interest are at 0."""
    means_SO = nan_mean(dice_array(runs, tuple(BTCV_LABELS)), 1)
    by_organ = dict(zip(BTCV_LABELS, means_SO.T, strict=True))
    of_interest_SO = np.column_stack([by_organ[organ] for organ in ORGANS])
    rows = {organ: by_organ[organ] for organ in (*ORGANS, LIVER)}
    rows |= {"small organs": nan_mean(of_interest_SO, 1), MEAN: nan_mean(means_SO, 1)}
    dice = {name: describe(values[~np.isnan(values)].tolist()) for name, values in rows.items()}
    return {"runs": len(runs), "dice": dice, "at_zero": int((of_interest_SO < AT_ZERO).sum())}


def summarise(runs: Sequence[Run], arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each arm that has a run: Dice over seeds, how often organs of interest are at 0, differences to the bases."""
    own = {arm: sorted((run for run in runs if run["arm"] == arm), key=lambda run: run["seed"]) for arm in arms}
    found = {}
    for arm, ours in own.items():
        if not ours:
            continue
        minus = {
            base: {"small organs": compare(ours, own[base], ORGANS), LIVER: compare(ours, own[base], (LIVER,))}
            for base in BASES
            if own.get(base) and arm != base
        }
        found[arm] = {
            **dice_rows(ours),
            "minus": minus,
            "firings": [run["firings"] for run in ours],
            "minutes": mean_minutes(ours),
        }
    return found


def mean_minutes(runs: Sequence[Run]) -> float | None:
    """Of a training; without those that were resumed, of which only the last part is known."""
    whole = [run["minutes"] for run in runs if not run["resumed"]]
    return round(float(np.mean(whole)), 1) if whole else None


def holds(arm: Mapping[str, Any], voxels: Mapping[str, float | None]) -> bool:
    """Whether a complete arm does what the protocol asks for."""
    gains = [arm["minus"][base]["small organs"]["interval"] for base in BASES]
    liver = arm["minus"]["plain"][LIVER]["interval"]
    lost = [o for o in ORGANS if (voxels[o] or 0) >= FOUND_BY_VOXELS and arm["dice"][o]["mean"] < AT_ZERO]
    raised = all(gain is not None and gain[0] > 0 for gain in gains)
    return raised and liver is not None and liver[0] >= -LIVER_LOSS and not lost


def verdict(arms: Mapping[str, Mapping[str, Any]], voxels: Mapping[str, float | None], complete: bool) -> str:
    """What follows from the runs."""
    if not complete:
        return "**Incomplete: no verdict follows from it.**"
    judged = {name: arm for name, arm in arms.items() if {*arm["minus"]} == {*BASES}}
    if not judged:
        return f"No verdict: nothing is compared with both of {' and '.join(BASES)}."
    good = [name for name, arm in judged.items() if holds(arm, voxels)]
    if not good:
        return "No arm does what the protocol asks for."
    best = max(good, key=lambda name: judged[name]["minus"]["plain"]["small organs"]["difference"])
    return f"{', '.join(good)} do what the protocol asks for; the winner is {best}."


def _spread(entry: Mapping[str, Any] | None) -> str:
    return "–" if entry is None else f"{entry['mean']:.3f} ({entry['min']:.3f} to {entry['max']:.3f})"


DICE_HEAD = ("small organs", *(organ.replace("_", " ") for organ in ORGANS), "at 0", LIVER, MEAN)


def dice_cells(rows: Mapping[str, Any]) -> list[str]:
    """What `dice_rows` gives, under `DICE_HEAD`."""
    dice = [f"{rows['dice'][organ]['mean']:.3f}" if rows["dice"][organ] else "–" for organ in ORGANS]
    zero = f"{rows['at_zero']} of {len(ORGANS) * rows['runs']}"
    return [_spread(rows["dice"]["small organs"]), *dice, zero, *(_spread(rows["dice"][row]) for row in (LIVER, MEAN))]


def markdown(arms: Mapping[str, Mapping[str, Any]], voxels: Mapping[str, float | None]) -> str:
    """Dice arm by arm, and the differences to plain training and to CBS."""
    head = ["arm", "runs", *DICE_HEAD, "firings", "minutes"]
    lines = [
        [name, str(arm["runs"]), *dice_cells(arm), ", ".join(map(str, arm["firings"])), str(arm["minutes"] or "–")]
        for name, arm in arms.items()
    ]
    values = np.array([voxels[organ] for organ in (*ORGANS, LIVER)], float)
    *dice, liver, mean = (f"{value:.3f}".replace("nan", "–") for value in (*values, nan_mean(values[:-1], 0)))
    lines.append(["voxel classifier", "", mean, *dice, "", liver, "", "", ""])
    parts = [markdown_grid(head, lines)]
    if compared := {name: arm["minus"] for name, arm in arms.items() if arm["minus"]}:
        cells = [(base, row) for base in BASES for row in ("small organs", LIVER)]
        rows = [
            [name, *(show_gain(minus.get(base, {}).get(row)) for base, row in cells)]
            for name, minus in compared.items()
        ]
        parts.append(markdown_grid(["arm", *(f"{row} − {base}" for base, row in cells)], rows))
    return "\n\n".join(parts) + "\n"


def caption(info: Mapping[str, Any], network: str, cases: int, runs: int, planned: int, said: str) -> str:
    made_up = f" {MADE_UP_CASES}" if info["synthetic"] else ""
    return (
        f"{network} on {cases} test cases of {info['name']}, {runs} of {planned} runs. {said}{made_up}\n\n"
        "Dice: mean over seeds (least to greatest). Small organs: the mean over those listed. At 0: organs in runs "
        f"with a Dice below {AT_ZERO}. Differences are paired by seed and case, with the 95 % interval of a bootstrap "
        "over seeds and cases. Minutes: of a training that was not interrupted.\n\n"
    )


def voxel_scores(data: Path, work: Path, kept: Sequence[Run]) -> dict[str, float | None]:
    """The voxel classifier's Dice of each organ: kept, or fitted now."""
    for run in kept:
        if run["network"] == "voxel_classifier":
            return run["organs"]
    file = work / f"voxel_classifier_{file_digest(data / 'dataset.json')[:16]}.json"
    if not file.is_file():
        voxel_classifier(str(data), str(file))
    return json.loads(file.read_bytes())["dice"]


def small_organs(
    dataset_dir: str,
    output_dir: str,
    results: str = "",
    network: Annotated[str, Choice(tuple(NETWORKS))] = "unetr",
    arms: Annotated[Sequence[str], Several(Choice(tuple(ARMS)), distinct=True)] = tuple(ARMS),
    seeds: AtLeastOne = 5,
    size: Annotated[str, Choice(tuple(SIZES))] = "demo",
    epochs: Epochs = 0,
    budget_minutes: Minutes = math.inf,
    jobs: AtLeastOne = 1,
    threads: AtLeastOne = 1,
) -> None:
    """What finds the smallest organs, on the same cases and seeds: the protocol docs/experiments/small_organs.md.

    Run the same command again to go on. What RESULTS holds is not run again, wherever it was run; of the others,
    trainings resume from their last checkpoint, in OUTPUT_DIR/NETWORK. All arms of a seed come before the next seed.
    Tables: small_organs_NETWORK.md, .png, .csv and .json in OUTPUT_DIR. Where runs failed, they are listed, and the
    exit status is 1.

    Args:
        dataset_dir: folder with dataset.json, as scripts/make_synthetic.py ct or prepare_btcv.py writes it.
        output_dir: where runs and tables are kept.
        results: file for the results of all runs, a line of JSON each; by default small_organs.jsonl in OUTPUT_DIR.
        network: what is trained.
        arms: some of them, separated by commas.
        seeds: runs of each.
        size: `full` as configured, or `demo`: small networks, a grid of 6 mm and a short schedule.
        epochs: length of a training; 0 leaves it as configured.
        budget_minutes: no run is started after this time.
        jobs: runs at a time.
        threads: of each process.
    """
    data, work = Path(dataset_dir).expanduser().resolve(), Path(output_dir).expanduser().resolve()
    test = load_datalist(data / "dataset.json", "test", labels=BTCV_LABELS)
    trainings = plan_trainings(network, arms, seeds, data, work, size, epochs)
    head = {"data": file_digest(data / "dataset.json"), "cases": sorted(case["case"] for case in test)}
    head |= {"size": size, "epochs": epochs}
    kept = kept_runs(results or work / "small_organs.jsonl", head, KEY)
    voxels = voxel_scores(data, work, kept.read())
    kept.add({"network": "voxel_classifier", "seed": 0, "arm": "", "organs": voxels})
    options = {"minutes": budget_minutes, "jobs": jobs, "threads": threads, "dropped": DROPPED}
    runs, failures = complete(kept, trainings, train_and_score, **options)
    if runs:
        info = dataset_info(data / "dataset.json", "test")
        write_tables(work, info, network, arms, len(test), runs, len(trainings), voxels)
    print(f"{len(runs)} of {len(trainings)} runs are finished: {kept.file}")
    tell_failures(failures)


def write_tables(
    work: Path,
    info: Mapping[str, Any],
    network: str,
    arms: Sequence[str],
    cases: int,
    runs: Sequence[Run],
    planned: int,
    voxels: Mapping[str, float | None],
) -> None:
    """Write small_organs_NETWORK.md, .png, .csv and .json, and print the first."""
    found = summarise(runs, arms)
    said = verdict(found, voxels, len(runs) == planned)
    text = caption(info, network, cases, len(runs), planned, said) + markdown(found, voxels)
    rows = table_rows(found)
    content = {"network": network, "runs": len(runs), "planned_runs": planned, "arms": found}
    content |= {"voxel_classifier": voxels, "verdict": said}
    write_table(work / f"small_organs_{network}", text, picture(runs, arms, network), content, rows, list(rows[0]))
    print(text)


def table_rows(arms: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each arm and organ or mean."""
    rows = []
    for name, arm in arms.items():
        for row, dice in arm["dice"].items():
            line = {"arm": name, "row": row, **(dice or dict.fromkeys(("mean", "std", "min", "max"), None) | {"n": 0})}
            for base in BASES:
                entry = arm["minus"].get(base, {}).get(row) or {}
                low, high = entry.get("interval") or (None, None)
                line |= {f"minus_{base}": entry.get("difference"), f"low_{base}": low, f"high_{base}": high}
            rows.append(line)
    return rows


def picture(runs: Sequence[Run], arms: Sequence[str], title: str) -> Figure:
    """Dice over the small organs and of the liver, a dot a run."""
    figure = Figure(figsize=(3 + 0.7 * len(arms), 7), layout="constrained")
    for axes, (name, organs) in zip(
        figure.subplots(2, 1, sharex=True), {"small organs": ORGANS, LIVER: (LIVER,)}.items(), strict=True
    ):
        own = {arm: [run for run in runs if run["arm"] == arm] for arm in arms}
        draw_runs(
            axes,
            {arm: nan_mean(nan_mean(dice_array(of, organs), 1), 1).tolist() if of else [] for arm, of in own.items()},
        )
        axes.set_ylabel(f"Dice, {name}")
    figure.axes[0].set_title(title)
    return figure
