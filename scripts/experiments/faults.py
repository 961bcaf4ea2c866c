"""Commands that are given something wrong, each in a fresh folder with tiny data, and how clearly they answer."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from shared.datasets.ct_cases import BTCV_LABELS
from shared.datasets.synthetic_histology import make_synthetic_histology
from shared.utils import DataError, atomic_path, write_json

from .runs import BUNDLES, ROOT

UNETR, LAMBDA = "abdominal_unetr_cbs", "abdominal_lambda3d_cbs"
PATCHES, REGIONS = "mitosis_fusestyle_cls", "mitosis_retinanet_fusestyle"

DEMO = ("variants/demo", "variants/demo_schedule")
CONFIGS = {
    "train": ("train", *DEMO),
    "torchrun": ("train", "multi_gpu_train", *DEMO),
    "evaluate": ("train", "evaluate", *DEMO),
    "infer": ("inference", "variants/demo"),
    "help": ("train",),
}
PLACES = {"output_dir": "$FOLDER/out", "ckpt_dir": "$FOLDER/models", "max_epochs": "1"}
CT = {**PLACES, "dataset_dir": "$DATA/ct", "val_interval": "1", "warmup_epochs": "0", "cache": "memory"}
SCANNERS = {**PLACES, "train_domains": "['XR','S360']"}
TRAINING = {
    UNETR: CT,
    LAMBDA: CT,
    PATCHES: {**SCANNERS, "dataset_dir": "$DATA/histology", "batch_size": "8", "cache": "memory"},
    REGIONS: {
        **SCANNERS,
        "datalist": "$DATA/histology/tiles.json",
        "val_interval": "1",
        "tiles_per_epoch": "6",
        "batch_size": "6",
    },
}
INPUT = {
    UNETR: {"input": "$DATA/ct/a.nii.gz"},
    LAMBDA: {"input": "$DATA/ct/a.nii.gz"},
    PATCHES: {"input": "$DATA/histology/patches/XR"},
    REGIONS: {"input": "$DATA/histology/tiles/XR/slide_00", "mpp": "0.25"},
}
WHOLE, YES_OR_NO = "expected a whole number", "expected true or false"  # in answers
AFTER = 5  # lines of output that may stand behind the beginning of a message
ERROR = re.compile(r"Error: (.*)")
LAUNCHER = re.compile(r"^[EW]\d{4} [\d:.]+ +\d+ torch/distributed/", re.MULTILINE)  # torchrun's own report begins


@dataclass(frozen=True)
class Trial:
    """A command that is given something wrong.

    Attributes:
        kind: under which it is counted.
        program: `train`, `torchrun` (two ranks), `evaluate`, `infer` or `help` and the name of a bundle, `packed`
            before it for one out of its package; or a file of scripts and its arguments.
        given: what is wrong with it, as a shell reads it; it replaces options of the same name. `$FOLDER` stands for
            the trial's own folder, `$DATA` for the data of all (`make_data`, `weights/BUNDLE/model.pt`).
        answer: a regular expression for the message, or, where the command has to go on, for a line of its output.
        refused: whether it has to end with a status other than 0.
        late: whether the fault comes to light during the run only, so that there may be files, but whole ones.
        by_monai: refused by MONAI itself, with its traceback; the last line is looked at.
        prepare: makes what the command reads, given the trial's folder and that of the data.
        before: Python that the process of the command runs first.
        timeout: in seconds.
        title: of what is wrong, where the command does not say it.
    """

    kind: str
    program: str
    given: str
    answer: str
    refused: bool = True
    late: bool = False
    by_monai: bool = False
    prepare: Callable[[Path, Path], object] | None = None
    before: str = ""
    timeout: float = 120
    title: str = ""

    @property
    def name(self) -> str:
        more = (self.before and "(disturbed)", self.title and f"({self.title})")
        return " ".join(filter(None, (self.program, self.given, *more)))


def options(kind: str, program: str, answers: Mapping[str, str], **more: Any) -> list[Trial]:
    """Trials of a program: what is given, and the answer."""
    return [Trial(kind, program, given, answer, **more) for given, answer in answers.items()]


def make_data(folder: Path) -> None:
    """The smallest data that all bundles take: `ct`, `binary` (one organ) and `histology`."""
    rng = np.random.default_rng(0)
    for name, organs in (("ct", len(BTCV_LABELS)), ("binary", 1)):
        (folder / name).mkdir(parents=True)
        cases = []
        for case in "abcd":
            label = np.zeros((40, 40, 40), np.uint8)
            for i in range(len(BTCV_LABELS)):
                x, y = 3 + i % 4 * 9, 3 + i // 4 * 9
                label[x : x + 6, y : y + 6, 10:30] = min(i + 1, organs)
            image = rng.normal(40, 30, label.shape) + 10 * label
            cases.append({"image": f"{case}.nii.gz", "label": f"{case}_label.nii.gz"})
            for key, array in (("image", image.astype(np.int16)), ("label", label)):
                nib.save(nib.Nifti1Image(array, np.diag([6.0, 6.0, 6.0, 1.0])), folder / name / cases[-1][key])
        splits = {"training": cases[:2], "validation": cases[2:3], "test": cases[3:]}
        write_json(folder / name / "dataset.json", {"name": name, "synthetic": True, **splits})
    make_synthetic_histology(folder / "histology", slides=3, patches_per_slide=8, processes=1)


def words(trial: Trial) -> tuple[list[str], Path]:
    """The arguments of Python, with `$FOLDER` and `$DATA` in them, and the folder to be in."""
    step, *rest = shlex.split(trial.program)
    given = shlex.split(trial.given)
    named = {word.partition("=")[0] for word in given if word.startswith("--")}
    if step.endswith(".py"):
        kept = [word for i, word in enumerate(rest) if not named & {word, *rest[max(0, i - 1) : i]}]
        return [str(ROOT / "scripts" / step), *kept, *given], ROOT
    packed = step == "packed"
    step, bundle = rest if packed else (step, *rest)
    options = {"config_file": str([f"configs/{name}.json" for name in CONFIGS[step]])}
    if step == "infer":
        options |= INPUT[bundle] | {"output_dir": "$FOLDER/out", "num_workers": "0"}
    elif step != "help":
        options |= TRAINING[bundle]
    if step in ("infer", "evaluate"):
        options["ckpt_path"] = f"$DATA/weights/{bundle}/model.pt"
    if step == "evaluate":
        options["bootstrap"] = "10"
    command = ["-m", "monai.bundle", "run"]
    if step == "torchrun":
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *command]
    if trial.before:
        code = f"{trial.before}\nimport runpy\nrunpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)"
        command = ["-c", code, "run"]
    command += [word for key, value in options.items() if f"--{key}" not in named for word in (f"--{key}", value)]
    return command + given, Path(f"$DATA/packed/{bundle}") if packed else BUNDLES / bundle


def make_what_is_needed(trials: Iterable[Trial], data: Path, python: str) -> None:
    """The data, and the trained weights and packages that the trials name."""
    if not data.exists():
        with atomic_path(data) as temporary:
            make_data(temporary)
    named = {part for trial in trials for word in (*words(trial)[0], str(words(trial)[1])) for part in word.split()}
    for bundle in TRAINING:
        weights, packed, dist = (data / kind / bundle for kind in ("weights", "packed", "dist"))
        if any(f"$DATA/weights/{bundle}/" in word for word in named) and not (weights / "model.pt").is_file():
            shutil.rmtree(weights, ignore_errors=True)
            folders = f"--output_dir $DATA/weights/{bundle} --ckpt_dir $DATA/weights/{bundle}"
            _make(Trial("", f"train {bundle}", folders, "", refused=False), data, python)
        if f"$DATA/packed/{bundle}" in named:
            for old in (packed, dist):  # of the code as it was
                shutil.rmtree(old, ignore_errors=True)
            packing = f"package_bundles.py {bundle} --output_dir $DATA/dist/{bundle}"
            _make(Trial("", packing, "", "", refused=False), data, python)
            with zipfile.ZipFile(next(dist.glob("*.zip"))) as archive:
                archive.extractall(packed.parent)


def _make(trial: Trial, data: Path, python: str) -> None:
    status, text = run_command(trial, data, data, python)
    if status:
        raise DataError(f"{trial.name}: cannot be made for the trials. {text[-300:]}")


def run_command(trial: Trial, folder: Path, data: Path, python: str) -> tuple[int | None, str]:
    """The status of a trial's command, None where it had to be stopped, and what it printed."""

    def fill(text: str) -> str:
        return text.replace("$FOLDER", str(folder)).replace("$DATA", str(data))

    arguments, place = words(trial)
    environment = {key: value for key, value in os.environ.items() if key != "SHOW_TRACEBACK"}
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": environment}
    try:
        done = subprocess.run(
            [python, *map(fill, arguments)], cwd=fill(str(place)), timeout=trial.timeout, check=False, **options
        )
    except subprocess.TimeoutExpired as e:
        return None, (e.stdout or b"").decode(errors="replace")
    return done.returncode, done.stdout.decode(errors="replace")


def find_fault(trial: Trial, status: int | None, text: str, written: Sequence[str]) -> str:
    """What is wrong with the answer of a command; empty where it is clear.

    Args:
        trial: the command.
        status: with which it ended, or None.
        text: all that it printed.
        written: files that were not there before, see `files`.
    """
    if status is None:
        return "accepted in silence: it was stopped"
    if (status != 0) != trial.refused:
        return f"accepted in silence: it wrote {len(written)} files" if trial.refused else f"status {status}"
    of_ranks, *of_launcher = LAUNCHER.split(text)
    lines = [line for line in re.split(r"[\r\n]+", of_ranks) if line.strip()]
    lines += [line for part in of_launcher for line in part.splitlines() if ERROR.match(line)]
    if trial.by_monai:
        return "" if re.search(trial.answer, lines[-1]) else f"the last line does not say {trial.answer}"
    if any(line.endswith("Traceback (most recent call last):") for line in lines):
        return "a traceback"
    if not trial.refused:
        said = re.search(trial.answer, re.sub(r"\s+", " ", text))  # help is laid out in columns
        return "" if said else f"the output does not say {trial.answer}"
    errors = [(i, found[1]) for i, line in enumerate(lines) if (found := ERROR.match(line))]
    if len(errors) != 1:
        return f"{len(errors)} lines begin with Error:, expected one"
    place, message = errors[0]
    after = [line for line in lines[place + 1 :] if not line.startswith("  ")]  # indented: a list of the message's own
    if not re.search(trial.answer, "\n".join([message, *lines[place + 1 :]]), re.DOTALL):
        return f"the message does not say {trial.answer}"
    if len(after) > AFTER:
        return f"{len(after)} lines follow the message"
    left = [name for name in written if not trial.late or ".writing-" in name]
    return f"left behind: {', '.join(left[:5])}" if left else ""


def files(folder: Path) -> set[str]:
    """All below a folder but logs, and the marks of the runs that use a folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)) for p in found if p.suffix != ".log" and p.name != ".lock"}


def run_trial(trial: Trial, folder: Path, data: Path, python: str) -> dict[str, Any]:
    """Run a trial's command; what it was, how it ended, and the `fault` of its answer."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if trial.prepare:
        trial.prepare(folder, data)
    before = files(folder)
    status, text = run_command(trial, folder, data, python)
    written = sorted(files(folder) - before)
    fault = find_fault(trial, status, text, written)
    (folder / "output.log").write_text(text)
    said = [line[:500] for line in re.split(r"[\r\n]+", text) if line.strip()]
    at = [i for i, line in enumerate(said) if ERROR.match(line)][-1:] or [-3]
    answer = said[at[0] :][: AFTER + 1]
    return {"kind": trial.kind, "name": trial.name, "status": status, "fault": fault, "answer": answer}


def run_trials(
    trials: Sequence[Trial], folder: Path, jobs: int = 1, python: str = sys.executable
) -> list[dict[str, Any]]:
    """Run all trials, each in a folder of its own, several at a time; what `run_trial` gives of each.

    Args:
        trials: of different names.
        folder: for what is tried; `data` in it is made where it is not there.
        jobs: trials at a time.
        python: the program that is called as Python.
    """
    data = folder / "data"
    make_what_is_needed(trials, data, python)
    run = partial(run_trial, data=data, python=python)
    folders = [folder / "trials" / f"{i:03d}" for i in range(len(trials))]
    with ThreadPoolExecutor(jobs) as pool:
        return list(tqdm(pool.map(run, trials, folders), total=len(trials), unit="trial", desc="trials"))


def count(results: Sequence[Mapping[str, Any]], **columns: Callable[[Mapping[str, Any]], bool]) -> list[dict[str, Any]]:
    """A row for each kind of trial, and one for all: how many were tried, and of how many what each column asks holds.

    By default a column says how many answers were clear.
    """
    columns, rows = columns or {"clear": lambda result: not result["fault"]}, []
    for kind in [*dict.fromkeys(result["kind"] for result in results), "all"]:
        of_kind = [result for result in results if kind in (result["kind"], "all")]
        counts = {name: sum(map(holds, of_kind)) for name, holds in columns.items()}
        rows.append({"kind": kind, "tried": len(of_kind), **counts})
    return rows
