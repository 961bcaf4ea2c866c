from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, TverskyLoss
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shared.handlers import ClassBoostStrategy
from shared.losses import ClassWeightedLoss, DicePlainCELoss, check_class_weight_buffers, class_weight_buffers
from shared.utils import DataError


class PerVoxel(nn.Module):
    """A loss of our own with a value for each class and voxel."""

    reduction = "none"

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return (input - target).abs()


def tversky(include_background: bool, reduction: str = "none") -> TverskyLoss:
    return TverskyLoss(include_background=include_background, to_onehot_y=True, softmax=True, reduction=reduction)


@pytest.mark.parametrize("include_background", [True, False])
def test_is_the_mean_over_classes_of_weight_times_loss(include_background: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, 5, generator=generator)
    label = torch.randint(0, 4, (3, 1, 5, 5), generator=generator)
    inner = tversky(include_background)
    loss = ClassWeightedLoss(inner, num_classes=3, include_background=include_background)
    torch.testing.assert_close(loss(logits, label), tversky(include_background, "mean")(logits, label))
    weights = [1.0, 0.1, 1.5, 2.0][-len(loss.class_weight) :]
    loss.class_weight.copy_(torch.tensor(weights))
    values = inner(logits, label)
    literal = sum(w * values[:, i].mean() for i, w in enumerate(weights)) / len(weights)
    torch.testing.assert_close(loss(logits, label), literal)


def test_values_with_space_are_averaged_first() -> None:
    target = torch.arange(2 * 2 * 3).reshape(2, 2, 3).float()
    loss = ClassWeightedLoss(PerVoxel(), num_classes=2, weight=[0.5, 2])
    expected = (0.5 * target[:, 0].mean() + 2 * target[:, 1].mean()) / 2
    torch.testing.assert_close(loss(torch.zeros(2, 2, 3), target), expected)


def test_half_precision_values_keep_their_type() -> None:
    loss = ClassWeightedLoss(PerVoxel(), num_classes=2)
    assert loss(torch.zeros(1, 2, 3).half(), torch.ones(1, 2, 3).half()).dtype == torch.float16


def test_weights_are_part_of_the_state() -> None:
    assert list(ClassWeightedLoss(PerVoxel(), num_classes=2).state_dict()) == ["class_weight"]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (tversky(True, "mean"), 'TverskyLoss has reduction="mean", expected "none"'),
        (DiceLoss(weight=[1.0, 1.0], reduction="none"), "DiceLoss holds class weights already"),
    ],
)
def test_refuses_losses(loss: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassWeightedLoss(loss, num_classes=2)


def test_refuses_another_number_of_weights() -> None:
    with pytest.raises(ValueError, match=r"2 weights for 3 classes \(include_background=True\)"):
        ClassWeightedLoss(PerVoxel(), num_classes=2, include_background=True, weight=[1, 1])


def test_refuses_values_without_a_class_axis() -> None:
    with pytest.raises(ValueError, match=r"PerVoxel returned values of shape \(\); expected \(batch, 2\)"):
        ClassWeightedLoss(PerVoxel(), num_classes=2)(torch.tensor(0.0), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"CrossEntropyLoss returned values of shape \(1, 5\)"):
        ClassWeightedLoss(nn.CrossEntropyLoss(reduction="none"), num_classes=2)(
            torch.zeros(1, 2, 5), torch.zeros(1, 5, dtype=torch.long)
        )


def test_buffers_that_share_a_tensor_are_all_found() -> None:
    loss = DiceFocalLoss(weight=torch.ones(3))
    assert loss.dice.class_weight is loss.focal.class_weight
    assert list(class_weight_buffers(loss)) == ["dice.class_weight", "focal.class_weight"]


def test_parameters_and_positive_weights_are_no_class_weights() -> None:
    assert not class_weight_buffers(nn.Sequential(nn.Linear(2, 2), nn.BCEWithLogitsLoss(pos_weight=torch.ones(2))))
    assert list(class_weight_buffers(DiceCELoss(weight=torch.ones(2)))) == ["dice.class_weight", "cross_entropy.weight"]


def test_check_names_the_buffer() -> None:
    loss = DiceCELoss(weight=torch.ones(3))
    assert len(check_class_weight_buffers(loss, num_classes=2)) == 2
    with pytest.raises(DataError, match=r"DiceCELoss.dice.class_weight holds weights of shape \(3,\) for 4 foreground"):
        check_class_weight_buffers(loss, num_classes=4)


def test_weights_act_on_the_dice_term_alone() -> None:
    torch.manual_seed(0)
    options = {"include_background": False, "to_onehot_y": True, "softmax": True}
    logits, label = torch.randn(2, 4, 6, 6, 6), torch.randint(0, 4, (2, 1, 6, 6, 6))
    loss = DicePlainCELoss(weight=torch.ones(4), lambda_ce=0.3, **options)
    plain = DiceCELoss(lambda_ce=0.3, **options)
    torch.testing.assert_close(loss(logits, label), plain(logits, label))
    rule = ClassBoostStrategy(loss, num_classes=3)
    assert list(class_weight_buffers(loss)) == ["dice.class_weight"]
    rule._weights = torch.tensor([0.1, 1.5, 2.0])
    rule._publish()
    weighted_dice = DiceLoss(weight=[0.1, 1.5, 2.0], **options)(logits, label)
    expected = weighted_dice + 0.3 * cross_entropy(logits, label[:, 0])
    torch.testing.assert_close(loss(logits, label), expected)
