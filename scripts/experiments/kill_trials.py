"""Runs that are killed and started again: whether they come to what the run that was not killed came to."""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from shared.utils import DataError

from .faults import LAMBDA, PATCHES, REGIONS, UNETR, Trial, count, make_what_is_needed, run_command

# What the process does before its command: it ends itself as it moves the {number}th file into its place.
IN_A_SAVE = """
import itertools, os
count, replace = itertools.count(1), os.replace
def replace_or_end(*paths, **options):
    if "/data/" not in str(paths[1]) and next(count) == {number}:
        {before} or replace(*paths, **options)
        os.kill(os.getpid(), 9)
    return replace(*paths, **options)
os.replace = replace_or_end
"""
LONGER = {
    UNETR: "--max_epochs 6 --val_interval 2 --save_seconds 0 --reweighting_window 1",
    LAMBDA: "--max_epochs 6 --val_interval 2",
    PATCHES: "--max_epochs 6",
    REGIONS: "--max_epochs 4 --tile_size 128 --tiles_per_epoch 12",
}
CACHE = "--cache disk --cache_dir $FOLDER/cache"
ALL_SLIDES = "--input $DATA/histology/tiles"
# kind, program, what is given besides, how often it is killed, and whether in a save
KINDS = [
    *(("training", f"train {bundle}", given, 1, False) for bundle, given in LONGER.items()),
    *(("training, twice", f"train {bundle}", given, 2, False) for bundle, given in LONGER.items()),
    *(("in a save", f"train {bundle}", given, 1, True) for bundle, given in LONGER.items()),
    *(("with workers", f"train {bundle}", f"{given} --num_workers 1", 1, False) for bundle, given in LONGER.items()),
    *(("cache", f"train {bundle}", f"{given} {CACHE}", 1, False) for bundle, given in list(LONGER.items())[:2]),
    *(("two ranks", f"torchrun {bundle}", LONGER[bundle], 1, False) for bundle in (UNETR, PATCHES)),
    *(("evaluation", f"evaluate {bundle}", "", 1, False) for bundle in LONGER),
    *(("inference", f"infer {bundle}", "", 1, False) for bundle in (UNETR, LAMBDA, PATCHES)),
    ("inference", f"infer {REGIONS}", ALL_SLIDES, 1, False),
]


@dataclass(frozen=True)
class Kill:
    """A run that is killed.

    Attributes:
        trial: its command.
        moments: when it is killed, each a share of the time that the whole run takes; or, in a save, the number of the
            file that it is about to move, negative when it has just moved it.
        in_a_save: whether it is.
    """

    trial: Trial
    moments: tuple[float, ...]
    in_a_save: bool


def draw_kills(count: int, seed: int) -> list[Kill]:
    """So many kills, of all kinds in turn, each at a moment of its own."""
    draws, kills = random.Random(seed), []
    for i in range(count):
        kind, program, given, times, in_a_save = KINDS[i % len(KINDS)]
        moments = tuple(draws.uniform(0.05, 0.8) for _ in range(times))
        if in_a_save:
            moments = (draws.choice((-1, 1)) * draws.randint(1, 14),)
        kills.append(Kill(Trial(kind, program, given, "", refused=False, timeout=300), moments, in_a_save))
    return kills


def tensors(content: Any) -> Iterator[bytes]:
    """What a checkpoint holds, in its order, as bytes; but what tells one run from another."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key not in ("run", "events"):  # the latter are names and sizes of TensorBoard's files
                yield str(key).encode()
                yield from tensors(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from tensors(value)
    elif isinstance(content, torch.Tensor):
        yield content.contiguous().numpy().tobytes()
    else:
        yield repr(content).encode()


def outcome(folder: Path) -> dict[str, str]:
    """A digest of each checkpoint, table and segmentation that a run has left."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        parts: Iterator[bytes] | list[bytes] = []
        if name.startswith("cache/") or name == "out/run.json" or ".writing-" in name:
            continue
        if path.suffix == ".pt":
            parts = tensors(torch.load(path, weights_only=True))
        elif path.suffix in (".csv", ".json", ".geojson"):
            parts = [path.read_bytes().replace(str(folder).encode(), b"FOLDER")]
        elif path.name.endswith(".nii.gz"):
            parts = [np.asarray(nib.load(path).dataobj).tobytes()]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        if parts:
            found[name] = digest.hexdigest()
    return found


def run_whole(trial: Trial, folder: Path, data: Path, python: str) -> tuple[dict[str, str], float]:
    """What a run that is not killed comes to, and how long it takes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.monotonic()
    status, text = run_command(trial, folder, data, python)
    if status:
        raise DataError(f"{trial.name}: fails without being killed. {text[-500:]}")
    return outcome(folder), time.monotonic() - start


def run_kill(
    kill: Kill, folder: Path, data: Path, whole: Mapping[str, tuple[dict[str, str], float]], python: str
) -> dict[str, Any]:
    """Kill a run as often as is drawn and let it come to its end; what that was, beside that of the whole run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    expected, seconds = whole[kill.trial.name]
    killed = 0
    for moment in kill.moments:
        cut = replace(again(kill.trial, folder), timeout=max(moment, 0) * seconds)
        if kill.in_a_save:
            code = IN_A_SAVE.format(number=int(abs(moment)), before="True" if moment > 0 else "False")
            cut = replace(cut, before=code, timeout=300)
        killed += run_command(cut, folder, data, python)[0] != 0
    status, text = run_command(again(kill.trial, folder), folder, data, python)
    (folder / "output.log").write_text(text)
    found = outcome(folder)
    differ = sorted(name for name in expected.keys() | found if expected.get(name) != found.get(name))
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob(".writing-*"))
    fault = ""
    if status or "Traceback (most recent call last)" in text:
        fault = f"status {status}: {text.strip().splitlines()[-1][:300] if text.strip() else 'nothing said'}"
    elif differ:
        fault = f"not identical: {', '.join(differ[:5])}"
    elif left:
        fault = f"left behind: {', '.join(left[:5])}"
    clear = not fault or not fault.startswith("status")
    name = f"{kill.trial.name} killed at {', '.join(f'{m:.2f}' for m in kill.moments)}"
    return {
        "kind": kill.trial.kind,
        "name": name,
        "killed": killed,
        "clear": clear,
        "fault": fault,
        "folder": str(folder),
    }


def again(trial: Trial, folder: Path) -> Trial:
    """The command with which somebody goes on: that of before, resumed where there is a training to resume."""
    resumed = trial.program.split()[0] in ("train", "torchrun") and (folder / "models" / "last.pt").is_file()
    return replace(trial, given=f"{trial.given} --resume true") if resumed else trial


def run_kills(kills: Sequence[Kill], folder: Path, jobs: int, python: str) -> list[dict[str, Any]]:
    """Run them all, each in a folder of its own, several at a time; what `run_kill` gives of each."""
    data = folder / "data"
    trials = {kill.trial.name: kill.trial for kill in kills}
    make_what_is_needed(trials.values(), data, python)
    with ThreadPoolExecutor(jobs) as pool:
        wholes = pool.map(
            lambda item: run_whole(item[1], folder / "whole" / f"{item[0]:03d}", data, python),
            enumerate(trials.values()),
        )
        whole = dict(zip(trials, tqdm(wholes, total=len(trials), unit="run", desc="whole runs"), strict=True))
        run = partial(run_kill, data=data, whole=whole, python=python)
        folders = [folder / "kills" / f"{i:03d}" for i in range(len(kills))]
        return list(tqdm(pool.map(run, kills, folders), total=len(kills), unit="kill", desc="kills"))


def count_kills(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each kind, and one for all: runs, those that a kill reached, and those that ended clearly and alike."""
    return count(
        results,
        killed=lambda result: bool(result["killed"]),
        clear=lambda result: result["clear"],
        identical=lambda result: not result["fault"],
    )
