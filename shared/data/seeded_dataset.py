from __future__ import annotations

from typing import Any

import numpy as np
from monai.data.utils import set_rnd
from torch.utils.data import Dataset


class SeededDataset(Dataset):
    """A data set whose random transforms draw by the seed, the epoch and the item's index alone.

    What an item becomes then depends neither on the number of worker processes nor on what was drawn before, so that a
    run can be resumed with other workers. `shared.handlers.SeedEpochs` sets the epoch.

    An index beyond the length stands for a further draw of an item, in the same epoch: `index + length × how often it
    came before`, as `DomainBalancedSampler` gives them with `numbered`.

    Args:
        dataset: with a `transform`, MONAI's or one's own; its random transforms are MONAI's `Randomizable`.
        seed: 0 or more.

    Attributes:
        epoch: the number of the epoch.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        state = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1)
        set_rnd(self.dataset.transform, int(state[0]))
        return self.dataset[index % len(self.dataset)]
