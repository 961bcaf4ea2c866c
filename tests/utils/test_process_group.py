from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from commands import PYTHON, run
from workflows import torchrun

from shared.utils import DataError, gather_list, join_process_group, leave_process_group, own_cores

# A Python thread stands for gloo's: it holds on to its last tensors until it gets the interpreter's lock.
RANK = """
import sys, threading, time
import torch, torch.distributed as dist
from shared.utils import leave_process_group
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/rendezvous", rank=0, world_size=1)
freed = threading.Event()
threading.Thread(target=lambda: (time.sleep(0.1), freed.set()), daemon=True).start()
leave_process_group()
assert freed.is_set(), "the threads had no time"
assert not dist.is_initialized()
"""


def test_threads_have_time_to_free_what_they_hold(tmp_path: Path) -> None:
    result = run("-c", RANK, tmp_path)
    assert result.returncode == 0, result.stderr


def test_without_a_group_nothing_happens() -> None:
    assert not dist.is_initialized()
    leave_process_group()


def test_ranks_share_the_cores_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert own_cores() == 12
    for ranks, cores in ((4, 3), (16, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        assert own_cores() == cores
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert own_cores() == 1


def test_a_program_that_also_runs_alone_does_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    join_process_group(optional=True)
    monkeypatch.setenv("RANK", "0")  # as some clusters do, of a program of one process
    join_process_group(optional=True)
    assert not dist.is_initialized()
    assert gather_list([1, 2]) == [1, 2]


def test_several_gpus_need_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(DataError, match="begin the command with torchrun"):
        join_process_group()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_more_ranks_than_gpus(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "5"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(DataError) as caught:
        join_process_group()
    assert "2 processes here; each needs a GPU" in str(caught.value)
    assert str(caught.value).endswith("and CUDA_VISIBLE_DEVICES ('5') shows: --nproc_per_node 1.")
    assert waited == [10] * int(rank)


LATE = """
import os, sys, time, torch
from shared.utils import errors, join_process_group, show_errors_briefly
show_errors_briefly()
errors.FIRST_RANK_WAIT = float(sys.argv[1])
if os.environ["RANK"] == "0":
    time.sleep(float(sys.argv[2]))
torch.cuda.is_available, torch.cuda.device_count, torch.cuda.set_device = lambda: True, lambda: 1, print
join_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("patience", "late"), [(60, 1), (1, 60)])
def test_the_reason_is_said_once_whichever_rank_is_late(tmp_path: Path, patience: int, late: int) -> None:
    (tmp_path / "late.py").write_text(LATE)
    done = torchrun(2, tmp_path / "late.py", patience, late, timeout=50)
    assert done.returncode != 0
    assert done.stderr.count("Error: torchrun has started 2 processes here; each needs a GPU of its own") == 1


def test_nccl_is_told_the_gpu_of_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen, given = [], {}
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: given.update(backend=backend, **options))
    join_process_group()
    assert (chosen, given["backend"], given["device_id"]) == ([1], "nccl", torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the driver is too old for this torch
    join_process_group()
    assert (chosen, given["backend"]) == ([1], "gloo")


PEER = """
import os, sys
import torch.distributed as dist
from shared.utils import gather_list, show_errors_briefly
show_errors_briefly()
rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/rendezvous", rank=rank, world_size=2)
print(gather_list([rank, "x"] * (rank + 1)), flush=True)
if rank == 1:
    os._exit(9)
dist.barrier()
"""


def test_a_rank_whose_peer_is_gone_says_so(tmp_path: Path) -> None:
    command = [PYTHON, "-c", PEER, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [
        subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}, **pipes)
        for rank in range(2)
    ]
    (out, err), (other_out, _) = (rank.communicate(timeout=60) for rank in ranks)
    assert [rank.returncode for rank in ranks] == [1, 9]
    assert (out, other_out) == ("[0, 'x', 1, 'x', 1, 'x']\n", "[]\n")
    assert "Error: rank 0 of 2 stops, because another process of this run has ended" in err
    assert "Traceback" not in err
