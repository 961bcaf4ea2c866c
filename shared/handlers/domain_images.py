"""The images of one domain after the other, for handlers that look at all of them before the first is classified."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from monai.data import DataLoader
from torch.utils.data import Dataset, Subset

from ..utils import DataError

FEW = 32  # images; what is estimated on fewer is a matter of luck


class DomainImages:
    """Batches of all images of a domain, unlabelled, in a random order that is always the same.

    Args:
        dataset: a `monai.data.Dataset` over dicts with `domain`; where they name none, all are of one.
        batch_size, num_workers: of the data loader.
        timeout: of the data loader, where it has workers.
        collate_fn: of the data loader; that of the evaluator's loader, where images may be unreadable.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        num_workers: int = 0,
        timeout: float = 0,
        collate_fn: Callable | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.options: dict[str, Any] = {"num_workers": num_workers}
        self.options |= {"timeout": timeout if num_workers else 0}
        self.options |= {"collate_fn": collate_fn} if collate_fn else {}

    def domain(self, batch: Mapping[str, Any]) -> str | None:
        """The domain of a batch; None of one without a readable image.

        Raises:
            DataError: when it mixes domains.
        """
        if not _readable(batch):
            return None
        found = sorted(set(batch.get("domain", ["these images"])))
        if len(found) > 1:
            raise DataError(
                f"A batch mixes the domains {', '.join(found)}, and each is taken by itself here. Use "
                "shared.data.DomainBatchSampler."
            )
        return found[0]

    def of(self, domain: str, device: torch.device) -> Iterator[torch.Tensor]:
        """Its images, in batches, on the device."""
        own = [i for i, item in enumerate(self.dataset.data) if item.get("domain", domain) == domain]
        # Neighbours in a list are of one slide and class, and batches of them would not be alike.
        draws = torch.Generator().manual_seed(0)
        order = torch.randperm(len(own), generator=draws).tolist()
        parts = [order[i : i + self.batch_size] for i in range(0, len(own), self.batch_size)]
        if len(parts) > 1 and len(parts[-1]) == 1:  # where a map is of one pixel, batch norm does not take one image
            (last,) = parts.pop()
            parts[-1].append(last)
        for batch in DataLoader(Subset(self.dataset, own), batch_sampler=parts, generator=draws, **self.options):
            if _readable(batch):
                yield batch["image"].to(device)


def _readable(batch: Mapping[str, Any]) -> bool:
    """Whether there is an image in a batch, see `shared.data.collate_readable`."""
    return bool(batch.get("case", True))
