"""A table of the detector's scores on each scanner, by method, over several seeds: its runs, arithmetic and picture."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from shared.data import dataset_info, domain_names, load_regions
from shared.utils import DataError, atomic_path, fault_list, write_csv, write_json

from .runs import (
    bundle_run,
    check_lengths,
    check_settings,
    describe,
    file_digests,
    kept_run,
    known,
    plus_minus,
    run_all,
)

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "mitosis_retinanet_fusestyle"
METHODS: dict[str, tuple[str, ...]] = {
    "none": ("no_fusestyle",),
    "fusestyle": (),
    "mixstyle": ("mixstyle",),
    "domain_adversarial": ("domain_adversarial",),
    "jitter": ("no_fusestyle", "stain_jitter"),
    "fusestyle_jitter": ("stain_jitter",),
}
PLAIN = "none"
SIZES: dict[str, tuple[str, ...]] = {"full": ("pretrained",), "demo": ("demo", "demo_schedule")}
SCORES = ("f1", "precision", "recall", "average_precision")
Run = Mapping[str, Any]


class Setup(NamedTuple):
    """What all runs have in common."""

    datalist: Path
    work: Path
    train_domains: tuple[str, ...]
    size: str
    epochs: int
    ranks: int

    def folder(self, method: str, seed: int) -> Path:
        return self.work / method / f"seed{seed}"

    def configs(self, method: str, *names: str) -> list[str]:
        variants = [f"variants/{name}" for name in (*SIZES[self.size], *METHODS[method])]
        return [f"configs/{name}.json" for name in ("train", *names, *variants)]

    def training(self, method: str) -> list[str]:
        return self.configs(method, *(["multi_gpu_train"] if self.ranks > 1 else []))

    def options(self) -> dict[str, Any]:
        return {"train_domains": list(self.train_domains)} | ({"max_epochs": self.epochs} if self.epochs else {})

    def settings(self, method: str, seed: int) -> dict[str, Any]:
        """What a result depends on, so that runs of different settings are not mixed. (The code is not looked at.)"""
        names = [*self.training(method), *self.configs(method, "evaluate")]
        data = hashlib.sha256(self.datalist.read_bytes()).hexdigest()
        content = {"method": method, "seed": seed, "size": self.size, "nproc_per_node": self.ranks, "data": data}
        return content | self.options() | file_digests(BUNDLE / name for name in names)


def train_and_score(setup: Setup, method: str, seed: int) -> dict[str, Any]:
    """Train, from the last checkpoint where there is one, and score each scanner of the test split."""
    folder = setup.folder(method, seed)
    options: dict[str, Any] = {"datalist": setup.datalist, "output_dir": folder, "ckpt_dir": folder, "seed": seed}
    resumed, start = (folder / "last.pt").is_file(), time.monotonic()
    more = setup.options() | {"resume": str(resumed).lower()}
    bundle_run(BUNDLE, setup.training(method), folder / "train.log", options | more, setup.ranks)
    minutes = round((time.monotonic() - start) / 60, 2)
    bundle_run(BUNDLE, setup.configs(method, "evaluate"), folder / "evaluate.log", options)
    domains = json.loads((folder / "evaluation" / "summary.json").read_text())["domains"]
    scores = {name: {score: row[score]["value"] for score in SCORES} for name, row in domains.items()}
    return {"method": method, "seed": seed, "minutes": minutes, "resumed": resumed, "scores": scores}


def summarise(runs: Sequence[Run], domains: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each method, domain and score: its spread over seeds, and that of the gain over the plain network.

    The gain is that of runs with the same seed. Undefined scores (a precision without detections) are left out.
    """
    found = {(run["method"], run["seed"], name): scores for run in runs for name, scores in run["scores"].items()}
    rows = []
    for method in METHODS:
        for domain in domains:
            for score in SCORES:
                own = {s: v[score] for (m, s, d), v in found.items() if (m, d) == (method, domain)}
                plain = {s: v[score] for (m, s, d), v in found.items() if (m, d) == (PLAIN, domain)}
                own = {seed: value for seed, value in own.items() if value is not None}
                gains = [value - plain[seed] for seed, value in own.items() if plain.get(seed) is not None]
                values = describe(list(own.values()))
                if values:
                    gain = describe(gains) if method != PLAIN else None
                    rows.append({"method": method, "domain": domain, "score": score, **values, "gain": gain})
    return rows


def markdown(rows: Sequence[Mapping[str, Any]], domains: Sequence[str], train_domains: Sequence[str]) -> str:
    """F1 of each method and scanner, with the gain over the plain network where the scanner was left out."""
    titles = [f"{name}{'' if name in train_domains else ' (left out)'}" for name in domains]
    lines = ["| method | " + " | ".join(titles) + " |", "| --- |" + " --- |" * len(domains)]
    for method in METHODS:
        cells = []
        for domain in domains:
            row = [r for r in rows if (r["method"], r["domain"], r["score"]) == (method, domain, "f1")]
            cells.append(_cell(row[0], domain not in train_domains) if row else "")
        if any(cells):
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any], with_gain: bool) -> str:
    gain = row["gain"] if with_gain else None
    text = plus_minus(row["mean"], row["std"])
    return text + (f" (gain {plus_minus(gain['mean'], gain['std'], '+')})" if gain else "")


def picture(runs: Sequence[Run], domains: Sequence[str], train_domains: Sequence[str]) -> Figure:
    """F1 of each run, a panel for each scanner."""
    figure = Figure(figsize=(2.6 * len(domains) + 1.5, 4), layout="constrained")
    methods = [method for method in METHODS if any(run["method"] == method for run in runs)]
    for axes, domain in zip(figure.subplots(1, len(domains), sharey=True, squeeze=False)[0], domains, strict=True):
        for i, method in enumerate(methods):
            values = [run["scores"].get(domain, {}).get("f1") for run in runs if run["method"] == method]
            values = [value for value in values if value is not None]
            axes.plot([i] * len(values), values, "o", alpha=0.6)
            axes.hlines(np.mean(values) if values else math.nan, i - 0.3, i + 0.3, colors="black")
        axes.set_xticks(range(len(methods)), methods, rotation=60, ha="right")
        axes.set_title(domain if domain in train_domains else f"{domain} (left out)")
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("F1 of mitotic figures")
    return figure


def detection_table(
    dataset_dir: str,
    output_dir: str,
    train_domains: str | Sequence[str],
    datalist: str = "dataset.json",
    seeds: int = 3,
    size: str = "full",
    minutes: float = math.inf,
    jobs: int = 1,
    threads: int = 1,
    nproc_per_node: int = 1,
    epochs: int = 0,
    methods: str | Sequence[str] = tuple(METHODS),
) -> None:
    """F1 of the detector on each scanner, with and without FuseStyle and other methods, over seeds.

    Run the same command again to go on: a training resumes from its last checkpoint, and what is finished is kept in
    OUTPUT_DIR/METHOD/seedN/result.json. All methods of a seed come before the next seed. Results:
    detection_table.md, .png, .csv and .json in OUTPUT_DIR. Where runs failed, they are listed, and the exit status is
    1.

    Args:
        dataset_dir: folder with the datalist, as scripts/prepare_midog.py tiles writes it.
        output_dir: where runs and results are kept.
        train_domains: the scanners to train on, as XR,CS for the paper's table; the others are left out.
        datalist: its name; tiles.json for synthetic tiles.
        seeds: runs of each method.
        size: `full` as configured, from models/pretrained.safetensors in the bundle's folder; or `demo`: a small
            network from scratch, for synthetic tiles.
        minutes: no run is started after this time.
        jobs: runs at a time.
        threads: of each process.
        nproc_per_node: processes of each training, as for torchrun.
        epochs: length of a training; 0 leaves it as configured.
        methods: some of them, separated by commas.
    """
    names = methods.split(",") if isinstance(methods, str) else list(methods)
    scanners = [train_domains] if isinstance(train_domains, str) else list(train_domains)
    scanners = [name.strip() for part in scanners for name in str(part).split(",")]
    known("methods", names, list(METHODS))
    known("size", [size], list(SIZES))
    check_lengths(seeds, minutes, jobs, threads, nproc_per_node, epochs)
    path, work = Path(dataset_dir).expanduser().resolve() / datalist, Path(output_dir).expanduser().resolve()
    load_regions(path, "training", scanners)
    domains = domain_names(load_regions(path, "test"))
    setup = Setup(path, work, tuple(scanners), size, epochs, nproc_per_node)
    runs = {}
    for method, seed in [(method, seed) for seed in range(seeds) for method in METHODS if method in names]:
        folder, settings = setup.folder(method, seed), setup.settings(method, seed)
        check_settings(folder, settings)  # of all, before the first run
        runs[folder] = partial(kept_run, folder, settings, partial(train_and_score, setup, method, seed))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    finished, failures = run_all(runs, minutes, jobs)
    if finished:
        _write(finished, setup, domains, seeds, len(runs))
    print(f"{len(finished)} of {len(runs)} runs are finished: {work}")
    if failures:
        raise DataError(f"{len(failures)} run(s) failed; the same command tries them again." + fault_list(failures))


def _write(runs: Sequence[Run], setup: Setup, domains: Sequence[str], seeds: int, planned: int) -> None:
    info = dataset_info(setup.datalist, "test")
    rows, table = summarise(runs, domains), setup.work / "detection_table"
    content = {"dataset": info, "train_domains": setup.train_domains, "size": setup.size, "epochs": setup.epochs}
    content |= {"seeds": seeds, "planned_runs": planned, "runs": len(runs), "rows": rows}
    write_json(table.with_suffix(".json"), content)
    flat = [{**row, **{f"gain_{key}": value for key, value in (row["gain"] or {}).items()}} for row in rows]
    fields = ("method", "domain", "score", "mean", "std", "min", "max", "n", "gain_mean", "gain_std", "gain_n")
    write_csv(table.with_suffix(".csv"), [{key: row.get(key) for key in fields} for row in flat], fields)
    made_up = " Made-up data: the scores say nothing about real slides." if info["synthetic"] else ""
    caption = (
        f"F1 of mitotic figures on the test split of {info['name']}, trained on {', '.join(setup.train_domains)}; mean "
        f"± standard deviation over {seeds} seed(s), gain over no FuseStyle on the same seeds.{made_up}\n\n"
    )
    text = caption + markdown(rows, domains, setup.train_domains)
    with atomic_path(table.with_suffix(".md")) as temporary:
        temporary.write_text(text)
    with atomic_path(table.with_suffix(".png")) as temporary:
        picture(runs, domains, setup.train_domains).savefig(temporary, dpi=120)
    print(text)
