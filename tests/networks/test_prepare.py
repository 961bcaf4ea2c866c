from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import UNETR
from torch import nn

from shared.networks import Lambda3D, place_network, prepare_network


def unetr(norm_name: str = "batch") -> UNETR:
    torch.manual_seed(0)
    return UNETR(1, 3, (32, 32, 32), feature_size=8, hidden_size=24, mlp_dim=48, num_heads=2, norm_name=norm_name)


def test_every_parameter_that_is_not_frozen_gets_a_gradient() -> None:
    network = prepare_network(unetr(), freeze="norm_cross_attn")
    network(torch.randn(2, 1, 32, 32, 32)).square().mean().backward()
    without = {name for name, p in network.named_parameters() if p.grad is None}
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert without == frozen
    assert len(frozen) == 24


@pytest.mark.parametrize("norm_name", ["batch", "instance"])
def test_layout_changes_speed_alone(norm_name: str) -> None:
    plain = unetr(norm_name).double()
    prepared = prepare_network(copy.deepcopy(plain))
    image = torch.randn(2, 1, 32, 32, 32, dtype=torch.float64)
    outputs = [network(image) for network in (plain, prepared)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().mean().backward()
    for a, b in zip(plain.parameters(), prepared.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert list(plain.state_dict()) == list(prepared.state_dict())


@pytest.mark.parametrize(("norm_name", "channels_last"), [("batch", True), ("instance", False)])
def test_layout_on_a_cpu(norm_name: str, channels_last: bool) -> None:
    network = prepare_network(unetr(norm_name))
    weight = next(m.weight for m in network.modules() if isinstance(m, nn.Conv3d) and min(m.weight.shape) > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) == channels_last
    seen = {}
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.register_forward_hook(
                lambda m, inputs, output: seen.setdefault(m.num_features, set()).add(inputs[0].is_contiguous())
            )
    network(torch.randn(2, 1, 32, 32, 32))
    assert seen.get(8, {True}) == {True}
    assert (False in seen.get(16, ())) == channels_last


def test_lambda3d_has_its_channels_last() -> None:
    network = prepare_network(Lambda3D(1, 3, 8, feature_size=8, hidden_size=24, num_heads=2, num_layers=4))
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv3d) and min(m.weight.shape) > 1]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in weights)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method")  # deprecated, and what compiles uses it
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.Conv3d])
def test_layout_and_compilation_leave_names_and_values(layer: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(layer(2, 3, 3, padding=1), nn.ReLU())
    x = torch.rand(1, 2, *[4] * (network[0].weight.ndim - 2))
    before, plain = copy.deepcopy(network.state_dict()), network(x)
    placed = place_network(network, "cpu", channels_last="true", compile="true")
    layout = torch.channels_last if layer is nn.Conv2d else torch.channels_last_3d
    assert placed[0].weight.is_contiguous(memory_format=layout)
    assert not placed[0].weight.is_contiguous()
    assert placed._compiled_call_impl is not None
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(placed(x), plain)
    assert placed.state_dict().keys() == before.keys()
    torch.testing.assert_close(placed.state_dict(), before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")  # deprecated, and still in use
def test_as_it_is_by_default_and_torchscript_stays_what_it_is() -> None:
    network = nn.Conv2d(2, 3, 3)
    assert place_network(network, "cpu")._compiled_call_impl is None
    assert network.weight.is_contiguous()
    exported = torch.jit.trace(nn.Conv2d(2, 3, 3), torch.rand(1, 2, 4, 4))
    assert place_network(exported, "cpu", channels_last=True, compile=True)(torch.rand(1, 2, 4, 4)).shape[1] == 3
