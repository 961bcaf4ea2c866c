from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from monai.transforms import Compose, Randomizable, Transform
from torch.utils.data import Dataset

from ..utils import DataError


@runtime_checkable
class TakesClasses(Protocol):
    """A transform that is told, for each case anew, the class that each of its crops is for."""

    asked_classes: tuple[int, ...]


class SeededDataset(Dataset):
    """A data set whose random transforms draw by the seed, the epoch and the item's index alone.

    What an item becomes then depends neither on the number of worker processes nor on what was drawn before, so that a
    run can be resumed with other workers, and workers can outlive an epoch.

    It is indexed by pairs of an epoch and an index, which come from its sampler: `ShuffledSampler`, or another one of
    this room with `numbered`. An index beyond the length stands for a further draw of an item in the same epoch:
    `index + length × how often it came before`. A `RuleSampler` adds the classes of the crops, as a third; they go to
    the transform that `TakesClasses`. So workers do what the main process has planned, and share nothing with it.

    Args:
        dataset: with a `transform`, MONAI's or one's own; its random transforms are MONAI's `Randomizable`.
        seed: 0 or more.

    Raises:
        ValueError: for a negative seed.
        TypeError: when indexed by anything but such pairs, as by a loader with a sampler of torch's own.
        DataError: when the sampler hands out classes and no transform takes them, or the other way round.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self.dataset, self.seed = dataset, seed
        self._drawing = list({id(found): found for found in _randomizable(dataset.transform)}.values())
        for transform in self._drawing:
            transform.set_random_state(0)  # a generator of its own: MONAI's transforms share one
        self._told = [transform for transform in self._drawing if isinstance(transform, TakesClasses)]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: tuple[int, int] | tuple[int, int, tuple[int, ...]]) -> Any:
        if not isinstance(draw, tuple):
            raise TypeError(
                f"a SeededDataset is indexed by pairs of an epoch and an index, got {draw!r}: give its loader a "
                "sampler that makes them, such as ShuffledSampler."
            )
        epoch, index, *classes = draw
        self._tell(classes)
        seeds = np.random.SeedSequence((self.seed, epoch, index)).generate_state(len(self._drawing))
        for transform, seed in zip(self._drawing, seeds.tolist(), strict=True):
            transform.R.seed(seed)  # a new generator each time would take five times as long
        return self.dataset[index % len(self.dataset)]

    def _tell(self, classes: list[tuple[int, ...]]) -> None:
        if len(classes) != bool(self._told):
            found = "hands out classes, which no transform takes" if classes else "hands out no classes, which"
            takers = "" if classes else f" {type(self._told[0]).__name__} needs"
            raise DataError(
                f"The sampler {found}{takers}. shared.data.RuleSampler and shared.transforms.CropAroundClassesd go "
                "together, as in variants/cbs_sampling.json; lay no overlay over it that replaces one of them."
            )
        for transform in self._told:
            transform.asked_classes = classes[0]


def _randomizable(part: Any) -> Iterator[Randomizable]:
    """The transforms in a transform that draw, itself included; those that it is made of come after it."""
    if isinstance(part, Randomizable):
        yield part
    if isinstance(part, list | tuple):
        inner = part
    else:
        inner = vars(part).values() if isinstance(part, Transform | Compose | Randomizable) else ()
    for one in inner:
        yield from _randomizable(one)
