"""Give bundles and scripts what is wrong, and kill them: count how often they say what it is, and lose nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from command_line import Seed, run_command
from experiments.bundle_trials import BUNDLE_TRIALS
from experiments.faults import count as count_clear
from experiments.faults import run_trials
from experiments.input_trials import INPUT_TRIALS
from experiments.kill_trials import count_kills, draw_kills, run_kills
from experiments.runs import forking
from experiments.script_trials import SCRIPT_TRIALS

from shared.utils import DataError, text_table, write_json
from shared.utils.values import Whole


def inputs(output_dir: str, only: str = "", jobs: Annotated[int, Whole(1)] = 1) -> None:
    """Try wrong options and wrong data, each in a fresh folder; show how many were answered clearly, and which not.

    Clear is an answer that ends with the right status and without a traceback, in one message that names the setting or
    the file, and that leaves nothing half-written. OUTPUT_DIR then holds inputs.json with all answers, and in trials
    what each command wrote and printed. Two minutes on two cores. Status 1 where an answer is not clear.

    Args:
        output_dir: a folder that anyone may enter, since some trials run as the user nobody; its trials are replaced.
        only: a regular expression for the names of the trials to run, as `max_epoch`.
        jobs: trials at a time.
    """
    every = [*BUNDLE_TRIALS, *SCRIPT_TRIALS, *INPUT_TRIALS]
    trials = [trial for trial in every if re.search(only, trial.name)]
    if not trials:
        raise DataError(f"--only is {only}, expected a part of a trial's name, as {every[0].given}.")
    folder = made_folder(output_dir)
    with forking() as python:
        results = run_trials(trials, folder, jobs, python)
    show(results, count_clear(results), folder / "inputs.json")


def kills(
    output_dir: str, count: Annotated[int, Whole(1)] = 100, seed: Seed = 0, jobs: Annotated[int, Whole(1)] = 1
) -> None:
    """Kill trainings, evaluations and inferences at random moments, start them again, and compare what they come to.

    A training goes on with --resume true. Identical is a run whose checkpoints, tables and segmentations are, to the
    byte, those of the run that was not killed, and that leaves nothing half-written. OUTPUT_DIR then holds kills.json,
    and in kills what each run wrote. Some 8 seconds a kill on one core. Status 1 where a run is not identical.

    Args:
        output_dir: a folder; its runs are replaced.
        count: how many, of all kinds and bundles in turn; 28 for one of each.
        seed: of the moments.
        jobs: runs at a time.
    """
    folder = made_folder(output_dir)
    with forking() as python:
        results = run_kills(draw_kills(count, seed), folder, jobs, python)
    show(results, count_kills(results), folder / "kills.json")


def made_folder(output_dir: str) -> Path:
    folder = Path(output_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def show(results: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write all results, print those with a fault and the counts, and end with status 1 where there is a fault."""
    write_json(path, results)
    for result in results:
        if result["fault"]:
            print(f"\n{result['name']}\n  {result['fault']}", *result.get("answer", ()), sep="\n    ")
    print(f"\n{text_table(rows)}\n{path}")
    if any(result["fault"] for result in results):
        sys.exit(1)


if __name__ == "__main__":
    run_command({"inputs": inputs, "kills": kills})
