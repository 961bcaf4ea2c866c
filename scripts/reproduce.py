"""Reproduce the papers' tables with the bundles, on the papers' data or on synthetic data; resumable."""

from __future__ import annotations

import csv
import hashlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import fire
from bundle_runs import bundle_run, check_lengths, check_settings, file_digests, kept_run, known, run_all, spread
from demo import count_firings
from detection_table import detection_table
from dice_table import POOR, Column, markdown, picture, summarise

from shared.data import dataset_info, load_datalist
from shared.datasets import BTCV_LABELS
from shared.losses import label_voxel_counts
from shared.utils import DataError, atomic_path, fault_list, show_errors_briefly, write_csv, write_json

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
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


class Setup(NamedTuple):
    """What all runs have in common."""

    data: Path
    work: Path
    size: str
    epochs: int
    ranks: int

    def folder(self, column: str, seed: int) -> Path:
        return self.work / column / f"seed{seed}"

    def configs(self, column: str, *names: str) -> list[str]:
        variants = [f"variants/{name}" for name in (*SIZES[self.size], *COLUMNS[column].variants)]
        return [f"configs/{name}.json" for name in ("train", *names, *variants)]

    def training(self, column: str) -> list[str]:
        return self.configs(column, *(["multi_gpu_train"] if self.ranks > 1 else []))

    def options(self, column: str) -> dict[str, Any]:
        """Of the command line, where the overlays do not say it: the 3D U-Net's own overlay is of the full size."""
        small = self.size == "demo" and COLUMNS[column].network == "3D U-Net"
        options: dict[str, Any] = {"network_def#features": [8, 8, 16, 32, 64, 8]} if small else {}
        return options | ({"max_epochs": self.epochs} if self.epochs else {})

    def settings(self, column: str, seed: int, data: str) -> dict[str, Any]:
        """What a result depends on, so that runs of different settings are not mixed. (The code is not looked at.)"""
        names = [*self.training(column), *self.configs(column, "evaluate")]
        content = {"column": column, "seed": seed, "size": self.size, "nproc_per_node": self.ranks, "data": data}
        return content | self.options(column) | file_digests(BUNDLES / COLUMNS[column].bundle / name for name in names)


def data_digest(datalist: Path) -> str:
    """Of the datalist and of the sizes of the files that it names."""
    cases = [case for split in ("training", "validation", "test") for case in load_datalist(datalist, split)]
    sizes = [os.stat(case[key]).st_size for case in cases for key in ("image", "label")]
    return hashlib.sha256(datalist.read_bytes() + str(sizes).encode()).hexdigest()


def train_and_score(setup: Setup, column: str, seed: int) -> dict[str, Any]:
    """Train, from the last checkpoint where there is one, and score each case of the test split."""
    folder, bundle = setup.folder(column, seed), BUNDLES / COLUMNS[column].bundle
    options: dict[str, Any] = {"dataset_dir": setup.data, "output_dir": folder, "ckpt_dir": folder, "seed": seed}
    options |= {"cache": "disk", "cache_dir": setup.work / "cache"} | setup.options(column)
    resumed, start = (folder / "last.pt").is_file(), time.monotonic()
    resume = {"resume": str(resumed).lower()}
    bundle_run(bundle, setup.training(column), folder / "train.log", options | resume, setup.ranks)
    minutes = round((time.monotonic() - start) / 60, 2)
    bundle_run(bundle, setup.configs(column, "evaluate"), folder / "evaluate.log", options)
    dice: dict[str, dict[str, float | None]] = {organ: {} for organ in BTCV_LABELS}
    with (folder / "evaluation" / "scores.csv").open() as file:
        for row in csv.DictReader(file):
            dice[row["organ"]][row["case"]] = float(row["dice"]) if row["dice"] else None
    firings = count_firings(folder / "class_weights.csv")
    return {"column": column, "seed": seed, "firings": firings, "minutes": minutes, "resumed": resumed, "dice": dice}


def write_table(table: Mapping[str, Any], folder: Path) -> None:
    """Write organ_table.json, .md, .png and .csv, which has a row for each row and column of the table."""
    write_json(folder / "organ_table.json", table)
    rows = [
        {"organ": row, "column": name, **(dice or {"n": 0})}
        for name, column in table["columns"].items()
        for row, dice in {**column["rows"], "firings": spread(list(column["firings"].values()))}.items()
    ]
    fields = ("organ", "column", "mean", "std", "min", "max", "n", "poor", "better_than_plain")
    write_csv(folder / "organ_table.csv", rows, fields)
    with atomic_path(folder / "organ_table.md") as temporary:
        temporary.write_text(markdown(table))
    with atomic_path(folder / "organ_table.png") as temporary:
        picture(table).savefig(temporary, dpi=120)


def caption(info: Mapping[str, Any], cases: int, seeds: int, size: str, epochs: int) -> str:
    length = f" {epochs} epochs." if epochs else ""
    made_up = " These cases are made up: the scores say nothing about real scans." if info["synthetic"] else ""
    return (
        f"Dice on {cases} test cases of {info['name']}, mean ± standard deviation over {seeds} seed(s). "
        f"★: below {POOR}. Bold: above the plain network on the same seeds, by however little. Poor organs: below "
        f"{POOR} in the mean of the network's columns. {NOTES[size]}{length}{made_up}"
    )


def organ_table(
    dataset_dir: str,
    output_dir: str,
    seeds: int = 3,
    size: str = "full",
    minutes: float = math.inf,
    jobs: int = 1,
    threads: int = 1,
    nproc_per_node: int = 1,
    epochs: int = 0,
    columns: str | Sequence[str] = tuple(COLUMNS),
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
    names = columns.split(",") if isinstance(columns, str) else list(columns)
    known("columns", names, list(COLUMNS))
    known("size", [size], list(SIZES))
    check_lengths(seeds, minutes, jobs, threads, nproc_per_node, epochs)
    data, work = Path(dataset_dir).expanduser().resolve(), Path(output_dir).expanduser().resolve()
    datalist, setup = data / "dataset.json", Setup(data, work, size, epochs, nproc_per_node)
    test = load_datalist(datalist, "test", labels=BTCV_LABELS)
    digest = data_digest(datalist)
    runs = {}
    for name, seed in [(name, seed) for seed in range(seeds) for name in COLUMNS if name in names]:
        folder, settings = setup.folder(name, seed), setup.settings(name, seed, digest)
        check_settings(folder, settings)  # of all, before the first run
        runs[folder] = partial(kept_run, folder, settings, partial(train_and_score, setup, name, seed))
    voxels = label_voxel_counts(test, BTCV_LABELS)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    finished, failures = run_all(runs, minutes, jobs)
    if finished:
        info = dataset_info(datalist, "test")
        table = {"caption": caption(info, len(test), seeds, size, epochs), "dataset": info, "size": size}
        table |= {"epochs": epochs, "seeds": seeds, "planned_runs": len(runs), "runs": len(finished)}
        table |= summarise(finished, COLUMNS, voxels)
        write_table(table, work)
        print(markdown(table))
    print(f"{len(finished)} of {len(runs)} runs are finished: {work}")
    if failures:
        raise DataError(f"{len(failures)} run(s) failed; the same command tries them again." + fault_list(failures))


if __name__ == "__main__":
    show_errors_briefly()
    fire.Fire({"organ_table": organ_table, "detection_table": detection_table})
