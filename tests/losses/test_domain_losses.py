"""Losses over several domains, against slow, literal transcriptions of their equations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import two_ranks
from torch import Tensor, nn

from shared.engines import apply_loss
from shared.losses import CORALLoss, DomainLoss, GroupDROLoss, IBIRMLoss, VRExLoss
from shared.utils import DataError
from shared.utils.errors import data_error_message

NAMES = ("CS", "S360", "XR")
DOMAINS = ["XR", "CS", "XR", "S360", "CS", "XR", "CS", "S360", "XR", "CS", "S360", "XR"]
WEIGHT = 1.75  # of the positives


class Tiny(nn.Module):
    """Of 5 numbers: 4 features, which the last layer reads, and a logit."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body, self.fc = nn.Linear(5, 4), nn.Linear(4, 1)

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(DOMAINS), 5, generator=generator, dtype=torch.float64)
    return x, (torch.rand(len(DOMAINS), 1, generator=generator) > 0.5).double()


def bce(s: Tensor, y: Tensor) -> Tensor:
    return -(WEIGHT * y * torch.log(torch.sigmoid(s)) + (1 - y) * torch.log(1 - torch.sigmoid(s)))


def risk(s: Tensor, y: Tensor, own: list[int]) -> Tensor:
    return sum(bce(s[i, 0], y[i, 0]) for i in own) / len(own)


def members(domains: list[str] = DOMAINS) -> list[list[int]]:
    return [[i for i, name in enumerate(domains) if name == g] for g in NAMES if g in domains]


def group_dro(network: Tiny, s: Tensor, y: Tensor, z: Tensor) -> Tensor:
    risks = [risk(s, y, own) for own in members()]
    q = [1 / 3 * math.exp(0.2 * r.item()) for r in risks]
    return sum(q_g / sum(q) * r for q_g, r in zip(q, risks, strict=True))


def group_dro_by_label(network: Tiny, s: Tensor, y: Tensor, z: Tensor) -> Tensor:
    groups = [[i for i in own if y[i, 0] == label] for own in members() for label in (0, 1)]
    q = [1 / 6 * math.exp(0.2 * risk(s, y, own).item()) if own else 1 / 6 for own in groups]
    present = [(q_g, risk(s, y, own)) for q_g, own in zip(q, groups, strict=True) if own]
    return sum(q_g * r for q_g, r in present) / sum(q_g for q_g, _ in present)


def vrex(network: Tiny, s: Tensor, y: Tensor, z: Tensor) -> Tensor:
    risks = [risk(s, y, own) for own in members()]
    mean = sum(risks) / 3
    return mean + 10.0 * sum((r - mean) ** 2 for r in risks) / 3


def ib_irm(network: Tiny, s: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """The penalty by double backward: the derivative with respect to a factor of the logits."""
    total = torch.zeros((), dtype=torch.float64)
    for own in members():
        slopes = []
        for half in (own[: len(own) // 2], own[len(own) // 2 :]):
            w = torch.ones((), dtype=torch.float64, requires_grad=True)
            slopes += torch.autograd.grad(risk(w * s, y, half), w, create_graph=True)
        variances = []
        for c in range(z.shape[1]):
            mean = sum(z[i, c] for i in own) / len(own)
            variances.append(sum((z[i, c] - mean) ** 2 for i in own) / (len(own) - 1))
        bottleneck = sum(variances) / z.shape[1]
        total = total + (risk(s, y, own) + 7.0 * slopes[0] * slopes[1] + 3.0 * bottleneck) / 3
    return total


def coral(network: Tiny, s: Tensor, y: Tensor, z: Tensor) -> Tensor:
    covariances, d = [], z.shape[1]
    for own in members():
        ones = torch.ones(len(own), 1, dtype=torch.float64)
        rows = z[own]
        covariances.append((rows.T @ rows - (ones.T @ rows).T @ (ones.T @ rows) / len(own)) / (len(own) - 1))
    pairs = list(itertools.combinations(covariances, 2))
    distance = sum(((a - b) ** 2).sum() / (4 * d**2) for a, b in pairs) / len(pairs)
    return sum(risk(s, y, own) for own in members()) / 3 + 5.0 * distance


LOSSES: dict[str, tuple[Callable[..., DomainLoss], Callable[..., Tensor]]] = {
    "group_dro": (lambda network: GroupDROLoss(NAMES, WEIGHT, eta=0.2), group_dro),
    "group_dro_by_label": (lambda network: GroupDROLoss(NAMES, WEIGHT, eta=0.2, by_label=True), group_dro_by_label),
    "vrex": (lambda network: VRExLoss(NAMES, WEIGHT), vrex),
    "ib_irm": (lambda network: IBIRMLoss(NAMES, network, WEIGHT, irm_weight=7, ib_weight=3), ib_irm),
    "coral": (lambda network: CORALLoss(NAMES, network, WEIGHT, weight=5), coral),
}


def make(name: str, network: nn.Module) -> DomainLoss:
    return LOSSES[name][0](network).double()


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradients_are_those_of_the_equation(name: str) -> None:
    network = Tiny().double()
    x, y = batch()
    loss = make(name, network)(network(x), y, DOMAINS)
    z = network.features(x)
    wanted = LOSSES[name][1](network, network.fc(z), y, z)
    torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=0)
    parameters = list(network.parameters())
    found, literal = (torch.autograd.grad(value, parameters) for value in (loss, wanted))
    for a, b in zip(found, literal, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_domains_in_a_batch_does_not_matter(name: str) -> None:
    network = Tiny().double()
    x, y = batch()
    order = sorted(range(len(DOMAINS)), key=lambda i: DOMAINS[i], reverse=True)  # within a domain as before
    values = [
        make(name, network)(network(x[own]), y[own], [DOMAINS[i] for i in own])
        for own in (list(range(len(DOMAINS))), order)
    ]
    torch.testing.assert_close(*values)


def test_the_weights_of_the_groups_follow_their_losses() -> None:
    loss = GroupDROLoss(NAMES, eta=0.5)
    s, y = torch.tensor([[3.0], [3.0], [-3.0]]), torch.tensor([[1.0], [1.0], [1.0]])
    for _ in range(4):
        loss(s, y, ["CS", "S360", "XR"])
    factors = [math.exp(4 * 0.5 * math.log(1 + math.exp(-x))) for x in (3, 3, -3)]
    assert loss.q.tolist() == pytest.approx([f / sum(factors) for f in factors], rel=1e-5)
    before = loss.q.clone()
    assert loss(s[:1], y[:1], ["CS"]) == pytest.approx(math.log(1 + math.exp(-3)), rel=1e-5)  # alone it has all of it
    assert loss.q[1] / loss.q[2] == pytest.approx(before[1].item() / before[2].item(), rel=1e-5)
    assert loss.state_dict().keys() == {"q"}


@pytest.mark.parametrize("name", ["vrex", "ib_irm"])
def test_in_the_warm_up_the_penalty_is_small(name: str) -> None:
    network = Tiny().double()
    x, y = batch()
    loss = make(name, network)
    loss.warming_up = True
    if name == "vrex":
        wanted = VRExLoss(NAMES, WEIGHT, beta=1.0).double()
    else:
        wanted = IBIRMLoss(NAMES, network, WEIGHT, irm_weight=1.0, ib_weight=0.0).double()
    values = []
    for own in (loss, wanted):
        kept = getattr(own, "_kept", None)
        output = network(x)
        assert kept is None or kept._features is not None
        values.append(own(output, y, DOMAINS))
    torch.testing.assert_close(*values)


def test_the_irm_penalty_is_unbiased_and_may_be_negative() -> None:
    network = Tiny().double()
    loss = IBIRMLoss(["A", "B"], network, irm_weight=1.0, ib_weight=0.0).double()
    s, y = torch.tensor([[1.0], [1.0], [1.0], [1.0]]).double(), torch.tensor([[1.0], [0.0], [1.0], [1.0]]).double()
    output = network(torch.zeros(4, 5).double()) * 0 + s
    total = loss(output, y, ["A", "A", "B", "B"])
    sigma = 1 / (1 + math.exp(-1))
    penalty = (-(1 - sigma) * sigma + (1 - sigma) ** 2) / 2
    plain = (math.log(1 + math.exp(-1)) * 3 + math.log(1 + math.exp(1))) / 4
    assert total.item() == pytest.approx(plain + penalty)
    assert penalty < 0


def test_a_domain_with_one_sample_has_no_spread() -> None:
    network = Tiny()
    x, y = torch.randn(3, 5), torch.ones(3, 1)
    for loss in (IBIRMLoss(NAMES, network), CORALLoss(NAMES, network)):
        value = loss(network(x), y, ["CS", "S360", "XR"])
        wanted = nn.functional.binary_cross_entropy_with_logits(network(x), y)
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_float32_whatever_the_precision(name: str, dtype: torch.dtype) -> None:
    network = Tiny()
    x, y = batch()
    loss = LOSSES[name][0](network)
    with torch.autocast("cpu", dtype=dtype):
        output = network(x.float() * 30)
        value = loss(output, y.float(), DOMAINS)
    assert output.dtype == dtype
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_bad_calls(name: str) -> None:
    network = Tiny().double()
    loss = make(name, network)
    x, y = batch()
    with pytest.raises(DataError, match="of the domain MRXS, expected one of CS, S360, XR"):
        loss(network(x), y, ["MRXS", *DOMAINS[1:]])
    with pytest.raises(ValueError, match="the domain of each of 12 samples is needed, got None"):
        loss(network(x), y, None)
    with pytest.raises(ValueError, match=r"expected output and target \(B, 1\), got \(12, 1\), \(12,\)"):
        loss(network(x), y[:, 0], DOMAINS)
    if name.startswith("group_dro"):
        return
    with pytest.raises(DataError, match=r"has samples of XR alone, and .* Set --balance_domains true"):
        loss(network(x), y, ["XR"] * 12)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (GroupDROLoss, {"eta": 0.0}, "eta must be above 0, got 0"),
        (VRExLoss, {"beta": -1.0}, "beta must be at least 0, got -1"),
        (IBIRMLoss, {"network": Tiny(), "ib_weight": -1.0}, "must be at least 0, got 100.0 and -1.0"),
        (CORALLoss, {"network": Tiny(), "weight": math.nan}, "weight must be at least 0, got nan"),
        (CORALLoss, {"network": nn.Conv2d(1, 1, 1)}, "Conv2d has no linear layer"),
        (VRExLoss, {"domains": ["XR", "XR"]}, "VRExLoss needs two or more domains to train on, found"),
        (VRExLoss, {"domains": "XR"}, "VRExLoss needs two or more domains to train on, found 'XR'"),
    ],
)
def test_bad_options(loss: type[DomainLoss], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(**{"domains": NAMES, **options})


def test_an_error_of_a_loss_has_an_end() -> None:
    """Raised from itself it would be its own cause, and who looks for the reason would never find it."""
    x, y = batch()
    loss = VRExLoss(NAMES).double()
    with pytest.raises(DataError) as caught:
        apply_loss(loss, Tiny().double()(x), {"target": y, "domains": ["XR"] * 12})
    assert "has samples of XR alone" in data_error_message(caught.value)


# What each rank does: it has every second sample of each domain, as a sampler deals them out.
RANK = """
for name in toy.LOSSES:
    torch.manual_seed(0)
    network = torch.nn.parallel.DistributedDataParallel(toy.Tiny().double())
    loss = toy.make(name, network)
    x, y, domains = toy.share(rank)
    value = loss(network(x), y, domains)
    value.backward()
    found = [value.detach(), *(p.grad for p in network.parameters())]
    torch.save(found, f"{folder}/{name}_{rank}.pt")
    del network
"""
ROWS = [[i, j, k] for i, j, k in zip((1, 4, 6, 9), (3, 7, 10, 3), (0, 2, 5, 8), strict=True)]


def share(rank: int | None) -> tuple[Tensor, Tensor, list[str]]:
    """Rows of one sample of each domain, as `DomainBalancedSampler` draws them; those of a rank, or all."""
    own = [i for row in (ROWS if rank is None else ROWS[rank::2]) for i in row]
    x, y = batch()
    return x[own], y[own], [DOMAINS[i] for i in own]


@pytest.mark.slow
def test_two_ranks_agree_with_one_process(tmp_path: Path) -> None:
    two_ranks(__file__, RANK, tmp_path)
    for name in LOSSES:
        network = Tiny().double()
        x, y, domains = share(None)
        value = make(name, network)(network(x), y, domains)
        value.backward()
        wanted = [value.detach(), *(p.grad for p in network.parameters())]
        for rank in range(2):
            torch.testing.assert_close(torch.load(tmp_path / f"{name}_{rank}.pt"), wanted, msg=name)
