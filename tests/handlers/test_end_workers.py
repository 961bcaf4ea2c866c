from __future__ import annotations

import multiprocessing

import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader

from shared.handlers import EndWorkers


def test_workers_end_with_the_run_and_start_with_the_next() -> None:
    loader = DataLoader(torch.arange(4), batch_size=2, num_workers=2, persistent_workers=True)
    seen: list[list[int]] = []
    alive: list[int] = []
    engine = Engine(lambda engine, batch: seen.append(batch.tolist()))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: alive.append(len(multiprocessing.active_children())))
    EndWorkers().attach(engine)
    for _ in range(2):
        engine.run(loader, max_epochs=2)
        assert multiprocessing.active_children() == []
    assert alive == [2] * 4
    assert seen == [[0, 1], [2, 3]] * 4
    engine.run([torch.tensor([4])])  # what is no loader has none
    assert seen[-1] == [4]
