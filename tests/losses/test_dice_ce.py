from __future__ import annotations

import torch
from monai.losses import DiceCELoss, DiceLoss
from torch.nn.functional import cross_entropy

from shared.handlers import ClassBoostStrategy
from shared.losses import DicePlainCELoss, class_weight_buffers


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
