from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import ignite.distributed as idist
import torch
from torch.utils.data import DistributedSampler, Sampler


class DomainBalancedSampler(DistributedSampler):
    """Draws as many patches of each domain as of any other; their order makes every batch balanced too.

    An epoch is as long as without it: of a large domain a part is drawn, another part each epoch, and patches of a
    small one come more than once. The order follows `seed` and the epoch's number, which MONAI's engines set. In a
    distributed run each rank gets a share of its own, balanced likewise.

    Args:
        domains: the domain of each item of the data set.
        seed: 0 or more.
        num_replicas, rank: of a distributed run; those of the running one by default.

    Raises:
        ValueError: when there is no item.
    """

    def __init__(
        self, domains: Sequence[str], seed: int = 0, num_replicas: int | None = None, rank: int | None = None
    ) -> None:
        if not len(domains):
            raise ValueError("there is no item to draw from")
        num_replicas = idist.get_world_size() if num_replicas is None else num_replicas
        rank = idist.get_rank() if rank is None else rank
        super().__init__(domains, num_replicas, rank, seed=seed)
        members = defaultdict(list)
        for i, domain in enumerate(domains):
            members[domain].append(i)
        self.members = [torch.tensor(members[domain]) for domain in sorted(members)]
        per_domain = -(-len(domains) // len(self.members))
        self.per_domain = -(-per_domain // num_replicas)  # on each rank
        self.num_samples = self.per_domain * len(self.members)
        self.total_size = self.num_samples * num_replicas

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        columns = []
        for own in self.members:
            count = self.per_domain * self.num_replicas
            rounds = [own[torch.randperm(len(own), generator=generator)] for _ in range(-(-count // len(own)))]
            columns.append(torch.cat(rounds)[:count])
        drawn = torch.stack(columns, dim=1)[self.rank :: self.num_replicas]  # a row holds one of each domain
        return iter(drawn.flatten().tolist())


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
        members = defaultdict(list)
        for i, domain in enumerate(domains):
            members[domain].append(i)
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
