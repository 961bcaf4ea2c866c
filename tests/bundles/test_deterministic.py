"""`variants/deterministic.json` goes with training, evaluation and inference; here, on a CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from commands import run
from small_runs import CLASSIFY, DETECT, SEGMENT, SEGMENT_LAMBDA, flows, write_data

SCRIPT = """
import json, os, sys
import torch
from monai.bundle import ConfigWorkflow
for files, options, _ in json.loads(sys.argv[1]):
    torch.use_deterministic_algorithms(False)
    flow = ConfigWorkflow(config_file=files, logging_file=False, **options)
    flow.initialize()
    flow.run()
    print("kernels", torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
print("kernels", os.environ["CUBLAS_WORKSPACE_CONFIG"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("bundle", [SEGMENT, SEGMENT_LAMBDA, CLASSIFY, DETECT])
def test_the_variant_chooses_the_kernels_of_each_flow(bundle: str, tmp_path: Path) -> None:
    write_data(bundle, tmp_path / "data")
    environment = {key: value for key, value in os.environ.items() if key != "CUBLAS_WORKSPACE_CONFIG"}
    jobs = flows(bundle, tmp_path, ["variants/deterministic"], device="cpu", amp=False)
    done = run("-c", SCRIPT, json.dumps(jobs), env=environment)
    assert done.returncode == 0, done.stderr
    said = [line.removeprefix("kernels ") for line in done.stdout.splitlines() if line.startswith("kernels ")]
    assert said == ["True False"] * 3 + [":4096:8"]
