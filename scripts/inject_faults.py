"""Give bundles and scripts what is wrong, and count how often they say clearly what it is."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

from command_line import run_command
from experiments.bundle_trials import BUNDLE_TRIALS
from experiments.faults import count, run_trials
from experiments.fork_server import ForkServer
from experiments.script_trials import SCRIPT_TRIALS

from shared.utils import DataError, text_table, write_json
from shared.utils.values import Whole


def main(output_dir: str, only: str = "", jobs: Annotated[int, Whole(1)] = 1) -> None:
    """Try wrong options, each in a fresh folder with tiny data; show how many were answered clearly, and which not.

    Clear is an answer that ends with the right status and without a traceback, in one message that names the setting or
    the file, and that leaves nothing half-written. OUTPUT_DIR then holds faults.json with all answers, and in trials
    what each command wrote and printed. A minute on two cores. Status 1 where an answer is not clear.

    Args:
        output_dir: a folder that anyone may enter, since some trials run as the user nobody; its trials are replaced.
        only: a regular expression for the names of the trials to run, as `max_epoch`.
        jobs: trials at a time.
    """
    every = [*BUNDLE_TRIALS, *SCRIPT_TRIALS]
    trials = [trial for trial in every if re.search(only, trial.name)]
    if not trials:
        raise DataError(f"--only is {only}, expected a part of a trial's name, as {every[0].given}.")
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    folder = Path(output_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    server = ForkServer()
    try:
        results = run_trials(trials, folder, jobs, server.python)
    finally:
        server.close()
    write_json(folder / "faults.json", results)
    for result in results:
        if result["fault"]:
            print(f"\n{result['name']}\n  {result['fault']}", *result["answer"], sep="\n    ")
    print(f"\n{text_table(count(results))}\n{folder / 'faults.json'}")
    if any(result["fault"] for result in results):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
