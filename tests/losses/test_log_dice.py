from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceCELoss
from torch import Tensor

from shared.handlers import ClassBoostStrategy
from shared.losses import LogDiceCELoss, check_class_weight_buffers


def literal(
    logits: Tensor, label: Tensor, weights: list[float], gamma: float, lambda_ce: float, smooth: float
) -> Tensor:
    """The equations, voxel by voxel."""
    sums = [[torch.zeros((), dtype=logits.dtype) for _ in range(3)] for _ in weights]
    entropies = []
    for sample, ids in zip(logits.flatten(2), label.flatten(2), strict=True):
        for scores, value in zip(sample.T, ids[0].tolist(), strict=True):
            p = scores.exp() / scores.exp().sum()
            entropies.append(-p[value].log())
            for i, (both, predicted, labelled) in enumerate(sums, start=1):
                sums[i - 1] = [both + p[i] * (value == i), predicted + p[i], labelled + (value == i)]
    total = torch.zeros((), dtype=logits.dtype)
    for w, (both, predicted, labelled) in zip(weights, sums, strict=True):
        if labelled:
            total = total + w * (-((2 * both + smooth) / (predicted + labelled + smooth)).log()) ** gamma
    return total / len(weights) + lambda_ce * sum(entropies) / len(entropies)


def draw(*shape: int, classes: int = 4, absent: int | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, classes, (shape[0], 1, *shape[1:]), generator=generator)
    if absent is not None:
        label[label == absent] = 0
    return torch.randn(shape[0], classes, *shape[1:], generator=generator), label


@pytest.mark.parametrize("gamma", [0.3, 1.0])
@pytest.mark.parametrize("absent", [None, 2])
@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 3, 4, 3)])
def test_equals_the_equation(shape: tuple[int, ...], absent: int | None, gamma: float) -> None:
    logits, label = draw(*shape, absent=absent)
    weights = [1.0, 0.1, 1.7]
    loss = LogDiceCELoss(3, gamma=gamma, lambda_ce=0.6, weight=weights, smooth=1e-3)
    slow = logits.double().requires_grad_()
    logits.requires_grad_()
    value, expected = loss(logits, label), literal(slow, label, weights, gamma, 0.6, 1e-3)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    value.backward()
    expected.backward()
    torch.testing.assert_close(logits.grad.double(), slow.grad, rtol=1e-4, atol=1e-7)


def faded_class(loss: torch.nn.Module, lacks: bool) -> float:
    """The slope at the voxels of class 1, of which hardly anything is left; or, where there are none, at all."""
    logits = torch.zeros(1, 3, 8, 8, 8)
    logits[:, 1] = -12.0 if lacks else -10.0
    logits.requires_grad_()
    label = torch.zeros(1, 1, 8, 8, 8)
    label[..., 4:] = 2
    if not lacks:
        label[:, :, 0, 0, :2] = 1
    loss(logits, label).backward()
    return logits.grad[:, 1][(label[:, 0] == 1) | lacks].sum().item()


def test_what_has_faded_comes_back() -> None:
    smoothed = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, lambda_ce=0.0)
    assert abs(faded_class(smoothed, lacks=False)) < 1e-4
    assert faded_class(LogDiceCELoss(2, gamma=1.0, lambda_ce=0.0), lacks=False) < -0.4
    assert faded_class(LogDiceCELoss(2, lambda_ce=0.0), lacks=False) < -0.02


def test_a_class_that_a_batch_lacks_is_left_to_the_cross_entropy() -> None:
    smoothed = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, lambda_ce=0.0)
    assert faded_class(smoothed, lacks=True) > 1e-3
    assert abs(faded_class(LogDiceCELoss(2, lambda_ce=0.0), lacks=True)) < 1e-4
    assert faded_class(LogDiceCELoss(2, lambda_ce=1.0), lacks=True) > 0
    logits, label = draw(1, 4, 4, absent=1)
    more = logits.clone()
    more[:, 1] += 1.0  # all shares of the others stay as they are, relative to one another
    only_1 = LogDiceCELoss(3, lambda_ce=0.0, weight=[5.0, 0.0, 0.0])
    assert only_1(logits, label).item() == only_1(more, label).item() == 0


@pytest.mark.parametrize("logit", [60.0, 1000.0])
def test_a_perfect_prediction_has_slopes_that_are_numbers(logit: float) -> None:
    _, label = draw(2, 4, 4, 4)
    logits = (logit * torch.nn.functional.one_hot(label[:, 0], 4).movedim(-1, 1)).requires_grad_()
    value = LogDiceCELoss(3)(logits, label)
    value.backward()
    assert value.item() < 0.02
    assert logits.grad.abs().max().item() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_its_values_in_single(dtype: torch.dtype) -> None:
    logits, label = draw(1, 40, 40, 40)  # sums beyond the range of float16
    loss = LogDiceCELoss(3)
    half = logits.to(dtype)
    assert loss(half, label).item() == loss(half.float(), label.to(torch.uint8)).item()


def test_neither_the_order_of_voxels_nor_that_of_samples_matters() -> None:
    logits, label = draw(2, 6, 6)
    loss = LogDiceCELoss(3)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(1))
    shuffled = [each.flatten(2)[:, :, order].reshape(each.shape).flip(0) for each in (logits, label)]
    torch.testing.assert_close(loss(*shuffled), loss(logits, label))


def test_rules_write_its_weights() -> None:
    logits, label = draw(1, 6, 6)
    loss = LogDiceCELoss(3, lambda_ce=0.0)
    assert list(check_class_weight_buffers(loss, 3)) == ["class_weight"]
    assert list(loss.state_dict()) == ["class_weight"]
    before = loss(logits, label).item()
    rule = ClassBoostStrategy(loss, num_classes=3)
    rule._weights = torch.tensor([0.1, 1.5, 2.0])
    rule._publish()
    weights = loss.class_weight.tolist()
    assert weights == pytest.approx([0.1, 1.5, 2.0])
    parts = [LogDiceCELoss(3, lambda_ce=0.0, weight=[float(i == j) for j in range(3)])(logits, label) for i in range(3)]
    assert loss(logits, label).item() == pytest.approx(sum(w * p.item() for w, p in zip(weights, parts, strict=True)))
    assert before == pytest.approx(sum(part.item() for part in parts))


def test_says_itself() -> None:
    assert repr(LogDiceCELoss(13)) == "LogDiceCELoss(num_classes=13, gamma=0.3, lambda_ce=1.0)"
    assert LogDiceCELoss(1)(torch.zeros(1, 2, 4), torch.ones(1, 1, 4)).item() == pytest.approx(
        math.log(1.5) ** 0.3 + math.log(2), abs=1e-4
    )


def test_gradients_in_double_precision() -> None:
    logits = torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 4, (2, 1, 3, 2))
    torch.autograd.gradcheck(lambda each: LogDiceCELoss(3, weight=[1, 2, 0])(each, label), logits)


@pytest.mark.parametrize("weight", [[1, 1], [[1], [1], [1]], [1, -1, 1], [1, math.nan, 1], [1, math.inf, 1]])
def test_refuses_weights_that_are_none(weight: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^weight is \[.*\] for 3 classes, expected a number of at least 0 for each"):
        LogDiceCELoss(3, weight=weight)


@pytest.mark.parametrize(("name", "value"), [("gamma", 0), ("gamma", math.inf), ("smooth", 0.0), ("smooth", 1e-46)])
def test_refuses_values_without_a_finite_loss(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}, expected a number above 0"):
        LogDiceCELoss(3, **{name: value})


def test_weights_are_its_own() -> None:
    weights = torch.ones(3)
    LogDiceCELoss(3, weight=weights).class_weight.fill_(2)
    assert weights.tolist() == [1, 1, 1]


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"lambda_ce is -1, expected a number of at least 0"):
        LogDiceCELoss(3, lambda_ce=-1)
    with pytest.raises(ValueError, match=r"for 0 classes"):
        LogDiceCELoss(0)
    loss = LogDiceCELoss(3)
    with pytest.raises(ValueError, match=r"Logits of shape \(1, 3, 4, 4\) .* expected \(batch, 4, spatial"):
        loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"Logits of shape \(2, 4\)"):
        loss(torch.zeros(2, 4), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"labels of \(1, 4, 4\)"):
        loss(torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4))
