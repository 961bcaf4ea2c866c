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
from small_runs import (
    CLASSIFY,
    DETECT,
    QUICK,
    SEGMENT,
    SEGMENT_LAMBDA,
    SIZE,
    SMALL,
    configs_of,
    ct_data,
    histology_data,
    training,
)

HELPERS = Path(__file__).parents[1] / "helpers"
CT = (SEGMENT, SEGMENT_LAMBDA)
# How often the host waits, at most: in a step of training; in a batch or case of the validation in it, of an
# evaluation, of an inference.
BUDGETS = {
    SEGMENT: (5, 7, 29, 29),
    SEGMENT_LAMBDA: (5, 7, 29, 29),
    CLASSIFY: (5, 4, 4, 2),
    DETECT: (4, 2, 2, 1),
}

# Runs the workflows that it is told to, and prints what the host has waited for in each step of each engine.
SCRIPT = """
import pretended_cuda
waits = pretended_cuda.start()
import json, sys
from ignite.engine import Events
from workflows import workflow

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


def write_data(bundle: str, folder: Path) -> None:
    """The data set, and in `input` what inference gets."""
    folder.mkdir()
    if bundle in CT:
        ct_data(folder)
    else:
        histology_data(folder, 128 if bundle == DETECT else SIZE, 4, boxes=bundle == DETECT)
    (folder / "input").mkdir()
    for path in [*folder.glob("image_*"), *folder.glob("test_*.png")]:
        (folder / "input" / path.name).symlink_to(path)


def jobs(bundle: str, folder: Path) -> list[tuple[list[str], dict[str, Any], list[str]]]:
    """A training, an evaluation and an inference: config files, options, engines."""
    common = {"device": "cuda", "amp": True}
    options = training(bundle, {bundle: folder / "data"}, folder, **common)
    evaluation = {key: value for key, value in options.items() if key not in QUICK[bundle] or key.endswith("tile_size")}
    evaluation |= {"bootstrap": 1} | ({} if bundle in CT else {"batch_size": 2})
    places = {"input": str(folder / "data" / "input"), "output_dir": str(folder / "eval"), "num_workers": 0}
    inference = {**SMALL[bundle], **common, **places, "ckpt_path": str(folder / "model.pt")}
    inference |= {"mpp": 0.25, "inferer#progress": False} if bundle == DETECT else {}
    return [
        (configs_of(bundle, ["train"]), options, ["train#trainer", "validate#evaluator"]),
        (configs_of(bundle, ["train", "evaluate"]), evaluation, ["validate#evaluator"]),
        (configs_of(bundle, ["inference"]), inference, ["evaluator"]),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("bundle", [SEGMENT, SEGMENT_LAMBDA, CLASSIFY, DETECT])
def test_a_bundle_in_half_precision(bundle: str, cuda_library: Path, tmp_path: Path) -> None:
    write_data(bundle, tmp_path / "data")
    printed = run_there(cuda_library, SCRIPT, json.dumps(jobs(bundle, tmp_path)))
    parts = ("training", "validation", "evaluation", "inference")
    for part, steps, most in zip(parts, json.loads(printed.splitlines()[-1]), BUDGETS[bundle], strict=True):
        worst = Counter(map(tuple, max(steps, key=len)))
        assert worst.total() <= most, part + "".join(f"\n{n} {kind} at {at}" for (kind, at), n in worst.items())
    for name in ("model.pt", "last.pt", "best.pt"):
        torch.load(tmp_path / name)  # where there is no GPU, as exports do
