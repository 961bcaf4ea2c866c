"""Runs in a small file, with what a table needs of them.

A line of JSON each, so that a campaign is carried on wherever the file is. The first line says of what they are: size
and length of the trainings, and the data; of the patch classifier how patches were cut, and of each domain the labels
of its patches, slide by slide.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shared.utils import DataError, atomic_path, writable_folder

from .patch_runs import Predictions
from .runs import Training, run_trainings

KEY = ("start", "seed", "left_out", "method")  # of the patch classifier: in this order the file is sorted
LIMIT = 12.0  # of the logits that are kept


def labels_by_slide(patches: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Of the patches of a domain, sorted by slide and path: the slide, and its labels as "0110"."""
    found: dict[str, str] = {}
    for patch in sorted(patches, key=lambda patch: (patch["slide"], patch["image"])):
        found[patch["slide"]] = found.get(patch["slide"], "") + str(patch["label"])
    return found


def packed(rows: Iterable[tuple[str, str, float]]) -> str:
    """Probabilities as text: their logits in half precision, sorted by slide and path, in base 64.

    Args:
        rows: slide, path and probability of each patch of a domain.
    """
    probabilities = np.array([row[2] for row in sorted(rows)])
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities) - np.log1p(-probabilities)
    return base64.b64encode(logits.clip(-LIMIT, LIMIT).astype("<f2").tobytes()).decode()


def unpacked(text: str, labels: Mapping[str, str], threshold: float) -> Predictions:
    """What `packed` has made of the patches whose labels `labels_by_slide` gives."""
    logits = np.frombuffer(base64.b64decode(text), "<f2").astype(float)
    slides = [slide for slide, own in labels.items() for _ in own]
    return Predictions(
        slides, np.array([int(x) for own in labels.values() for x in own]), 1 / (1 + np.exp(-logits)), threshold
    )


class KeptRuns(NamedTuple):
    """The runs of a file, to which this command, and maybe others, add some.

    Attributes:
        file, head, key: see `read_runs`.
    """

    file: Path
    head: Mapping[str, Any]
    key: Sequence[str]

    def read(self) -> list[dict[str, Any]]:
        """See `read_runs`."""
        return read_runs(self.file, self.head, self.key)

    def add(self, *runs: Mapping[str, Any]) -> None:
        """Write runs beside those that are there now."""
        with _alone_in(self.file.parent):
            write_runs(self.file, self.head, [*self.read(), *runs], self.key)


def kept_runs(file: str | Path, head: Mapping[str, Any], key: Sequence[str] = KEY) -> KeptRuns:
    """The runs of a file, which need not be there yet; see `read_runs`.

    Raises:
        DataError: when no such file can be written, which hours of training would be told of too late.
    """
    path = Path(file).expanduser().resolve()
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected a file for the results. Give another --results.")
    writable_folder(path.parent)
    return KeptRuns(path, head, key)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other threads and commands from adding runs to a file in this folder."""
    place = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # of a file system that knows no locks
            fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def complete(
    kept: KeptRuns, trainings: Sequence[Training], score: Callable[[Training], dict[str, Any]], **options: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """Train and score what is not kept yet, and keep each as soon as it is there.

    Args:
        kept: to which they are added.
        trainings: whose facts tell them apart as the runs do.
        score: see `run_trainings`.
        options: of it.

    Returns:
        all that are kept of these trainings, and the message of each that failed.
    """
    wanted = {tuple(t.facts[name] for name in kept.key): t for t in trainings}

    def own() -> dict[tuple[Any, ...], dict[str, Any]]:
        found = {tuple(run[name] for name in kept.key): run for run in kept.read()}
        return {key: found[key] for key in wanted if key in found}

    def score_and_keep(training: Training) -> dict[str, Any]:
        run = score(training)
        kept.add(run)
        return run

    known = own()
    print(f"{len(known)} of {len(wanted)} runs are in {kept.file}")
    missing = [training for key, training in wanted.items() if key not in known]
    new, failures = run_trainings(missing, score_and_keep, **options)
    kept.add(*new)  # of which some may have been finished by an earlier command
    return [*own().values()], failures


def read_runs(file: Path, head: Mapping[str, Any], key: Sequence[str] = KEY) -> list[dict[str, Any]]:
    """The runs that a file holds; none where it is not there yet.

    Args:
        file: written by `write_runs`.
        head: what its first line has to be.
        key: what tells a run from others.

    Raises:
        DataError: when it is of other data, or no such file.
    """
    if not file.is_file():
        return []
    try:
        first, *runs = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
        if not isinstance(first, dict) or not all(set(key) <= run.keys() for run in runs):
            raise ValueError
    except (ValueError, AttributeError) as e:
        raise DataError(f"{file}: expected the results that this command keeps. Give another --results.") from e
    differ = [name for name in head if first.get(name) != head[name]]
    if differ:
        raise DataError(
            f"{file}: its runs differ from these in {', '.join(differ)}. Give the same data and options, or another "
            "--results."
        )
    return runs


def write_runs(
    file: Path, head: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], key: Sequence[str] = KEY
) -> None:
    """Write runs, one a line, sorted by what tells them apart, `key`; of each the last that is given."""
    chosen = {tuple(run[name] for name in key): run for run in runs}
    order = [chosen[each] for each in sorted(chosen)]
    with atomic_path(file) as temporary:
        lines = [json.dumps(each, separators=(",", ":")) for each in (head, *order)]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
