"""The folders of a training: each belongs to one run, and no other one writes to it by mistake."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch

from ..utils import DataError, flag, lock_folder, read_json_object, unlock_folder, writable_folder

FILES = ("last.pt", "best.pt", "model.pt", "model.json")
RUN = "run.json"  # in the folder of results: which run's they are
PATIENCE = 60.0  # seconds in which a run that was told to stop has ended


def claim_run(
    ckpt_dir: str | os.PathLike, output_dir: str | os.PathLike, resume: bool | str = False, overwrite: bool = False
) -> None:
    """Keep the folders of a training for this process, before anything is preprocessed for it.

    Other trainings are held off until this one or its process ends (`TrainingCheckpoint` sees to it; in a process that
    outlives a training which never started, `shared.utils.unlock_folder` does). What only reads the checkpoints, such
    as an evaluation beside the training, is not. In a distributed run rank 0 does it. Call it in the `initialize`
    section of a bundle.

    Raises:
        DataError: when another run writes to one of the folders (a resumed run waits a minute for its end), an earlier
            run is kept there that this one would replace, or the folders cannot be written to.
    """
    overwrite = flag("overwrite", overwrite)
    if idist.get_rank() == 0:
        source = resumed_file(Path(ckpt_dir), resume)  # nothing is made where there is nothing to resume
        try:
            for folder, option in ((ckpt_dir, "--ckpt_dir"), (output_dir, "--output_dir")):
                lock_folder(writable_folder(folder), option, PATIENCE if source else 0)
            if not source and not overwrite:
                check_ckpt_dir(Path(ckpt_dir))
            if not overwrite:
                check_output_dir(Path(output_dir), source, Path(ckpt_dir))
        except BaseException:
            for folder in (ckpt_dir, output_dir):
                unlock_folder(folder)
            raise
    idist.barrier()


def resumed_file(ckpt_dir: Path, resume: bool | str) -> Path | None:
    """The checkpoint that a run goes on from: the last or, with `"best"`, the best one. None for a new run.

    Raises:
        DataError: when it is not there, or `resume` is anything else.
    """
    if resume != "best" and not flag("resume", resume):
        return None
    source = ckpt_dir / ("best.pt" if resume == "best" else "last.pt")
    if not source.is_file():
        raise DataError(f"{source}: there is no run to resume. Start one without --resume, or give its --ckpt_dir.")
    return source


def check_ckpt_dir(ckpt_dir: Path) -> None:
    """Raise a `DataError` where a new run would replace an earlier one.

    A run that ended before its first epoch did leaves nothing that is worth keeping.
    """
    last = ckpt_dir / "last.pt"
    earlier = [ckpt_dir / name for name in FILES if (ckpt_dir / name).is_file()]
    if not earlier or (earlier == [last] and checkpoint_part(last, "trainer").get("epoch") == 0):
        return
    go_on = "Continue it with --resume true, keep" if last in earlier else "Keep"
    raise DataError(
        f"{earlier[0]}: an earlier run is kept here. {go_on} it by choosing another --ckpt_dir, or replace it with "
        "--overwrite true."
    )


def check_output_dir(output_dir: Path, source: Path | None, ckpt_dir: Path) -> None:
    """Raise a `DataError` where the results are kept of another run than that of the checkpoint, if there is one.

    Results without a note, which an older version wrote, are those of the checkpoints that have none either.
    """
    path = output_dir / RUN
    if path.is_file():
        kept = read_json_object(path, "the note of the run whose results are here", "")
    elif any(output_dir.glob("tensorboard/events.out.tfevents.*")) and _has_note(ckpt_dir / "last.pt"):
        kept = {}
    else:
        return
    run = checkpoint_part(source or ckpt_dir / "last.pt", "run")
    if run == kept.get("run") or (source and run == {}):  # new runs: of one that was killed at its first save
        return
    where = f", whose checkpoints are in {kept['ckpt_dir']}" if "ckpt_dir" in kept else ""
    raise DataError(
        f"{output_dir}: the results of another run are kept here{where}. Choose another --output_dir, or replace them "
        "with --overwrite true."
    )


def check_evaluation(
    folder: str | os.PathLike, record: Mapping[str, Any], overwrite: bool = False, weights: str | None = None
) -> None:
    """Raise a `DataError` where a folder keeps the evaluation of other weights.

    A new evaluation of the same weights replaces the earlier one. Call it in the `initialize` section of a bundle.

    Args:
        folder: of the evaluation.
        record: what the weights were trained on: where a digest is missing, it tells them apart.
        overwrite: let it be replaced.
        weights: their digest, see `shared.data.weights_digest`.
    """
    path = Path(folder) / "summary.json"
    if flag("overwrite", overwrite) or not path.is_file():
        return
    kept = read_json_object(path, "the summary of an evaluation", "")
    theirs, ours = kept.get("model") or {}, json.loads(json.dumps(dict(record)))
    known = bool(kept.get("weights") and weights)
    if kept["weights"] == weights if known else (not theirs or not ours or theirs == ours):
        return
    differ = [key for key in sorted(theirs.keys() | ours) if theirs.get(key) != ours.get(key)]
    why = f"{', '.join(differ[:5])} of their records differ" if differ else "their files differ"
    raise DataError(
        f"{folder}: keeps the evaluation of other weights ({why}). Choose another --output_dir, or replace it with "
        "--overwrite true."
    )


def _has_note(last: Path) -> bool:
    """Whether the run of these checkpoints, if there is one, leaves its note beside its results."""
    if not last.is_file():
        return True
    return checkpoint_part(last, "run") != {} and checkpoint_part(last, "trainer").get("epoch") != 0


def checkpoint_part(checkpoint: Path, key: str) -> Any:
    """A part of a checkpoint, without reading its tensors; `{}` where it cannot be read or has none."""
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True).get(key, {})
    except Exception:  # torch raises whatever the damage leads to; who loads it in earnest names that
        return {}
