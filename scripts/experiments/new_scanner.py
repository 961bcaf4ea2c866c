"""What holds on a scanner that was never seen, and what pretraining does to it: docs/experiments/new_scanner.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from shared.data import dataset_info
from shared.metrics import calibration_error
from shared.utils import DataError, read_csv
from shared.utils.values import Choice, Several, Text, Whole

from .generalisation_table import picture
from .kept_runs import complete, kept_runs, labels_by_slide, packed, unpacked
from .methods import CLASSIFIER, METHODS, PLAIN, Method, chosen_methods, list_methods
from .patch_runs import (
    ALL,
    DROPPED,
    FIELDS,
    NORMS,
    OUT,
    SIZE_NOTES,
    SIZES,
    Cells,
    CropSize,
    Names,
    Predictions,
    Run,
    Size,
    add_means,
    collect,
    domains_left_out,
    labelled_patches,
    plan_trainings,
    read_predictions,
    train_and_score,
)
from .runs import AtLeastOne, Epochs, Minutes, Training, file_digest, tell_failures
from .tables import SPREAD, differences, flat, holm, markdown_grid, p_value, seeds_cell, table_rows, write_table

JITTER = "jitter"  # what finalists have to better
ARMS = (PLAIN, "fusestyle", JITTER, "mixstyle_shallow", "style", "extrapolated", "dsu", "dsu_jitter")
FINALISTS = 3  # at most
STARTS_FROM = ("pretrained", "network")  # options whose files a start is made of
SCORES = {"auc": "AUC", "balanced_accuracy": "Balanced accuracy", "calibration": "Calibration error"}
Finalists = Annotated[Sequence[str], Several(Choice(tuple(METHODS[CLASSIFIER])), distinct=True, empty=True)]


def train_and_pack(training: Training) -> dict[str, Any]:
    """What `train_and_score` gives, and of the domain left out the calibration and all probabilities, `packed`."""
    run, out = train_and_score(training), training.facts["left_out"]
    predictions = {}
    for norm in NORMS:
        report = training.folder / norm / "evaluation"
        _, labels, probabilities, threshold = read_predictions(report)[out]
        run["scores"][norm][out]["calibration"] = calibration_error(probabilities, labels)
        rows = [r for r in read_csv(report / "predictions.csv") if r["domain"] == out]
        text = packed((row["slide"], row["case"], float(row["probability"])) for row in rows)
        predictions[norm] = {"threshold": threshold, "logits": text}
    files = {name: training.facts[name] for name in STARTS_FROM if name in training.facts}
    return {"start": training.facts["start"], "files": files, **run, "predictions": predictions}


def check_start(runs: Sequence[Run], start: str, paths: Mapping[str, Path]) -> None:
    """Raise a `DataError` where runs of this start, which say so, began with other files."""
    files = {name: file_digest(path) for name, path in paths.items()}
    if any(run["start"] == start and run.get("files", files) != files for run in runs):
        raise DataError(
            f"--start {start}: --results holds runs of it that started from other files. Give those as "
            f"{' and '.join(f'--{name}' for name in STARTS_FROM)}, or call this start something else."
        )


def files_of_start(pretrained: str, network: str) -> dict[str, Path]:
    """What the network starts from, and the overlay that sets it, as far as given.

    Raises:
        DataError: when a file is not there.
    """
    files = {"pretrained": pretrained, "network": network}
    paths = {name: Path(text).expanduser().resolve() for name, text in files.items() if text}
    for name, path in paths.items():
        if not path.is_file():
            raise DataError(f"{path}: --{name} is not there. Give the path of a file.")
    return paths


def plan_start(
    trainings: Sequence[Training], start: str, paths: Mapping[str, Path], size: str, first_seed: int
) -> list[Training]:
    """The trainings from `first_seed` on, of a network that starts from weights, or of another network.

    Args:
        trainings: as `plan_trainings` gives them, in folders that belong to `start`.
        start: what the network starts from, a name.
        paths: see `files_of_start`.
        size: of the plan.
        first_seed: the earlier ones are left out.
    """
    weights = {"pretrained": str(paths["pretrained"])} if "pretrained" in paths else {}
    laid_over = [str(paths["network"])] if "network" in paths else []
    facts = {"start": start, **{name: file_digest(path) for name, path in paths.items()}}
    behind = len(SIZES[size])  # methods' overlays come last
    return [
        replace(
            training,
            variants=(*training.variants[:behind], *laid_over, *training.variants[behind:]),
            places={**training.places, **weights},
            facts={**training.facts, **facts},
        )
        for training in trainings
        if training.facts["seed"] >= first_seed
    ]


def scores_of_runs(
    runs: Sequence[Run], head: Mapping[str, Any], left_out: Sequence[str], domains: Sequence[str]
) -> Cells:
    """The scores by cell and seed, and their means over the domains left out in turn; see `collect`."""

    def read(kept: tuple[str, Mapping[str, Any]]) -> dict[str, Predictions]:
        out, packed_ones = kept
        return {out: unpacked(packed_ones["logits"], head["labels"][out], packed_ones["threshold"])}

    kept = {
        (run["method"], run["left_out"], run["seed"], norm): (run["left_out"], run["predictions"][norm])
        for run in runs
        for norm in NORMS
    }
    own = {key: of for key, of in collect(runs, kept, read).items() if key[1] == key[2]}  # of the domain left out
    means = {key: of for key, of in add_means(own, left_out, domains).items() if key[2] == OUT} if own else {}
    return own | means


def markdown(cells: Cells, methods: Sequence[str], left_out: Sequence[str], base: str, judged: Sequence[str]) -> str:
    """A table for each score and treatment of batch norm, a line a method.

    Args:
        cells: see `scores_of_runs`.
        methods: in their order.
        left_out: the domains left out in turn.
        base: the method that the others are compared with.
        judged: those whose gain in AUC gets a p value, adjusted by Holm's method.
    """
    rows = {(r["method"], r["domain"], r["batch_norm"], r["score"]): r for r in table_rows(cells, FIELDS, base)}
    p_values = {}
    for method in judged:
        of = [cells.get((name, ALL, OUT, "plain", "auc"), {}) for name in (method, base)]
        if (p := p_value(differences(*of))) is not None:
            p_values[method] = p
    adjusted, parts = holm(p_values), []
    for score, title in SCORES.items():
        for norm, treatment in (("plain", ""), ("adapted", ", batch norm adapted to its unlabelled patches")):
            lines = []
            for method in methods:
                outs = [rows.get((method, name, norm, score)) for name in left_out]
                mean = rows.get((method, OUT, norm, score))
                gain = mean and mean["gain"]
                better = sum(v > 0 for r in outs if r and r["gain"] for v in r["gain"]["values"].values())
                paired = sum(r["gain"]["n"] for r in outs if r and r["gain"])
                line = [method, ", ".join(str(r["n"] if r else 0) for r in outs), *map(seeds_cell, (*outs, mean))]
                line += [seeds_cell(gain, "+"), f"{better} of {paired}" if paired else ""]
                if judged:
                    line.append(
                        f"{adjusted[method]:.3f}" if (score, norm) == ("auc", "plain") and method in adjusted else ""
                    )
                lines.append(line)
            head = ["method", "runs", *left_out, "mean", f"over {base}", "greater", *(["p"] if judged else [])]
            parts.append(f"{title} on the scanner left out{treatment}:\n\n{markdown_grid(head, lines)}")
    return "\n\n".join(parts) + "\n"


def caption(start: str, info: Mapping[str, Any], runs: int, planned: int, size: str, judged: Sequence[str]) -> str:
    """What a reader must know of the scores."""
    state = "" if runs == planned else " **Incomplete: no verdict follows from it.**"
    holm_note = " p: of the gain in AUC, by the same bootstrap, adjusted by Holm over the finalists." if judged else ""
    return (
        f"{start}: {info['name']}, {runs} of {planned} runs.{state} Trained on all scanners but the one that is left "
        "out and scored on all its patches; each seed deals out the slides of the others anew, by whose validation "
        f"slides epoch and threshold are chosen. {SPREAD} Calibration error: expected, 10 bins, smaller is better. "
        f"Greater: in how many runs on the same seed and scanner.{holm_note} {SIZE_NOTES[size]}\n\n"
    )


def chosen_arms(finalists: Sequence[str]) -> dict[str, Method]:
    """The arms of the screen; or, to confirm, plain training, jitter and the finalists.

    Raises:
        DataError: when there are too many, or one is what they are compared with.
    """
    if len(finalists) > FINALISTS or {PLAIN, JITTER} & {*finalists}:
        raise DataError(
            f"--finalists is {','.join(finalists)}, expected {FINALISTS} methods at most beside {PLAIN} and {JITTER}, "
            "which are run anyway."
        )
    return chosen_methods(CLASSIFIER, (PLAIN, JITTER, *finalists) if finalists else ARMS, ())


def new_scanner(
    dataset_dir: str,
    output_dir: str,
    datalist: str = "dataset.json",
    results: str = "",
    start: Annotated[str, Text("a name")] = "scratch",
    pretrained: str = "",
    network: str = "",
    finalists: Finalists = (),
    seeds: AtLeastOne = 5,
    first_seed: Annotated[int, Whole(0)] = 0,
    size: Size = "demo",
    scanners: Names = (),
    crop_size: CropSize = 0,
    epochs: Epochs = 0,
    budget_minutes: Minutes = math.inf,
    jobs: AtLeastOne = 1,
    threads: AtLeastOne = 1,
) -> None:
    """Which methods hold on a scanner never seen, by what the network starts from: the protocol's screen and its
    confirmation, docs/experiments/new_scanner.md.

    Run the same command again to go on. What RESULTS holds is not run again, wherever it was run; of the others,
    trainings resume from their last checkpoint, in OUTPUT_DIR/START. All of a seed come before the next. Tables:
    new_scanner_START.md, .png, .csv and .json in OUTPUT_DIR. Where runs failed, they are listed, and the exit status
    is 1.

    Args:
        dataset_dir: folder with a datalist of patches, as scripts/prepare_patches.py writes it.
        output_dir: where runs and tables are kept.
        datalist: its name. Its own split is of no account.
        results: file for the results of all runs, a line of JSON each; by default new_scanner.jsonl in OUTPUT_DIR.
        start: what to call what the network starts from, in results and tables.
        pretrained: file of weights that it starts from.
        network: path of a JSON file, an overlay of train.json that sets another network.
        finalists: methods to confirm, separated by commas, three at most: these run beside erm and jitter, are compared
            with jitter, and get p values. By default the eight arms of the screen run.
        seeds: runs of each method and scanner left out.
        first_seed: the first of them; a confirmation takes seeds that the screen has not seen.
        size: `full` as configured, or `demo`: a small network and a short schedule.
        scanners: the domains to leave out in turn, separated by commas; by default all that have labels.
        crop_size: the middle of each patch that is used, in pixels; 0 leaves it as configured.
        epochs: length of a training; 0 leaves it as configured.
        budget_minutes: no run is started after this time.
        jobs: runs at a time.
        threads: of each process.
    """
    if Path(start).name != start:
        raise DataError(f"--start is {start!r}, expected a name: it is that of a folder, too.")
    paths = files_of_start(pretrained, network)
    source, work = Path(dataset_dir).expanduser().resolve() / datalist, Path(output_dir).expanduser().resolve()
    arms, (domains, left_out) = chosen_arms(finalists), domains_left_out(source, scanners)
    labels = {d: labels_by_slide(p for p in labelled_patches(source) if p["domain"] == d) for d in domains}
    head = {"size": size, "epochs": epochs, "crop_size": crop_size, "labels": labels}
    kept = kept_runs(results or work / "new_scanner.jsonl", head)
    check_start(kept.read(), start, paths)
    last = first_seed + seeds
    plan = plan_trainings(arms, left_out, domains, last, source, work / start, size, epochs, crop_size, jobs)
    trainings = plan_start(plan, start, paths, size, first_seed)
    options = {"minutes": budget_minutes, "jobs": jobs, "threads": threads, "dropped": DROPPED}
    runs, failures = complete(kept, trainings, train_and_pack, **options)
    if runs:
        info, base, judged = dataset_info(source), JITTER if finalists else PLAIN, finalists
        cells = scores_of_runs(runs, head, left_out, domains)
        text = caption(start, info, len(runs), len(trainings), size, judged)
        text += f"{markdown(cells, list(arms), left_out, base, judged)}\n{list_methods(CLASSIFIER, arms)}"
        rows = table_rows(cells, FIELDS, base)
        content = {"start": start, "planned_runs": len(trainings), "runs": len(runs), "rows": rows}
        figure = picture(runs, list(arms), f"{start}: {info['name']}")
        write_table(work / f"new_scanner_{start}", text, figure, content, list(map(flat, rows)), FIELDS)
        print(text)
    print(f"{len(runs)} of {len(trainings)} runs are finished: {kept.file}")
    tell_failures(failures)
