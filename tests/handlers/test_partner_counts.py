from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from shared.handlers import PartnerCounts
from shared.layers import DSU, FuseStyle

# What two layers chose in each of three steps of an epoch; a sample that chose itself had no partner.
STEPS = [([1, 0, 1, 1], None), (None, None), ([1, 1, 0, 2], [2, 2, 0, 2])]
TARGETS = {"target": torch.tensor([[0.0], [0.9], [1.0], [0.2]]), "domains": ["XR", "CS", "XR", "CS"]}
# in pairs, without 1 and 1 of the third
CHOSEN = (3 + 1 + 3) / (3 * 4)
PAIRS = [(0, 1), (1, 0), (2, 1), (3, 1), (0, 1), (2, 0), (3, 2), (0, 2), (1, 2), (2, 0), (3, 2)]


def epochs(targets: dict[str, Any], steps: list[Any], count: int = 1, network: nn.Module | None = None) -> Any:
    """The trainer's metrics after an epoch of these steps, and then epochs in which nothing is mixed."""
    layers = [FuseStyle(), FuseStyle()]

    def step(engine: Engine, batch: int) -> dict[str, Any]:
        for layer, partners in zip(layers, steps[batch] if engine.state.epoch == 1 else (None, None), strict=True):
            layer.last_partners = None if partners is None else torch.tensor(partners)
        return {"label": targets}

    engine = Engine(step)
    PartnerCounts(nn.Sequential(*layers) if network is None else network).attach(engine)
    return engine.run(range(len(steps)), max_epochs=count).metrics


def test_partners_of_an_epoch_are_counted() -> None:
    found = epochs(TARGETS, STEPS)
    labels, domains = [0, 1, 1, 0], TARGETS["domains"]
    same = sum(labels[i] == labels[j] for i, j in PAIRS) / len(PAIRS)
    other = sum(domains[i] != domains[j] for i, j in PAIRS) / len(PAIRS)
    expected = {"partners_most_chosen": CHOSEN, "partners_same_label": same, "partners_other_domain": other}
    assert found == pytest.approx(expected)


def test_what_is_not_known_is_not_told() -> None:
    assert [*epochs({}, STEPS)] == ["partners_most_chosen"]
    assert [*epochs({"domains": TARGETS["domains"]}, STEPS)] == ["partners_most_chosen", "partners_other_domain"]
    assert epochs(TARGETS, STEPS, count=2) == {}
    assert epochs(TARGETS, STEPS, network=nn.Sequential(DSU(), nn.Linear(2, 2))) == {}
