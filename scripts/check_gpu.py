"""Check the bundles on this machine's GPU: right results, speed, memory, resume, exports. `check_gpu.sh` calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from command_line import run_command
from experiments import gpu_checks
from experiments.runs import ROOT

from shared.utils import DataError, write_json
from shared.utils.values import Choice, Number, Several

# Of each part the seconds that it may take, on one H200; parts of all bundles have a process for each bundle.
PARTS = {
    "machine": 15,
    "data": 60,
    "tests": 60,
    "steps": 130,
    "ratios": 70,
    "resume": 90,
    "inference": 70,
    "exports": 60,
    "several_gpus": 60,
}
FOR_EACH_BUNDLE = ("resume", "exports")


def start(part: str, folder: Path, bundle: str = "") -> subprocess.Popen:
    name = "_".join(filter(None, (part, bundle)))
    code = "import sys; from experiments.gpu_checks import run_part; run_part(*filter(None, sys.argv[1:]))"
    command = [sys.executable, "-c", code, part, str(folder), bundle]
    path = os.pathsep.join(filter(None, [str(ROOT / "scripts"), os.environ.get("PYTHONPATH")]))
    # what deterministic algorithms of cuBLAS need; with others it changes nothing
    environment = os.environ | {"PYTHONPATH": path, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    (folder / f"{name}.json").unlink(missing_ok=True)
    with (folder / f"{name}.log").open("w") as log:
        options = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **options)


def stop(process: subprocess.Popen) -> None:
    """With all that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_part(part: str, folder: Path, limit: float) -> dict[str, Any]:
    """What the part has measured, also where it did not come to its end; `faults` says what went wrong."""
    began = time.monotonic()
    bundles = gpu_checks.BUNDLE_NAMES if part in FOR_EACH_BUNDLE else ("",)
    found, faults = {}, []
    processes = {bundle: start(part, folder, bundle) for bundle in bundles}
    for bundle, process in processes.items():
        name = "_".join(filter(None, (part, bundle)))
        try:
            status = process.wait(max(0.0, limit - (time.monotonic() - began)))
            why = f"status {status}, see {folder / name}.log" if status else ""
        except subprocess.TimeoutExpired:
            why = f"stopped after {limit:.0f} s"
        except BaseException:
            for one in processes.values():
                stop(one)
            raise
        stop(process)
        faults += [f"{name}: {why}"] if why else []
        file = folder / f"{name}.json"
        measured = json.loads(file.read_text()) if file.is_file() else {}
        faults += [f"{name}, {key}: {value['failed']}" for key, value in measured.items() if "failed" in value]
        found |= measured
    return {"seconds": round(time.monotonic() - began, 1), "faults": faults, "found": found}


def show(part: str, result: dict[str, Any]) -> None:
    print(f"\n=== {part} ({result['seconds']:.0f} s)")
    for name, values in result["found"].items():
        print(f"{name:<48}" + "  ".join(f"{key} {gpu_checks.text_of(value)}" for key, value in values.items()))
    for fault in result["faults"]:
        print(f"FAILED {fault}")
    sys.stdout.flush()


def main(
    output_dir: str = "gpu_check",
    /,
    minutes: Annotated[float, Number(above=0)] = 6.0,
    parts: Annotated[Sequence[str], Several(Choice(tuple(PARTS)))] = tuple(PARTS),
) -> None:
    """Check the bundles on this machine's GPU, part by part; the results stand in OUTPUT_DIR/check.json as they come.

    The tests that need a GPU; a training step of each bundle at full size in float32, float16 and bfloat16 (time, peak
    memory, how often and where the host waits, share of the time in which the GPU works); what FuseStyle and Lambda3D
    cost; resume, as configured and with deterministic algorithms; a CT and a region; exports; with two GPUs, a training
    on both. Without a GPU all of it is tiny and on the CPU: it shows that the checks run, and its times say nothing.

    Args:
        output_dir: where everything goes; what earlier checks left there is replaced.
        minutes: after which what is not done yet is left out.
        parts: in this order; most need the data.
    """
    folder = Path(output_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not torch.cuda.is_available():
        print("This machine has no GPU that torch can use: everything is tiny, on the CPU, and its times say nothing.")
    began, results, missing = time.monotonic(), {}, []
    for part in parts:
        left = 60 * minutes - (time.monotonic() - began)
        if left < 5:
            missing.append(part)
            continue
        results[part] = run_part(part, folder, min(left, gpu_checks.SLOWER * PARTS[part]))
        write_json(folder / "check.json", {"gpu": torch.cuda.is_available(), "parts": results, "left_out": missing})
        show(part, results[part])
    write_json(folder / "check.json", {"gpu": torch.cuda.is_available(), "parts": results, "left_out": missing})
    print(f"\nresults: {folder / 'check.json'}, after {(time.monotonic() - began) / 60:.1f} minutes")
    faults = sum(len(result["faults"]) for result in results.values())
    if faults or missing:
        left_out = f" Left out for want of time (--minutes): {', '.join(missing)}." if missing else ""
        raise DataError(f"{faults} checks failed, they are named above.{left_out}")


if __name__ == "__main__":
    run_command(main)
