from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shared.networks import StainNet
from shared.utils import DataError


def test_a_pixel_by_the_equations() -> None:
    """A checkpoint of the published layout, and what it makes of a pixel, worked out layer by layer."""
    torch.manual_seed(0)
    network = StainNet()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes == {
        "rgb_trans.0.weight": (32, 3, 1, 1),
        "rgb_trans.0.bias": (32,),
        "rgb_trans.2.weight": (32, 32, 1, 1),
        "rgb_trans.2.bias": (32,),
        "rgb_trans.4.weight": (3, 32, 1, 1),
        "rgb_trans.4.bias": (3,),
    }
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    found = network.normalize(image)
    x = image[:, 2, 3].double() / 255 * 2 - 1
    weights = {name: value.double() for name, value in network.state_dict().items()}
    for layer in (0, 2, 4):
        x = weights[f"rgb_trans.{layer}.weight"][:, :, 0, 0] @ x + weights[f"rgb_trans.{layer}.bias"]
        x = x.clamp(min=0) if layer < 4 else x
    wanted = ((x * 0.5 + 0.5).clamp(0, 1) * 255).round()
    torch.testing.assert_close(found[:, 2, 3].double(), wanted, rtol=0, atol=1)
    assert torch.equal(network.normalize(image[None])[0], found)


def test_weights_are_loaded_or_refused(tmp_path: Path) -> None:
    torch.save(StainNet().state_dict(), tmp_path / "stainnet.pth")
    network = StainNet(pretrained=tmp_path / "stainnet.pth")
    assert network.state_dict().keys() == torch.load(tmp_path / "stainnet.pth").keys()
    with pytest.raises(DataError, match=r"is no StainNet with 16 channels\. Expected .*32, 3, 1"):
        StainNet(16, tmp_path / "stainnet.pth")
    with pytest.raises(DataError, match=r"gone.pth: there is no such file"):
        StainNet(pretrained=tmp_path / "gone.pth")


def test_pieces_make_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 150, 130), dtype=torch.uint8, generator=generator)
    network = StainNet().requires_grad_(False)
    wanted = (network(image.float() / 127.5 - 1) * 127.5 + 127.5).round().clamp(0, 255)
    assert image[:, 0].numel() > 2 * 2**14
    torch.testing.assert_close(network.normalize(image).float(), wanted, atol=1, rtol=0)
    assert (network.normalize(image) == wanted).float().mean() > 0.999
    assert torch.equal(network.normalize(image)[1], network.normalize(image[1]))
