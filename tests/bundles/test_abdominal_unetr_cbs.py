from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from shared.data import BTCV_LABELS

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "abdominal_unetr_cbs"
CONFIGS = BUNDLE / "configs"


def load(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def steps(config: dict[str, Any], key: str = "preprocessing") -> list[dict[str, Any]]:
    found = config[key]
    return found["transforms"] if isinstance(found, dict) else found


def test_training_and_inference_agree() -> None:
    train, inference = load("train"), load("inference")
    for key in ("network_def", "labels", "roi_size", "spacing", "intensity_range", "network_overlay"):
        assert train[key] == inference[key], key


def test_training_and_inference_preprocess_alike() -> None:
    """The deterministic steps on the image are the same, in the same order; the label's are training's own."""

    def on_image(step: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in step.items() if k not in ("keys", "label_key", "labels", "allow_missing_keys")}
        return {k: v[0] if k in ("mode", "dtype") and isinstance(v, list) else v for k, v in kept.items()}

    for other in (load("inference"), load("evaluate")):
        key = "preprocessing" if "preprocessing" in other else "validate#preprocessing"
        ours = [on_image(step) for step in steps(load("train")) if step["_target_"] != "EnsureTyped"]
        theirs = [on_image(step) for step in steps(other, key) if step["_target_"] != "EnsureTyped"]
        assert ours == theirs


def test_the_classes_are_the_thirteen_organs_everywhere() -> None:
    assert load("train")["labels"] == BTCV_LABELS
    channels = load("metadata")["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert {name: int(i) for i, name in channels.items() if i != "0"} == BTCV_LABELS


def test_nothing_flips_left_and_right() -> None:
    flips = [step for step in load("train")["augmentation"] if "Flip" in step["_target_"]]
    assert [step["spatial_axis"] for step in flips] == [1, 2]


def test_the_number_of_classes_follows_the_labels() -> None:
    parser = ConfigParser(load("train"))
    parser.update({"labels": {"a": 1, "b": 2, "c": 3, "d": 4}})
    parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / "variants" / "demo.json")])
    parser["labels"] = {"c": 3, "a": 1, "b": 2, "d": 4}
    assert parser.get_parsed_content("class_names") == ["a", "b", "c", "d"]
    network = parser.get_parsed_content("network")
    assert network(torch.zeros(2, 1, *parser.get_parsed_content("roi_size"))).shape[1] == 5
    assert parser.get_parsed_content("loss").class_weight.tolist() == [1.0] * 4


def test_every_parameter_that_trains_gets_a_gradient() -> None:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / "variants" / "demo.json")])
    network: nn.Module = parser.get_parsed_content("network")
    network(torch.randn(2, 1, *parser.get_parsed_content("roi_size"))).square().mean().backward()
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in network.named_parameters() if p.grad is not None}
    assert 0 < len(trainable) < len(list(network.parameters()))
