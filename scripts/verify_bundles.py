"""Verify bundles: all that the model zoo's own tests ask for, and what this collection asks for beyond it. Offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import fire
from bundle_tools.bundle import ROOT, one_line
from bundle_tools.card import check_card
from bundle_tools.checks import (
    Check,
    check_changelog,
    check_files,
    check_json,
    check_metadata,
    check_paths,
    check_requirements,
    pins,
)
from bundle_tools.overlays import check_drift, check_metrics, check_overlays, check_references
from experiments.runs import at_least
from tqdm import tqdm

from shared.utils import DataError, flag, show_errors_briefly, text_table, write_json

# In the order of the table; those of bundle_tools/probe.py, which run the bundle's code, come behind.
CHECKS: dict[str, Check] = {
    "files": check_files,
    "configs": check_json,
    "metadata": check_metadata,
    "changelog": check_changelog,
    "requirements": check_requirements,
    "references": check_references,
    "overlays": check_overlays,
    "drift": check_drift,
    "metrics": check_metrics,
    "paths": check_paths,
    "card": check_card,
}
PROBE = ("-m", "bundle_tools.probe")
Found = dict[str, dict[str, Any]]  # by the name of the check: faults, note, seconds


def own_bundles() -> list[str]:
    """The names of the bundles in this collection."""
    return sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/metadata.json"))


def find_bundle(name: str) -> Path:
    """The folder of a bundle, given by its name in this collection or by a path.

    Raises:
        DataError: when there is no such bundle.
    """
    for folder in (Path(name), ROOT / "bundles" / name):
        if (folder / "configs").is_dir():
            return folder.resolve()
    raise DataError(
        f"{name}: expected the folder of a bundle, which holds configs, or one of {', '.join(own_bundles())}."
    )


def static_checks(bundle: Path) -> Found:
    """The checks that run none of the bundle's code."""
    found: Found = {}
    for name, check in CHECKS.items():
        start = time.monotonic()
        try:
            faults = check(bundle)
        except Exception as e:  # of content that no check expects; the other checks go on
            faults = [f"this check cannot go on: {one_line(e)}"]
        found[name] = {"faults": faults, "note": "", "seconds": round(time.monotonic() - start, 1)}
    if not found["requirements"]["faults"] and (source := pins(bundle)[1]) != "requirements.txt":
        found["requirements"]["note"] = f"as in {source}"
    return found


def running_checks(bundle: Path, run_commands: bool) -> Found:
    """The checks that run the bundle's code, in a process of their own."""
    with tempfile.TemporaryDirectory() as name:
        output, log = Path(name) / "found.json", Path(name) / "log"
        command = [sys.executable, *PROBE]
        command += ["--output", str(output), "--run_commands", str(run_commands)]
        path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH")]))
        # no byte code is left in the folder
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": path}
        with log.open("wb") as file:
            status = subprocess.run(
                command, cwd=bundle, env=environment, stdout=file, stderr=file, check=False
            ).returncode
        found: Found = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
        if status or "properties" not in found:  # the last check; the code may end the process as if all were well
            last = (log.read_text(encoding="utf-8", errors="replace").splitlines() or [""])[-1]
            done = ", ".join(found) or "nothing"
            fault = f"the process that runs the bundle's code ended with status {status}, done is {done}: {last[:300]}"
            found["process"] = {"faults": [fault], "note": "", "seconds": 0}
    return found


def verify(bundle: Path, run_commands: bool = True) -> Found:
    """All checks of a bundle. The bundle's code does not run where its configs are no JSON, or lack what it needs."""
    found = static_checks(bundle)
    readable = not found["configs"]["faults"] and not found["metadata"]["faults"]
    if readable and (bundle / "configs" / "inference.json").is_file():
        found |= running_checks(bundle, run_commands)
    return found


def table(results: dict[str, Found]) -> str:
    """A row a check, a column a bundle: what was found, or the number of faults."""

    def cell(result: dict[str, Any] | None) -> str:
        if result is None:
            return "not run"
        faults = len(result["faults"])
        return f"{faults} FAULT{'S' if faults > 1 else ''}" if faults else result["note"] or "ok"

    checks = dict.fromkeys(name for found in results.values() for name in found)
    return text_table([{"": check} | {k: cell(found.get(check)) for k, found in results.items()} for check in checks])


def main(*bundles: str, run_commands: bool = True, output: str = "", jobs: int = 1) -> None:
    """Verify bundles, show a table, and end with status 1 where something is wrong, each fault in a line.

    It needs no network and changes nothing in the folders. A bundle takes about a minute on two cores, and a third of
    that without the commands.

    Args:
        bundles: names in this collection, or folders of any bundles, packed or not; all of the collection by default.
        run_commands: run those of the model cards too, at the size of the demo and on synthetic data.
        output: a JSON file with all that was found.
        jobs: bundles at a time.
    """
    at_least(1, jobs=jobs)
    folders = [find_bundle(str(name)) for name in bundles or own_bundles()]
    check = partial(verify, run_commands=flag("run_commands", run_commands))
    with ThreadPoolExecutor(jobs) as pool:
        found = list(tqdm(pool.map(check, folders), total=len(folders), desc="verifying", unit="bundle"))
    alone = len({folder.name for folder in folders}) == len(folders)
    results = {folder.name if alone else str(folder): f for folder, f in zip(folders, found, strict=True)}
    print(table(results))
    if output:
        write_json(output, results)
    faults = [
        f"{bundle}: {check}: {fault}"
        for bundle, checks in results.items()
        for check, result in checks.items()
        for fault in result["faults"]
    ]
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    show_errors_briefly()
    fire.Fire(main)
