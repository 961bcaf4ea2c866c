"""The bundles on a pretended CUDA device, in float16: all is where it belongs, and how often the host waits."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from small_runs import CLASSIFY, DETECT, METHODS, SEGMENT, SEGMENT_LAMBDA, configs_of, flows, training, write_data

from shared.utils import write_json

HELPERS = Path(__file__).parents[1] / "helpers"
# How often the host waits, at most: in a step of training; in a batch or case of the validation in it, of an
# evaluation, of an inference.
BUDGETS = {
    SEGMENT: (2, 6, 35, 37),  # of these seven for each slab of native planes
    SEGMENT_LAMBDA: (2, 6, 35, 37),
    CLASSIFY: (1, 2, 2, 1),
    DETECT: (1, 1, 1, 1),
}

STATISTICS = ("dsu", "style", "extrapolated")  # variants that change statistics, in every step

# Runs the workflows that it is told to, and prints what the host has waited for in each step of each engine.
SCRIPT = """
import pretended_cuda
waits = pretended_cuda.start()
import json, logging, sys
from ignite.engine import Events
from workflows import workflow

logging.basicConfig(level=logging.INFO, stream=sys.stdout)
found = []
for files, options, engines in json.loads(sys.argv[1]):
    flow = workflow(files, **options)
    for key in engines:
        engine, steps = flow.parser.get_parsed_content(key), []
        engine.add_event_handler(Events.ITERATION_STARTED, lambda engine, steps=steps: steps.append(len(waits)))
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e, steps=steps: steps.append(waits[steps.pop() :]))
        found.append(steps)
    flow.run()
print(json.dumps(found))
"""

REFUSALS = """
import pretended_cuda
waits = pretended_cuda.start()
import torch
x = torch.ones(2, device="cuda")
for wrong in (x.numpy, lambda: x + torch.ones(2), lambda: torch.ones(2)[x.long()]):
    try:
        print(wrong())
    except (RuntimeError, TypeError) as e:
        print(type(e).__name__)
with torch.autocast("cuda"):
    print((x[None] @ x[:, None]).dtype, x.device, waits)
y = torch.ones(3).to("cuda", non_blocking=True)
print(y[y > 2 * x.sum().item()].tolist(), [kind for kind, place in waits], waits[0][1])
torch.save({"x": x}, "x.pt")
"""


def run_there(library: Path, script: str, *arguments: str, **options: Any) -> str:
    """What a process with the device prints."""
    environment = os.environ | {"PRETENDED_CUDA": str(library), "PYTHONPATH": str(HELPERS)}
    done = run("-c", script, *arguments, python=sys.executable, env=environment, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_device_refuses_what_cuda_refuses(cuda_library: Path, tmp_path: Path) -> None:
    printed = run_there(cuda_library, REFUSALS, cwd=tmp_path).splitlines()
    assert printed[:3] == ["TypeError", "RuntimeError", "RuntimeError"]
    assert printed[3:] == [
        "torch.float16 cuda:0 []",
        "[] ['item', 'index by a mask', 'tolist'] <string>:14",
    ]
    with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
        torch.load(tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", map_location="cpu")["x"].tolist() == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("bundle", [SEGMENT, SEGMENT_LAMBDA, CLASSIFY, DETECT])
def test_a_bundle_in_half_precision(bundle: str, cuda_library: Path, tmp_path: Path) -> None:
    write_data(bundle, tmp_path / "data")
    printed = run_there(cuda_library, SCRIPT, json.dumps(flows(bundle, tmp_path, device="cuda", amp=True)))
    parts = ("training", "validation", "evaluation", "inference")
    for part, steps, most in zip(parts, json.loads(printed.splitlines()[-1]), BUDGETS[bundle], strict=True):
        worst = Counter(map(tuple, max(steps, key=len)))
        assert worst.total() <= most, part + "".join(f"\n{n} {kind} at {at}" for (kind, at), n in worst.items())
    for name in ("model.pt", "last.pt", "best.pt"):
        torch.load(tmp_path / name)  # where there is no GPU, as exports do


@pytest.mark.slow
def test_methods_over_several_domains_in_half_precision(cuda_library: Path, tmp_path: Path) -> None:
    write_data(CLASSIFY, tmp_path / "data")
    datalist = json.loads((tmp_path / "data" / "dataset.json").read_text())
    for i, entry in enumerate(datalist["training"]):
        entry["domain"] = ("XR", "CS")[i // 2]
    write_json(tmp_path / "data" / "dataset.json", datalist)
    options = {"device": "cuda", "amp": True, "batch_size": 4, "max_epochs": 1, "warm_up": 0, "fusestyle_p": 1}
    runs = [
        (
            configs_of(CLASSIFY, ["train"], [f"variants/{method}"]),
            training(CLASSIFY, {CLASSIFY: tmp_path / "data"}, tmp_path / method, **options),
            ["train#trainer"],
        )
        for method in (*METHODS, *STATISTICS)
    ]
    printed = run_there(cuda_library, SCRIPT, json.dumps(runs))
    for method, steps in zip((*METHODS, *STATISTICS), json.loads(printed.splitlines()[-1]), strict=True):
        waits = Counter(map(tuple, max(steps, key=len)))
        assert waits.total() <= (2 if method == "fish" else 1), f"{method}: {waits}"
        saved = torch.load(tmp_path / method / "last.pt")
        assert all(value.isfinite().all() for value in saved["model"].values()), method
        weights = [key for key in saved["model"] if key.endswith((".weight", ".bias"))]
        assert len(saved["optimizer"]["state"]) >= len(weights) > 30, method  # a step was taken


@pytest.mark.slow
def test_a_run_goes_on_in_another_precision(cuda_library: Path, tmp_path: Path) -> None:
    write_data(CLASSIFY, tmp_path / "data")
    options = training(CLASSIFY, {CLASSIFY: tmp_path / "data"}, tmp_path)
    parts = [
        {"device": "cpu", "amp": False},
        {"device": "cuda", "amp": True},
        {"device": "cuda", "amp": True, "amp_dtype": "bfloat16"},
        {"device": "cuda", "amp": True},
    ]
    epochs = [
        (configs_of(CLASSIFY, ["train"]), options | part | {"max_epochs": i, "resume": i > 1}, ["train#trainer"])
        for i, part in enumerate(parts, start=1)
    ]
    *log, steps = run_there(cuda_library, SCRIPT, json.dumps(epochs)).splitlines()
    assert [len(part) for part in json.loads(steps)] == [2, 2, 2, 2]
    said = [line.partition("last.pt: ")[2] for line in log if "last.pt: " in line]
    fresh = "saved without a scale of the gradients, which are now scaled anew"
    assert said == [
        "amp was False, now it is True",
        fresh,
        "amp_dtype was float16, now it is bfloat16",
        "amp_dtype was bfloat16, now it is float16",
        fresh,
    ]
    saved = torch.load(tmp_path / "last.pt")
    assert saved["scaler"]["scale"] > 1
    assert (saved["record"]["amp"], saved["record"]["amp_dtype"]) == (True, "float16")
