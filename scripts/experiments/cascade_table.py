"""What a classifier adds that judges what the detector finds: scores and time with and without it, over seeds."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure
from monai.bundle import ConfigParser

from shared.data import Region, RegionEntry, dataset_info, domain_names, load_regions, read_rgb
from shared.datasets.candidates import cut_candidates
from shared.metrics import MITOTIC, Findings, box_centres, detection_scores
from shared.metrics.bootstrap import draw, number_groups, score_draws
from shared.metrics.detection import detection_scores_of_draws
from shared.reports.provenance import MADE_UP_SLIDES
from shared.utils import read_csv, read_json_object
from shared.utils.values import Choice, Several, Text, Whole

from .benchmark_detection import make_region
from .methods import CLASSIFIER, DETECTOR, METHODS, chosen_methods, trained_by
from .runs import (
    BUNDLES,
    AtLeastOne,
    Epochs,
    Minutes,
    Training,
    check_settings,
    file_digest,
    kept_run,
    run_all,
    tell_failures,
)
from .tables import (
    INTERVALS_FROM,
    RESAMPLES,
    SEEDS_FIELDS,
    SPREAD,
    Score,
    draw_runs,
    flat,
    markdown_grid,
    seeds_cell,
    table_rows,
    write_table,
)
from .timing import in_own_process, in_turns

ALONE, JUDGED = "detector", "cascade"
IN, OUT = "trained on", "left out"  # scanners, pooled
SCORES = {"f1": "F1", "average_precision": "average precision", "precision": "precision", "recall": "recall"}
FIELDS = ("method", "domain", "score", *SEEDS_FIELDS)
ROUNDS = 3
SIDE = 2048  # pixels of the region that is searched for the time
SIZES: dict[str, dict[str, tuple[str, ...]]] = {
    "full": {DETECTOR: ("pretrained",), CLASSIFIER: ("pretrained",)},
    "demo": {DETECTOR: ("demo", "demo_schedule"), CLASSIFIER: ("demo", "demo_schedule")},
}
BOTH = tuple(name for name in METHODS[DETECTOR] if name in METHODS[CLASSIFIER] and name not in ("strap", "stainnet"))
Run = Mapping[str, Any]


def plan_pairs(
    datalist: Path,
    scanners: Sequence[str],
    seeds: int,
    work: Path,
    size: str,
    method: str,
    lengths: Mapping[str, Mapping[str, int]],
) -> dict[int, tuple[Training, Training]]:
    """By seed the training of the detector, and that of the classifier on what this finds."""
    digest, plan = file_digest(datalist), {}
    for seed in range(seeds):
        folder, pair = work / f"seed{seed}", []
        lists = {DETECTOR: datalist, CLASSIFIER: folder / "candidates" / "dataset.json"}
        for bundle, name in ((DETECTOR, "detector"), (CLASSIFIER, "classifier")):
            training = Training(
                bundle=bundle,
                variants=SIZES[size][bundle],
                folder=folder / name,
                places={"datalist": lists[bundle]},
                options={"seed": seed, "train_domains": list(scanners), **lengths[bundle]},
                facts={"seed": seed, "size": size, "data": digest},
            )
            pair.append(trained_by(method, chosen_methods(bundle, (method,), ())[method], training))
        plan[seed] = tuple(pair)
    return plan


def train_and_judge(detector: Training, classifier: Training, datalist: Path, tested: Sequence[str]) -> dict[str, Any]:
    """Train the detector, the classifier on what it finds in its training slides, choose, score both, take the time.

    Args:
        detector, classifier: see `plan_pairs`.
        datalist: of the detector.
        tested: images of the test list, of which the region is put together that is searched for the time.
    """
    folder, start, trained = detector.folder.parent, time.monotonic(), list(detector.options["train_domains"])
    detector.train()
    found = detector.evaluate(
        evaluate_split="training", test_domains=trained, output_dir=folder / "found", bootstrap=1, overwrite=True
    )
    seed = detector.facts["seed"]
    splits = cut_candidates(datalist, found, folder / "candidates", seed=seed, overwrite=True)
    classifier.train()
    judge = {"classifier": classifier.folder / "model.pt", "bootstrap": 1, "overwrite": True}
    detector.lay_over("evaluate", "cascade", **judge)
    detector.evaluate(output_dir=folder / ALONE / "report", bootstrap=1, overwrite=True)
    detector.evaluate(output_dir=folder / JUDGED, **judge)
    seconds = in_own_process(
        judging_time,
        [*detector.configs()[1:]],
        str(detector.folder / "model.pt"),
        str(judge["classifier"]),
        list(tested),
    )
    kinds = [patch["kind"] for patches in splits.values() for patch in patches]
    return {
        "seed": seed,
        "minutes": round((time.monotonic() - start) / 60, 2),
        "patches": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "chosen": json.loads((detector.folder / "cascade.json").read_text()),
        "seconds": seconds,
    }


def judging_time(variants: Sequence[str], detector: str, classifier: str, images: Sequence[str]) -> dict[str, Any]:
    """Processor seconds that the search of a region takes with and without the classifier, in turns.

    Args:
        variants: overlays of the detector, of which those that set the network count.
        detector, classifier: their weights.
        images: of 0.25 µm a pixel, which the region is put together of.
    """
    configs = BUNDLES / DETECTOR / "configs"
    files = [configs.parent / name for name in variants if "network_def" in (configs.parent / name).read_text()]
    parser = ConfigParser()
    parser.read_config([str(configs / "inference.json"), *map(str, files)])
    parser.update({"bundle_root": str(configs.parent), "ckpt_path": detector, "classifier": classifier})
    parser.update({"device": "cpu", "num_workers": 0, "inferer#progress": False})
    inferer, network = (parser.get_parsed_content(key) for key in ("inferer", "network"))
    judges, found, judged = {ALONE: None, JUDGED: inferer.judge}, [], []
    classify = inferer.judge.classify
    inferer.judge.classify = lambda region, points: judged.append(len(points)) or classify(region, points)
    pictures = [np.asarray(read_rgb(image)) for image in images]
    side = min(min(picture.shape[:2]) for picture in pictures)
    with tempfile.TemporaryDirectory() as folder:
        path = make_region(Path(folder) / "region.tif", SIDE, SIDE, [picture[:side, :side] for picture in pictures])

        def search(name: str) -> float:
            inferer.judge = judges[name]
            start = time.process_time()
            found.append(len(inferer(Region(path), network.eval())["score"]))
            return time.process_time() - start

        seconds = in_turns({name: partial(search, name) for name in judges}, ROUNDS, uncounted=1)
    return {
        "side": SIDE,
        "candidates": found[-1],
        "judged": judged[-1],
        **{name: list(values) for name, values in seconds.items()},
    }


def read_findings(report: Path, regions: Sequence[RegionEntry]) -> tuple[Findings, float]:
    """The detections of an evaluation, matched with the figures of all the regions searched, and its threshold."""
    summary = read_json_object(report / "summary.json", "the summary of an evaluation", "Remove the run's result.json.")
    rows: dict[str, list[tuple[float, float, float, int]]] = defaultdict(list)
    for row in read_csv(report / "detections.csv"):
        label = summary["class_names"].index(row["class"])
        rows[row["image"]].append((float(row["x"]), float(row["y"]), float(row["score"]), label))
    found = [np.array(rows[region["case"]]).reshape(-1, 4) for region in regions]
    findings = Findings.matched(
        [own[:, :2] for own in found],
        [own[:, 2] for own in found],
        [own[:, 3].astype(int) for own in found],
        [box_centres(np.reshape(region["box"], (-1, 4))) for region in regions],
        [np.array(region["label"], int) for region in regions],
        summary["match_radius"],
    )
    return findings, summary["threshold"]["value"]


def collect(
    runs: Sequence[Run], work: Path, regions: Sequence[RegionEntry], scanners: Sequence[str]
) -> dict[tuple[str, ...], dict[int, Score]]:
    """The scores by method, scanner (or all that were trained on, or left out) and score, and by seed.

    From five seeds on they are resampled, the same slides in all of them.
    """
    domains, enough = domain_names(regions), len(runs) >= INTERVALS_FROM
    groups = {name: [name] for name in domains}
    groups |= {IN: [d for d in domains if d in scanners], OUT: [d for d in domains if d not in scanners]}
    cells: dict[tuple[str, ...], dict[int, Score]] = defaultdict(dict)
    for run in runs:
        for method, place in ((ALONE, Path(ALONE, "report")), (JUDGED, Path(JUDGED))):
            findings, threshold = read_findings(work / f"seed{run['seed']}" / place / "evaluation", regions)
            for group, members in groups.items():
                chosen = [i for i, region in enumerate(regions) if region["domain"] in members]
                if not chosen:
                    continue
                own = findings.of(chosen)
                values = detection_scores(own, MITOTIC, threshold)
                slides, count = number_groups([(regions[i]["domain"], regions[i]["slide"]) for i in chosen])
                drawn: Mapping[str, np.ndarray] = {}
                if enough and count > 1:
                    score = detection_scores_of_draws(own, MITOTIC, threshold, "one_to_one", slides)
                    drawn = score_draws(score, draw(count, RESAMPLES, 0), len(own.scores))
                for name in SCORES:
                    if not math.isnan(values[name]):
                        cells[method, group, name][run["seed"]] = Score(values[name], drawn.get(name))
    return cells


def markdown(rows: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> str:
    """A line for each score and group of scanners: without the classifier, with it, and the difference."""
    found = {(row["method"], row["domain"], row["score"]): row for row in rows}
    lines = []
    for score, title in SCORES.items():
        for group in groups:
            alone, judged = (found.get((method, group, score)) for method in (ALONE, JUDGED))
            gain = judged and judged["gain"]
            better = f"{sum(v > 0 for v in gain['values'].values())} of {gain['n']}" if gain else ""
            lines.append([title, group, seeds_cell(alone), seeds_cell(judged), seeds_cell(gain, "+"), better])
    return markdown_grid(["score", "scanners", "detector", "with the classifier", "difference", "greater"], lines)


def time_ratios(runs: Sequence[Run]) -> list[float]:
    """Of each run the time with the classifier to that without, medians over the rounds."""
    return [float(np.median(run["seconds"][JUDGED]) / np.median(run["seconds"][ALONE])) for run in runs]


def caption(info: Mapping[str, Any], scanners: Sequence[str], runs: Sequence[Run], planned: int, method: str) -> str:
    made_up = f" {MADE_UP_SLIDES}" if info["synthetic"] else ""
    state = "" if len(runs) == planned else " **Incomplete.**"
    ratios, weights = time_ratios(runs), [f"{run['chosen']['weight']:g}" for run in runs]
    return (
        f"Mitotic figures on the test split of {info['name']}, trained on {', '.join(scanners)} by the method "
        f"{method}, {len(runs)} of {planned} seeds.{state} The classifier is trained on patches of the detector's "
        f"training slides alone; weight and threshold are chosen on validation regions. {SPREAD} Greater: in how many "
        f"seeds. Weights of the classifier: {', '.join(weights)}. Processor time of the search with the classifier to "
        f"that without: {np.mean(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}).{made_up}\n\n"
    )


def picture(cells: Mapping[tuple[str, ...], Mapping[int, Score]]) -> Figure:
    """F1 of each run, in and out of distribution."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    for axes, group in zip(figure.subplots(1, 2, sharey=True), (IN, OUT), strict=True):
        draw_runs(axes, {m: [s.value for s in cells.get((m, group, "f1"), {}).values()] for m in (ALONE, JUDGED)})
        axes.set_title(f"scanners {group}")
        axes.set_ylim(-0.02, 1.02)
    figure.axes[0].set_ylabel("F1 of mitotic figures")
    return figure


def cascade(
    dataset_dir: str,
    output_dir: str,
    train_domains: Annotated[Sequence[str], Several(Text(), distinct=True)],
    datalist: str = "tiles.json",
    seeds: AtLeastOne = 5,
    size: Annotated[str, Choice(tuple(SIZES))] = "demo",
    method: Annotated[str, Choice(BOTH)] = "jitter",
    epochs: Epochs = 0,
    tiles_per_epoch: Annotated[int, Whole(0)] = 0,
    classifier_epochs: Epochs = 0,
    timed_images: AtLeastOne = 16,
    budget_minutes: Minutes = math.inf,
    jobs: AtLeastOne = 1,
) -> None:
    """The detector with and without a classifier that judges what it finds, over seeds.

    For each seed: train the detector, cut patches around what it finds in its training slides, train the classifier on
    these, choose its weight and the threshold on validation regions, score the test regions with and without it, and
    take the time of both. Run the same command again to go on: finished seeds are kept in OUTPUT_DIR/seedN/result.json,
    trainings go on from their last checkpoint. Results: cascade.md, .png, .csv and .json in OUTPUT_DIR.

    Args:
        dataset_dir: folder with the datalist of regions.
        output_dir: where runs and results are kept.
        train_domains: the scanners to train on; the others are left out.
        datalist: its name.
        seeds: runs.
        size: `full` as configured, from pretrained weights, or `demo`: small networks and schedules.
        method: by which both are trained.
        epochs: of the detector; 0 leaves it as configured.
        tiles_per_epoch: of the detector; 0 leaves it as configured.
        classifier_epochs: of the classifier; 0 leaves it as configured.
        timed_images: of the test list, put side by side to the region that is searched for the time.
        budget_minutes: no seed is started after this time.
        jobs: seeds at a time.
    """
    scanners = list(train_domains)
    path, work = Path(dataset_dir).expanduser().resolve() / datalist, Path(output_dir).expanduser().resolve()
    load_regions(path, "training", scanners)
    regions = load_regions(path, "test")
    given = {DETECTOR: {"max_epochs": epochs, "tiles_per_epoch": tiles_per_epoch}}
    given[CLASSIFIER] = {"max_epochs": classifier_epochs}
    lengths = {bundle: {key: value for key, value in own.items() if value} for bundle, own in given.items()}
    plan = plan_pairs(path, scanners, seeds, work, size, method, lengths)
    tested = [region["image"] for region in regions[:: max(1, len(regions) // timed_images)]][:timed_images]
    runs = {}
    for seed, pair in plan.items():
        folder = work / f"seed{seed}"
        settings = {part.bundle: part.settings for part in pair}
        check_settings(folder, settings)
        runs[folder] = lambda f=folder, s=settings, p=pair: kept_run(
            f, s, lambda: train_and_judge(*p, path, tested), ("detector/last.pt", "classifier/last.pt")
        )
    finished, failures = run_all(runs, budget_minutes, jobs)
    if finished:
        info, cells = dataset_info(path, "test"), collect(finished, work, regions, scanners)
        rows = table_rows(cells, FIELDS, ALONE)
        domains = domain_names(regions)
        text = caption(info, scanners, finished, len(plan), method) + markdown(rows, [IN, OUT, *domains]) + "\n"
        content = {"dataset": info, "train_domains": scanners, "size": size, "method": method, "lengths": lengths}
        content |= {"planned_runs": len(plan), "runs": finished, "time_ratios": time_ratios(finished), "rows": rows}
        write_table(work / "cascade", text, picture(cells), content, list(map(flat, rows)), FIELDS)
        print(text)
    print(f"{len(finished)} of {len(plan)} runs are finished: {work}")
    tell_failures(failures)
