from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import DenseNet121
from torch import Tensor, nn

from shared.layers import FuseStyle
from shared.networks import fusestyle_densenet, load_pretrained
from shared.networks.pretrained import CLASSIFICATION_HEADS
from shared.utils import DataError


def net(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return fusestyle_densenet(**options)


def images() -> Tensor:
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def by_hand(network: nn.Module, x: Tensor, places: tuple[int, ...], mix: nn.Module) -> Tensor:
    """The plain DenseNet, Huang et al., section 3, with FuseStyle between a dense block and its transition."""
    parts = network.features
    x = parts.pool0(parts.relu0(parts.norm0(parts.conv0(x))))
    for k in (1, 2, 3, 4):
        for layer in getattr(parts, f"denseblock{k}"):
            x = torch.cat([x, layer.layers(x)], dim=1)
        if k in places:
            x = mix(x)
        x = getattr(parts, f"transition{k}")(x) if k < 4 else parts.norm5(x)
    return network.class_layers.out(x.relu().mean(dim=(2, 3)))


def test_in_eval_mode_it_is_monai_s_network() -> None:
    plain = DenseNet121(spatial_dims=2, in_channels=3, out_channels=1)
    assert sum(p.numel() for p in plain.parameters()) == 6_954_881  # torchvision's, with its head for one class
    network = net(seed=1, places=(1, 2, 3, 4), p=1.0)
    assert list(network.state_dict()) == list(plain.state_dict())
    network.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(network.eval()(images()), plain.eval()(images()))


@pytest.mark.parametrize("places", [(1, 4), (2, 3)])
def test_training_is_the_forward_pass_with_the_layer_put_by_hand(places: tuple[int, ...]) -> None:
    network = net(places=places, p=1.0).double().train()
    plain = net(places=()).double().train()
    plain.load_state_dict(network.state_dict())
    unmixed = copy.deepcopy(plain)(images().double())
    outputs, gradients = [], []
    for model, forward in (
        (network, network),
        (plain, lambda x: by_hand(plain, x, places, FuseStyle(p=1.0))),
    ):
        torch.manual_seed(3)
        outputs.append(forward(images().double()))
        outputs[-1].square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(network.state_dict(), plain.state_dict(), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(outputs[0], unmixed, rtol=1e-3)


@pytest.mark.parametrize("dot", [".", ""])
def test_weights_in_torchvision_s_naming(tmp_path: Path, dot: str) -> None:
    """Its published file says `denselayer1.norm.1`, a state dict of its network `denselayer1.norm1`."""
    source = net(seed=1, num_classes=7).state_dict()
    state = {
        re.sub(r"\.layers\.(norm|conv)([12])\.", rf".\1{dot}\2.", key).replace("class_layers.out", "classifier"): value
        for key, value in source.items()
        if not key.endswith("num_batches_tracked")
    }
    assert f"features.denseblock4.denselayer16.conv{dot}2.weight" in state
    torch.save(state, tmp_path / "w.pt")
    network, untouched = net(), net().state_dict()
    found = load_pretrained(network, tmp_path / "w.pt", CLASSIFICATION_HEADS)
    assert found["dropped"] == ["class_layers.out.weight", "class_layers.out.bias"]
    for key, value in network.state_dict().items():
        expected = untouched[key] if key.startswith("class_layers") or key.endswith("tracked") else source[key]
        assert torch.equal(value, expected), key
    same = net(num_classes=7)
    load_pretrained(same, tmp_path / "w.pt", CLASSIFICATION_HEADS)
    assert torch.equal(same.class_layers.out.weight, source["class_layers.out.weight"])


def test_weights_of_another_densenet_are_refused(tmp_path: Path) -> None:
    torch.save(fusestyle_densenet("densenet169").state_dict(), tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"do not fit DenseNet121: features.denseblock3.denselayer25.layers.norm1.weig"):
        load_pretrained(net(), tmp_path / "w.pt", CLASSIFICATION_HEADS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "densenet120"}, "name must be one of densenet121, .*got 'densenet120'"),
        ({"places": (5,)}, r"places must be different stages from 1 to 4, got \[5\]"),
        ({"reference": "cosine"}, "reference must be one of dot"),
    ],
)
def test_options_that_it_cannot_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fusestyle_densenet(**options)
