from __future__ import annotations

from pathlib import Path

import torch
from monai.networks.utils import freeze_layers
from torch import nn

from ..utils import flag
from .pretrained import SEGMENTATION_HEADS, load_pretrained


def prepare_network(
    network: nn.Module,
    device: torch.device | str = "cpu",
    freeze: str | None = None,
    pretrained: str | Path | None = None,
    head: str | tuple[str, ...] = SEGMENTATION_HEADS,
    channels_last: bool | str = False,
    compile: bool | str = False,
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
        channels_last: see `place_network`.
        compile: see there.
    """
    if freeze:
        freeze_layers(network, freeze_vars=freeze)
    if pretrained:
        load_pretrained(network, pretrained, head)
    network = place_network(network, device, channels_last, compile)
    kinds = {type(module) for module in network.modules()}
    if torch.device(device).type == "cpu" and nn.Conv3d in kinds and nn.InstanceNorm3d not in kinds:
        network = network.to(memory_format=torch.channels_last_3d)
        for module in network.modules():
            # With the channels last, the threads' sums of so few channels share a cache line, and the backward pass
            # of this layer takes twenty times as long.
            if isinstance(module, nn.BatchNorm3d) and module.num_features < 16:
                module.register_forward_pre_hook(_contiguous_input)
    return network


def place_network(
    network: nn.Module,
    device: torch.device | str,
    channels_last: bool | str = False,
    compile: bool | str = False,
) -> nn.Module:
    """Bring a network to its device, in the layout and the form that may be faster there.

    Args:
        network: changed in place, but its names stay, so that its weights can be loaded anywhere.
        device: where it goes.
        channels_last: lay out the weights of convolutions with the channels last, and with them what they give.
        compile: let torch compile it at the first call, and for each new shape again. TorchScript stays as it is.
    """
    network = network.to(device)
    if flag("channels_last", channels_last):
        volumes = any(parameter.ndim == 5 for parameter in network.parameters())
        network = network.to(memory_format=torch.channels_last_3d if volumes else torch.channels_last)
    if flag("compile", compile) and not isinstance(network, torch.jit.ScriptModule):
        network.compile()
    return network


def _contiguous_input(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in inputs)
