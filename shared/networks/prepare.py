from __future__ import annotations

from pathlib import Path

import torch
from monai.networks.utils import freeze_layers
from torch import nn

from .pretrained import SEGMENTATION_HEADS, load_pretrained


def prepare_network(
    network: nn.Module,
    device: torch.device | str = "cpu",
    freeze: str | None = None,
    pretrained: str | Path | None = None,
    head: str | tuple[str, ...] = SEGMENTATION_HEADS,
) -> nn.Module:
    """Make a network ready for training: frozen parameters, weights to start from, device, memory layout.

    On a CPU the weights of 3D convolutions are laid out with the channels last, the layout that oneDNN works in; this
    saves the conversion at each of them. A network with torch's own instance norm is left as it is: it does not know
    this layout and would convert at each of those instead. (The one in Lambda3D, a subclass, knows it.)

    Args:
        network: the network as constructed.
        device: where it goes.
        freeze: a regular expression for the names of parameters that get no gradient. Those that the forward pass
            never reads (in MONAI 1.6.1 the `norm_cross_attn` of each of UNETR's transformer blocks) have to be among
            them: `DistributedDataParallel` waits for their gradient in vain.
        pretrained: a file with weights to start from, see `load_pretrained`.
        head: how the names of the head's parameters begin, see there.
    """
    if freeze:
        freeze_layers(network, freeze_vars=freeze)
    if pretrained:
        load_pretrained(network, pretrained, head)
    network = network.to(device)
    kinds = {type(module) for module in network.modules()}
    if torch.device(device).type == "cpu" and nn.Conv3d in kinds and nn.InstanceNorm3d not in kinds:
        network = network.to(memory_format=torch.channels_last_3d)
        for module in network.modules():
            # With the channels last, the threads' sums of so few channels share a cache line, and the backward pass
            # of this layer takes twenty times as long.
            if isinstance(module, nn.BatchNorm3d) and module.num_features < 16:
                module.register_forward_pre_hook(_contiguous_input)
    return network


def _contiguous_input(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in inputs)
