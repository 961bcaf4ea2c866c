from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from commands import PYTHON

from shared.utils import rank_watch
from shared.utils.rank_watch import FIRST, RankProgress, RankWatch, Seen, standing_still


def at(place: list[int], heard: float = 100, moved: float = 0, waits: bool = False, limit: float = 10) -> Seen:
    return Seen({"place": place, "waits": waits, "limit": limit}, heard, moved)


@pytest.mark.parametrize(
    ("ranks", "named"),
    [
        ([at([1, 4, 2]), at([1, 4, 0])], [1]),  # both stand; the second has not come as far
        ([at([1, 4, 2]), at([1, 4, 0], moved=95)], []),  # it moves
        ([at([1, 4, 2]), at([1, 4, 0], limit=200)], []),  # it may take as long
        ([at([1, 4, 2], moved=99), at([1, 4, 2])], [1]),  # of a share that is not waited for yet
        ([at([1, 4, 2]), at([1, 4, 2])], [0, 1]),
        ([at([1, 4, -1], waits=True), at([1, 4, -1], waits=True)], []),  # what follows an epoch takes its time
        ([at([1, 4, 2]), at([1, 4, -1], waits=True)], [1]),  # but not where the others have gone on
        ([at([1, 4, 2], moved=99), at([1, 9, 0], heard=80, moved=99)], [1]),  # it does not answer
        ([at([0, 0]), at([-1], waits=True), at([0, 1], waits=True)], [1]),
        ([at([1, 4, 2])], [0]),
        ([], []),
    ],
)
def test_who_is_waited_for_in_vain(ranks: list[Seen], named: list[int]) -> None:
    assert standing_still(dict(enumerate(ranks)), now=100, silence=15) == named


def test_a_step_may_take_three_times_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = RankProgress()
    limits = []
    for seconds, kind, done in [(9, "step", False), (4, "step", True), (1, "step", True), (70, "case", False)]:
        now += seconds
        progress.move(kind, (1,), "", done)
        limits.append(progress.status(5)["limit"])
    assert limits == [FIRST, 12, 12, FIRST]
    progress.move("step", (1,), "")
    assert progress.status(5)["limit"] == 12
    assert progress.status(30)["limit"] == 30


def test_waiting_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = RankProgress()
    for seconds, waits in [(0, False), (2, True), (900, False), (3, False)]:
        now += seconds
        progress.move("step", (1,), "", done=seconds > 0, waits=waits)
    assert progress.status(1)["limit"] == 9


# Steps of so many seconds, each behind a barrier; a rank may stop in the fifth, as a process or in its code.
RANK = """
import os, signal, sys, time
import torch.distributed as dist
from shared.utils import join_process_group, leave_process_group, progress, show_errors_briefly

seconds, timeout, fault = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
show_errors_briefly()
join_process_group(rank_timeout=timeout)
os.write(1, f"{os.getpid()}\\n".encode())  # in one piece
for step in range(8 if fault else 3):
    progress.move("step", (1, step, 0), f"after {step} steps")
    time.sleep(seconds)
    if step == 5 and dist.get_rank() == 1 and fault:
        os.kill(os.getpid(), signal.SIGSTOP) if fault == "stop" else time.sleep(1000)
    progress.move("step", (1, step, 1), f"after {step} steps, in a collective")
    dist.barrier()
    progress.move("step", (1, step + 1, -1), f"after {step + 1} steps", done=True)
leave_process_group()
os.write(1, b"done\\n")
"""


def watched(folder: Path, seconds: float, timeout: float, fault: str) -> tuple[int, str, str, float]:
    """Status of torchrun, what was printed, and the seconds until a rank was named."""
    (folder / "rank.py").write_text(RANK)
    launcher = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "rank.py", str(seconds), str(timeout), fault]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        pids = [int(process.stdout.readline()) for _ in range(2)]
        start, error = time.monotonic(), ""
        while fault and "Error: " not in error and (line := process.stderr.readline()):
            error += line
        took = time.monotonic() - start
        if fault:
            for pid in pids:  # torchrun gives a rank that does not answer half a minute
                if Path(f"/proc/{pid}").exists():
                    os.kill(pid, signal.SIGCONT)
        out, rest = process.communicate(timeout=60)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    return process.returncode, out, error + rest, took


@pytest.mark.parametrize("fault", [pytest.param("stop", marks=pytest.mark.slow), "hang"])
def test_a_rank_that_stands_still_is_named_and_the_run_ends(tmp_path: Path, fault: str) -> None:
    status, _, error, took = watched(tmp_path, 0.1, 2, fault)
    assert status != 0
    assert error.count("Error: rank 1 of 2 has stood still for ") == 1
    assert re.search(r" s, after [3-5] steps", error)  # as was said last
    assert ("its process does not answer" in error) == (fault == "stop")
    assert "; all end. A training goes on from its last checkpoint with --resume true." in error
    assert took < 20


def test_a_store_that_hangs_with_its_process_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It is in rank 0 where torchrun has none of its own."""
    now = [0.0]

    def hang(self: RankWatch) -> None:
        now[0] += 60
        raise RuntimeError("wait timeout after 60000ms")

    def end(status: int) -> None:
        raise SystemExit(status)

    watch = RankWatch.__new__(RankWatch)
    watch.ended, watch.interval, watch.patience = threading.Event(), 0.0, 200.0
    monkeypatch.setattr(RankWatch, "tick", hang)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(rank_watch.time, "monotonic", lambda: now[0])
    with pytest.raises(SystemExit):
        watch.run()
    assert (
        "Error: the process through which the ranks talk has not answered for 240 s; all end."
        in capsys.readouterr().err
    )


def test_a_slow_run_that_moves_is_left_alone(tmp_path: Path) -> None:
    status, out, error, _ = watched(tmp_path, 2, 1, "")
    assert status == 0, error
    assert out.count("done") == 2
    assert "stood still" not in error
