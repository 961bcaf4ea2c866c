from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import from_engine
from monai.metrics import DiceMetric
from torch import Tensor, nn

from shared.metrics import ClassDice, MeanClassDice
from shared.utils import DataError

NAN = math.nan


def literal_class_dice(predictions: list[Tensor], labels: list[Tensor], num_classes: int) -> list[float]:
    """Mean over the cases that show a class of 2 TP / (2 TP + FP + FN), by counting; NaN where none does."""
    means = []
    for k in range(1, num_classes + 1):
        scores = []
        for p, y in zip(predictions, labels, strict=True):
            tp, fp, fn = (
                int((a & b).sum()) for a, b in (((p == k), (y == k)), ((p == k), (y != k)), ((p != k), (y == k)))
            )
            if tp + fn:
                scores.append(2 * tp / (2 * tp + fp + fn))
        means.append(sum(scores) / len(scores) if scores else NAN)
    return means


def random_cases(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Label maps of different sizes in which classes are often absent."""
    generator = torch.Generator().manual_seed(seed)
    labels = []
    for size in (3, 4, 5):
        label = torch.randint(0, 6, (1, size, size, 2), generator=generator)
        present = torch.rand(6, generator=generator) < 0.5
        labels.append(torch.where(present[label], label, 0))
    noise = [torch.rand(y.shape, generator=generator) < 0.3 for y in labels]
    predictions = [
        torch.where(n, torch.randint(0, 6, y.shape, generator=generator), y) for n, y in zip(noise, labels, strict=True)
    ]
    return predictions, labels


@pytest.mark.parametrize("seed", range(20))
def test_is_the_mean_over_the_cases_that_show_the_class(seed: int) -> None:
    predictions, labels = random_cases(seed)
    metric = ClassDice(num_classes=5)
    metric.update([predictions, labels])
    expected = literal_class_dice(predictions, labels, 5)
    torch.testing.assert_close(metric.compute(), torch.tensor(expected), equal_nan=True)


def test_random_cases_hold_absent_classes() -> None:
    values = torch.tensor([literal_class_dice(*random_cases(seed), 5) for seed in range(20)])
    assert 5 < values.isnan().sum() < 60


def test_missed_class_is_0_and_absent_class_is_nan() -> None:
    label = torch.tensor([[[1, 1, 2, 0]]])
    prediction = torch.tensor([[[1, 1, 0, 3]]])  # 2 is missed, 3 is predicted where there is none
    metric = ClassDice(num_classes=4)
    metric.update([[prediction], [label]])
    torch.testing.assert_close(metric.compute(), torch.tensor([1, 0, NAN, NAN]), equal_nan=True)
    stock = DiceMetric(include_background=False, reduction="mean_batch", num_classes=5)
    stock([prediction], [label])
    assert stock.aggregate().tolist() == [1, 0, 0, 0]  # why the stock reduction does not serve


@pytest.mark.parametrize("batched", [True, False])
def test_takes_logits_as_well_as_label_maps(batched: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 5, 5, 5, generator=generator)
    label = torch.randint(0, 4, (2, 1, 5, 5, 5), generator=generator)
    values = []
    for prediction in (logits, logits.argmax(dim=1, keepdim=True)):
        metric = ClassDice(num_classes=3)
        metric.update([prediction, label] if batched else [list(prediction), list(label)])
        values.append(metric.compute())
    assert torch.equal(*values)
    torch.testing.assert_close(
        values[0], torch.tensor(literal_class_dice(list(logits.argmax(1, keepdim=True)), list(label), 3))
    )


def test_refuses_another_number_of_channels() -> None:
    metric = ClassDice(num_classes=3)
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 4\): 3 channels. Expected 1 .label map. or 4"):
        metric.update([torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)])


def ids(*values: int) -> Tensor:
    return torch.tensor(values).reshape(1, 1, 1, -1)


@pytest.mark.parametrize("mean_first", [True, False])
def test_one_pass_serves_both_metrics(mean_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = DiceMetric._compute_tensor
    monkeypatch.setattr(DiceMetric, "_compute_tensor", lambda *a, **k: calls.append(1) or original(*a, **k))
    class_dice = ClassDice(num_classes=3, output_transform=lambda output: output)
    metrics: dict[str, Any] = {"mean": MeanClassDice(class_dice), "classes": class_dice}
    engine = Engine(lambda engine, batch: batch)
    for name in metrics if mean_first else reversed(metrics):
        metrics[name].attach(engine, name)
    data = [(ids(1, 1, 2, 2), ids(1, 1, 2, 0)), (ids(1, 0, 0, 0), ids(1, 1, 0, 0))]
    state = engine.run(data, max_epochs=2)
    assert len(calls) == 4  # two cases in each of two epochs
    torch.testing.assert_close(state.metrics["classes"], torch.tensor([5 / 6, 2 / 3, NAN]), equal_nan=True)
    assert state.metrics["mean"] == pytest.approx(3 / 4)
    assert state.metric_details["classes"].shape == (2, 3)  # reset between the epochs


def test_mean_of_nothing_is_refused() -> None:
    class_dice = ClassDice(num_classes=2)
    engine = Engine(lambda engine, batch: (ids(0, 1), ids(0, 0)))
    MeanClassDice(class_dice).attach(engine, "mean")
    with pytest.raises(DataError, match="none of the classes occurs in any label"):
        engine.run([0])


class Echo(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.one_hot(image[:, 0].long(), 3).movedim(-1, 1).float()


@pytest.mark.parametrize("decollate", [True, False])
def test_in_monais_evaluator(decollate: bool) -> None:
    class_dice = ClassDice(num_classes=2, output_transform=from_engine(["pred", "label"]))
    label = MetaTensor(torch.cat([ids(0, 1, 1), ids(1, 1, 1)]))
    batches = [{"image": MetaTensor(torch.cat([ids(0, 1, 1), ids(0, 1, 1)])), "label": label}]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches,
        network=Echo(),
        key_val_metric={"val_mean_dice": MeanClassDice(class_dice)},
        additional_metrics={"val_class_dice": class_dice},
        decollate=decollate,
    )
    if not decollate:
        class_dice._output_transform = lambda output: (output["pred"], output["label"])
    evaluator.run()
    torch.testing.assert_close(evaluator.state.metrics["val_class_dice"], torch.tensor([0.9, NAN]), equal_nan=True)
    assert evaluator.state.best_metric == pytest.approx(0.9)
    assert type(evaluator.state.metrics["val_class_dice"]) is Tensor


def test_a_case_that_several_ranks_had_counts_once() -> None:
    data = [("a", ids(1, 1, 2, 2), ids(1, 1, 2, 0)), ("b", ids(1, 0, 0, 0), ids(1, 1, 0, 0))]
    found = []
    for batches in (data, [*data, data[0]]):
        metric = ClassDice(2, lambda output: output[1:], case_transform=lambda batch: [batch[0]])
        engine = Engine(lambda engine, batch: batch)
        metric.attach(engine, "classes")
        state = engine.run(batches, max_epochs=2)
        assert state.metric_details["classes"].shape == (2, 2)
        found.append(state.metrics["classes"])
    assert torch.equal(*found)
