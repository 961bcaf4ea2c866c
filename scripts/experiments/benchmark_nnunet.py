"""The CT networks beside nnU-Net, on the same cases in about the same time: docs/experiments/nnunet.md."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure

from shared.data import dataset_info, load_datalist
from shared.datasets.ct_cases import BTCV_LABELS
from shared.reports.provenance import MADE_UP_CASES
from shared.utils import DataError, read_json_object, write_json
from shared.utils.values import Choice, Several

from .kept_runs import kept_runs
from .organ_table import MEAN, SIZES, nan_mean, show_gain
from .runs import (
    BUNDLES,
    ROOT,
    AtLeastOne,
    Cost,
    Epochs,
    Minutes,
    Training,
    check_settings,
    file_digest,
    kept_run,
    logged_run,
    run_all,
    tell_failures,
)
from .small_organs import (
    DICE_HEAD,
    NETWORKS,
    ORGANS,
    compare,
    dice_array,
    dice_cells,
    dice_of_report,
    dice_rows,
)
from .tables import draw_runs, markdown_grid, write_table

STEPS = Path(__file__).with_name("nnunet_steps.py")
ENVIRONMENT = ROOT / ".venv-nnunet"
DATASET = "Dataset001_ct"
ENDING = ".nii.gz"
NNUNET = "nnunet"
ITERATIONS = 10  # of nnU-Net in an epoch, which has 250 as published
KEY = ("network", "seed", "epochs")
BASES = (NNUNET, "dynunet")  # what the others are compared with
ROWS = {MEAN: tuple(BTCV_LABELS), "small organs": ORGANS}
PLANNING = threading.Lock()
Run = Mapping[str, Any]


class Entrant(NamedTuple):
    """A network and how long it trains.

    Attributes:
        epochs: what took 30 minutes of one core.
        features: of nnU-Net's planned network, the share that is kept; None of the bundles' networks.
        crop: side of nnU-Net's crops in voxels; None as it plans them.
    """

    epochs: int
    what: str
    features: float | None = None
    crop: int | None = None


ENTRANTS = {
    "unetr": Entrant(1150, "the demo's UNETR and loss, with the class boost strategy"),
    "lambda3d": Entrant(950, "the demo's Lambda3D and loss, with the class boost strategy"),
    "dynunet": Entrant(1150, "`variants/dynunet` at the demo's size, likewise"),
    NNUNET: Entrant(31, "nnU-Net v2 as it plans for this grid", 1.0),
    "nnunet_small": Entrant(235, "the same with a quarter of the features, as DynUNet has at the demo's size", 0.25),
    "nnunet_crops": Entrant(900, "the small one on crops of 32³, as the demo has: nearly as many steps", 0.25, 32),
}


class Nnunet(NamedTuple):
    """nnU-Net in an environment of its own.

    Attributes:
        python: its Python.
        work: the folder for all that it reads and writes.
    """

    python: Path
    work: Path

    def step(self, name: str, log: Path, results: Path, **options: Any) -> Cost:
        """Run a step of nnunet_steps.py.

        Raises:
            DataError: when it fails.
        """
        folders = {f"nnUNet_{kind}": str(self.work / kind) for kind in ("raw", "preprocessed")}
        workers = "1" if name == "plan" else "0"  # none of their own in training
        quiet = {"nnUNet_n_proc_DA": workers, "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "MPLBACKEND": "agg"}
        environment = os.environ | folders | quiet | {"nnUNet_results": str(results)}
        words = ["-P", STEPS, name, json.dumps(options)]
        return logged_run(words, self.work, log, python=self.python, environment=environment)

    def prepare(self, data: Path, spacing: Sequence[float]) -> None:
        """Plan and preprocess the training and validation cases of a datalist; once.

        Raises:
            DataError: when a file has another ending, or a step fails.
        """
        settings = {"data": file_digest(data / "dataset.json"), "spacing": list(spacing)}
        check_settings(self.work, settings)
        if (self.work / "splits_final.json").is_file():
            return
        cases = {split: load_datalist(data / "dataset.json", split) for split in ("training", "validation", "test")}
        for split, own in cases.items():
            link_cases(own, self.work / "raw" / DATASET, "Ts" if split == "test" else "Tr")
        write_json(
            self.work / "raw" / DATASET / "dataset.json",
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, **BTCV_LABELS},
                "numTraining": len(cases["training"] + cases["validation"]),
                "file_ending": ENDING,
                "overwrite_image_reader_writer": "NibabelIOWithReorient",  # the default takes axes as they are stored
            },
        )
        write_json(self.work / "settings.json", settings)
        self.step("plan", self.work / "plan.log", self.work, spacing=list(spacing))
        names = {split: [case["case"] for case in own] for split, own in cases.items()}
        splits = [{"train": names["training"], "val": names["validation"]}]
        for folder in (self.work / "preprocessed" / DATASET, self.work):
            write_json(folder / "splits_final.json", splits)


def link_cases(cases: Sequence[Mapping[str, Any]], raw: Path, part: str) -> None:
    """Put cases into nnU-Net's raw layout, as links.

    Raises:
        DataError: when a file is no .nii.gz.
    """
    for case in cases:
        for kind, name in (("image", f"{case['case']}_0000"), ("label", case["case"])):
            source, target = Path(case[kind]), raw / f"{kind}s{part}" / f"{name}{ENDING}"
            if not source.name.endswith(ENDING):
                raise DataError(f"{source}: expected a {ENDING} file, which is what nnU-Net is given. Convert it.")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(source.resolve())


def dice_of_files(label: Path, prediction: Path, classes: Mapping[str, int]) -> dict[str, float | None]:
    """Dice of each class on the label's grid; None where the label lacks it.

    Raises:
        DataError: when the grids differ.
    """
    truth, found = (nib.load(path) for path in (label, prediction))
    if truth.shape != found.shape or not np.allclose(truth.affine, found.affine, atol=1e-3):
        raise DataError(f"{prediction}: its grid differs from that of {label}. Expected the same.")
    size = max(classes.values()) + 1
    pairs = np.asarray(truth.dataobj).astype(int) * size + np.asarray(found.dataobj).astype(int)
    counts = np.bincount(pairs.ravel(), minlength=size**2).reshape(size, size)
    both, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    return {
        name: round(float(2 * both[i] / (labelled[i] + predicted[i])), 4) if labelled[i] else None
        for name, i in classes.items()
    }


def grid(size: str = "demo") -> list[float]:
    """The spacing of the demo, in mm."""
    file = BUNDLES / NETWORKS["unetr"].bundle / "configs" / "variants" / f"{size}.json"
    return read_json_object(file, "an overlay", "Check out the collection anew.")["spacing"]


def train_nnunet(nnunet: Nnunet, folder: Path, test: Sequence[Mapping[str, Any]], **schedule: Any) -> dict[str, Any]:
    """Train nnU-Net and score it on the test cases."""
    results, found = folder / "results", folder / "found"
    schedule["planned"] = str(nnunet.work / "preprocessed" / DATASET)
    resumed = any([*results.rglob("checkpoint_latest.pth"), *results.rglob("checkpoint_final.pth")])
    cost = nnunet.step("train", folder / "train.log", results, **schedule)
    names = [f"{case['case']}_0000{ENDING}" for case in test]
    images = [str(nnunet.work / "raw" / DATASET / "imagesTs" / name) for name in names]
    nnunet.step("predict", folder / "predict.log", results, images=images, output=str(found), **schedule)
    scores = [dice_of_files(Path(case["label"]), found / f"{case['case']}{ENDING}", BTCV_LABELS) for case in test]
    return {**cost._asdict(), "resumed": resumed, "dice": {o: [score[o] for score in scores] for o in BTCV_LABELS}}


def train_bundle(training: Training) -> dict[str, Any]:
    cost, resumed = training.train_at_cost()
    return {**cost._asdict(), "resumed": resumed, "dice": dice_of_report(training.evaluate())}


def plan_training(name: str, seed: int, epochs: int, folder: Path, data: Path, work: Path) -> Training:
    """The training of a bundle's network as the demo's, longer."""
    chosen = NETWORKS[name]
    return Training(
        bundle=chosen.bundle,
        variants=(*SIZES["demo"], *chosen.variants, "log_dice"),
        folder=folder,
        places={"dataset_dir": data, "cache": "disk", "cache_dir": work / "cache"},
        options={**chosen.small, "seed": seed, "max_epochs": epochs},
        facts={"data": file_digest(data / "dataset.json")},
    )


def find_nnunet(python: str) -> Path:
    """The Python of nnU-Net's environment.

    Raises:
        DataError: when it is not there.
    """
    path = Path(python).expanduser().absolute() if python else ENVIRONMENT / "bin" / "python"
    if not path.is_file():
        raise DataError(
            f"{path}: is not there. nnU-Net runs in an environment of its own: python -m venv {ENVIRONMENT.name}, then "
            f"{ENVIRONMENT.name}/bin/pip install --requirement requirements-nnunet.txt. Or leave nnunet out of "
            "--networks."
        )
    return path


def train_entrant(name: str, seed: int, epochs: int, data: Path, work: Path, nnunet: Nnunet | None) -> dict[str, Any]:
    """What a network cost, and its Dice; from its folder where the run is finished."""
    folder, (_, _, features, crop) = work / name / f"seed{seed}", ENTRANTS[name]
    if nnunet is None or features is None:
        training = plan_training(name, seed, epochs, folder, data, work)
        return kept_run(folder, training.settings, lambda: train_bundle(training))
    with PLANNING:
        nnunet.prepare(data, grid())
    schedule = {"features": features, "seed": seed, "epochs": epochs, "iterations": ITERATIONS}
    schedule |= {"crop": crop} if crop else {}
    settings = {"network": name, "data": file_digest(data / "dataset.json"), **schedule}
    found = kept_run(folder, settings, lambda: train_nnunet(nnunet, folder, cases_for_testing(data), **schedule), ())
    for made in ("results", "found"):  # hundreds of megabytes
        shutil.rmtree(folder / made, ignore_errors=True)
    return found


def cases_for_testing(data: Path) -> list[dict[str, Any]]:
    cases = load_datalist(data / "dataset.json", "test", labels=BTCV_LABELS)
    return sorted(cases, key=lambda case: case["case"])


def benchmark_nnunet(
    dataset_dir: str,
    output_dir: str,
    results: str = "",
    networks: Annotated[Sequence[str], Several(Choice(tuple(ENTRANTS)), distinct=True)] = tuple(ENTRANTS),
    seeds: AtLeastOne = 3,
    epochs: Epochs = 0,
    nnunet_python: str = "",
    budget_minutes: Minutes = math.inf,
    jobs: AtLeastOne = 1,
) -> None:
    """UNETR, Lambda3D, DynUNet and nnU-Net on the same CTs, 30 minutes of one core each: Dice, time and memory.

    Run the same command again to go on. What RESULTS holds is not run again, wherever it was run; of the others,
    trainings resume from their last checkpoint, in OUTPUT_DIR. All networks of a seed come before the next seed.
    Tables: nnunet.md, .png, .csv and .json in OUTPUT_DIR. Where runs failed, they are listed, and the exit status is 1.

    Args:
        dataset_dir: folder with dataset.json, as scripts/make_synthetic.py ct or prepare_btcv.py writes it.
        output_dir: where runs and tables are kept.
        results: file for the results of all runs, a line of JSON each; by default nnunet.jsonl in OUTPUT_DIR.
        networks: some of them, separated by commas.
        seeds: runs of each.
        epochs: length of a training, of nnU-Net in epochs of ten iterations; 0 takes what was 30 minutes of one core.
        nnunet_python: the Python of an environment with nnU-Net; by default that of .venv-nnunet in the checkout.
        budget_minutes: no run is started after this time.
        jobs: runs at a time, of one thread each.
    """
    data, work = Path(dataset_dir).expanduser().resolve(), Path(output_dir).expanduser().resolve()
    cases = [case["case"] for case in cases_for_testing(data)]
    head = {"data": file_digest(data / "dataset.json"), "cases": cases, "iterations": ITERATIONS}
    kept = kept_runs(results or work / "nnunet.jsonl", head, KEY)
    known = {tuple(run[key] for key in KEY) for run in kept.read()}
    lengths = {name: epochs or each.epochs for name, each in ENTRANTS.items() if name in networks}
    planned = [(name, seed, length) for seed in range(seeds) for name, length in lengths.items()]
    missing = [each for each in planned if each not in known]
    print(f"{len(planned) - len(missing)} of {len(planned)} runs are in {kept.file}")
    os.environ["OMP_NUM_THREADS"] = "1"
    nnunet = None
    if any(ENTRANTS[name].features for name, *_ in missing):
        nnunet = Nnunet(find_nnunet(nnunet_python), work / NNUNET)
        nnunet.work.mkdir(parents=True, exist_ok=True)

    def run(name: str, seed: int, length: int) -> dict[str, Any]:
        found = {
            "network": name,
            "seed": seed,
            "epochs": length,
            **train_entrant(name, seed, length, data, work, nnunet),
        }
        kept.add(found)
        return found

    runs = {work / each[0] / f"seed{each[1]}": partial(run, *each) for each in missing}
    _, failures = run_all(runs, budget_minutes, jobs)
    finished = [run for run in kept.read() if tuple(run[key] for key in KEY) in planned]
    if finished:
        write_tables(work, dataset_info(data / "dataset.json", "test"), networks, len(cases), finished, len(planned))
    print(f"{len(finished)} of {len(planned)} runs are finished: {kept.file}")
    tell_failures(failures)


def summarise(runs: Sequence[Run], networks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each network that has a run: Dice, what a training cost, and how far it is above nnU-Net."""
    own = {name: [run for run in runs if run["network"] == name] for name in ENTRANTS if name in networks}
    found = {}
    for name, ours in own.items():
        if ours:
            whole = [run for run in ours if not run["resumed"]]  # what a resumed one cost is not all known
            means = {key: round(float(np.mean([run[key] for run in whole])), 2) for key in Cost._fields if whole}
            minus = {
                base: {row: compare(ours, own[base], organs) for row, organs in ROWS.items()}
                for base in BASES
                if own.get(base) and base != name
            }
            found[name] = {**dice_rows(ours), "epochs": ours[0]["epochs"], **means, "minus": minus}
    return found


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["network", "runs", *DICE_HEAD, "CPU minutes", "GiB"]
    rows = []
    for name, each in found.items():
        cost = [f"{each[key]:.1f}" if key in each else "–" for key in Cost._fields]
        rows.append([name, str(each["runs"]), *dice_cells(each), *cost])
    parts = [markdown_grid(head, rows)]
    cells = [(base, row) for base in BASES for row in ROWS]
    lines = [
        [name, *(show_gain(each["minus"].get(base, {}).get(row)) for base, row in cells)]
        for name, each in found.items()
        if each["minus"]
    ]
    if lines:
        parts.append(markdown_grid(["network", *(f"{row} − {base}" for base, row in cells)], lines))
    return "\n\n".join(parts) + "\n"


def caption(info: Mapping[str, Any], cases: int, runs: int, planned: int) -> str:
    """What a reader must know of the scores."""
    state = "" if runs == planned else " **Incomplete: no verdict follows from it.**"
    made_up = f" {MADE_UP_CASES}" if info["synthetic"] else ""
    return (
        f"{cases} test cases of {info['name']}, {runs} of {planned} runs.{state}{made_up}\n\n"
        "Dice on the scans' own grids: mean over seeds (least to greatest). Small organs: the mean over those listed. "
        "CPU minutes and GiB: of a training, start and validation included, in one thread. Differences are paired by "
        "seed and case, with the 95 % interval of a bootstrap over seeds and cases.\n\n"
    )


def write_tables(
    work: Path, info: Mapping[str, Any], networks: Sequence[str], cases: int, runs: Sequence[Run], planned: int
) -> None:
    """Write nnunet.md, .png, .csv and .json, and print the first."""
    found = summarise(runs, networks)
    what = "\n".join(f"- `{name}`: {ENTRANTS[name].what}; {each['epochs']} epochs." for name, each in found.items())
    text = f"{caption(info, cases, len(runs), planned)}{markdown(found)}\n{what}\n"
    rows = [
        {"network": name, "row": row, **(dice or {}), **{key: each.get(key) for key in Cost._fields}}
        for name, each in found.items()
        for row, dice in each["dice"].items()
    ]
    content = {"runs": len(runs), "planned_runs": planned, "networks": found}
    fields = ("network", "row", "mean", "std", "min", "max", "n", *Cost._fields)
    write_table(work / "nnunet", text, picture(runs, found), content, rows, fields)
    print(text)


def picture(runs: Sequence[Run], networks: Iterable[str]) -> Figure:
    """Dice over all organs and over the small ones, a dot a run."""
    figure = Figure(figsize=(6, 7), layout="constrained")
    for axes, (row, organs) in zip(figure.subplots(2, 1, sharex=True), ROWS.items(), strict=True):
        own = {name: dice_array([run for run in runs if run["network"] == name], organs) for name in networks}
        draw_runs(axes, {name: nan_mean(nan_mean(dice_SCO, 1), 1).tolist() for name, dice_SCO in own.items()})
        axes.set_ylabel(f"Dice, {row}")
    return figure
