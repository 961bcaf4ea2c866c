from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import ignite.distributed as idist
from torch.utils.tensorboard import SummaryWriter


class EventLog:
    """TensorBoard's scalars of a training: each step once, however often the run was interrupted.

    Handlers use it as a `SummaryWriter`; of a distributed run, rank 0 writes. Event files only grow, so their sizes,
    kept in a checkpoint, say what had been written by then: a run that goes on from it cuts off the rest, which it
    writes anew. A `purge_step` would not do: some scalars count iterations, others epochs or evaluations.

    Args:
        log_dir: folder of the event files, which are those of one run alone.
    """

    def __init__(self, log_dir: str | os.PathLike) -> None:
        self.log_dir = Path(log_dir)
        self._writer: SummaryWriter | None = None

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        if idist.get_rank() == 0:
            self._writer = self._writer or SummaryWriter(str(self.log_dir))
            self._writer.add_scalar(tag, value, step)

    def flush(self) -> None:
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        if self._writer:
            self._writer.close()
        self._writer = None

    def state_dict(self) -> dict[str, int]:
        """The size in bytes of every event file, by its name."""
        self.flush()
        return {path.name: path.stat().st_size for path in self._files()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Cut the event files back to what they were; those that were not there are removed."""
        self.close()
        for path in self._files():
            if path.name not in state:
                path.unlink()
            elif state[path.name] < path.stat().st_size:
                os.truncate(path, state[path.name])

    def _files(self) -> list[Path]:
        return sorted(self.log_dir.glob("events.out.tfevents.*"))
