"""RetinaNet with FuseStyle in its backbone: one tensor out, parameters named as torchvision names them.

Lin, Goyal, Girshick, He and Dollár, *Focal Loss for Dense Object Detection*, arXiv 1708.02002.

Axes: B batch, K classes, A anchors, S positions of a feature map.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7
from monai.networks.nets import ResNet
from torch import Tensor, nn

from ..layers import FuseStyle
from ..utils import DataError
from .pretrained import DETECTION_HEADS, load_pretrained
from .resnet import fusestyle_resnet

LEVELS = (3, 4, 5, 6, 7)  # of the pyramid; level n has the stride 2^n
HEAD_NORMS = (None, "group", "batch")
NORMS = ("frozen", "batch", "group")
GROUPS = 32  # of group norm, as in torchvision's heads
PRIOR = 0.01  # the probability of every class at every anchor before training


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics, scale and shift, in training too: for small batches and pretrained weights.

    All of it is state and none of it a parameter; the keys are those of `nn.BatchNorm2d`, so that weights of one fit
    the other. Neither `SyncBatchNorm` nor `adapt_batch_norm` touches it.

    Shapes: (B, num_features, H, W) to the same.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class BackboneWithFPN(nn.Module):
    """A ResNet's stages under a feature pyramid: stages 2 to 4 feed it from the side, whichever levels are returned.

    Levels 3 to 5 belong to these stages, 6 and 7 are made from level 5. A level that is not asked for costs no
    convolution of its own, and has no parameters.

    Shapes: (B, channels of the image, H, W) to a list with (B, `channels`, ceil(H / 2^n), ceil(W / 2^n)) for each
    level n.

    Args:
        resnet: in two dimensions; its average pooling and its classifier are left out.
        channels: of the pyramid.
        levels: ascending, from 3 to 7.
    """

    def __init__(self, resnet: ResNet, channels: int, levels: Sequence[int]) -> None:
        super().__init__()
        stages = ("conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4")
        self.body = nn.Sequential(OrderedDict((name, resnet.get_submodule(name)) for name in stages))
        self.levels = [f"p{level}" for level in levels]
        deepest = resnet.in_planes
        extra = LastLevelP6P7(2, channels, channels) if levels[-1] > 5 else None
        self.fpn = FeaturePyramidNetwork(2, [deepest // 4, deepest // 2, deepest], channels, extra)
        # Each in a block of its own, as torchvision has them since 0.13.
        self.fpn.inner_blocks = nn.ModuleList(map(nn.Sequential, self.fpn.inner_blocks))
        self.fpn.layer_blocks = nn.ModuleList(
            nn.Sequential(conv) if level in levels or (extra and level == 5) else nn.Identity()
            for level, conv in zip((3, 4, 5), self.fpn.layer_blocks, strict=True)
        )
        if extra and 7 not in levels:
            extra.p7 = nn.Identity()
        self.fpn.inner_blocks[: min(levels[0], 5) - 3].requires_grad_(False)  # below all levels: nothing reads them

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.body.maxpool(self.body.act(self.body.bn1(self.body.conv1(x))))
        stage2 = self.body.layer2(self.body.layer1(x))
        stage3 = self.body.layer3(stage2)
        pyramid = self.fpn({"p3": stage2, "p4": stage3, "p5": self.body.layer4(stage3)})
        return [pyramid[level] for level in self.levels]


class RetinaNet(nn.Module):
    """A dense detector: for each anchor of an image, the logits of the classes and the offsets of a box.

    Shapes: (B, channels of the image, H, W) to (B, K + 4, A), logits first, then the offsets (dx, dy, dw, dh) that
    `shared.networks.decode_detections` takes. Any size of the image will do. The anchors stand in the order of
    `PyramidAnchors`: by level, then by row, by column, and by kind.

    The names of the parameters are those of torchvision's RetinaNet.

    Args:
        resnet: the backbone.
        num_classes: K.
        num_anchors: kinds of anchors at a position, as many at every level.
        levels: of the pyramid, ascending, from 3 to 7; level n has the stride 2^n.
        channels: of the pyramid and the heads.
        head_norm: `"group"`: group norm in the heads, as in torchvision's `retinanet_resnet50_fpn_v2`; `"batch"`:
            batch norm; None.

    Raises:
        ValueError: for other levels or another norm; when called, for anything but a batch of images.
    """

    def __init__(
        self,
        resnet: ResNet,
        num_classes: int = 2,
        num_anchors: int = 1,
        levels: Sequence[int] = (3,),
        channels: int = 256,
        head_norm: str | None = None,
    ) -> None:
        super().__init__()
        if not levels or list(levels) != sorted(set(levels)) or not set(levels) <= set(LEVELS):
            raise ValueError(f"levels must be some of {', '.join(map(str, LEVELS))}, ascending, got {list(levels)}")
        if head_norm not in HEAD_NORMS:
            raise ValueError(f"head_norm must be one of {', '.join(map(str, HEAD_NORMS))}, got {head_norm!r}")
        self.num_classes = num_classes
        self.backbone = BackboneWithFPN(resnet, channels, levels)
        self.head = nn.ModuleDict(
            {
                "classification_head": _head(channels, "cls_logits", num_anchors * num_classes, head_norm),
                "regression_head": _head(channels, "bbox_reg", num_anchors * 4, head_norm),
            }
        )
        nn.init.constant_(self.head["classification_head"].cls_logits.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise ValueError(f"RetinaNet got images of the shape {list(x.shape)}, expected (batch, channels, H, W)")
        levels: list[Tensor] = []
        for features in self.backbone(x):
            logits = _by_anchor(self.head["classification_head"](features), self.num_classes)
            offsets = _by_anchor(self.head["regression_head"](features), 4)
            levels.append(torch.cat([logits, offsets], dim=1))
        return torch.cat(levels, dim=2)


def _head(channels: int, name: str, out_channels: int, norm: str | None) -> nn.Sequential:
    """Four convolutions, `conv`, and one more with the name given."""
    norms = {"group": lambda: [nn.GroupNorm(GROUPS, channels)], "batch": lambda: [nn.BatchNorm2d(channels)]}
    own_norm = norms.get(norm, list)
    convs: list[nn.Module] = []
    for _ in range(4):
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=norm is None)
        convs.append(nn.Sequential(conv, *own_norm(), nn.ReLU(inplace=True)))
    last = nn.Conv2d(channels, out_channels, 3, padding=1)
    head = nn.Sequential(OrderedDict([("conv", nn.Sequential(*convs)), (name, last)]))
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return head


def _by_anchor(maps: Tensor, values: int) -> Tensor:
    """(B, kinds * values, H, W) to (B, values, H * W * kinds)."""
    return maps.flatten(2).unflatten(1, (-1, values)).permute(0, 2, 3, 1).flatten(2)


def fusestyle_retinanet(
    backbone: str = "resnet50",
    num_classes: int = 2,
    in_channels: int = 3,
    places: Sequence[int] = (1, 4),
    norm: str | None = None,
    levels: Sequence[int] = (3,),
    num_anchors: int = 1,
    channels: int = 256,
    head_norm: str | None = None,
    pretrained: str | Path | None = None,
    **options: Any,
) -> RetinaNet:
    """A RetinaNet that mixes feature statistics inside the batch while it trains, for scanners it has not seen.

    FuseStyle stands behind stages of the ResNet, all of which lead to the pyramid. In eval mode the network is the
    plain RetinaNet, and so is what is exported.

    Shapes: (B, in_channels, H, W) to (B, num_classes + 4, anchors), see `RetinaNet`.

    Args:
        backbone: one of `resnet10` to `resnet200`, MONAI's names.
        num_classes: K.
        in_channels: channels of the image.
        places: the stages, 1 to 4, behind which FuseStyle goes; empty for the plain network.
        norm: of the backbone. `"frozen"`: batch norm with the statistics and the scales of the pretrained weights,
            which batches of a few images cannot better; `"batch"`: batch norm; `"group"`: group norm, to train from
            scratch with small batches. None: frozen where `pretrained` is given, batch elsewhere.
        levels: of the pyramid that carry anchors. Level 3 has the stride 8: anchors of 50 pixels there meet every
            box of that size with an IoU of 0.73 or more.
        num_anchors: kinds of anchors at a position, as in the `PyramidAnchors` of the loss.
        channels: of the pyramid and the heads; a multiple of 32 for group norm.
        head_norm: `"group"` or `"batch"` norm in the heads. Group norm takes its statistics from the whole image, so
            that what a figure looks like depends on how many there are: images in training and later have to be of
            one size and alike. Batch norm suits a single level. Untrained heads without either need their 256
            channels: with few, hardly anything of the features gets through their small weights.
        pretrained: a local file with weights to start from, see `load_pretrained`: of a detector, such as
            torchvision's `retinanet_resnet50_fpn`, or of a ResNet alone. The last layers for other classes or
            anchors stay as initialised.
        options: `layer`, what makes the layers, and its options, see `add_fusestyle`.

    Raises:
        ValueError: for another name, place, norm or level, or wrong options of the layers.
        DataError: for FuseStyle whose partners are of the same label, since an image has none; when `pretrained` does
            not fit.
    """
    norm = norm or ("frozen" if pretrained else "batch")
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    resnet = fusestyle_resnet(backbone, in_channels=in_channels, places=tuple(places), **options)
    if any(isinstance(m, FuseStyle) and m.partners == "same_label" for m in resnet.modules()):
        raise DataError(
            "FuseStyle's partners are same_label, and an image of a detector has no label: expected any, other_domain."
        )
    if norm != "batch":
        _replace_batch_norm(resnet, norm)
    network = RetinaNet(resnet, num_classes, num_anchors, levels, channels, head_norm)
    if pretrained:
        load_pretrained(network, pretrained, head=DETECTION_HEADS)
    return network


def _replace_batch_norm(network: nn.Module, norm: str) -> None:
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            count = module.num_features
            network.set_submodule(name, FrozenBatchNorm2d(count) if norm == "frozen" else nn.GroupNorm(GROUPS, count))
