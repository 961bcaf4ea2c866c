"""Verify bundles: all that the model zoo's own tests ask for, and what this collection asks for beyond it. Offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

from bundle_tools import card, checks, overlays
from bundle_tools.bundle import BUNDLES, Bundle, bundle_names
from bundle_tools.checks import Found, Result, run_check
from bundle_tools.sample_data import task_of, write_sample
from command_line import run_command
from tqdm import tqdm

from shared.utils import DataError, text_table, write_json
from shared.utils.values import Whole

# In the order of the table; those of bundle_tools/probe.py, which run the bundle's code, come behind.
CHECKS: dict[str, Callable[[Bundle], list[str]]] = {
    "files": checks.check_files,
    "configs": lambda bundle: bundle.faults,
    "metadata": checks.check_metadata,
    "changelog": checks.check_changelog,
    "requirements": checks.check_requirements,
    "references": overlays.check_references,
    "overlays": overlays.check_overlays,
    "drift": overlays.check_drift,
    "metrics": overlays.check_metrics,
    "paths": checks.check_paths,
    "card": card.check_card,
}
OF_ANY = ("files", "paths")  # the checks that can go on where the configs cannot be read
PROBE = ("-m", "bundle_tools.probe")


def find_bundle(name: str) -> Path:
    """The folder of a bundle, given by its name in this collection or by a path.

    Raises:
        DataError: when there is no such bundle.
    """
    for folder in (Path(name), BUNDLES / name):
        if (folder / "configs").is_dir():
            return folder.resolve()
    raise DataError(
        f"{name}: expected the folder of a bundle, which holds configs, or one of {', '.join(bundle_names(BUNDLES))}."
    )


def static_checks(bundle: Bundle) -> Found:
    """The checks that run none of the bundle's code."""
    found: Found = {}
    for name, check in CHECKS.items():
        possible = check if name in OF_ANY or not bundle.faults else CHECKS["configs"]
        found[name] = run_check(lambda check=possible: (check(bundle), ""), "this check cannot go on")
    if not found["requirements"]["faults"] and (source := checks.pins(bundle)[1]) != "requirements.txt":
        found["requirements"]["note"] = f"as in {source}"
    return found


def running_checks(bundle: Bundle, run_commands: bool) -> Found:
    """The checks that run the bundle's code, in a process of their own."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        output, log, before = work / "found.json", work / "log", {}
        command = [sys.executable, *PROBE, "--output", str(output)]
        if run_commands:
            try:
                labels = bundle.config("train").get("labels", {})
                command += ["--data", json.dumps(write_sample(work / "data", task_of(bundle.metadata), labels))]
            except ValueError as e:
                before["commands"] = Result(faults=[], note=f"not run: {e}", seconds=0)
        path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH")]))
        # no byte code is left in the folder
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": path}
        with log.open("wb") as file:
            options = {"cwd": bundle.folder, "env": environment, "stdout": file, "stderr": file}
            status = subprocess.run(command, **options, check=False).returncode
        found: Found = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
        if status or "properties" not in found:  # the last check; the code may end the process as if all were well
            last = (log.read_text(encoding="utf-8", errors="replace").splitlines() or [""])[-1]
            done = ", ".join(found) or "nothing"
            fault = f"the process that runs the bundle's code ended with status {status}, done is {done}: {last[:300]}"
            found["process"] = Result(faults=[fault], note="", seconds=0)
    return before | found


def verify(folder: Path, run_commands: bool = True) -> Found:
    """All checks of a bundle. The bundle's code does not run where its configs are no JSON, or lack what it needs."""
    bundle = Bundle(folder)
    found = static_checks(bundle)
    if not found["configs"]["faults"] and not found["metadata"]["faults"] and "inference" in bundle.configs:
        found |= running_checks(bundle, run_commands)
    return found


def table(results: dict[str, Found]) -> str:
    """A row a check, a column a bundle: what was found, or the number of faults."""

    def cell(result: Result | None) -> str:
        if result is None:
            return "not run"
        faults = len(result["faults"])
        return f"{faults} FAULT{'S' if faults > 1 else ''}" if faults else result["note"] or "ok"

    rows = dict.fromkeys(name for found in results.values() for name in found)
    return text_table([{"": check} | {k: cell(found.get(check)) for k, found in results.items()} for check in rows])


def main(*bundles: str, run_commands: bool = True, output: str = "", jobs: Annotated[int, Whole(1)] = 1) -> None:
    """Verify bundles, show a table, and end with status 1 where something is wrong, each fault in a line.

    It needs no network and changes nothing in the folders. A bundle takes about a minute on two cores, and a third of
    that without the commands.

    Args:
        bundles: names in this collection, or folders of any bundles, packed or not; all of the collection by default.
        run_commands: run those of the model cards too, at the size of the demo and on synthetic data.
        output: a JSON file with all that was found.
        jobs: bundles at a time.
    """
    folders = [find_bundle(name) for name in bundles or bundle_names(BUNDLES)]
    check = partial(verify, run_commands=run_commands)
    with ThreadPoolExecutor(jobs) as pool:
        verified = list(tqdm(pool.map(check, folders), total=len(folders), desc="verifying", unit="bundle"))
    alone = len({folder.name for folder in folders}) == len(folders)
    results = {folder.name if alone else str(folder): f for folder, f in zip(folders, verified, strict=True)}
    print(table(results))
    if output:
        write_json(output, results)
    faults = [
        f"{bundle}: {check}: {fault}"
        for bundle, found in results.items()
        for check, result in found.items()
        for fault in result["faults"]
    ]
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    run_command(main)
