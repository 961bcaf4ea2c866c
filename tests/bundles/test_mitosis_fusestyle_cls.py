from __future__ import annotations

from functools import partial

import pytest
import torch
import workflows
from torch import nn
from workflows import BUNDLES, load_config

from shared.layers import DSU, FuseStyle

BUNDLE = BUNDLES / "mitosis_fusestyle_cls"
load, parsed = partial(load_config, BUNDLE), partial(workflows.parsed, BUNDLE)


def test_what_inference_and_evaluation_take_from_the_record_is_what_training_writes_there() -> None:
    train = load("train")
    for name in ("inference", "evaluate"):
        taken = load(name)
        for key in ("crop_size", "patch_size", "image_mean", "image_std"):
            assert train["settings"][key] == f"@{key}"
            assert taken[key] == f"$@record.get('{key}', {train[key]})"


VARIANTS = {
    "shallow": ([1, 2], "dot"),
    "no_fusestyle": ([], None),
    "mixstyle": ([1, 4], "random"),
    "euclidean": ([1, 4], "euclidean"),
    "kl": ([1, 4], "kl"),
    "style": ([1, 2], "style"),
    "extrapolated": ([1, 2], "style"),
    "demo": ([1, 4], "dot"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_where_and_how_a_variant_mixes(variant: str) -> None:
    places, reference = VARIANTS[variant]
    network: nn.Module = parsed("train", f"variants/{variant}").get_parsed_content("network_def")
    found = [place for place in (1, 2, 3, 4) if isinstance(getattr(network, f"layer{place}")[-1], FuseStyle)]
    assert found == places
    layers = [module for module in network.modules() if isinstance(module, FuseStyle)]
    assert {(layer.reference, layer.p, layer.alpha) for layer in layers} <= {(reference, 0.5, 0.3)}
    ways = {"style": ("same_label", None), "extrapolated": ("other_domain", 2.0)}.get(variant, ("any", None))
    assert {(layer.partners, layer.extrapolation) for layer in layers} <= {ways}
    assert len(network.layer1) - (1 in places) == (2 if variant == "demo" else 3)


def test_dsu_stands_in_the_place_of_fusestyle() -> None:
    for below in ((), ("variants/demo",)):
        parser = parsed("train", *below, "variants/dsu")
        network: nn.Module = parser.get_parsed_content("network_def")
        assert [isinstance(getattr(network, f"layer{i}")[-1], DSU) for i in (1, 2, 3, 4)] == [True, True, False, False]
        layers = [module for module in network.modules() if isinstance(module, FuseStyle | DSU)]
        assert [repr(layer) for layer in layers] == ["DSU(p=0.5, floor=0.2)"] * 2


def test_the_paper_s_settings() -> None:
    train = load("train")
    expected = {"max_epochs": 15, "batch_size": 256, "learning_rate": 1e-4, "lr_factor": 0.01, "lr_patience": 1}
    expected |= {"patch_size": 64, "fusestyle_places": [1, 4], "fusestyle_p": 0.5, "fusestyle_alpha": 0.3}
    expected |= {"fusestyle_reference": "dot", "fusestyle_partners": "any", "fusestyle_extrapolation": None}
    assert {key: train[key] for key in expected} == expected
    assert train["network_def"]["name"] == "resnet50"


def test_every_parameter_gets_a_gradient() -> None:
    network: nn.Module = parsed("train", "variants/demo").get_parsed_content("network")
    network.train()(torch.randn(4, 3, 64, 64)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_augmentation_makes_all_eight_orientations() -> None:
    parser = parsed("train")
    augmentation = [t.set_random_state(i) for i, t in enumerate(parser.get_parsed_content("augmentation"))]
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    image[:, 0, 1] = 255
    seen = set()
    for _ in range(200):
        item = {"image": image}
        for transform in augmentation:
            item = transform(item)
        seen.add(tuple(torch.as_tensor(item["image"])[0].flatten().tolist()))
    assert len(seen) == 8
