"""Ratios of times and of memory: alternatives that take turns in one run, and each alone in a process of its own."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from tqdm import trange

from shared.utils import DataError
from shared.utils.values import Choice

Device = Annotated[str, Choice(("cpu", "cuda"))]


def chosen_device(device: str) -> str:
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def seconds_of(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(steps: Mapping[str, Callable[[], float]], rounds: int, uncounted: int = 2) -> dict[str, np.ndarray]:
    """What each of the steps, seconds say, gives in each round; those of the first `uncounted` rounds are left out."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for i in trange(rounds + uncounted, unit="round"):
        for name in np.roll(list(steps), i):  # none of them always follows the same other
            found[name].append(steps[name]())
    return {name: np.array(values[uncounted:]) for name, values in found.items()}


def show_quartiles(name: str, values: Any, aim: float | None = None, at_least: bool = False) -> dict[str, Any]:
    """Print and give the median and the quartiles, and whether the median reaches its aim, at most or at least."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    met = aim is None or (median >= aim if at_least else median <= aim)
    said = "" if aim is None else f"   aim {aim}: {'met' if met else 'missed'}"
    print(f"{name:<50} {median:.3f} ({low:.3f} to {high:.3f}){said}")
    return {"median": float(median), "quartiles": [float(low), float(high)]}


def peak_memory(of: int = resource.RUSAGE_SELF) -> int:
    """Bytes that this process, or the largest of its children, had at most."""
    status = Path("/proc/self/status")
    if of == resource.RUSAGE_SELF and status.is_file():  # the other begins with what the parent had at most
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(of).ru_maxrss * 1024


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of one of these modules gives in a new process; arguments and result are JSON.

    Raises:
        DataError: when it fails.
    """
    call = json.dumps([function.__module__, function.__name__, arguments])
    code = (
        "import importlib, json, sys\n"
        "module, name, arguments = json.loads(sys.argv[1])\n"
        "print(json.dumps(getattr(importlib.import_module(module), name)(*arguments)))"
    )
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]))
    # Or glibc keeps large blocks that were freed, up to 8 % of the peak and another number in every run.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": path}
    command = [sys.executable, "-c", code, call]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise DataError(f"{function.__name__} has ended with status {done.returncode}; what it said stands above.")
    return json.loads(done.stdout.splitlines()[-1])
