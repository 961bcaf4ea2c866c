from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .device import visible_gpus
from .errors import DataError, wait_for_first_rank
from .rank_watch import start_watch, stop_watch

GRACE = 0.5  # seconds; the threads need some microseconds, and the interpreter's lock
# How long a rank waits for another: in training, for the preprocessing of all cases before the first step; where inputs
# are shared out, for whole slides. A rank that has ended is noticed at once, by torchrun and by its closed connections,
# one that hangs, only after this time.
PATIENCE, PATIENCE_WITH_INPUTS = timedelta(hours=2), timedelta(days=1)


def join_process_group(optional: bool = False, rank_timeout: float = 0) -> None:
    """Join the processes that torchrun has started, each on a GPU of its own where there are GPUs.

    A process that is in a group already stays in it.

    Args:
        optional: for a program that runs alone as well. Without torchrun nothing happens. With it the ranks, of which
            there may be more than GPUs, can exchange what is in the main memory alone, and leave the group at the end
            of the program by themselves.
        rank_timeout: seconds after which a rank that stands still is named and all ranks end, but at least three times
            what a step has taken; 0: never.

    Raises:
        DataError: unless `optional`, without torchrun, or where it has started more processes than there are GPUs.
    """
    if optional and not (dist.is_available() and dist.is_torchelastic_launched()):
        return
    if dist.is_initialized():
        return
    if "RANK" not in os.environ:
        raise DataError(
            "multi_gpu_train.json and multi_gpu_evaluate.json are for processes that torchrun starts: begin the "
            "command with torchrun --standalone --nproc_per_node 2 -m monai.bundle, or leave the overlay out."
        )
    # as the configurations do: GPUs can be counted whose driver is too old for this torch
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if gpus:
        torch.cuda.set_device(local_rank % gpus)
    if optional or not gpus:
        dist.init_process_group("gloo", timeout=PATIENCE_WITH_INPUTS if optional else PATIENCE)
    else:
        _check_gpus(local_rank, gpus)
        # which lets NCCL connect now, and not within the first step
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=torch.device("cuda", local_rank))
    start_watch(rank_timeout)
    if optional:
        atexit.register(leave_process_group)


def _check_gpus(local_rank: int, gpus: int) -> None:
    """Raise a `DataError` in a rank that has no GPU to itself."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
    if ranks <= gpus:
        return
    wait_for_first_rank(local_rank)
    raise DataError(
        f"torchrun has started {ranks} processes here; each needs a GPU of its own, expected as many as this machine "
        f"has{visible_gpus()}: --nproc_per_node {gpus}."
    )


def own_cores() -> int:
    """How many cores this machine has for each process of a run, at least 1."""
    # Not every system tells how many of its cores this process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def gather_list(part: Sequence[Any]) -> list[Any]:
    """The lists of all ranks, that of rank 0 first, on rank 0, and an empty one on the others; alone, `part`."""
    if not (dist.is_available() and dist.is_initialized()):
        return list(part)
    parts = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(list(part), parts)
    return [item for of_rank in parts or [] for item in of_rank]


def share_list(items: Sequence[Any] | None) -> list[Any]:
    """The list of rank 0, on all ranks; the others give None."""
    if not (dist.is_available() and dist.is_initialized()):
        return list(items)
    shared = [items]
    dist.broadcast_object_list(shared)
    return list(shared[0])


def leave_process_group() -> None:
    """Destroy the default process group, where there is one, so that the program can end.

    `destroy_process_group` alone does not end gloo's threads as long as a `DistributedDataParallel` holds the group.
    One of them may still wait for the interpreter's lock, to free the tensors of the last collective. Where the
    interpreter ends first, the process aborts ("terminate called without an active exception") behind a training that
    was all right; where the last holder of the group goes first, it waits for that thread forever, lock in hand. So
    give the threads the time.

    All work is done by now: a SIGTERM, which torchrun sends when another rank has failed, ends the process without a
    word about it.
    """
    if dist.is_available() and dist.is_initialized():
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        stop_watch()
        dist.destroy_process_group()
        time.sleep(GRACE)
