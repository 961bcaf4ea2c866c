from __future__ import annotations

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from ..data import SeededDataset


class SeedEpochs:
    """Make the random draws of an epoch a function of the seed and the epoch's number alone.

    A run that is resumed at the end of an epoch then continues with the data order, crops and dropout masks that the
    uninterrupted run had. At the start of each epoch torch's generators are seeded, and `dataset` is told the epoch,
    whose random transforms draw by it whatever the number of workers. Ranks of a distributed run draw differently.

    Args:
        seed: the seed of the run, 0 or more.
        dataset: the data set of the training, or None. Its workers are started in every epoch, as a `DataLoader` does
            unless they are persistent.
    """

    def __init__(self, seed: int, dataset: SeededDataset | None = None) -> None:
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        entropy = torch.Generator().manual_seed(self.seed * 1_000_003 + engine.state.epoch * 1_009 + idist.get_rank())
        torch.manual_seed(int(torch.randint(2**31, (), generator=entropy)))
        if self.dataset is not None:
            self.dataset.epoch = engine.state.epoch
