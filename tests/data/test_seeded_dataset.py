from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.transforms import Compose, Lambda, RandFlipd, RandGaussianNoise, RandScaleIntensity, RandSpatialCropd

from shared.data import DomainBalancedSampler, SeededDataset, ShuffledSampler, TileSampler

DATA = [torch.full((1,), float(i)) for i in range(6)]


def transform() -> Compose:
    return Compose([Lambda(lambda x: x + 1), RandGaussianNoise(prob=1.0), RandScaleIntensity(factors=0.5, prob=0.5)])


def epochs(dataset: SeededDataset, epochs: Sequence[int], num_workers: int = 0, batch_size: int = 2) -> list[float]:
    """The values that come in these epochs, of workers that outlive them."""
    sampler = ShuffledSampler(dataset, num_samples=10)
    options = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler, **options)
    found = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        found += [value for batch in loader for value in batch.flatten().tolist()]
    return found


@pytest.mark.parametrize("kind", [Dataset, CacheDataset])
def test_draws_depend_on_seed_epoch_and_index_alone(kind: type) -> None:
    whole = epochs(SeededDataset(kind(DATA, transform()), seed=4), (1, 2, 3))
    for workers, batch_size in ((0, 1), (1, 2), (2, 2), (2, 1), (1, 4)):
        dataset = SeededDataset(kind(DATA, transform()), seed=4)
        assert epochs(dataset, (2, 3), workers, batch_size) == whole[10:]  # without the epoch before
    noise = whole + epochs(SeededDataset(kind(DATA, transform()), seed=5), (1,))
    assert len(set(noise)) == len(noise)


def test_an_item_that_comes_again_draws_anew() -> None:
    dataset = SeededDataset(Dataset(DATA, transform()))
    assert len(dataset) == 6
    assert dataset[1, 2] == dataset[1, 2]
    assert len({dataset[draw].item() for draw in ((1, 2), (1, 8), (1, 14), (2, 2))}) == 4
    assert abs(dataset[1, 8].item() - 3) < 6  # the third item, with noise


def test_every_transform_has_draws_of_its_own() -> None:
    """The parts of transforms too; MONAI's share one generator by default."""
    transform = Compose([RandFlipd("x", prob=0.5, spatial_axis=0), RandSpatialCropd("x", 2), RandFlipd("x", prob=0.5)])
    other = Compose([RandFlipd("x", prob=0.5)])
    dataset = SeededDataset(Dataset([{"x": torch.arange(16.0).reshape(1, 4, 4)}] * 200, transform))
    SeededDataset(Dataset([], other))
    assert len({id(t.R) for t in (*transform.transforms, *other.transforms)}) == 4
    seen = [tuple(dataset[1, i]["x"].flatten().tolist()) for i in range(200)]
    assert len(set(seen)) > 9 * 2  # places of crops, flipped and not
    other.transforms[0].R.rand(5)
    assert [tuple(dataset[1, i]["x"].flatten().tolist()) for i in range(200)] == seen


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="got -1"):
        SeededDataset(Dataset(DATA), -1)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_with_a_sampler_of_its_own_is_told_what_it_lacks(shuffle: bool) -> None:
    with pytest.raises(TypeError, match=r"pairs of an epoch and an index, got \d: .* such as ShuffledSampler"):
        next(iter(DataLoader(SeededDataset(Dataset(DATA, transform())), shuffle=shuffle)))


def test_numbered_draws_are_the_same_items_each_with_a_number_of_its_own() -> None:
    domains = ["a", "a", "a", "b"]
    items = [{"kind": "mitotic", "domain": domain} for domain in domains]
    for sampler in (DomainBalancedSampler, TileSampler):
        source = domains if sampler is DomainBalancedSampler else items
        plain = [*sampler(source, num_samples=20)]
        numbered = [*sampler(source, num_samples=20, numbered=True)]
        assert [i % 4 for _, i in numbered] == plain
        for item, times in Counter(plain).items():
            assert [(epoch, i // 4) for epoch, i in numbered if i % 4 == item] == [(0, n) for n in range(times)]
        of_ranks = [sampler(source, num_samples=20, numbered=True, num_replicas=2, rank=rank) for rank in (0, 1)]
        assert sorted(i for share in of_ranks for i in share) == sorted(numbered)
