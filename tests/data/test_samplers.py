from __future__ import annotations

from collections import Counter

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from torch import nn

from shared.data import DomainBalancedSampler, DomainBatchSampler, InferenceSampler, ShuffledSampler, TileSampler
from shared.data.samplers import TILE_SHARES
from shared.utils import DataError

DOMAINS = ["XR"] * 50 + ["CS"] * 7 + ["S360"] * 20
ALL_ORDERS = [DOMAINS, DOMAINS[::-1], [DOMAINS[i] for i in torch.randperm(77, generator=torch.manual_seed(0))]]


def epoch(sampler: DomainBalancedSampler, number: int) -> list[int]:
    sampler.set_epoch(number)
    return list(sampler)


@pytest.mark.parametrize("domains", ALL_ORDERS)
@pytest.mark.parametrize("batch_size", [3, 4, 12])
def test_every_batch_is_balanced(domains: list[str], batch_size: int) -> None:
    drawn = epoch(DomainBalancedSampler(domains), 1)
    for i in range(0, len(drawn), batch_size):
        counts = Counter(domains[j] for j in drawn[i : i + batch_size])
        assert max(counts.values()) - min(counts[d] for d in ("XR", "CS", "S360")) <= 1
    assert set(Counter(domains[i] for i in drawn).values()) == {26}  # a third of 77, rounded up


@pytest.mark.parametrize("domains", ALL_ORDERS)
def test_all_of_a_small_domain_and_no_item_much_more_often(domains: list[str]) -> None:
    counts = Counter(epoch(DomainBalancedSampler(domains), 1))
    expected = {"XR": {0, 1}, "CS": {3, 4}, "S360": {1, 2}}
    for name, times in expected.items():
        assert {counts[i] for i, domain in enumerate(domains) if domain == name} == times


def test_all_of_a_large_domain_over_the_epochs() -> None:
    sampler = DomainBalancedSampler(DOMAINS)
    assert {i for number in range(12) for i in epoch(sampler, number)} == set(range(77))


def test_the_order_follows_seed_and_epoch_alone() -> None:
    orders = {(s, e): epoch(DomainBalancedSampler(DOMAINS, seed=s), e) for s in range(3) for e in range(3)}
    assert len({tuple(order) for order in orders.values()}) == 9
    sampler = DomainBalancedSampler(DOMAINS, seed=1)
    torch.manual_seed(99)
    assert epoch(sampler, 2) == orders[1, 2]
    assert epoch(sampler, 0) == orders[1, 0]
    assert list(sampler) == orders[1, 0]


@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
def test_ranks_share_the_draws(replicas: int) -> None:
    samplers = [DomainBalancedSampler(DOMAINS, 4, replicas, rank) for rank in range(replicas)]
    parts = [epoch(sampler, 3) for sampler in samplers]
    for sampler, part in zip(samplers, parts, strict=True):
        assert len(part) == len(sampler) == len(samplers[0])
        assert len(set(Counter(DOMAINS[i] for i in part).values())) == 1
        assert [{DOMAINS[i] for i in part[j : j + 3]} for j in range(0, len(part), 3)] == [set(DOMAINS)] * (
            len(part) // 3
        )
    together = Counter(i for part in parts for i in part)
    assert 77 <= together.total() <= 77 + 3 * replicas
    # of a domain that is larger than its share no item is drawn twice, by no two ranks either
    assert max(together[i] for i in range(50)) == 1
    assert {together[i] for i in range(50, 57)} <= {3, 4, 5}
    assert max(together.values()) - min(together[i] for i in range(50, 57)) <= 1


def test_one_domain_is_a_plain_shuffle() -> None:
    sampler = DomainBalancedSampler(["a"] * 9)
    assert sorted(sampler) == list(range(9))
    assert list(sampler) != list(range(9))


@pytest.mark.parametrize(("items", "draws", "ranks"), [(6, None, 1), (6, 20, 1), (6, 4, 1), (6, 7, 2), (5, None, 2)])
def test_each_item_comes_once_before_one_comes_again(items: int, draws: int | None, ranks: int) -> None:
    samplers = [ShuffledSampler("x" * items, draws, 3, ranks, rank) for rank in range(ranks)]
    total = -(-(draws or items) // ranks) * ranks  # ranks have equal parts
    seen = []
    for number in range(9):
        shares = [epoch(sampler, number) for sampler in samplers]
        assert {len(share) for share in shares} == {len(sampler) for sampler in samplers} == {total // ranks}
        drawn = [draw for together in zip(*shares, strict=True) for draw in together]
        assert {e for e, _ in drawn} == {number}
        order = [i for _, i in drawn]
        assert len(set(order)) == total
        for i in range(0, total, items):
            part = order[i : i + items]
            assert {n // items for n in part} == {i // items}
            assert len({n % items for n in part}) == len(part)
        seen.append(tuple(order))
    assert len(set(seen)) > 6
    assert {n % items for order in seen for n in order} == {*range(items)}


def test_the_length_of_an_epoch() -> None:
    assert len(epoch(DomainBalancedSampler(DOMAINS, num_samples=300), 0)) == 300
    sampler = DomainBalancedSampler(DOMAINS, num_samples=10)
    assert Counter(DOMAINS[i] for i in epoch(sampler, 0)) == {"XR": 4, "CS": 4, "S360": 4}  # 10 / 3, rounded up
    assert {i for number in range(200) for i in epoch(sampler, number)} == set(range(77))
    ranks = [DomainBalancedSampler(DOMAINS, 0, 2, rank, num_samples=10) for rank in range(2)]
    assert [len(epoch(rank, 0)) for rank in ranks] == [len(rank) for rank in ranks] == [6, 6]


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="no item"):
        DomainBalancedSampler([])
    with pytest.raises(ValueError, match="num_samples must be 1 or more, got 0"):
        DomainBalancedSampler(DOMAINS, num_samples=0)
    with pytest.raises(ValueError, match="rank"):
        DomainBalancedSampler(DOMAINS, 0, 2, 2)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        DomainBatchSampler(DOMAINS, 0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_trainer_sets_the_epoch(num_workers: int) -> None:
    seen: list[int] = []

    class Network(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.extend(x.flatten().int().tolist())
            return super().forward(x)

    network = Network(1, 1)
    items = [{"image": torch.tensor([float(i)]), "label": torch.zeros(1)} for i in range(77)]
    sampler = DomainBalancedSampler(DOMAINS, seed=5)
    SupervisedTrainer(
        device="cpu",
        max_epochs=2,
        train_data_loader=DataLoader(Dataset(items), batch_size=16, sampler=sampler, num_workers=num_workers),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1e-6),
        loss_function=nn.MSELoss(),
        decollate=False,
    ).run()
    other = DomainBalancedSampler(DOMAINS, seed=5)
    assert seen == epoch(other, 1) + epoch(other, 2)


@pytest.mark.parametrize("domains", ALL_ORDERS)
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_batches_of_one_domain(domains: list[str], replicas: int) -> None:
    samplers = [DomainBatchSampler(domains, 8, replicas, rank) for rank in range(replicas)]
    batches = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(own) for own in batches]
    assert sorted(i for own in batches for batch in own for i in batch) == list(range(77))
    assert max(map(len, batches)) - min(map(len, batches)) <= replicas - 1
    for own in batches:
        names = [{domains[i] for i in batch} for batch in own]
        assert all(len(name) == 1 and len(batch) <= 8 for name, batch in zip(names, own, strict=True))
        order = [name.pop() for name in names]
        assert order == sorted(order)  # a domain does not come back
        for domain in set(order):
            drawn = [i for batch in own for i in batch if domains[i] == domain]
            assert drawn == sorted(drawn)


def test_more_ranks_than_domains() -> None:
    batches = [list(DomainBatchSampler(DOMAINS, 100, 5, rank)) for rank in range(5)]
    assert batches[:3] == [[list(range(50, 57))], [list(range(57, 77))], [list(range(50))]]
    assert batches[3] == batches[4] == batches[0]


def test_the_loader_gives_the_batches() -> None:
    items = [{"image": torch.tensor([i]), "domain": domain} for i, domain in enumerate(DOMAINS)]
    loader = DataLoader(Dataset(items), batch_sampler=DomainBatchSampler(DOMAINS, 16))
    assert len(loader) == 1 + 2 + 4
    assert [set(batch["domain"]) for batch in loader] == [{"CS"}, *[{"S360"}] * 2, *[{"XR"}] * 4]


ITEMS = [
    {"domain": domain, "kind": kind}
    for domain, counts in {
        "XR": {"mitotic": 20, "non_mitotic": 60, "empty": 5},
        "CS": {"mitotic": 4, "empty": 3},  # no hard negatives
        "S360": {"mitotic": 30, "non_mitotic": 10, "empty": 5, "unlabelled": 8},
        "GT450": {"unlabelled": 6},
    }.items()
    for kind, count in counts.items()
    for _ in range(count)
]
SHARES = {"mitotic": 5, "non_mitotic": 3, "empty": 2}


def drawn_kinds(sampler: TileSampler, numbers: range = range(1)) -> Counter[tuple[str, str]]:
    return Counter((ITEMS[i]["domain"], ITEMS[i]["kind"]) for number in numbers for i in epoch(sampler, number))


def test_kinds_come_by_their_shares_in_every_domain() -> None:
    assert drawn_kinds(TileSampler(ITEMS, SHARES, num_samples=210)) == {
        **{(domain, kind): 7 * share for domain in ("XR", "S360") for kind, share in SHARES.items()},
        ("CS", "mitotic"): 50,  # five sevenths: hard negatives give their share to the others
        ("CS", "empty"): 20,
    }
    default, plain = TileSampler(ITEMS), TileSampler(ITEMS, TILE_SHARES)
    assert epoch(default, 1) == epoch(plain, 1)
    assert len(default) == 3 * -(-137 // 3)  # all but the unlabelled items


def test_a_small_share_comes_on_average() -> None:
    counts = drawn_kinds(TileSampler(ITEMS, {"mitotic": 0.9, "empty": 0.1}, num_samples=9), range(200))
    assert sum(counts.values()) == 1800
    assert all(abs(counts[domain, "empty"] - 60) < 30 for domain in ("XR", "CS", "S360"))


def test_unlabelled_images_come_only_where_they_have_a_share() -> None:
    assert not any(kind == "unlabelled" or d == "GT450" for d, kind in drawn_kinds(TileSampler(ITEMS, SHARES)))
    counts = drawn_kinds(TileSampler(ITEMS, SHARES | {"unlabelled": 10}, num_samples=160))
    assert counts["GT450", "unlabelled"] == 40
    assert counts["S360", "unlabelled"] == 20
    assert counts["S360", "mitotic"] == 10
    assert sum(count for (domain, _), count in counts.items() if domain == "XR") == 40


def test_every_batch_of_tiles_is_balanced_over_domains() -> None:
    drawn = epoch(TileSampler(ITEMS, SHARES, num_samples=99), 3)
    for i in range(0, 99, 6):
        counts = Counter(ITEMS[j]["domain"] for j in drawn[i : i + 6])
        assert set(counts.values()) == {len(drawn[i : i + 6]) // 3}
    kinds = [ITEMS[i]["kind"] for i in drawn if ITEMS[i]["domain"] == "XR"]
    assert kinds != sorted(kinds)  # mixed within a domain


def test_no_tile_comes_again_before_all_of_its_kind_have() -> None:
    counts = Counter(epoch(TileSampler(ITEMS, SHARES, num_samples=300), 0))
    times = {
        (domain, kind): {counts[i] for i, item in enumerate(ITEMS) if item == {"domain": domain, "kind": kind}}
        for domain, kind in {(item["domain"], item["kind"]) for item in ITEMS}
    }
    assert times["XR", "mitotic"] <= {2, 3}  # 50 of 20
    assert times["XR", "non_mitotic"] == {0, 1}  # 30 of 60
    assert times["XR", "empty"] == {4}  # 20 of 5
    assert max(len(found) for found in times.values()) == 2


def test_tiles_follow_seed_and_epoch_and_ranks_share_them() -> None:
    orders = {(s, e): tuple(epoch(TileSampler(ITEMS, SHARES, seed=s), e)) for s in range(2) for e in range(3)}
    assert len(set(orders.values())) == 6
    torch.manual_seed(9)
    assert tuple(epoch(TileSampler(ITEMS, SHARES, seed=1), 2)) == orders[1, 2]
    parts = [epoch(TileSampler(ITEMS, SHARES, 60, 1, 2, rank), 2) for rank in range(2)]
    whole = epoch(TileSampler(ITEMS, SHARES, 60, 1, 1, 0), 2)
    assert [len(part) for part in parts] == [30, 30]
    assert Counter(parts[0]) + Counter(parts[1]) == Counter(whole)
    assert all({ITEMS[i]["domain"] for i in part[j : j + 3]} == {"XR", "CS", "S360"} for part in parts for j in (0, 27))


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"mitosis": 1}, "The shares are {'mitosis': 1}, expected numbers of 0 or above for mitotic, non_mitotic"),
        ({"mitotic": -1}, "expected numbers of 0 or above"),
        ({"mitotic": float("nan")}, "expected numbers of 0 or above"),
        ({"mitotic": "1"}, "expected numbers of 0 or above"),
        ({"mitotic": 0}, "leave no tile to draw. The kinds at hand are: empty, mitotic, non_mitotic, unlabelled"),
        ({}, "leave no tile to draw"),
    ],
)
def test_shares_that_cannot_be(shares: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TileSampler(ITEMS, shares)


@pytest.mark.parametrize(("items", "ranks"), [(7, 1), (7, 3), (2, 3), (1, 4), (0, 2), (12, 4)])
def test_the_shares_of_an_inference_are_the_inputs_in_order(items: int, ranks: int) -> None:
    shares = [list(InferenceSampler("x" * items, ranks, rank)) for rank in range(ranks)]
    assert [i for share in shares for i in share] == list(range(items))
    lengths = [len(InferenceSampler("x" * items, ranks, rank)) for rank in range(ranks)]
    assert lengths == list(map(len, shares))
    assert max(lengths) - min(lengths) <= 1
    assert items == 0 or lengths[0] > 0  # the rank that shows the progress
