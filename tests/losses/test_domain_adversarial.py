from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import two_ranks
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from torch import Tensor, nn

from shared.data import collate_detections
from shared.engines import DetectionEvaluator, DetectionTrainer
from shared.handlers import TrainingCheckpoint
from shared.losses import DomainAdversarialLoss, RetinaNetLoss, labelled_loss
from shared.networks import PyramidAnchors, fusestyle_retinanet
from shared.utils import DataError

SIZE = (64, 64)
DETECTION = RetinaNetLoss(PyramidAnchors())
DOMAINS = ["XR", "CS", "GT450", "XR"]
LABELLED = [True, True, False, True]


class Tiny(nn.Module):
    """A detector of two convolutions: `layer4` gives 5 channels of features."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer4 = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 5, 8, stride=8))
            self.backbone = nn.ModuleDict({"body": nn.ModuleDict({"layer4": layer4})})
            self.head = nn.Conv2d(5, 6, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.backbone.body.layer4(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)).flatten(2)


def batch(seed: int = 0) -> tuple[Tensor, dict[str, Any]]:
    images = torch.rand(4, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    boxes = [torch.tensor([[3.0, 6, 53, 58]]), torch.zeros(0, 4), torch.zeros(0, 4), torch.tensor([[8.0, 9, 60, 61]])]
    labels = [torch.tensor([1]), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.ones(1)]
    targets = {"boxes": boxes, "labels": [i.long() for i in labels], "image_size": SIZE}
    return images, targets | {"domains": DOMAINS, "labelled": LABELLED}


def make(network: nn.Module, **options: Any) -> DomainAdversarialLoss:
    given = {"domains": ["XR", "CS", "GT450"], "weight": 0.3, "layer": "backbone.body.layer4", **options}
    return DomainAdversarialLoss(DETECTION, network, **given)


def literal(network: Tiny, loss: DomainAdversarialLoss) -> tuple[Tensor, Tensor]:
    """The detector's loss of the labelled images, and the cross-entropy of the domains of all of them."""
    images, targets = batch()
    features = network.features(images)
    output = network.head(features).flatten(2)
    terms = [
        DETECTION(output[i : i + 1], targets["boxes"][i : i + 1], targets["labels"][i : i + 1], SIZE) for i in (0, 1, 3)
    ]
    first, _, last = loss.classifier
    entropy = torch.zeros(())
    for i, domain in enumerate(DOMAINS):
        pooled = features[i].flatten(1).sum(dim=1) / 64
        hidden = (first.weight @ pooled + first.bias).clamp(min=0)
        logits = last.weight @ hidden + last.bias
        entropy = entropy + torch.log(torch.exp(logits).sum()) - logits[["CS", "GT450", "XR"].index(domain)]
    return sum(terms) / 3, entropy / 4


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(module.parameters(), found, strict=True)]


def test_the_features_gradient_is_reversed_and_the_classifiers_is_not() -> None:
    network = Tiny()
    loss = make(network)
    images, targets = batch()
    total = loss(network(images), **targets)
    total.backward()
    detection, domain = literal(network, loss)
    torch.testing.assert_close(total, detection + domain)
    torch.testing.assert_close((loss.task_loss, loss.domain_loss), (detection.detach(), domain.detach()))
    of_detection, of_domain = gradients(detection, network), gradients(domain, network)
    assert any(g.abs().max() > 1e-3 for g in of_domain)
    for parameter, own, against in zip(network.parameters(), of_detection, of_domain, strict=True):
        torch.testing.assert_close(parameter.grad, own - 0.3 * against)
    for parameter, own in zip(loss.classifier.parameters(), gradients(domain, loss.classifier), strict=True):
        torch.testing.assert_close(parameter.grad, own)


def test_without_a_labelled_image_only_the_domains_teach() -> None:
    network = Tiny()
    loss = make(network)
    images, targets = batch()
    total = loss(network(images), **targets | {"labelled": [False] * 4})
    total.backward()
    _, domain = literal(network, loss)
    torch.testing.assert_close(total, domain)
    assert loss.task_loss == 0
    assert not network.head.weight.grad.any()  # zeros, not None: every rank of a distributed run has some
    for parameter, against in zip(network.backbone.parameters(), gradients(domain, network.backbone), strict=True):
        torch.testing.assert_close(parameter.grad, -0.3 * against)


def test_overflow_without_a_labelled_image_does_not_spread() -> None:
    output = torch.full((2, 6, 64), torch.inf, requires_grad=True)
    loss = labelled_loss(DETECTION, output, [False, False], boxes=[], labels=[], image_size=SIZE)
    loss.backward()
    assert loss == 0
    assert not output.grad.any()


def test_accuracy_is_that_of_the_classifier() -> None:
    network = Tiny()
    loss = make(network)
    images, targets = batch()
    with torch.no_grad():
        for p in loss.classifier[2].parameters():
            p.zero_()
        loss.classifier[2].bias[loss.domains.index("CS")] = 1
    loss(network(images), **targets)
    assert loss.domain_accuracy == 0.25


@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_in_a_validation_it_is_the_networks_loss(mode: str) -> None:
    network = Tiny()
    loss = make(network)
    images, targets = batch()
    network.train(mode == "no_grad")
    with torch.no_grad():
        found = loss(network(images), **targets)
        torch.testing.assert_close(found, literal(network, loss)[0])
        domains = targets.pop("domains")
        assert torch.equal(loss(network(images), **targets), found)
    assert loss._kept._features is None
    assert loss.domain_loss.isnan()
    assert domains == DOMAINS


def test_features_are_not_kept_and_the_network_can_be_copied() -> None:
    network = Tiny()
    loss = make(network)
    images, targets = batch()
    loss(network(images), **targets).backward()
    assert loss._kept._features is None
    copied = copy.deepcopy(network)
    torch.testing.assert_close(copied(images), network(images))
    assert set(network.state_dict()) == set(Tiny().state_dict())
    assert not any(name.startswith("network") for name in loss.state_dict())


def test_a_wrapped_network_will_do() -> None:
    network = Tiny()
    images, targets = batch()
    wrapped = make(SimpleNamespace(module=network))
    found = wrapped(network(images), **targets)
    torch.testing.assert_close(found, sum(literal(network, wrapped)))


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = make(Tiny())
    draw = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), draw)
    torch.manual_seed(2)
    other, third = make(Tiny()), make(Tiny(), seed=1)
    assert torch.equal(one.classifier[0].weight, other.classifier[0].weight)
    assert not torch.equal(one.classifier[0].weight, third.classifier[0].weight)


@pytest.mark.parametrize(("stage", "channels"), [(1, 64), (2, 128), (3, 256), (4, 512)])
def test_any_stage_of_a_retinanet(stage: int, channels: int) -> None:
    network = fusestyle_retinanet("resnet10", channels=32, norm="group")
    loss = make(network, layer=f"backbone.body.layer{stage}")
    assert loss.classifier[0].in_features == channels
    images, targets = batch()
    loss(network(images), **targets).backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())
    assert loss.classifier[0].weight.grad.any()


def test_float32_whatever_the_precision() -> None:
    network = Tiny()
    with torch.no_grad():
        network.backbone.body.layer4[2].bias += 1000
    loss = make(network)
    images, targets = batch()
    with torch.autocast("cpu", dtype=torch.float16):
        output = network(images)
        features = loss._kept._features
        assert features.dtype == torch.float16
        total = loss(output, **targets)
    total.backward()
    logits = copy.deepcopy(loss.classifier).double()(features.detach().double().mean(dim=(2, 3)))
    wanted = nn.functional.cross_entropy(logits, torch.tensor([2, 0, 1, 2]))
    torch.testing.assert_close(loss.domain_loss.double(), wanted, rtol=1e-5, atol=0)
    assert total.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def training(folder: Path, max_epochs: int, resume: bool = False, seed: int = 0) -> tuple[Tiny, DomainAdversarialLoss]:
    network = Tiny()
    loss = make(network, seed=seed)
    images, targets = batch()
    items = [
        {"image": image, "box": box, "label": label, "domain": domain, "labelled": labelled, "case": str(i)}
        for i, (image, box, label, domain, labelled) in enumerate(
            zip(images, targets["boxes"], targets["labels"], DOMAINS, LABELLED, strict=True)
        )
    ]
    loader = DataLoader(Dataset(items), batch_size=2, collate_fn=collate_detections)
    optimizer = torch.optim.Adam([*network.parameters(), *loss.parameters()], lr=0.01)
    state = {"model": network, "loss": loss, "optimizer": optimizer}
    evaluator = DetectionEvaluator(torch.device("cpu"), loader, network, loss)
    checkpoint = TrainingCheckpoint(folder, state, evaluator, resume=resume)
    options = {"optimizer": optimizer, "loss_function": loss, "train_handlers": [checkpoint]}
    trainer = DetectionTrainer(torch.device("cpu"), 4, loader, network, clip_norm=1.0, **options)
    if max_epochs < 4:
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=max_epochs), trainer.terminate)
    trainer.run()
    return network, loss


def test_a_resumed_training_goes_on_with_the_classifier(tmp_path: Path) -> None:
    whole = training(tmp_path / "whole", 4)
    training(tmp_path / "half", 2)
    resumed = training(tmp_path / "half", 4, resume=True, seed=7)
    for one, other in zip(whole, resumed, strict=True):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert not torch.equal(whole[1].classifier[0].weight, make(Tiny()).classifier[0].weight)


def test_the_classifier_learns_and_the_features_forget() -> None:
    """Scanners of two colours: without the reversed gradient the features tell them apart."""
    entropy = {}
    for weight in (0.0, 1.0):
        network = Tiny()
        loss = make(network, weight=weight, channels=16, domains=["XR", "CS"])
        images, targets = batch()
        images[:2, 0] += 1
        targets |= {"domains": ["XR", "XR", "CS", "CS"], "labelled": [False] * 4}
        optimizer = torch.optim.SGD([*network.parameters(), *loss.parameters()], lr=0.5)
        for _ in range(100):
            optimizer.zero_grad()
            loss(network(images), **targets).backward()
            optimizer.step()
        entropy[weight] = loss.domain_loss.item()
    assert entropy[0.0] < 0.1
    assert entropy[1.0] == pytest.approx(math.log(2), abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": ["XR", "XR"]}, "needs two or more domains to train on, found"),
        ({"domains": "XR"}, "needs two or more domains to train on, found"),
        ({"weight": -1.0}, "weight must be at least 0, got -1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(Tiny(), **options)


def test_bad_calls() -> None:
    network = Tiny()
    loss = make(network)
    images, targets = batch()
    output = network(images)
    with pytest.raises(DataError, match="A sample is of the domain MRXS, expected one of CS, GT450, XR"):
        loss(output, **targets | {"domains": ["XR", "CS", "MRXS", "XR"]})
    with pytest.raises(ValueError, match="has not just made this output in training mode"):
        loss(output, **targets)
    with pytest.raises(ValueError, match="the domain of each of 4 samples is needed, got None"):
        loss(network(images), **targets | {"domains": None})
    with pytest.raises(ValueError, match="has not just made this output in training mode"):
        loss(Tiny()(images), **targets)


RANK = """
torch.manual_seed(rank)
network = torch.nn.parallel.DistributedDataParallel(toy.Tiny())
loss = toy.make(network).double().float()  # as when it is brought to a device
grads = [p.grad for p in toy.step(network, loss, rank)]
torch.save(grads, f"{folder}/{rank}.pt")
del network
"""


def step(network: nn.Module, loss: DomainAdversarialLoss, part: int | None) -> list[nn.Parameter]:
    """Gradients of the first half of the batch, the second, or all of it; each half has two labelled images."""
    images, targets = batch()
    targets["labelled"] = [True] * 4
    own = slice(0, 4) if part is None else slice(2 * part, 2 * part + 2)
    targets = {key: value if key == "image_size" else value[own] for key, value in targets.items()}
    for _ in range(2):  # twice, so that a second backward pass meets the first one's gradients
        loss(network(images[own]), **targets).backward()
    return [*network.parameters(), *loss.parameters()]


@pytest.mark.slow
def test_gradients_are_the_mean_over_the_ranks(tmp_path: Path) -> None:
    two_ranks(__file__, RANK, tmp_path)
    network = Tiny()
    wanted = [p.grad for p in step(network, make(network), None)]
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), wanted)
