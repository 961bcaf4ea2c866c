from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import PYTHON
from experiments import runs as bundle_runs
from experiments.runs import bundle_run, forking, kept_run, run_all

from shared.utils import DataError, write_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for Python: prints where it runs and its arguments, and fails when one of them is `--fail`."""
    path = tmp_path / "python"
    fail = "echo Error: bad label; echo E1122 in api.py; echo =====; exit 3"
    path.write_text(f'#!/bin/sh\npwd\necho "$@"\ncase "$*" in *--fail*) {fail};; esac\n')
    path.chmod(0o755)
    monkeypatch.setattr(bundle_runs.sys, "executable", str(path))
    return path


@pytest.mark.parametrize(
    ("ranks", "launcher"), [(1, ""), (2, "torch.distributed.run --standalone --nproc_per_node 2 -m ")]
)
def test_a_run_is_what_a_user_would_type(tmp_path: Path, stub: Path, ranks: int, launcher: str) -> None:
    log = tmp_path / "runs" / "train.log"
    bundle_run(tmp_path, ["configs/train.json"], log, {"seed": 1, "network_def#features": [8, 16]}, ranks)
    where, command = log.read_text().splitlines()
    assert where == str(tmp_path)
    arguments = "monai.bundle run --config_file ['configs/train.json'] --seed 1 --network_def#features [8, 16]"
    assert command == f"-m {launcher}{arguments}"


def test_none_is_given_so_that_monai_takes_it(tmp_path: Path, stub: Path) -> None:
    bundle_run(tmp_path, [], tmp_path / "train.log", {"reweighting#loss": None})
    assert (tmp_path / "train.log").read_text().endswith("--reweighting#loss $None\n")


def test_a_failed_run_gives_its_log_and_what_is_wrong(tmp_path: Path, stub: Path) -> None:
    with pytest.raises(DataError, match=r"train.log: the run failed with status 3: Error: bad label$"):
        bundle_run(tmp_path, [], tmp_path / "train.log", {"fail": 1})


def test_a_run_that_dies_in_silence_is_not_explained_by_an_earlier_attempt(tmp_path: Path, stub: Path) -> None:
    log = tmp_path / "train.log"
    log.write_bytes(b"Error: interrupted\n\xe2\x96")  # and a character of a progress bar that is cut
    stub.write_text("#!/bin/sh\nkill -9 $$\n")
    with pytest.raises(DataError, match=r"train.log: the run failed with status -9$"):
        bundle_run(tmp_path, [], log, {})


def test_a_result_is_made_once_and_checkpoints_go(tmp_path: Path) -> None:
    calls = []

    def run() -> dict[str, Any]:
        calls.append(1)
        for name in ("last.pt", "best.pt", "model.pt"):
            (tmp_path / name).touch()
        return {"dice": 0.5, "cell": ("a", "b")}

    for _ in range(2):
        assert kept_run(tmp_path, {"seed": 0}, run) == {"dice": 0.5, "cell": ["a", "b"]}
    assert len(calls) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "result.json", "settings.json"]


def test_a_run_that_failed_keeps_its_checkpoint(tmp_path: Path) -> None:
    def run() -> dict[str, Any]:
        (tmp_path / "last.pt").touch()
        raise DataError("bad label")

    with pytest.raises(DataError, match="bad label"):
        kept_run(tmp_path, {"seed": 0}, run)
    assert (tmp_path / "last.pt").is_file()
    assert not (tmp_path / "result.json").exists()


def test_a_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    kept_run(tmp_path, {"epochs": 1, "seed": 0}, dict)
    for other in ({"epochs": 2, "seed": 0}, {"seed": 0}):
        with pytest.raises(DataError, match="holds a run that differs from this one in epochs"):
            kept_run(tmp_path, other, dict)


def test_failed_runs_are_named_and_the_others_go_on(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise DataError("x/train.log: bad label")

    runs = {tmp_path / "x": fail, tmp_path / "y": lambda: {"dice": 1}}
    assert run_all(runs, minutes=1, jobs=1) == ([{"dice": 1}], ["x/train.log: bad label"])


def test_after_the_time_only_what_is_kept_is_given(tmp_path: Path) -> None:
    write_json(tmp_path / "kept" / "result.json", {"dice": 1})
    runs = {tmp_path / "new": lambda: {"dice": 0}, tmp_path / "kept": lambda: {"dice": 1}}
    assert run_all(runs, minutes=-1, jobs=2) == ([{"dice": 1}], [])


def test_an_interrupt_ends_the_runs_and_starts_no_others(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text(f'#!/bin/sh\necho $$ >> "{tmp_path}/started"\nexec sleep 60\n')
    stub.chmod(0o755)
    code = f"""
import sys
from functools import partial
from pathlib import Path
sys.path.insert(0, {str(ROOT / "scripts")!r})
from experiments.runs import bundle_run, run_all
from shared.utils import show_errors_briefly
show_errors_briefly()
sys.executable = {str(stub)!r}
work = Path({str(tmp_path)!r})
run_all({{work / name: partial(bundle_run, work, [], work / name / "log", {{}}) for name in "abc"}}, 1, 1)
"""
    process = subprocess.Popen([PYTHON, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert "Error: interrupted SIGTERM" in error
    (child,) = (tmp_path / "started").read_text().split()
    with pytest.raises(ProcessLookupError):
        os.kill(int(child), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="commands are forked on Linux alone")
def test_commands_are_forked_meanwhile_and_by_one_server_alone() -> None:
    real = sys.executable
    with forking() as python:
        assert sys.executable == python != real
        with forking() as inner:
            assert inner == sys.executable == python
        assert sys.executable == python
        assert Path(python).is_file()
    assert sys.executable == real
    assert not Path(python).exists()
