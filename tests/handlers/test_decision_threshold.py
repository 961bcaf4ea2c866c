from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import two_ranks
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import ROCAUC, from_engine
from torch import Tensor, nn

from shared.handlers import DecisionThreshold
from shared.utils import DataError


def logits_and_labels(count: int = 41, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) < 0.3).float()
    return torch.randn(count, generator=generator) + 1.5 * labels - 1.0, labels


def make(logits: Tensor, labels: Tensor, batch_size: int = 8) -> tuple[SupervisedEvaluator, DecisionThreshold]:
    handler = DecisionThreshold(["CS", "XR"])
    items = [{"image": x[None], "label": y[None]} for x, y in zip(logits, labels, strict=True)]
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(items), batch_size=batch_size),
        network=nn.Identity(),
        key_val_metric={"val_auc": ROCAUC(output_transform=from_engine(["pred", "label"]))},
        val_handlers=[handler],
        decollate=False,
    )
    return evaluator, handler


def balanced_accuracy(logits: Tensor, labels: Tensor, threshold: float) -> float:
    called = (1 / (1 + np.exp(-logits.double().numpy()))) >= threshold
    positive = labels.numpy() == 1
    return (called[positive].mean() + (~called[~positive]).mean()) / 2


@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_no_other_threshold_is_better(batch_size: int) -> None:
    logits, labels = logits_and_labels()
    evaluator, handler = make(logits, labels, batch_size)
    evaluator.run()
    best = max(balanced_accuracy(logits, labels, t) for t in np.linspace(0, 1, 4001))
    assert handler.balanced_accuracy == pytest.approx(best, abs=1e-12)
    assert balanced_accuracy(logits, labels, handler.threshold) == pytest.approx(best, abs=1e-12)
    assert evaluator.state.metrics["val_balanced_accuracy"] == handler.balanced_accuracy
    assert set(evaluator.state.metrics) == {"val_auc", "val_balanced_accuracy"}


def test_each_validation_begins_anew() -> None:
    logits, labels = logits_and_labels()
    evaluator, handler = make(logits, labels)
    evaluator.run(1)
    first = handler.content()
    evaluator.network.forward = lambda x: x - 2
    evaluator.run(2)
    assert handler.threshold < first["threshold"]
    assert handler.balanced_accuracy == pytest.approx(first["balanced_accuracy"])
    evaluator.network.forward = lambda x: 0 * x
    evaluator.run(3)
    assert (handler.balanced_accuracy, handler.threshold) == (0.5, pytest.approx(0.5, abs=0.26))
    assert len(handler.labels) == 41


def test_what_is_kept() -> None:
    logits, labels = logits_and_labels()
    evaluator, handler = make(logits, labels)
    evaluator.run()
    content = json.loads(json.dumps(handler.content(), allow_nan=False))
    assert content == {
        "threshold": handler.threshold,
        "chosen_for": "balanced accuracy",
        "balanced_accuracy": handler.balanced_accuracy,
        "split": "validation",
        "domains": ["CS", "XR"],
    }
    assert 0 < content["threshold"] < 0.5


def test_a_threshold_that_is_given() -> None:
    logits, labels = logits_and_labels()
    evaluator, _ = make(logits, labels)
    handler = DecisionThreshold(["XR"], "ood_validation", threshold=0.5)
    handler.attach(evaluator)
    evaluator.run()
    assert handler.content() == {
        "threshold": 0.5,
        "chosen_for": None,
        "balanced_accuracy": pytest.approx(balanced_accuracy(logits, labels, 0.5)),
        "split": "ood_validation",
        "domains": ["XR"],
    }
    assert evaluator.state.metrics["val_balanced_accuracy"] == handler.balanced_accuracy
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 1\.5"):
        DecisionThreshold(threshold=1.5)


def test_logits_close_to_one_stay_apart() -> None:
    """In single precision, sigmoid gives 1 for both."""
    evaluator, handler = make(torch.tensor([17.5, 20.0]), torch.tensor([0.0, 1.0]))
    evaluator.run()
    assert handler.balanced_accuracy == 1


def test_a_network_that_gives_no_number_is_told_with_what_to_do() -> None:
    """Half precision overflows in a validation, too, where no loss is looked at."""
    evaluator, _ = make(torch.tensor([0.5, float("nan"), float("nan")]), torch.tensor([0.0, 1.0, 0.0]))
    with pytest.raises(DataError, match=r"gives no number \(2 such patches in this batch\).*--amp_dtype bfloat16"):
        evaluator.run()


@pytest.mark.filterwarnings("ignore:y values can not be all:UserWarning")
def test_one_class() -> None:
    evaluator, _ = make(torch.randn(5), torch.ones(5))
    with pytest.raises(DataError, match="all 5 validation patches are positive, expected both classes"):
        evaluator.run()


RANK = """
logits, labels = toy.logits_and_labels()
own = [slice(0, 13), slice(13, None)][rank]
evaluator, handler = toy.make(logits[own], labels[own])
evaluator.run()
print(handler.content(), evaluator.state.metrics["val_balanced_accuracy"])
"""


@pytest.mark.slow
def test_two_ranks_with_unequal_shares_choose_what_one_does(tmp_path: Path) -> None:
    printed = two_ranks(__file__, RANK, tmp_path)
    evaluator, handler = make(*logits_and_labels())
    evaluator.run()
    assert printed == [f"{handler.content()} {handler.balanced_accuracy}"] * 2
