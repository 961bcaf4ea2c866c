from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import two_ranks
from torch import Tensor, nn

from shared.engines import LISA, DomainTrainer, FishTrainer
from shared.handlers import StopOnBadLoss
from shared.losses import VRExLoss
from shared.utils import DataError

DOMAINS = ["CS", "XR", "XR", "S360", "CS", "S360", "XR", "CS"]


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))


def batches(count: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.randn(8, 3, generator=generator),
            "label": (torch.rand(8, 1, generator=generator) > 0.5).float(),
            "domain": DOMAINS,
        }
        for _ in range(count)
    ]


def train(
    kind: type[DomainTrainer], model: nn.Module, data: list[dict[str, Any]], lr: float = 0.1, **options: Any
) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    trainer = kind(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=data,
        network=model,
        optimizer=optimizer,
        **{"loss_function": nn.BCEWithLogitsLoss(), **options},
    )
    trainer.run()
    return trainer


def literal(model: nn.Module, data: list[dict[str, Any]], orders: list[list[str]], epsilon: float) -> nn.Module:
    """Algorithm 1: a clone makes the steps, and the weights follow it a part of the way."""
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for batch, order in zip(data, orders, strict=True):
        clone = copy.deepcopy(model)
        for domain in order:
            own = [i for i, name in enumerate(batch["domain"]) if name == domain]
            loss = nn.functional.binary_cross_entropy_with_logits(clone(batch["image"][own]), batch["label"][own])
            for v, p, g in zip(
                velocity, clone.parameters(), torch.autograd.grad(loss, clone.parameters()), strict=True
            ):
                v.mul_(0.9).add_(g)
                p.data -= 0.1 * v
        for p, q in zip(model.parameters(), clone.parameters(), strict=True):
            p.data += epsilon * (q.data - p.data)
        for b, c in zip(model.buffers(), clone.buffers(), strict=True):
            b.copy_(c)
    return model


def test_steps_are_those_of_the_algorithm() -> None:
    data = batches(3)
    seen: list[list[str]] = []

    class Watched(FishTrainer):
        def _order(self) -> list[str]:
            seen.append(super()._order())
            return seen[-1]

    found = network()
    train(Watched, found, data, domains=["XR", "CS", "S360"], step_size=0.3)
    assert [sorted(order) for order in seen] == [["CS", "S360", "XR"]] * 3
    assert len({tuple(order) for order in seen}) > 1
    wanted = literal(network(), data, seen, 0.3)
    for (name, a), b in zip(found.state_dict().items(), wanted.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_running_statistics_are_copied_or_interpolated() -> None:
    """What the steps alone make of them is what `copied` leaves; `interpolated` goes a part of the way there."""
    start, data = network().state_dict(), batches(1)
    states: dict[str, dict[str, Tensor]] = {}
    for kind in ("copied", "interpolated"):
        model = network()
        train(FishTrainer, model, data, domains=["XR", "CS", "S360"], step_size=0.25, batch_norm=kind)
        states[kind] = model.state_dict()
    for name in ("1.running_mean", "1.running_var"):
        assert not torch.equal(states["copied"][name], start[name])
        torch.testing.assert_close(states["interpolated"][name], start[name].lerp(states["copied"][name], 0.25))
    assert torch.equal(states["copied"]["0.weight"], states["interpolated"]["0.weight"])


@pytest.mark.filterwarnings("ignore:.*Engine run is terminating.*")
def test_a_missing_domain_is_told_of_in_the_warm_up() -> None:
    class Warm(FishTrainer):
        warming_up = property(lambda self: True, lambda self, value: None)

    with pytest.raises(DataError, match="no sample of the domain GT450"):
        train(Warm, network(), batches(1), domains=["XR", "CS", "S360", "GT450"])


def test_in_the_warm_up_it_is_plain_training() -> None:
    class Warm(FishTrainer):
        warming_up = property(lambda self: True, lambda self, value: None)

    models = [network(), network()]
    train(Warm, models[0], batches(2), domains=["XR", "CS", "S360"])
    train(DomainTrainer, models[1], batches(2))
    for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(a, b)


def test_the_loss_of_a_step_is_the_mean_of_its_domains() -> None:
    trainer = train(
        FishTrainer, network(), batches(1), lr=0.0, domains=["XR", "CS", "S360"], train_handlers=[StopOnBadLoss()]
    )
    model, batch, losses = network(), batches(1)[0], []
    for domain in ("XR", "CS", "S360"):
        own = [i for i, name in enumerate(DOMAINS) if name == domain]
        losses.append(nn.functional.binary_cross_entropy_with_logits(model(batch["image"][own]), batch["label"][own]))
    torch.testing.assert_close(trainer.state.output["loss"], sum(losses) / 3)
    assert trainer.state.output["loss_value"] == pytest.approx(sum(losses).item() / 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": 0.0}, "step_size must be above 0 and at most 1, got 0"),
        ({"batch_norm": "kept"}, "batch_norm must be one of copied, interpolated, got 'kept'"),
        ({"domains": ["XR"]}, r"Fish needs two or more domains to train on, found \['XR'\]"),
        ({"accumulation_steps": 2}, "accumulation_steps must be 1"),
        ({"mixing": LISA(["XR", "CS"])}, "Fish takes each domain of a batch by itself, and LISA looks across domains"),
        ({"loss_function": VRExLoss(["XR", "CS"])}, "by itself, and VRExLoss looks across domains"),
        ({"domains": ["XR", "CS", "S360", "GT450"]}, "no sample of the domain GT450.*Set --balance_domains true"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Engine run is terminating.*")
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, DataError), match=message):
        train(FishTrainer, network(), batches(1), **{"domains": ["XR", "CS", "S360"], **options})


# What each rank does: of each domain it has half of the samples.
RANK = """
model = toy.normalised()
own = [{key: value[rank::2] for key, value in batch.items()} for batch in toy.paired(3)]
toy.train(toy.FishTrainer, toy.nn.parallel.DistributedDataParallel(model), own, domains=["CS", "S360", "XR"])
toy.torch.save(model.state_dict(), f"{folder}/{rank}.pt")
"""


def normalised() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1))


def paired(count: int) -> list[dict[str, Any]]:
    """Samples of a domain in pairs."""
    return [batch | {"domain": ["CS", "CS", "XR", "XR", "S360", "S360", "XR", "XR"]} for batch in batches(count)]


@pytest.mark.slow
def test_two_ranks_agree_with_one_process(tmp_path: Path) -> None:
    two_ranks(__file__, RANK, tmp_path)
    alone = normalised()
    train(FishTrainer, alone, paired(3), domains=["CS", "S360", "XR"])
    assert not torch.equal(alone[0].weight, normalised()[0].weight)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone.state_dict())
