"""Which items of a data set are drawn, in which order, and by which rank."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Sized

import ignite.distributed as idist
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, Sampler

from ..utils import DataError
from .region_tiles import TILE_KINDS, TileItem

TILE_SHARES = {"mitotic": 0.5, "non_mitotic": 0.3, "empty": 0.2}
"""How often tiles around figures, around hard negatives and of other tissue are drawn, by default."""


class DomainBalancedSampler(DistributedSampler):
    """Draws as many items of each domain as of any other; their order makes every batch balanced too.

    Of a large domain a part is drawn, another part each epoch, and items of a small one come more than once. The
    order follows `seed` and the epoch's number, which MONAI's engines set. In a distributed run each rank gets a share
    of its own, balanced likewise.

    Args:
        domains: the domain of each item of the data set.
        seed: 0 or more.
        num_replicas, rank: of a distributed run; those of the running one by default.
        num_samples: draws in an epoch, of all ranks together, rounded up so that domains and ranks have equal parts;
            by default as many as there are items.
        numbered: yield what a `SeededDataset` takes in place of an index: a pair of the epoch's number and the index,
            which grows by the number of items each time that the item comes again.

    Raises:
        ValueError: when there is no item, or `num_samples` is less than 1.
    """

    def __init__(
        self,
        domains: Sequence[str],
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        num_samples: int | None = None,
        numbered: bool = False,
    ) -> None:
        if not len(domains):
            raise ValueError("there is no item to draw from")
        total = len(domains) if num_samples is None else num_samples
        if total < 1:
            raise ValueError(f"num_samples must be 1 or more, got {num_samples}")
        num_replicas = idist.get_world_size() if num_replicas is None else num_replicas
        rank = idist.get_rank() if rank is None else rank
        super().__init__(domains, num_replicas, rank, seed=seed)
        members = _members(domains)
        self.members = [torch.tensor(members[domain]) for domain in sorted(members)]
        per_domain = -(-total // len(self.members))
        self.per_domain = -(-per_domain // num_replicas)  # on each rank
        self.num_samples = self.per_domain * len(self.members)
        self.total_size = self.num_samples * num_replicas
        self.step = len(domains) if numbered else 0

    def __iter__(self) -> Iterator[int] | Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        count = self.per_domain * self.num_replicas
        columns = [self._draw(own, count, generator) for own in self.members]
        drawn = torch.stack(columns, dim=1)  # a row holds one of each domain
        if self.step:
            drawn += self.step * _times_before(drawn)
        own = drawn[self.rank :: self.num_replicas].flatten().tolist()
        return ((self.epoch, index) for index in own) if self.step else iter(own)

    def _draw(self, own: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """So many of a domain's items, all of them once before one comes again."""
        rounds = [own[torch.randperm(len(own), generator=generator)] for _ in range(-(-count // len(own)))]
        return torch.cat([own[:0], *rounds])[:count]


class ShuffledSampler(DomainBalancedSampler):
    """Draws the items of a `SeededDataset` in a new order each epoch, all of them once before one comes again.

    Args:
        dataset: what has a length.
        num_samples: draws in an epoch, of all ranks together, rounded up so that ranks have equal parts; by default as
            many as there are items. Of fewer than these, others come in another epoch.
        seed: 0 or more.
        num_replicas, rank: of a distributed run; those of the running one by default.

    Raises:
        ValueError: when there is no item, or `num_samples` is less than 1.
    """

    def __init__(
        self,
        dataset: Sized,
        num_samples: int | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__([""] * len(dataset), seed, num_replicas, rank, num_samples, numbered=True)


class TileSampler(DomainBalancedSampler):
    """Draws items of `tile_items`: balanced over domains as `DomainBalancedSampler`, and by kind within each domain.

    A domain that lacks a kind gives its share to its other kinds in proportion to theirs. So a scanner that has
    unlabelled images alone is as large a part of every batch as any other, if unlabelled images have a share at all.

    Args:
        items: the items of the data set, each with `kind` and `domain`.
        shares: how often each kind comes, in any unit; kinds that are not named never come.
        num_samples: draws in an epoch, of all ranks together, rounded up so that domains and ranks have equal parts;
            by default as many as there are items of kinds with a share.
        seed: 0 or more.
        num_replicas, rank: of a distributed run; those of the running one by default.
        numbered: see `DomainBalancedSampler`.

    Raises:
        DataError: when a share is no kind's, negative or not finite, or no item has a share.
        ValueError: when `num_samples` is less than 1.
    """

    def __init__(
        self,
        items: Sequence[TileItem],
        shares: Mapping[str, float] | None = None,
        num_samples: int | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        numbered: bool = False,
    ) -> None:
        shares = TILE_SHARES if shares is None else shares
        if not set(shares) <= set(TILE_KINDS) or not all(map(_is_share, shares.values())):
            raise DataError(
                f"The shares are {dict(shares)}, expected numbers of 0 or above for {', '.join(TILE_KINDS)}."
            )
        drawable = [i for i, item in enumerate(items) if shares.get(item["kind"])]
        if not drawable:
            found = ", ".join(sorted({item["kind"] for item in items})) or "none"
            raise DataError(f"The shares {dict(shares)} leave no tile to draw. The kinds at hand are: {found}.")
        super().__init__([items[i]["domain"] for i in drawable], seed, num_replicas, rank, num_samples)
        self.step = len(items) if numbered else 0
        self.members = [torch.tensor(drawable)[own] for own in self.members]
        self.kinds = [item["kind"] for item in items]
        self.shares = shares

    def _draw(self, own: Tensor, count: int, generator: torch.Generator) -> Tensor:
        pools = _members([self.kinds[i] for i in own.tolist()])
        shares = torch.tensor([self.shares[kind] for kind in sorted(pools)], dtype=torch.float64)
        # Each kind gets the whole number below or above its due, and its due on average over the epochs.
        dues = count * torch.cumsum(shares, 0) / shares.sum()
        dues[-1] = count
        ends = (dues + torch.rand((), generator=generator, dtype=torch.float64)).long()
        counts = ends.diff(prepend=ends.new_zeros(1)).tolist()
        drawn = [
            super(TileSampler, self)._draw(own[pools[kind]], n, generator)
            for kind, n in zip(sorted(pools), counts, strict=True)
        ]
        return torch.cat(drawn)[torch.randperm(count, generator=generator)]


def _times_before(values: Tensor) -> Tensor:
    """How often each value of a tensor has come before it."""
    order = torch.argsort(values.flatten(), stable=True)
    _, counts = torch.unique(values, return_counts=True)
    times = torch.empty_like(order)
    times[order] = torch.cat([torch.arange(n) for n in counts.tolist()])
    return times.view_as(values)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


def _members(names: Sequence[str]) -> dict[str, list[int]]:
    """The places in a sequence where each name stands."""
    members = defaultdict(list)
    for i, name in enumerate(names):
        members[name].append(i)
    return members


class DomainBatchSampler(Sampler[list[int]]):
    """Batches that each hold items of a single domain, domain after domain, in the order of the data set.

    In a distributed run each rank gets a part of the row of batches.

    Args:
        domains: the domain of each item of the data set.
        batch_size: 1 or more.
        num_replicas, rank: of a distributed run; those of the running one by default.

    Raises:
        ValueError: when `batch_size` is less than 1.
    """

    def __init__(
        self, domains: Sequence[str], batch_size: int, num_replicas: int | None = None, rank: int | None = None
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        replicas = idist.get_world_size() if num_replicas is None else num_replicas
        rank = idist.get_rank() if rank is None else rank
        members = _members(domains)
        batches = [
            members[name][i : i + batch_size]
            for name in sorted(members)
            for i in range(0, len(members[name]), batch_size)
        ]
        share = -(-len(batches) // replicas)
        # a rank without a batch of its own does the first again; what is scored twice counts once
        self.batches = batches[rank * share : (rank + 1) * share] or batches[:1]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class InferenceSampler(Sampler[int]):
    """A rank's share of a data set: the shares are one behind the other, each item in one; alone, all of it.

    Their lengths differ by at most 1. Where there are fewer items than ranks, the last ranks have none.

    Args:
        dataset: what has a length.
        num_replicas, rank: of a distributed run; those of the running one by default.
    """

    def __init__(self, dataset: Sized, num_replicas: int | None = None, rank: int | None = None) -> None:
        replicas = idist.get_world_size() if num_replicas is None else num_replicas
        rank = idist.get_rank() if rank is None else rank
        start, end = (-(-len(dataset) * i // replicas) for i in (rank, rank + 1))
        self.items = range(start, end)

    def __iter__(self) -> Iterator[int]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)
