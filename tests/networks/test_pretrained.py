from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNETR, BasicUNet, DynUNet
from torch import nn

from shared.networks import Lambda3D, load_pretrained
from shared.utils import DataError


def unetr(out_channels: int = 3, proj_type: str = "conv", seed: int = 0, in_channels: int = 2) -> UNETR:
    torch.manual_seed(seed)
    return UNETR(in_channels, out_channels, 32, 4, 24, 32, 2, proj_type=proj_type)


def forward(network: nn.Module) -> torch.Tensor:
    x = torch.randn(1, 2, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network.eval()(x)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s}])
def test_our_own_weights(tmp_path: Path, wrap: object) -> None:
    source, network = unetr(seed=0), unetr(seed=1)
    torch.save(wrap({f"module.{k}": v for k, v in source.state_dict().items()}), tmp_path / "w.pt")
    assert load_pretrained(network, tmp_path / "w.pt") == {"dropped": [], "missing": []}
    torch.testing.assert_close(forward(network), forward(source), rtol=0, atol=0)


def test_a_legacy_checkpoint_computes_the_same(tmp_path: Path) -> None:
    """As the public BTCV checkpoint: a class token, unused conv3, a linear patch embedding, no norm_cross_attn."""
    source, network = unetr(proj_type="perceptron", seed=0), unetr(seed=1)
    legacy = {k: v for k, v in source.state_dict().items() if "norm_cross_attn" not in k}
    legacy["vit.cls_token"] = torch.zeros(1, 1, 24)
    legacy["encoder3.blocks.0.1.conv3.conv.weight"] = torch.zeros(1)
    torch.save({"state_dict": legacy}, tmp_path / "w.pt")
    lists = load_pretrained(network, tmp_path / "w.pt")
    assert sorted(lists["dropped"]) == ["encoder3.blocks.0.1.conv3.conv.weight", "vit.cls_token"]
    assert lists["missing"]
    assert all("norm_cross_attn" in key for key in lists["missing"])
    torch.testing.assert_close(forward(network), forward(source), rtol=1e-4, atol=1e-5)


NETWORKS = {
    "unetr": unetr,
    "lambda3d": lambda out_channels: Lambda3D(2, out_channels, 8, 4, 24, 2, num_layers=4),
    "unet3d": lambda out_channels: BasicUNet(3, 2, out_channels, features=(4, 4, 4, 4, 4, 4)),
    "dynunet": lambda out_channels: DynUNet(3, 2, out_channels, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 4, 4]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_another_number_of_classes_keeps_the_rest(tmp_path: Path, name: str) -> None:
    source, network = NETWORKS[name](out_channels=5), NETWORKS[name](out_channels=3)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    kept = load_pretrained(network, tmp_path / "w.pt")["dropped"]
    weights = source.state_dict()
    assert {weights[key].shape[0] for key in kept} == {5}
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items() if key not in kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("vit.norm.weight"), "vit.norm.weight: missing in the file"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra: not part of the network"),
        (
            lambda s: s.update({"vit.norm.weight": torch.zeros(7)}),
            "vit.norm.weight: (7,) in the file, (24,) in the net",
        ),
    ],
)
def test_anything_else_must_match(tmp_path: Path, change: object, message: str) -> None:
    state, network = unetr().state_dict(), unetr(seed=1)
    before = network.vit.norm.weight.clone()
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(DataError, match=re.escape(message)):
        load_pretrained(network, tmp_path / "w.pt")
    assert torch.equal(network.vit.norm.weight, before)


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        load_pretrained(unetr(), tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes(b"PK not a checkpoint")
    with pytest.raises(DataError, match="is cut short or damaged"):
        load_pretrained(unetr(), tmp_path / "w.pt")
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(DataError, match="holds no state dict"):
        load_pretrained(unetr(), tmp_path / "w.pt")
