"""What holds for the configs of the two abdominal bundles, and that nothing but the network sets them apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from shared.datasets.ct_cases import BTCV_LABELS

ROOT = Path(__file__).resolve().parents[2]
UNETR, LAMBDA3D = (ROOT / "bundles" / name / "configs" for name in ("abdominal_unetr_cbs", "abdominal_lambda3d_cbs"))
FILES = sorted(str(path.relative_to(UNETR)) for path in UNETR.rglob("*") if path.is_file())
# The network and the parameters of it that never train; all else of a metadata.json is about data and classes.
APART = {
    "train.json": {"network_def", "freeze"},
    "inference.json": {"network_def"},
    "variants/demo.json": {"network_def"},
    "metadata.json": {"name", "description", "references", "version", "changelog"},
}

both = pytest.mark.parametrize("configs", [UNETR, LAMBDA3D], ids=lambda path: path.parent.name)


def load(configs: Path, name: str) -> dict[str, Any]:
    return json.loads((configs / f"{name}.json").read_text())


@both
def test_the_classes_are_the_thirteen_organs_everywhere(configs: Path) -> None:
    assert load(configs, "train")["labels"] == BTCV_LABELS
    channels = load(configs, "metadata")["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert {name: int(i) for i, name in channels.items() if i != "0"} == BTCV_LABELS


@both
def test_nothing_flips_left_and_right(configs: Path) -> None:
    flips = [step for step in load(configs, "train")["augmentation"] if "Flip" in step["_target_"]]
    assert [step["spatial_axis"] for step in flips] == [1, 2]


@both
def test_the_number_of_classes_follows_the_labels(configs: Path) -> None:
    parser = ConfigParser(load(configs, "train"))
    parser.update({"labels": {"a": 1, "b": 2, "c": 3, "d": 4}})
    parser.read_config([str(configs / "train.json"), str(configs / "variants" / "demo.json")])
    parser["labels"] = {"c": 3, "a": 1, "b": 2, "d": 4}
    assert parser.get_parsed_content("class_names") == ["a", "b", "c", "d"]
    network = parser.get_parsed_content("network")
    assert network(torch.zeros(2, 1, *parser.get_parsed_content("roi_size"))).shape[1] == 5
    assert parser.get_parsed_content("loss").class_weight.tolist() == [1.0] * 4


@both
@pytest.mark.parametrize("network", [(), ("unet3d",), ("dynunet",)], ids=str)
def test_every_parameter_that_trains_gets_a_gradient(configs: Path, network: tuple[str, ...]) -> None:
    """`DistributedDataParallel` waits for those that do not."""
    names = ["train", "variants/demo", *(f"variants/{name}" for name in network)]
    parser = ConfigParser()
    parser.read_config([str(configs / f"{name}.json") for name in names])
    model: nn.Module = parser.get_parsed_content("network")
    model(torch.randn(2, 1, *parser.get_parsed_content("roi_size"))).square().mean().backward()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert trainable == {name for name, p in model.named_parameters() if p.grad is not None}


@both
@pytest.mark.parametrize("network", ["unet3d", "dynunet"])
def test_the_unets_learn_a_scale_for_each_channel(configs: Path, network: str) -> None:
    """As in nnU-Net. DynUNet without it leaves small organs at 0 that it finds with it: docs/experiments."""
    parser = ConfigParser()
    parser.read_config([str(configs / f"{name}.json") for name in ("train", f"variants/{network}")])
    norms = [m for m in parser.get_parsed_content("network").modules() if isinstance(m, nn.InstanceNorm3d)]
    assert norms
    assert all(norm.affine for norm in norms)
