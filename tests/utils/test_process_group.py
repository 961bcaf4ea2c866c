from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch.distributed as dist

from shared.utils import leave_process_group

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
    command = [sys.executable, "-c", RANK, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_without_a_group_nothing_happens() -> None:
    assert not dist.is_initialized()
    leave_process_group()
