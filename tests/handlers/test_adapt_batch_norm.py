from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from torch import Tensor, nn

from shared.data import DomainBatchSampler, collate_readable
from shared.engines import FaultTolerantDataset
from shared.handlers import AdaptBatchNorm
from shared.handlers.domain_images import DomainImages
from shared.utils import DataError

COLOURS = {"CS": (2.0, 0.5), "XR": (-1.0, 3.0)}  # mean and spread


def items(counts: dict[str, int], domains: bool = True) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for domain, count in counts.items():
        for i in range(count):
            mean, spread = COLOURS[domain]
            image = mean + spread * torch.randn(2, 4, 4, generator=generator)
            named = {"domain": domain} if domains else {}
            found.append({"image": image, "label": torch.zeros(1), "case": f"{domain}{i}", **named})
    return found


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2, affine=False)
        self.norm.running_mean.fill_(7)
        self.norm.running_var.fill_(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def make(
    data: Sequence[dict[str, Any]],
    network: nn.Module,
    batch_size: int = 8,
    mixed: bool = False,
    dataset: type = Dataset,
    transform: Any = None,
    adapt_in: int = 256,
    **options: Any,
) -> tuple[SupervisedEvaluator, dict[str, Tensor]]:
    """An evaluator, and what the network gave for each case."""
    images = dataset(data, transform)
    collate = {"collate_fn": collate_readable} if dataset is FaultTolerantDataset else {}
    if mixed or "domain" not in data[0]:
        loader = DataLoader(images, batch_size=batch_size, **collate)
    else:
        sampler = DomainBatchSampler([item["domain"] for item in data], batch_size)
        loader = DataLoader(images, batch_sampler=sampler, **collate)
    outputs: dict[str, Tensor] = {}
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=network,
        decollate=False,
        val_handlers=[AdaptBatchNorm(network, images, batch_size=adapt_in, **options, **collate)],
    )
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda e: outputs.update(
            zip(e.state.batch["case"], e.state.output["pred"], strict=bool(e.state.batch["case"]))
        ),
    )
    return evaluator, outputs


def normalised(data: Sequence[dict[str, Any]], domain: str) -> dict[str, Tensor]:
    """By the statistics of all images of the domain."""
    own = [item for item in data if item["case"].startswith(domain)]
    x = torch.stack([item["image"] for item in own])
    y = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    return {item["case"]: image for item, image in zip(own, y, strict=True)}


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_each_domain_by_its_own_statistics_and_again(caplog: pytest.LogCaptureFixture, num_workers: int) -> None:
    data = items({"XR": 40, "CS": 33})
    network = Norm()
    before = state_of(network)
    evaluator, outputs = make(data, network, batch_size=8, num_workers=num_workers)
    with caplog.at_level(logging.INFO):
        evaluator.run()
    assert set(outputs) == {item["case"] for item in data}
    torch.testing.assert_close(outputs, normalised(data, "CS") | normalised(data, "XR"))
    lines = [(r.levelname, r.getMessage()) for r in caplog.records if "adapted" in r.getMessage()]
    assert lines == [
        ("INFO", "batch norm adapted to CS on 33 images"),
        ("INFO", "batch norm adapted to XR on 40 images"),
    ]
    assert_same(state_of(network), before)
    first = dict(outputs)
    outputs.clear()
    evaluator.run()
    assert_same(outputs, first)


def test_in_batches_that_are_drawn_at_random_but_always_the_same() -> None:
    """Sorted by brightness, batches of neighbours would each have next to no variance."""
    data = [{"image": torch.full((2, 4, 4), i / 64), "case": str(i), "domain": "CS"} for i in range(64)]
    runs = []
    for seed in range(2):
        torch.manual_seed(seed)
        evaluator, outputs = make(data, Norm(), adapt_in=16)
        evaluator.run()
        runs.append(torch.stack([outputs[str(i)] for i in range(64)]))
    assert_same(runs[0], runs[1])
    assert runs[0].std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("counts", [{"CS": 12}, {"CS": 31}])
def test_few_images_are_warned_of(caplog: pytest.LogCaptureFixture, counts: dict[str, int]) -> None:
    make(items(counts), Norm())[0].run()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [f"batch norm adapted to CS on {counts['CS']} images, very few"]


@pytest.mark.parametrize("enabled", [False, "false"])
def test_disabled(enabled: bool | str) -> None:
    network = Norm()
    network.eval()
    data = items({"CS": 10, "XR": 10})
    evaluator, outputs = make(data, network, mixed=True, enabled=enabled)
    evaluator.run()
    for item in data:
        assert_same(outputs[item["case"]], network(item["image"][None])[0])


def test_batches_that_name_no_domain_are_one() -> None:
    data = items({"CS": 40}, domains=False)
    evaluator, outputs = make(data, Norm(), batch_size=16, enabled="true")
    for _ in range(2):  # a second run adapts again
        outputs.clear()
        evaluator.run()
        torch.testing.assert_close(outputs, normalised(data, "CS"))


def test_a_batch_of_two_domains_is_refused() -> None:
    network = Norm()
    before = state_of(network)
    evaluator, _ = make(items({"CS": 12, "XR": 12}), network, mixed=True)
    with pytest.raises(DataError, match=r"mixes the domains CS, XR.*DomainBatchSampler"):
        evaluator.run()
    assert_same(state_of(network), before)  # the first batch was of CS alone


def test_after_an_exception_the_statistics_are_back() -> None:
    network = Norm()
    before = state_of(network)
    evaluator, _ = make(items({"CS": 12}), network)

    def stop(engine: Engine) -> None:
        assert network.norm.running_mean[0] != before["norm.running_mean"][0]
        raise KeyboardInterrupt

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, stop)
    with pytest.raises(KeyboardInterrupt):
        evaluator.run()
    assert_same(state_of(network), before)


def test_others_hear_of_an_exception_too() -> None:
    """What saves predictions then unlocks its folder."""
    evaluator, _ = make(items({"CS": 12, "XR": 12}), Norm(), mixed=True)
    heard = []

    def later(engine: Engine, error: BaseException) -> None:
        heard.append(error)
        raise error

    evaluator.add_event_handler(Events.EXCEPTION_RAISED, later)
    with pytest.raises(DataError, match="mixes the domains"):
        evaluator.run()
    assert heard


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"), [(9, 4, [4, 5]), (5, 2, [2, 3]), (3, 2, [3]), (8, 4, [4, 4]), (6, 4, [4, 2])]
)
def test_no_batch_is_of_one_image_where_that_can_be(count: int, batch_size: int, sizes: list[int]) -> None:
    """Behind the last stride a small patch is one pixel, and batch norm takes no single value a channel."""
    images = DomainImages(Dataset(items({"CS": count})), batch_size)
    before = torch.get_rng_state()
    found = [len(batch) for batch in images.of("CS", torch.device("cpu"))]
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(found) == count
    assert 1 not in found
    assert found == sizes


def test_modes_stay() -> None:
    network = Norm().train()
    make(items({"CS": 12}), network)[0].run()
    assert network.training
    assert network.norm.training


class Load:
    def __init__(self, unreadable: set[str]) -> None:
        self.unreadable = unreadable

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["case"] in self.unreadable:
            raise DataError(f"{item['case']}: cannot be read.")
        return item


@pytest.mark.parametrize("domains", [True, False])
@pytest.mark.parametrize("which", ["some", "a batch", "all"])
def test_images_that_cannot_be_read(which: str, domains: bool) -> None:
    data = items({"CS": 24}, domains)
    for item in data:
        item["image"] = item["image"][:1].repeat(3, 1, 1)
    bad = {"some": (3, 9), "a batch": range(8), "all": range(24)}[which]
    network = nn.BatchNorm2d(3, affine=False).eval()
    before = state_of(network)
    unreadable = {f"CS{i}" for i in bad}
    evaluator, outputs = make(data, network, dataset=FaultTolerantDataset, transform=Load(unreadable))
    failures: list[tuple[str, str]] = []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda e: failures.extend(e.state.batch["failures"]))
    evaluator.run()
    assert failures == [(f"CS{i}", f"CS{i}: cannot be read.") for i in bad]
    readable = [item for item in data if item["case"] not in unreadable]
    torch.testing.assert_close(outputs, normalised(readable, "CS") if readable else {})
    assert_same(state_of(network), before)


def test_batches_without_anything_readable_count_for_nothing(caplog: pytest.LogCaptureFixture) -> None:
    data = items({"CS": 24})
    for item in data:
        item["image"] = item["image"][:1].repeat(3, 1, 1)
    transform = Load({f"CS{i}" for i in range(20)})
    make(data, nn.BatchNorm2d(3), dataset=FaultTolerantDataset, transform=transform, adapt_in=2)[0].run()
    assert "batch norm adapted to CS on 4 images, very few" in caplog.text


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="batch_size must be 2 or more, got 1"):
        AdaptBatchNorm(Norm(), Dataset([]), batch_size=1)
    with pytest.raises(DataError, match="adapt_batch_norm is 'maybe', expected true or false"):
        AdaptBatchNorm(Norm(), Dataset([]), enabled="maybe")


def test_a_network_without_batch_norm_cannot_be_adapted() -> None:
    with pytest.raises(DataError, match="no batch norm to adapt"):
        AdaptBatchNorm(nn.Conv2d(2, 2, 1), Dataset(items({"CS": 2})))
    AdaptBatchNorm(nn.Conv2d(2, 2, 1), Dataset(items({"CS": 2})), enabled=False)
