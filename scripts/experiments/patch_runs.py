"""The patch classifier by several methods over seeds and domains left out: its runs, and their scores put together.

A run is a dict with the `method`, the domain that was `left_out`, the `seed`, its `seconds_an_epoch` and `scores`:
treatment of batch norm → domain → score → value or None.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from shared.data import check_leakage, dataset_info, domain_names, load_patches, write_datalist
from shared.data.histology_datalist import PatchDatalist
from shared.datasets.splits import split_patches
from shared.metrics.bootstrap import draw, number_groups, score_draws
from shared.metrics.classification import scores_of_draws
from shared.reports.provenance import MADE_UP_SLIDES
from shared.utils import DataError, read_csv, read_json_object
from shared.utils.values import Choice, Several, Text, Whole

from .methods import CLASSIFIER, METHODS, PLAIN, Method, method_datalists, trained_by
from .runs import Training, file_digest, run_trainings
from .tables import (
    INTERVALS_FROM,
    RESAMPLES,
    SEEDS_FIELDS,
    SPREAD,
    Score,
    mean_score,
    table_rows,
)

SIZES: dict[str, tuple[str, ...]] = {"full": (), "demo": ("demo", "demo_schedule")}
SIZE_NOTES = {"full": "Network and schedule as in train.json.", "demo": "ResNet18 from scratch, the demo's schedule."}
NORMS = {"plain": False, "adapted": True}  # batch norm as trained, or adapted to each domain's unlabelled patches
SCORES = ("accuracy", "balanced_accuracy", "auc")
DROPPED = ("last.pt", "best.pt", "model.pt")
ALL, OUT, IN = "all in turn", "left out", "trained on"  # means over the domains left out in turn
FIELDS = ("method", "left_out", "domain", "batch_norm", "score", *SEEDS_FIELDS)
# options of the tables
Size = Annotated[str, Choice(tuple(SIZES))]
Methods = Annotated[Sequence[str], Several(Choice(tuple(METHODS[CLASSIFIER])), distinct=True)]
CropSize = Annotated[int, Whole(0)]
Names = Annotated[Sequence[str], Several(Text(), distinct=True, empty=True)]

Run = Mapping[str, Any]
Key = tuple[str, str, str, str, str]  # method, domain left out, domain, batch norm or other treatment, score
Cells = dict[Key, dict[int, Score]]  # by seed


def labelled_patches(source: Path) -> list[dict[str, Any]]:
    """All labelled patches of a datalist, from all of its lists."""
    datalist = PatchDatalist(source)
    return [entry for name in datalist.image_lists() for entry in datalist.entries(name)]


def domains_left_out(source: Path, wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """The domains of the labelled patches, and those that are to be left out in turn: the wanted ones, or all.

    Raises:
        DataError: when there is one domain alone, or a wanted one is not there.
    """
    domains = domain_names(labelled_patches(source))
    left_out = PatchDatalist(source).resolve_domains(wanted or domains)
    if unlabelled := set(left_out) - set(domains):
        raise DataError(
            f"{source}: no patch of {', '.join(sorted(unlabelled))} is labelled. Leave it out of --scanners."
        )
    if len(domains) < 2:
        raise DataError(f"{source}: labelled patches are of {domains}, expected two domains or more: one is left out.")
    return domains, left_out


def deal_out(source: Path, seed: int, target: Path) -> None:
    """Write the datalist with the slides of each domain dealt out anew, see `split_patches`; patches stay in place.

    Raises:
        DataError: when a domain has too few slides, or patches of one patient would be in two lists.
    """
    content = read_json_object(source, PatchDatalist.form, "")
    facts = {key: value for key, value in content.items() if not isinstance(value, list)}
    splits = split_patches(labelled_patches(source), seed=seed)
    for patch in (patch for patches in splits.values() for patch in patches):
        for key in {"image", "stylized"} & patch.keys():
            patch[key] = os.path.relpath(source.parent / patch[key], target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_datalist(target, {**facts, "split_unit": "slide", "split_seed": seed, **splits}, overwrite=True)
    check_leakage(target)


def deal_out_all(
    source: Path, domains: Sequence[str], seeds: int, work: Path, name: str = "dataset"
) -> dict[int, Path]:
    """By seed, the datalist with the slides dealt out by it, in `work`; see `deal_out`.

    Raises:
        DataError: when a domain has nothing to learn from.
    """
    found = {seed: work / "data" / f"seed{seed}" / f"{name}.json" for seed in range(seeds)}
    for seed, target in found.items():
        deal_out(source, seed, target)
        for split in ("training", "validation"):
            load_patches(target, split, domains if split == "training" else None)
    return found


def plan_trainings(
    methods: Mapping[str, Method],
    left_out: Sequence[str],
    domains: Sequence[str],
    seeds: int,
    source: Path,
    work: Path,
    size: str,
    epochs: int,
    crop_size: int,
    jobs: int,
) -> list[Training]:
    """All methods and domains of a seed before the next seed, so that the cells hold equally many runs at any time.

    Raises:
        DataError: when a domain has nothing to learn from, or copies cannot be made.
    """
    lengths = {key: value for key, value in {"max_epochs": epochs, "crop_size": crop_size}.items() if value}
    lists, digest = {source: deal_out_all(source, domains, seeds, work)}, file_digest(source)  # refused before copies
    read = method_datalists(methods, source, work, "all", jobs)
    lists |= {path: deal_out_all(path, domains, seeds, work, "stylized") for path in {*read.values()} - {source}}
    return [
        trained_by(
            name,
            method,
            Training(
                bundle=CLASSIFIER,
                variants=SIZES[size],
                folder=run_folder(work, name, domain, seed),
                places={"datalist": lists[read[name]][seed]},
                options={"seed": seed, "train_domains": [d for d in domains if d != domain], **lengths},
                facts={"left_out": domain, "seed": seed, "size": size, "data": digest},
            ),
        )
        for seed in range(seeds)
        for domain in left_out
        for name, method in methods.items()
    ]


class LeftOut(NamedTuple):
    """What came of leaving out domains.

    Attributes:
        info: of the data set, see `dataset_info`.
        domains: those of labelled patches.
        left_out: those of them that are left out in turn.
        planned: how many runs there are to be.
        runs: those that are finished.
        rows: what `table_rows` makes of them.
        failures: messages of those that failed.
    """

    info: Mapping[str, Any]
    domains: list[str]
    left_out: list[str]
    planned: int
    runs: list[Run]
    rows: list[dict[str, Any]]
    failures: list[str]

    def content(self) -> dict[str, Any]:
        """For the table as JSON."""
        known = {"dataset": self.info, "left_out": self.left_out, "planned_runs": self.planned}
        return {**known, "runs": len(self.runs), "rows": self.rows}


def leave_out(
    methods: Mapping[str, Method],
    source: Path,
    work: Path,
    scanners: Sequence[str],
    seeds: int,
    size: str,
    epochs: int,
    crop_size: int,
    minutes: float,
    jobs: int,
    threads: int,
) -> LeftOut:
    """Train by each method without each of the scanners, and score, see `plan_trainings` and `run_trainings`."""
    domains, left_out = domains_left_out(source, scanners)
    trainings = plan_trainings(methods, left_out, domains, seeds, source, work, size, epochs, crop_size, jobs)
    runs, failures = run_trainings(trainings, train_and_score, minutes, jobs, threads, DROPPED)
    keys = [(r["method"], r["left_out"], r["seed"], norm) for r in runs for norm in NORMS]
    reports = {key: run_folder(work, *key[:3]) / key[3] / "evaluation" for key in keys}
    rows = table_rows(add_means(collect(runs, reports), left_out, domains), FIELDS, PLAIN)
    return LeftOut(dataset_info(source), domains, left_out, len(trainings), runs, rows, failures)


def left_out_caption(found: LeftOut, size: str, epochs: int) -> str:
    """What a reader must know of the scores."""
    length = f" {epochs} epochs." if epochs else ""
    made_up = f" {MADE_UP_SLIDES}" if found.info["synthetic"] else ""
    return (
        f"{found.info['name']}, {len(found.runs)} of {found.planned} runs. Each seed deals the slides out anew; "
        "trained on all domains but the one left out, which is scored on all its patches, the others on their test "
        "slides; epoch and threshold are chosen on validation slides of those trained on. "
        f"{SPREAD} {SIZE_NOTES[size]}{length}{made_up}\n\n"
    )


def run_folder(work: Path, method: str, left_out: str, seed: int) -> Path:
    return work / method / (re.sub(r"[^\w.-]+", "_", left_out) + f"_seed{seed}")


def train_and_score(training: Training) -> dict[str, Any]:
    """Train on the other domains; score all of them, without and with adapted batch norm.

    The domain left out is scored on all its patches, the others on their test slides.
    """
    trained, scores = training.train(), {}
    domains = [*training.options["train_domains"], training.facts["left_out"]]
    for norm, adapted in NORMS.items():
        scoring = {"test_domains": domains, "whole_unseen": True, "bootstrap": 1, "adapt_batch_norm": adapted}
        report = training.evaluate(output_dir=training.folder / norm, **scoring)
        scores[norm] = read_scores(report, domains)
    known = {key: training.facts[key] for key in ("method", "left_out", "seed")}
    return {**known, "seconds_an_epoch": training.seconds_an_epoch(), **trained, "scores": scores}


def read_scores(report: Path, domains: Iterable[str]) -> dict[str, dict[str, float | None]]:
    """Of each domain, from the folder of an evaluation."""
    rows = {row["domain"]: row for row in read_csv(report / "scores.csv")}
    return {d: {score: float(rows[d][score]) if rows[d][score] else None for score in SCORES} for d in domains}


class Predictions(NamedTuple):
    """Of the n patches of a domain.

    Attributes:
        slides: n names.
        labels: (n,) of 0 and 1.
        probabilities: (n,).
        threshold: from which on a patch is positive.
    """

    slides: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    threshold: float


def read_predictions(report: Path) -> dict[str, Predictions]:
    """By domain, from the folder of an evaluation."""
    summary = read_json_object(report / "summary.json", "the summary of an evaluation", "Remove the run's result.json.")
    by_domain: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in read_csv(report / "predictions.csv"):
        by_domain[row["domain"]].append(row)
    return {
        domain: Predictions(
            slides=[row["slide"] for row in rows],
            labels=np.array([row["label"] == summary["class_names"][1] for row in rows], int),
            probabilities=np.array([float(row["probability"]) for row in rows]),
            threshold=summary["threshold"]["value"],
        )
        for domain, rows in by_domain.items()
    }


def resample(predictions: Mapping[Any, Predictions]) -> dict[Any, dict[str, np.ndarray]]:
    """The scores, (R,), of runs on the same domain when its slides are drawn anew, in each resample the same for all.

    Nothing of a domain with a single slide.
    """
    names = sorted({slide for each in predictions.values() for slide in each.slides})
    draws = draw(len(names), RESAMPLES, 0)
    found = {}
    for key, (slides, labels, probabilities, threshold) in predictions.items() if len(names) > 1 else ():
        group, count = number_groups(slides)
        own = draws[:, [names.index(slide) for slide in dict.fromkeys(slides)]]
        found[key] = score_draws(
            scores_of_draws(probabilities, labels, group, count, threshold), own, len(probabilities)
        )
    return found


def collect(
    runs: Sequence[Run],
    reports: Mapping[tuple[str, str, int, str], Any],
    read: Callable[[Any], dict[str, Predictions]] = read_predictions,
) -> Cells:
    """The scores of the runs by cell and seed; resampled where there are seeds enough for intervals.

    Args:
        runs: in any order.
        reports: the folder of the evaluation, by method, domain left out, seed and treatment.
        read: what gives the predictions, by domain, where `reports` has something else than folders.
    """
    resampled: dict[Any, dict[str, np.ndarray]] = {}
    if len({run["seed"] for run in runs}) >= INTERVALS_FROM:
        found: dict[str, dict[Any, Predictions]] = defaultdict(dict)
        for key, report in reports.items():
            for domain, predictions in read(report).items():
                found[domain][*key, domain] = predictions
        for of_domain in found.values():
            resampled |= resample(of_domain)
    cells: Cells = defaultdict(dict)
    for run in runs:
        method, left_out, seed = run["method"], run["left_out"], run["seed"]
        for norm, domains in run["scores"].items():
            for domain, scores in domains.items():
                drawn = resampled.get((method, left_out, seed, norm, domain), {})
                for score, value in scores.items():
                    if value is not None:
                        cells[method, left_out, domain, norm, score][seed] = Score(value, drawn.get(score))
    return cells


def add_means(cells: Cells, left_out: Sequence[str], domains: Sequence[str]) -> Cells:
    """The cells, and the means over the domains left out in turn: of these, and of those trained on meanwhile.

    Of the seeds alone that have all their runs.
    """
    means: Cells = {}
    for method, norm, score in dict.fromkeys((method, norm, score) for method, _, _, norm, score in cells):
        for kind in (OUT, IN):
            parts = [
                cells.get((method, out, domain, norm, score), {})
                for out in left_out
                for domain in domains
                if (domain == out) == (kind == OUT)
            ]
            seeds = sorted(set.intersection(*map(set, parts)))
            means[method, ALL, kind, norm, score] = {s: mean_score([part[s] for part in parts]) for s in seeds}
    return cells | means
