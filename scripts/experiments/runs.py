"""Runs of bundles whose results are kept: what the scripts share that compare settings over seeds."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from shared.utils import DataError, write_json

_processes: set[subprocess.Popen] = set()  # that run now, to be ended with this one


def bundle_run(bundle: Path, configs: list[str], log: Path, options: Mapping[str, Any], ranks: int = 1) -> None:
    """`python -m monai.bundle run` in the bundle's folder, or that under `torch.distributed.run` with several ranks.

    Args:
        bundle: its folder.
        configs: below it, overlays last.
        log: the file to which all that the run prints is added.
        options: of the command line, by name.
        ranks: number of processes.

    Raises:
        DataError: when the run fails; the message gives the log and the last line in it that tells of an error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m"] if ranks > 1 else []
    command = [sys.executable, "-m", *launcher, "monai.bundle", "run", "--config_file", str(configs)]
    command += [text for key, value in options.items() for text in (f"--{key}", str(value))]
    with log.open("a") as file, subprocess.Popen(command, cwd=bundle, stdout=file, stderr=file) as process:
        _processes.add(process)
        status = process.wait()
    _processes.discard(process)
    if status:
        lines = log.read_text().splitlines()
        # several ranks say it each, and the launcher ends with a report of its own
        last = [
            line for line in lines if re.match(r"\w*(Error|Exception|Interrupt)\b", line) and "ChildFailed" not in line
        ][-1:]
        raise DataError(f"{log}: the run failed with status {status}" + "".join(f": {line[:300]}" for line in last))


def at_least(least: int, **values: Any) -> None:
    """Raise a `DataError` that names the option unless all values are whole numbers from `least` on."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise DataError(f"--{name} is {value}, expected a whole number of {least} or above.")


def known(name: str, values: Sequence[Any], choices: Sequence[str]) -> None:
    """Raise a `DataError` that names the option unless there are values, each one of the choices."""
    if strange := [str(value) for value in values if value not in choices] or ["empty"] * (not values):
        raise DataError(f"--{name} is {', '.join(strange)}, expected {', '.join(choices)}.")


def check_lengths(seeds: int, minutes: float, jobs: int, threads: int, nproc_per_node: int, epochs: int) -> None:
    """Raise a `DataError` that names the option unless all say how much to run; 0 epochs are as configured."""
    at_least(1, seeds=seeds, jobs=jobs, threads=threads, nproc_per_node=nproc_per_node)
    at_least(0, epochs=epochs)
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not minutes > 0:
        raise DataError(f"--minutes is {minutes}, expected a number above 0.")


def file_digests(files: Iterable[Path]) -> dict[str, str]:
    """The SHA-256 of each file by its name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """See that a folder holds no run with other settings; runs of different settings are not to be mixed.

    Raises:
        DataError: when it does; the message names the settings that differ.
    """
    started = folder / "settings.json"
    earlier = json.loads(started.read_text()) if started.is_file() else settings
    differ = [key for key in sorted({*earlier, *settings}) if earlier.get(key) != settings.get(key)]
    if differ:
        names = ", ".join(differ)
        raise DataError(f"{folder}: holds a run that differs from this one in {names}. Choose another --output_dir.")


def kept_run(folder: Path, settings: Mapping[str, Any], run: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What a run gave: `result.json` of its folder, for which `run()` is called where it is not there yet.

    The checkpoints for going on with a training, `last.pt` and `best.pt`, are deleted once the result is kept.

    Raises:
        DataError: when the folder holds a run with other settings.
    """
    check_settings(folder, settings)
    result = folder / "result.json"
    if not result.is_file():
        write_json(folder / "settings.json", settings)
        write_json(result, run())
    for name in ("last.pt", "best.pt"):
        (folder / name).unlink(missing_ok=True)
    return json.loads(result.read_text())


def run_all(
    runs: Mapping[Path, Callable[[], dict[str, Any]]], minutes: float, jobs: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Do the runs in their order, several at a time; a failed one does not stop the others.

    An interrupt ends the processes that run; they leave their checkpoints.

    Args:
        runs: what does a run, by its folder.
        minutes: none is started after this time; what is kept is given all the same.
        jobs: runs at a time.

    Returns:
        what the runs returned, and the message of the `DataError` of each that failed.
    """
    end = time.monotonic() + 60 * minutes

    def attempt(folder: Path) -> dict[str, Any] | DataError | None:
        if time.monotonic() > end and not (folder / "result.json").is_file():
            return None
        try:
            return runs[folder]()
        except DataError as e:
            return e

    with ThreadPoolExecutor(jobs) as pool:
        try:
            results = list(tqdm(pool.map(attempt, runs), total=len(runs), unit="run"))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)  # before the running ones end and make room
            for process in list(_processes):
                process.terminate()
            raise
    return [r for r in results if isinstance(r, dict)], [str(r) for r in results if isinstance(r, DataError)]


def mean_and_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation, to four places; the latter None of one value, both where there are none."""
    if not values:
        return None, None
    return round(float(np.mean(values)), 4), round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None


def describe(values: Sequence[float]) -> dict[str, float | int | None] | None:
    """Mean, standard deviation (None of one value), least, greatest and number of values; None where there are none."""
    if not values:
        return None
    mean, std = mean_and_std(values)
    return {"mean": mean, "std": std, "min": round(min(values), 4), "max": round(max(values), 4), "n": len(values)}


def plus_minus(mean: float, std: float | None, sign: str = "") -> str:
    """Such as "0.812 ± 0.034", without the deviation where there is none; `sign` "+" puts one before the mean."""
    return f"{mean:{sign}.3f}" + (f" ± {std:.3f}" if std is not None else "")


def count_firings(path: Path) -> int:
    with path.open() as file:
        return len({row["evaluation"] for row in csv.DictReader(file) if row["fired"] in ("1", "True")})
