"""Without a GPU the checks run at a tiny size: that they do is seen here."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import check_gpu
import pytest
import torch
from commands import run
from experiments import gpu_checks
from ignite.engine import Engine

from shared.datasets.synthetic_ct import make_synthetic_ct
from shared.datasets.synthetic_histology import make_synthetic_histology

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_gpu.py"
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="on a GPU they take minutes: run scripts/check_gpu.sh"
)


def check(folder: Path, *parts: str, minutes: float = 6) -> tuple[int, str, str, dict]:
    done = run(SCRIPT, folder, "--parts", str(list(parts)), "--minutes", minutes)
    return done.returncode, done.stdout, done.stderr, json.loads((folder / "check.json").read_text())


@pytest.mark.slow
def test_steps_and_inference_are_measured(tmp_path: Path) -> None:
    make_synthetic_ct(tmp_path / "ct", 3)
    make_synthetic_histology(tmp_path / "histology", 3, 8, 1)
    status, printed, error, content = check(tmp_path, "machine", "steps", "inference", "several_gpus")
    assert status == 0, error
    assert "no GPU that torch can use: everything is tiny, on the CPU, and its times say nothing" in printed
    steps = content["parts"]["steps"]["found"]
    assert list(steps) == [f"{bundle} float32" for bundle in gpu_checks.BUNDLE_NAMES]
    assert all(values["ms"] > 0 for values in steps.values())
    assert len(content["parts"]["inference"]["found"]) == 3
    assert content["parts"]["several_gpus"]["found"] == {"left out": {"gpus": 0}}
    assert content["gpu"] is False


def test_what_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    """Here for want of data; what there is no time for is said, too."""
    status, printed, error, content = check(tmp_path, "steps", "machine")
    assert status == 1
    assert printed.count("FAILED steps, ") == len(gpu_checks.BUNDLE_NAMES)
    assert "dataset.json: no such file" in printed
    assert "Error: 4 checks failed" in error
    assert content["parts"]["machine"]["found"]["software"]["torch"] == torch.__version__
    status, _, error, content = check(tmp_path, "machine", minutes=0.01)
    assert status == 1
    assert "Left out for want of time (--minutes): machine" in error
    assert content["left_out"] == ["machine"]


@pytest.mark.parametrize("variant", [[], ["variants/deterministic"]])
def test_the_kernels_are_those_that_a_variant_asks_for(tmp_path: Path, variant: list[str]) -> None:
    before = torch.backends.cudnn.benchmark
    try:
        files = gpu_checks.configs(gpu_checks.CLASSIFY, "train", *variant)
        gpu_checks.workflow(gpu_checks.CLASSIFY, files, output_dir=str(tmp_path), ckpt_dir=str(tmp_path))
        assert torch.are_deterministic_algorithms_enabled() == bool(variant)
        assert torch.backends.cudnn.benchmark == (not variant)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = before


def test_a_part_that_takes_too_long_ends_with_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what an earlier check has left is not taken for its result."""
    script = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    popen = subprocess.Popen
    monkeypatch.setattr(
        check_gpu.subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", script], **options)
    )
    (tmp_path / "data.json").write_text('{"earlier": {"ms": 1}}')
    result = check_gpu.run_part("data", tmp_path, 2)
    assert result["faults"] == ["data: stopped after 2 s"]
    assert result["found"] == {}
    child = int((tmp_path / "data.log").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_what_is_seen_of_a_step_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what only CUDA has pretended: the host waits twice a step, and 3 GB are taken at most."""
    modes: list[str] = []
    pretended = {
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "max_memory_allocated": lambda: 3_000_000_000,
        "set_sync_debug_mode": modes.append,
    }
    for name, function in pretended.items():
        monkeypatch.setattr(torch.cuda, name, function)
    for name, value in {"CUDA": True, "WARM": 1, "TIMED": 2, "WATCHED": 2}.items():
        monkeypatch.setattr(gpu_checks, name, value)
    monkeypatch.setattr(gpu_checks, "profile", lambda **options: nullcontext())
    monkeypatch.setattr(gpu_checks, "busy", lambda profiled: 0.0)

    def step(engine: Engine, batch: int) -> None:
        if modes == ["warn"]:
            for _ in range(2):
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    engine, probe = Engine(step), gpu_checks.Probe()
    probe.attach(engine)
    engine.run(range(7), max_epochs=1)
    assert modes == ["warn", "default"]
    assert list(probe.found) == ["ms", "peak GB", "waits a step", "waits", "gpu works", "profiled ms"]
    assert (probe.found["peak GB"], probe.found["waits a step"], probe.found["gpu works"]) == (3, 2, 0)
    ((place, count),) = probe.found["waits"].items()
    assert place.startswith("test_check_gpu.py:")
    assert count == 4


def test_how_long_a_gpu_works() -> None:
    """Kernels may run side by side."""

    class Span:
        def __init__(self, start: float, end: float, device: str = "DeviceType.CUDA") -> None:
            self.time_range, self.start, self.end, self.device_type = self, start, end, device

    class Profiled:
        def events(self) -> list[Span]:
            return [Span(5, 9), Span(0, 2), Span(1, 3), Span(6, 7), Span(0, 100, "DeviceType.CPU")]

    assert gpu_checks.busy(Profiled()) == pytest.approx(7e-6)
