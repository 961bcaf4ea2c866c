"""What the detection bundle's configs promise, apart from what holds for those of every bundle."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import workflows
from monai.transforms import Compose
from torch import nn
from workflows import BUNDLES, load_config

from shared.layers import DSU, FuseStyle
from shared.networks.retinanet import FrozenBatchNorm2d

BUNDLE = BUNDLES / "mitosis_retinanet_fusestyle"
load, parsed = partial(load_config, BUNDLE), partial(workflows.parsed, BUNDLE)


def test_training_and_inference_see_tiles_alike() -> None:
    train, inference = load("train"), load("inference")
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    normalization = Compose(parsed("train").get_parsed_content("normalization"))
    inferer = parsed("inference").get_parsed_content("inferer")
    torch.testing.assert_close(inferer._normalized(image[None])[0], normalization({"image": image})["image"])
    for key in ("anchors", "score_threshold", "top_k"):
        assert train[key] == inference[key]


def test_batches_and_processes_suit_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.utils.own_cores", lambda: 5)
    for device, expected in (("cpu", (6, 2)), ("cuda:0", (32, 5)), ("$torch.device('cuda')", (32, 5))):
        parser = parsed("inference")
        parser["device"] = device
        assert tuple(map(parser.get_parsed_content, ("batch_size", "num_workers"))) == expected


def test_evaluation_and_validation_put_tiles_together_alike() -> None:
    chosen, report = load("train")["choose_threshold"], load("evaluate")["report"]
    for key in ("anchors", "match_radius", "suppress_radius", "score_threshold", "top_k"):
        assert chosen[key] == report[key] == f"@{key}"


def test_what_inference_and_evaluation_take_from_the_record_is_what_training_writes_there() -> None:
    train = load("train")
    for name, tile in (("inference", "tile_size"), ("evaluate", "val_tile_size")):
        taken = load(name)
        assert train["settings"]["tile_size"] == "@val_tile_size"
        assert taken[tile] == f"$@record.get('tile_size', {train['val_tile_size']})"
        for key in ("tile_overlap", "image_mean", "image_std"):
            assert train["settings"][key] == f"@{key}"
            assert taken[key] == f"$@record.get('{key}', {train[key]})"
        assert train["settings"]["suppress_radius"] == "@suppress_radius"
        assert taken["suppress_radius"] == f"$@record.get('suppress_radius', {train['suppress_radius']})"
    assert train["settings"]["mpp"] == "@mpp"
    assert load("inference")["network_mpp"] == f"$@record.get('mpp', {train['mpp']})"


def test_the_papers_settings() -> None:
    train = load("train")
    expected = {"max_epochs": 100, "batch_size": 6, "learning_rate": 1e-4, "lr_factor": 0.1, "lr_patience": 1}
    expected |= {"tile_size": 512, "fusestyle_places": [1, 4], "fusestyle_p": 0.5, "fusestyle_alpha": 0.3}
    expected |= {"fusestyle_reference": "dot", "fusestyle_partners": "any", "fusestyle_extrapolation": None}
    assert {key: train[key] for key in expected} == expected
    assert train["network_def"]["backbone"] == "resnet50"
    assert train["anchors"]["sizes"] == [[50]]


VARIANTS = {
    "no_fusestyle": ([], None),
    "mixstyle": ([1, 4], "random"),
    "domain_adversarial": ([], None),
    "group_norm": ([1, 4], "dot"),
    "extrapolated": ([1, 2], "style"),
    "dsu": ([], None),
    "demo": ([1, 4], "dot"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_where_and_how_a_variant_mixes(variant: str) -> None:
    places, reference = VARIANTS[variant]
    network: nn.Module = parsed("train", f"variants/{variant}").get_parsed_content("network_def")
    body = network.backbone.body
    found = [place for place in (1, 2, 3, 4) if isinstance(getattr(body, f"layer{place}")[-1], FuseStyle)]
    assert found == places
    noisy = [place for place in (1, 2, 3, 4) if isinstance(getattr(body, f"layer{place}")[-1], DSU)]
    assert noisy == ([1, 2] if variant == "dsu" else [])
    layers = [module for module in network.modules() if isinstance(module, FuseStyle)]
    assert {(layer.reference, layer.p, layer.alpha) for layer in layers} <= {(reference, 0.5, 0.3)}
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == (variant != "group_norm")


def test_pretrained_weights_keep_their_statistics() -> None:
    network = parsed("train", "variants/pretrained").get_parsed_content("network_def")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert sum(isinstance(m, FrozenBatchNorm2d) for m in network.modules()) == 53  # of a ResNet50
    # in inference, batch norm with the same weights is the same function
    plain = parsed("inference").get_parsed_content("network_def")
    assert network.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(network.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(image), network.eval()(image))


def test_every_parameter_gets_a_gradient() -> None:
    network: nn.Module = parsed("train", "variants/demo").get_parsed_content("network")
    network.train()(torch.randn(2, 3, 128, 128)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
