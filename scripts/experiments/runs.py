"""Trainings of bundles over seeds, whose results are kept: started, resumed, never mixed and never done twice."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from shared.utils import DataError, fault_list, read_csv, write_json
from shared.utils.values import Number, Whole

from .fork_server import ForkServer

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = ROOT / "bundles"
# options of the tables; 0 epochs are as configured
AtLeastOne = Annotated[int, Whole(1)]
Epochs = Annotated[int, Whole(0)]
Minutes = Annotated[float, Number(above=0)]
_processes: set[subprocess.Popen] = set()  # that run now, to be ended with this one


@contextmanager
def forking() -> Iterator[str]:
    """As `sys.executable` a Python that has imported what commands need and forks for each, if it is of one thread."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    real, server = sys.executable, ForkServer()
    sys.executable = server.python
    try:
        yield server.python
    finally:
        sys.executable = real
        server.close()


class Cost(NamedTuple):
    """Of a command in a process of its own, with all that it started; of one that is `forking`, of no meaning.

    Attributes:
        cpu_minutes: on all cores together.
        peak_gib: of memory, without what it started; on Linux, as looked at ten times a second.
    """

    cpu_minutes: float
    peak_gib: float


def bundle_run(bundle: Path, configs: list[str], log: Path, options: Mapping[str, Any], ranks: int = 1) -> Cost:
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
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m"] if ranks > 1 else []
    return logged_run(
        ["-m", *launcher, "monai.bundle", "run", "--config_file", str(configs)], bundle, log, _given(options)
    )


def logged_run(
    command: Sequence[str | Path],
    folder: Path,
    log: Path,
    options: Mapping[str, Any] = MappingProxyType({}),
    python: str | Path = "",
    environment: Mapping[str, str] | None = None,
) -> Cost:
    """`python COMMAND --option value ...` in a folder; arguments and errors are those of `bundle_run`.

    Args:
        python: another one than this.
        environment: by default this one's.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    given = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    words = [python or sys.executable, *command, *given]
    begin = log.stat().st_size if log.exists() else 0  # before it stands what earlier attempts have said
    with (
        log.open("ab") as file,
        subprocess.Popen(words, cwd=folder, env=environment, stdout=file, stderr=file) as process,
    ):
        _processes.add(process)
        pid, peak = 0, 0.0
        while not pid:
            peak = max(peak, _peak_gib(process.pid))
            time.sleep(0.1)
            pid, code, used = os.wait4(process.pid, os.WNOHANG)
        process.returncode = status = os.waitstatus_to_exitcode(code)
    _processes.discard(process)
    if status:
        lines = log.read_bytes()[begin:].decode(errors="replace").splitlines()
        # several ranks say it each, and the launcher ends with a report of its own
        last = [
            line for line in lines if re.match(r"\w*(Error|Exception|Interrupt)\b", line) and "ChildFailed" not in line
        ][-1:]
        raise DataError(f"{log}: the run failed with status {status}" + "".join(f": {line[:300]}" for line in last))
    return Cost(round((used.ru_utime + used.ru_stime) / 60, 3), round(peak or used.ru_maxrss / 1024**3, 3))


def _peak_gib(pid: int) -> float:
    """What a process had of memory at most so far; 0 where that is not told. `ru_maxrss` begins with its parent's."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024**2 if found else 0.0


def run_step(title: str, *command: str | Path, cwd: Path = ROOT, **options: Any) -> None:
    """Run a step that somebody watches, showing the command as a user would type it; end here if it fails."""
    words = [*map(str, command), *(text for key, value in options.items() for text in (f"--{key}", str(value)))]
    print(f"\n=== {title}\n(in {os.path.relpath(cwd, ROOT)}) {shlex.join(['python', *words])}\n", flush=True)
    status = subprocess.run([sys.executable, *words], cwd=cwd, check=False).returncode
    if status:
        sys.exit(f"\nThis stopped: the step ended with status {status}. The command is shown above it.")


def run_bundle(title: str, name: str, configs: Sequence[str], **options: Any) -> None:
    """`run_step` for `python -m monai.bundle run` in the bundle's folder."""
    files = str([f"configs/{config}.json" for config in configs])
    command = ("-m", "monai.bundle", "run", "--config_file", files)
    run_step(title, *command, cwd=BUNDLES / name, **_given(options))


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `monai.bundle run`, which drops those that are None."""
    return {key: "$None" if value is None else value for key, value in options.items()}


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training of a bundle with some of its variants, and its evaluation, in a folder of its own.

    Attributes:
        bundle: its name.
        variants: of its overlays, in the order in which they are laid over each other; or absolute paths of others.
        folder: for all that is written.
        places: options of the command line on which the result does not depend, such as the folder of the data.
        options: those on which it does.
        facts: what else it depends on, such as a digest of the data. (The code is not looked at.)
        ranks: processes of the training; the evaluation has one.
        prepare: what is done before it is trained.
    """

    bundle: str
    variants: Sequence[str]
    folder: Path
    places: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    ranks: int = 1
    prepare: Callable[[Training], None] | None = None

    def configs(self, *overlays: str) -> list[str]:
        own = [v if v.endswith(".json") else f"configs/variants/{v}.json" for v in self.variants]
        return [*(f"configs/{name}.json" for name in ("train", *overlays)), *own]

    @property
    def training_configs(self) -> list[str]:
        return self.configs(*(["multi_gpu_train"] if self.ranks > 1 else []))

    @property
    def settings(self) -> dict[str, Any]:
        """What the result depends on, so that runs of different settings are not mixed."""
        names = dict.fromkeys([*self.training_configs, *self.configs("evaluate")])
        files = {Path(name).name: file_digest(BUNDLES / self.bundle / name) for name in names}
        return {**self.facts, **self.options, "nproc_per_node": self.ranks, **files}

    def train(self) -> dict[str, Any]:
        """Train, from the last checkpoint where there is one; `minutes` taken, and whether it was `resumed`."""
        start = time.monotonic()
        _, resumed = self.train_at_cost()
        return {"minutes": round((time.monotonic() - start) / 60, 2), "resumed": resumed}

    def train_at_cost(self) -> tuple[Cost, bool]:
        """`train`; what it cost, if no command is `forking`, and whether it was resumed."""
        if self.prepare:
            self.prepare(self)
        resumed = (self.folder / "last.pt").is_file()
        return self._run("train", self.training_configs, {"resume": str(resumed).lower()}, self.ranks), resumed

    def evaluate(self, **options: Any) -> Path:
        """Score the test split; the folder of the report, in `output_dir` or else in the training's folder."""
        self.lay_over("evaluate", **options)
        return Path(options.get("output_dir", self.folder)) / "evaluation"

    def lay_over(self, *overlays: str, **options: Any) -> None:
        """Run the training's config with these overlays, such as "evaluate"; the last names the log."""
        self._run(overlays[-1], self.configs(*overlays), options)

    def seconds_an_epoch(self) -> float | None:
        """The median time from the end of an epoch to that of the next, validation included; None of a single one."""
        events = EventAccumulator(str(self.folder / "tensorboard")).Reload()
        tags = [tag for tag in sorted(events.Tags()["scalars"]) if tag.startswith("val_")]
        gaps = np.diff([event.wall_time for tag in tags[:1] for event in events.Scalars(tag)])
        return round(float(np.median(gaps)), 2) if len(gaps) else None

    def _run(self, step: str, configs: list[str], options: Mapping[str, Any], ranks: int = 1) -> Cost:
        known = {"output_dir": self.folder, "ckpt_dir": self.folder, **self.places, **self.options}
        return bundle_run(BUNDLES / self.bundle, configs, self.folder / f"{step}.log", known | options, ranks)


def file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def count_firings(table: Path) -> int:
    """In how many evaluations a rule fired, by its `class_weights.csv`."""
    return len({row["evaluation"] for row in read_csv(table) if row["fired"] == "1"})


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


def kept_run(
    folder: Path,
    settings: Mapping[str, Any],
    run: Callable[[], Mapping[str, Any]],
    dropped: Iterable[str] = ("last.pt", "best.pt"),
) -> dict[str, Any]:
    """What a run gave: `result.json` of its folder, for which `run()` is called where it is not there yet.

    Once the result is kept, the files that are `dropped` go: by default the checkpoints for going on with a training.

    Raises:
        DataError: when the folder holds a run with other settings.
    """
    check_settings(folder, settings)
    result = folder / "result.json"
    if not result.is_file():
        write_json(folder / "settings.json", settings)
        write_json(result, run())
    for name in dropped:
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


def run_trainings(
    trainings: Sequence[Training],
    score: Callable[[Training], Mapping[str, Any]],
    minutes: float,
    jobs: int,
    threads: int,
    dropped: Iterable[str] = ("last.pt", "best.pt"),
) -> tuple[list[dict[str, Any]], list[str]]:
    """Train and score all of them in their order, as far as the time goes; see `run_all`.

    Args:
        trainings: each with a folder of its own.
        score: trains, evaluates, and gives the result that is kept.
        minutes, jobs: see `run_all`.
        threads: of each process.
        dropped: see `kept_run`.

    Raises:
        DataError: before the first run, when a folder holds a run with other settings.
    """
    for training in trainings:
        check_settings(training.folder, training.settings)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    runs = {t.folder: partial(kept_run, t.folder, t.settings, partial(score, t), dropped) for t in trainings}
    return run_all(runs, minutes, jobs)


def tell_failures(failures: Sequence[str]) -> None:
    """Raise a `DataError` that lists the runs that failed, if any."""
    if failures:
        raise DataError(f"{len(failures)} run(s) failed; the same command tries them again." + fault_list(failures))
