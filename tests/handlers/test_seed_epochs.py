from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, RandGaussianNoise, RandScaleIntensity

from shared.data import SeededDataset, ShuffledSampler
from shared.handlers import SeedEpochs


def draws(seed: int, num_workers: int, first_epoch: int = 0, disturb: Callable[[], object] | None = None) -> dict:
    """What each epoch saw: the order of the data, its random transforms, and a draw in the step."""
    transform = Compose([RandGaussianNoise(prob=1.0), RandScaleIntensity(factors=0.5, prob=0.5)])
    dataset = SeededDataset(Dataset([torch.full((1,), float(i)) for i in range(6)], transform), seed)
    sampler = ShuffledSampler(dataset, seed=seed)
    options = {"num_workers": num_workers, "persistent_workers": num_workers > 0, "generator": torch.Generator()}
    loader = DataLoader(dataset, batch_size=2, sampler=sampler, **options)
    seen: dict[int, list[float]] = {}

    def step(engine: Engine, batch: torch.Tensor) -> None:
        seen.setdefault(engine.state.epoch, []).extend([*batch.flatten().tolist(), torch.rand(()).item()])

    engine = Engine(step)
    SeedEpochs(seed).attach(engine)
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: sampler.set_epoch(engine.state.epoch))
    if first_epoch:
        engine.load_state_dict({"epoch": first_epoch, "max_epochs": 4, "epoch_length": 3})
    if disturb:
        disturb()
    engine.run(loader, max_epochs=4)
    return seen


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_draws_what_the_whole_one_drew(num_workers: int) -> None:
    whole = draws(seed=1, num_workers=num_workers)
    resumed = draws(seed=1, num_workers=num_workers, first_epoch=2, disturb=lambda: torch.rand(17))
    assert resumed == {epoch: whole[epoch] for epoch in (3, 4)}


def test_a_resumed_run_may_have_other_workers() -> None:
    whole = draws(seed=1, num_workers=0)
    for workers in (1, 2):
        resumed = draws(seed=1, num_workers=workers, first_epoch=2)
        assert resumed == {epoch: whole[epoch] for epoch in (3, 4)}


def test_epochs_and_seeds_differ() -> None:
    first, second = draws(seed=1, num_workers=0), draws(seed=2, num_workers=0)
    everything = [tuple(values) for run in (first, second) for values in run.values()]
    assert len(set(everything)) == len(everything)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="got -1"):
        SeedEpochs(-1)
