from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from shared.data import collate_detections
from shared.engines import LISA, DetectionTrainer, DomainTrainer, FishTrainer
from shared.layers import FuseStyle

DOMAINS = ["CS", "XR", "XR", "S360", "CS", "S360", "XR", "CS"]
LABELS = torch.tensor([[0.0], [1], [0], [1], [1], [0], [1], [0]])


class Told(FuseStyle):
    """Keeps all that it is told, and whom it has chosen."""

    def __init__(self, **options: Any) -> None:
        super().__init__(p=1, reference="style", **options)
        self.heard: list[tuple[Tensor | None, list[str] | None]] = []
        self.chosen: list[list[int]] = []
        self.register_forward_hook(lambda *_: self.chosen.append(self.last_partners.tolist()))

    def tell(self, labels: Tensor | None, domains: list[str] | None) -> None:
        super().tell(labels, domains)
        self.heard.append((labels, domains))


def trained(layer: Told, kind: type[DomainTrainer] = DomainTrainer, **options: Any) -> DomainTrainer:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(8, 3, 6, 6, generator=generator) for _ in range(3)]
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.ReLU(), nn.Flatten(), nn.Linear(64, 1))
    trainer = kind(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": image, "label": LABELS, "domain": DOMAINS} for image in images],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=nn.BCEWithLogitsLoss(),
        **options,
    )
    trainer.run()
    return trainer


@pytest.mark.parametrize(("partners", "of"), [("same_label", LABELS.flatten().tolist()), ("other_domain", DOMAINS)])
def test_partners_depend_on_label_or_domain_of_the_batch(partners: str, of: list[Any]) -> None:
    layer = Told(partners=partners)
    trained(layer)
    assert len(layer.chosen) == len(layer.heard) == 3
    for chosen in layer.chosen:
        assert [of[i] == of[j] for i, j in enumerate(chosen)] == [partners == "same_label"] * 8


def test_labels_are_told_as_they_are_once_mixed() -> None:
    layer, targets = Told(partners="same_label"), []
    torch.manual_seed(3)
    mixing = LISA(["CS", "S360", "XR"], p_sel=0.0)  # of the other label

    class Watched(DomainTrainer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.add_event_handler(Events.ITERATION_COMPLETED, self.keep)

        def keep(self, engine: Engine) -> None:
            targets.append(engine.state.output["label"]["target"])

    trained(layer, Watched, mixing=mixing)
    assert any(((target > 0.05) & (target < 0.95)).any() for target in targets)
    for (told, domains), target, chosen in zip(layer.heard, targets, layer.chosen, strict=True):
        assert told is target
        assert domains == DOMAINS
        classes = target.flatten() > 0.5
        assert torch.equal(classes[chosen], classes)


def test_fish_tells_of_each_part_of_a_batch() -> None:
    layer = Told(partners="same_label")
    trained(layer, FishTrainer, domains=["CS", "S360", "XR"])
    assert len(layer.heard) == 9
    for i, (labels, domains) in enumerate(layer.heard):
        assert len(set(domains)) == 1
        assert {d for _, part in layer.heard[i // 3 * 3 :][:3] for d in part} == set(DOMAINS)
        assert torch.equal(labels, LABELS[[d == domains[0] for d in DOMAINS]])


def test_a_detector_is_told_of_domains_alone() -> None:
    layer = Told(partners="other_domain")
    tile = {"image": torch.rand(3, 6, 6), "box": torch.zeros(0, 4), "label": torch.zeros(0)}
    batch = collate_detections([{**tile, "domain": name} for name in ("XR", "CS", "CS")])
    network = nn.Sequential(nn.Conv2d(3, 4, 3), layer)
    DetectionTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=lambda output, **targets: output.mean(),
    ).run()
    assert layer.heard == [(None, ["XR", "CS", "CS"])]
    assert layer.chosen[0][1:] == [0, 0]
    assert layer.chosen[0][0] in (1, 2)
