from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monai.networks.nets
from monai.networks.nets import ResNet
from torch import nn

from ..layers import FuseStyle
from .pretrained import load_pretrained

NAMES = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200")


def fusestyle_resnet(
    name: str = "resnet50",
    num_classes: int = 1,
    in_channels: int = 3,
    spatial_dims: int = 2,
    places: tuple[int, ...] | list[int] = (1, 4),
    pretrained: str | Path | None = None,
    layer: Callable[..., nn.Module] = FuseStyle,
    **options: Any,
) -> ResNet:
    """A ResNet that mixes feature statistics inside the batch while it trains: MONAI's, with FuseStyle behind stages.

    Names and shapes of the parameters are torchvision's, wherever FuseStyle stands; it has none itself. In eval mode
    the network is the plain ResNet.

    Shapes: (B, in_channels, spatial...) to logits (B, num_classes).

    Args:
        name: one of `resnet10` to `resnet200`, MONAI's names.
        num_classes: number of logits.
        in_channels: channels of the image.
        spatial_dims: 2 or 3.
        places: the stages, 1 to 4, behind which FuseStyle goes; empty for the plain network. Behind stage 4 only
            global pooling follows: what the classifier then reads is the mixed mean alone.
        pretrained: a local file with weights to start from, `.pt` or `.safetensors` in torchvision's naming; see
            `load_pretrained`. A head for other classes is replaced.
        layer: what makes the layers, `FuseStyle`, `DSU`, or one of your own without parameters.
        options: of these.

    Raises:
        ValueError: for another name or place, or wrong options of the layers.
        DataError: when `pretrained` does not fit.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    network: ResNet = getattr(monai.networks.nets, name)(
        spatial_dims=spatial_dims,
        n_input_channels=in_channels,
        num_classes=num_classes,
        bias_downsample=False,
        conv1_t_stride=2,
    )
    add_fusestyle([network.layer1, network.layer2, network.layer3, network.layer4], places, layer, **options)
    if pretrained:
        load_pretrained(network, pretrained, head="fc.")
    return network


def add_fusestyle(
    stages: Sequence[nn.Sequential],
    places: Sequence[int],
    layer: Callable[..., nn.Module] = FuseStyle,
    **options: Any,
) -> None:
    """Put FuseStyle, or another layer without parameters, behind stages of a network; no key of its state dict changes.

    Args:
        stages: of the network, changed in place.
        places: numbers of stages, from 1 on.
        layer: what makes a layer.
        options: of `layer`.

    Raises:
        ValueError: for a place that is no stage's number or stands twice, or wrong options of the layer.
    """
    if len(set(places)) != len(places) or not set(places) <= {*range(1, len(stages) + 1)}:
        raise ValueError(f"places must be different stages from 1 to {len(stages)}, got {list(places)}")
    for place in places:
        stages[place - 1].append(layer(**options))
