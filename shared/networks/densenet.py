from __future__ import annotations

from typing import Any

import monai.networks.nets
from monai.networks.nets import DenseNet

from .resnet import add_fusestyle

NAMES = ("densenet121", "densenet169", "densenet201", "densenet264")


def fusestyle_densenet(
    name: str = "densenet121",
    num_classes: int = 1,
    in_channels: int = 3,
    spatial_dims: int = 2,
    places: tuple[int, ...] | list[int] = (1, 4),
    **options: Any,
) -> DenseNet:
    """A DenseNet that mixes feature statistics inside the batch while it trains: MONAI's, with FuseStyle behind blocks.

    Huang, Liu, van der Maaten and Weinberger, *Densely Connected Convolutional Networks*, arXiv 1608.06993. Names and
    shapes of the parameters are those of MONAI's network, wherever FuseStyle stands; it has none itself. In eval mode
    the network is the plain DenseNet. `load_pretrained` takes weights in torchvision's naming too.

    Neither FuseStyle's paper nor MixStyle's says where the layer goes in a DenseNet. Here place k is the end of dense
    block k, *before* the transition, which halves channels and resolution: so the layer sees a stage's features at the
    stage's own resolution, as behind `layer{k}` of a ResNet, and place 4, which has no transition, is defined alike.
    What is mixed are the outputs of convolutions, of both signs, before the transition's norm; in a ResNet it is the
    output of a ReLU. Behind block 4 follow norm, ReLU and global pooling.

    Shapes: (B, in_channels, spatial...) to logits (B, num_classes).

    Args:
        name: one of `densenet121` to `densenet264`, MONAI's names.
        num_classes: number of logits.
        in_channels: channels of the image.
        spatial_dims: 2 or 3.
        places: the dense blocks, 1 to 4, behind which FuseStyle goes; empty for the plain network.
        options: `layer`, what makes the layers, and its options, see `add_fusestyle`.

    Raises:
        ValueError: for another name or place, or wrong options of the layers.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    network: DenseNet = getattr(monai.networks.nets, name)(
        spatial_dims=spatial_dims, in_channels=in_channels, out_channels=num_classes
    )
    add_fusestyle([getattr(network.features, f"denseblock{i}") for i in (1, 2, 3, 4)], places, **options)
    return network
