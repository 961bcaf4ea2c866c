from __future__ import annotations

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events


class SeedEpochs:
    """Make what the network draws in an epoch a function of the seed and the epoch's number alone.

    A run that is resumed at the end of an epoch then continues with the dropout masks that the uninterrupted run had;
    `SeededDataset` and its sampler see to the data. At the start of each epoch torch's generators are seeded. Ranks of
    a distributed run draw differently.

    The `DataLoader` needs a `generator` of its own: it draws a number whenever it starts its workers, and when that is
    depends on how many there are.

    Args:
        seed: the seed of the run, 0 or more.
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        entropy = torch.Generator().manual_seed(self.seed * 1_000_003 + engine.state.epoch * 1_009 + idist.get_rank())
        torch.manual_seed(int(torch.randint(2**31, (), generator=entropy)))
