from __future__ import annotations

import time

import torch.distributed as dist

GRACE = 0.5  # seconds; the threads need some microseconds, and the interpreter's lock


def leave_process_group() -> None:
    """Destroy the default process group, where there is one, so that the program can end.

    `destroy_process_group` alone does not end gloo's threads as long as a `DistributedDataParallel` holds the group.
    One of them may still wait for the interpreter's lock, to free the tensors of the last collective. Where the
    interpreter ends first, the process aborts ("terminate called without an active exception") behind a training that
    was all right; where the last holder of the group goes first, it waits for that thread forever, lock in hand. So
    give the threads the time.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(GRACE)
