from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import resnet18
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.layers import DSU, FuseStyle
from shared.networks import fusestyle_resnet
from shared.utils import DataError


def net(**options: Any) -> nn.Module:
    torch.manual_seed(options.pop("seed", 0))
    return fusestyle_resnet("resnet18", **options)


def forward(network: nn.Module) -> Tensor:
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network.eval()(x)


def test_names_and_values_are_those_of_the_plain_network() -> None:
    plain = resnet18(spatial_dims=2, n_input_channels=3, num_classes=1, bias_downsample=False, conv1_t_stride=2)
    for places in ((), (1, 4), (1, 2, 3, 4)):
        network = net(places=places)
        assert list(network.state_dict()) == list(plain.state_dict())
        network.load_state_dict(plain.state_dict())
        torch.testing.assert_close(forward(network), forward(plain), rtol=0, atol=0)


def test_parameters_are_named_and_shaped_as_in_torchvision() -> None:
    """Shapes from torchvision's ResNet-50 (resnet.py, Bottleneck, stride in the 3x3 convolution)."""
    state = {key: tuple(value.shape) for key, value in fusestyle_resnet("resnet50", 1000).state_dict().items()}
    assert state["conv1.weight"] == (64, 3, 7, 7)
    assert state["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert state["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert state["layer4.2.bn3.running_var"] == (2048,)
    assert state["fc.weight"] == (1000, 2048)
    assert "layer1.0.downsample.0.bias" not in state
    assert len(state) == 320
    parameters = sum(p.numel() for p in fusestyle_resnet("resnet50", 1000).parameters())
    assert parameters == 25_557_032


def test_the_layers_stand_behind_the_stages_asked_for() -> None:
    network = net(places=[2, 3], p=0.25, reference="kl")
    found = {name: module for name, module in network.named_modules() if isinstance(module, FuseStyle)}
    assert list(found) == ["layer2.2", "layer3.2"]
    assert all((layer.p, layer.reference) == (0.25, "kl") for layer in found.values())


def test_three_dimensions_and_training() -> None:
    network = net(spatial_dims=3, in_channels=1, places=(1, 2), p=1.0, num_classes=2).train()
    output = network(torch.rand(2, 1, 32, 32, 32))
    assert output.shape == (2, 2)
    output.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
def test_pretrained_with_the_head_replaced(tmp_path: Path, suffix: str, prefix: str) -> None:
    source = net(seed=1, num_classes=1000)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    path = tmp_path / f"w.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    network = net(pretrained=path)
    assert torch.equal(network.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert network.fc.weight.shape == (1, 512)
    assert torch.equal(network.fc.weight, net().fc.weight)  # as initialised


def test_pretrained_without_a_head_and_without_counters(tmp_path: Path) -> None:
    source = net(seed=1).state_dict()
    kept = {k: v for k, v in source.items() if not k.startswith("fc.") and "num_batches_tracked" not in k}
    torch.save(kept, tmp_path / "w.pt")
    network = net(pretrained=tmp_path / "w.pt")
    assert all(torch.equal(network.state_dict()[key], value) for key, value in kept.items())


def test_pretrained_of_another_network_is_refused_with_a_list(tmp_path: Path) -> None:
    torch.save(fusestyle_resnet("resnet34", 1).state_dict(), tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"w.pt: these weights do not fit ResNet: layer1.2.conv1.weight: not part of"):
        net(pretrained=tmp_path / "w.pt")
    (tmp_path / "w.safetensors").write_bytes(b"cut short")
    with pytest.raises(DataError, match=r"w.safetensors: cannot be read as weights"):
        net(pretrained=tmp_path / "w.safetensors")


def test_two_candidates_for_a_name_are_refused(tmp_path: Path) -> None:
    state = net().state_dict()
    torch.save(state | {f"encoder.{key}": value for key, value in state.items()}, tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"two candidates for conv1.weight: conv1.weight and encoder.conv1.weight"):
        net(pretrained=tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet51"}, "name must be one of resnet10, .*got 'resnet51'"),
        ({"places": (0, 1)}, r"places must be different stages from 1 to 4, got \[0, 1\]"),
        ({"places": (1, 1)}, r"places must be different stages"),
        ({"reference": "cosine"}, "reference must be one of dot"),
        ({"layer": DSU, "floor": 2}, r"floor must be in \[0, 1\)"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fusestyle_resnet(**options)


def test_another_layer_stands_where_fusestyle_would() -> None:
    network = net(places=(1, 3), layer=partial(DSU, floor=0.2), p=1)
    found = {name: module for name, module in network.named_modules() if isinstance(module, DSU | FuseStyle)}
    assert {name: repr(module) for name, module in found.items()} == dict.fromkeys(
        ("layer1.2", "layer3.2"), "DSU(p=1, floor=0.2)"
    )
    assert network.state_dict().keys() == net().state_dict().keys()
