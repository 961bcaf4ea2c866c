from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Engine
from monai.metrics import SurfaceDiceMetric
from monai.networks import one_hot
from scipy.ndimage import binary_dilation
from torch import Tensor

from shared.metrics import ClassDice, ClassFound, ClassSurfaceDice

NAN = math.nan
SPACING = (1.5, 2.0, 3.0)


def bodies(seed: int, count: int = 4) -> tuple[list[Tensor], list[Tensor]]:
    """Label maps with blobs of three classes, often absent, and predictions that are moved, too large or missing."""
    generator = torch.Generator().manual_seed(seed)
    predictions, labels = [], []
    for _ in range(count):
        label, prediction = torch.zeros(2, 1, 14, 13, 12, dtype=torch.uint8)
        for value in (1, 2, 3):
            x, y, z, kind = torch.randint(1, 6, (4,), generator=generator).tolist()
            blob = torch.zeros(14, 13, 12, dtype=torch.bool)
            blob[x : x + 5, y : y + 4, z : z + 5] = True
            moved = torch.from_numpy(binary_dilation(blob, iterations=kind % 3)).roll(kind - 3, 0)
            label[0][blob & (kind > 1)] = value
            prediction[0][moved & (kind < 5)] = value
        labels.append(label)
        predictions.append(prediction)
    return predictions, labels


def literal(scores: list[list[float]], labels: list[Tensor]) -> list[float]:
    """Means over the cases that show a class."""
    means = []
    for k in (1, 2, 3):
        own = [case[k - 1] for case, label in zip(scores, labels, strict=True) if (label == k).any()]
        means.append(sum(own) / len(own) if own else NAN)
    return means


@pytest.mark.parametrize("seed", range(6))
def test_the_share_of_cases_in_which_a_class_is_found(seed: int) -> None:
    predictions, labels = bodies(seed)
    found = []
    for p, y in zip(predictions, labels, strict=True):
        both = [(int(((p == k) & (y == k)).sum()), int((p == k).sum() + (y == k).sum())) for k in (1, 2, 3)]
        found.append([float(2 * hits >= 0.4 * size > 0) for hits, size in both])
    metric = ClassFound(3, least=0.4)
    metric.update([predictions, labels])
    torch.testing.assert_close(metric.compute().tolist(), literal(found, labels), equal_nan=True)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI calls itself so
@pytest.mark.filterwarnings("ignore:the (ground truth|prediction) of class .* is all 0:UserWarning")
@pytest.mark.parametrize("seed", range(6))
def test_the_surface_score_is_monais_on_cases_that_show_a_class(seed: int) -> None:
    """MONAI's gives 0 where a class is shown or predicted alone."""
    predictions, labels = bodies(seed)
    monai = SurfaceDiceMetric([2.0] * 3, use_subvoxels=True)
    scores = []
    for p, y in zip(predictions, labels, strict=True):
        scores += monai(one_hot(p[None], 4), one_hot(y[None], 4), spacing=SPACING).nan_to_num(0).tolist()
    metric = ClassSurfaceDice(3, SPACING)
    metric.update([predictions, labels])
    torch.testing.assert_close(metric.compute().tolist(), literal(scores, labels), equal_nan=True, rtol=1e-5, atol=1e-5)


def test_what_is_missed_scores_0_and_what_is_absent_nothing() -> None:
    label = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
    label[..., 2:5, 2:5, 2:5] = 1
    label[..., 6, 6, 6] = 2
    prediction = torch.where(label == 2, 3, label)
    for metric in (ClassFound(3), ClassSurfaceDice(3, SPACING)):
        metric.update([prediction, label])
        torch.testing.assert_close(metric.compute(), torch.tensor([1, 0, NAN]), equal_nan=True)


def test_they_stand_beside_the_dice_and_count_a_case_once() -> None:
    predictions, labels = bodies(1, 3)
    batches = [
        {"output": ([p], [y]), "case": [name]} for p, y, name in zip(predictions, labels, "aba", strict=True)
    ]  # the third is the first again, as the sampler of several ranks gives it
    batches[2]["output"] = batches[0]["output"]
    engine = Engine(lambda engine, batch: batch["output"])
    options = {"case_transform": lambda batch: batch["case"]}
    metrics = {"dice": ClassDice(3, **options), "found": ClassFound(3, **options)}
    metrics["surface"] = ClassSurfaceDice(3, SPACING, **options)
    for name, metric in metrics.items():
        metric.attach(engine, name)
    engine.run(batches)
    for name, metric in metrics.items():
        assert engine.state.metric_details[name].shape == (2, 3)
        metric.reset()
        metric.update([predictions[:2], labels[:2]])
        metric.cases = ["a", "b"]
        torch.testing.assert_close(engine.state.metrics[name], metric.compute(), equal_nan=True)


@pytest.mark.parametrize("least", [0, -1, 1.1])
def test_a_share_of_a_dice_that_cannot_be(least: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        ClassFound(3, least=least)
