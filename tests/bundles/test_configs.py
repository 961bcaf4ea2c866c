"""What holds for the configs of every bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/train.json"))
VARIANTS = [path for bundle in BUNDLES for path in sorted((bundle / "configs" / "variants").glob("*.json"))]


def load(bundle: Path, name: str) -> dict[str, Any]:
    return json.loads((bundle / "configs" / f"{name}.json").read_text())


def has(config: Any, key: str) -> bool:
    for part in key.split("#"):
        if isinstance(config, dict) and part in config:
            config = config[part]
        elif isinstance(config, list) and part.isdecimal() and int(part) < len(config):
            config = config[int(part)]
        else:
            return False
    return True


def strings(config: Any) -> list[str]:
    if isinstance(config, dict):
        return [s for value in config.values() for s in strings(value)]
    if isinstance(config, list):
        return [s for value in config for s in strings(value)]
    return [config] if isinstance(config, str) else []


@pytest.mark.parametrize("path", VARIANTS, ids=lambda p: f"{p.parents[2].name}-{p.stem}")
def test_a_variant_replaces_top_level_keys_that_exist(path: Path) -> None:
    bundle, keys = path.parents[2], set(json.loads(path.read_text()))
    assert keys
    assert not any("#" in key for key in keys)
    assert keys <= set(load(bundle, "train")), f"unknown in train.json: {keys - set(load(bundle, 'train'))}"
    if "network_def" in keys:
        assert keys <= set(load(bundle, "inference"))
        assert json.loads(path.read_text())["network_overlay"] == f"configs/variants/{path.name}"


@pytest.mark.parametrize("overlay", ["evaluate", "multi_gpu_train", "multi_gpu_evaluate"])
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda p: p.name)
def test_an_overlay_names_keys_of_its_base_or_its_own(bundle: Path, overlay: str) -> None:
    base = load(bundle, "train") | (load(bundle, "evaluate") if overlay == "multi_gpu_evaluate" else {})
    content = load(bundle, overlay)
    text = " ".join(strings(content))
    for key in content:
        name = key.removeprefix("+")
        parent = name.rpartition("#")[0]
        known = has(base, name) or f"@{name}" in text or (parent and has(base, parent) and name.endswith("#sampler"))
        # what a data loader takes instead of its own sampler
        assert known, f"{key} is in no base and nothing refers to it"


@pytest.mark.parametrize("name", ["train", "inference"])
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda p: p.name)
def test_every_reference_leads_somewhere(bundle: Path, name: str) -> None:
    parser = ConfigParser(load(bundle, name))
    parser.parse()
    assert len(parser.ref_resolver.items) > 50
    for item_id, item in parser.ref_resolver.items.items():
        for reference in parser.ref_resolver.find_refs_in_config(item.get_config(), id=item_id):
            assert reference in parser.ref_resolver.items, f"{item_id} refers to {reference}"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda p: p.name)
def test_training_and_inference_have_the_same_network(bundle: Path) -> None:
    train, inference = load(bundle, "train"), load(bundle, "inference")
    assert train["network_def"] == inference["network_def"]
    for key in [s[1:] for s in strings(train["network_def"]) if s.startswith("@")]:
        # FuseStyle acts in training alone and has no weights: what is deployed and exported goes without it
        assert inference[key] == ([] if key == "fusestyle_places" else train[key]), key


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda p: p.name)
def test_no_config_has_the_same_key_twice(bundle: Path) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        assert len(set(names)) == len(names), names
        return dict(pairs)

    for path in (bundle / "configs").rglob("*.json"):
        json.loads(path.read_text(), object_pairs_hook=unique)
