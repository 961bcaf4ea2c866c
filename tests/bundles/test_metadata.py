"""Every bundle's metadata.json: its form, and what it says about versions and classes."""

from __future__ import annotations

import ast
import json
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft201909Validator
from monai.bundle import verify_metadata

from shared.data import BTCV_LABELS

ROOT = Path(__file__).resolve().parents[2]
OWN_SCHEMA = Path(__file__).parent / "metadata_schema.json"
OFFICIAL_SCHEMA = ROOT / "../shared/data/schema/meta_schema_20240725.json"
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))

pytestmark = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


def read(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "configs" / "metadata.json").read_text())


def errors(content: dict[str, Any]) -> list[str]:
    validator = Draft201909Validator(json.loads(OWN_SCHEMA.read_text()))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)]


def test_valid_against_own_schema(bundle: Path) -> None:
    assert errors(read(bundle)) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", None, "'version' is a required property"),
        ("version", "one", "does not match"),
        ("references", "a paper", "is not of type 'array'"),
        ("required_packages_version", {"itk": 5}, "is not of type 'string'"),
        ("network_data_format", {"inputs": {}}, "'outputs' is a required property"),
        ("network_data_format", {"inputs": {"image": {"type": "image"}}, "outputs": {}}, "is a required property"),
    ],
)
def test_own_schema_refuses(bundle: Path, key: str, value: object, message: str) -> None:
    content = read(bundle)
    content.pop(key)
    if value is not None:
        content[key] = value
    assert any(message in error for error in errors(content))


@pytest.mark.filterwarnings("ignore:No hash value provided")  # of the schema, which no one publishes a hash of
def test_valid_against_official_schema(bundle: Path) -> None:
    if not OFFICIAL_SCHEMA.is_file():
        pytest.skip(f"{OFFICIAL_SCHEMA.name} is not at hand")
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(OFFICIAL_SCHEMA))


def test_versions_are_the_tested_ones(bundle: Path) -> None:
    content = read(bundle)
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE))
    named = content["required_packages_version"] | {
        "monai": content["monai_version"],
        "torch": content["pytorch_version"],
        "numpy": content["numpy_version"],
    }
    assert {name: pins.get(name) for name in named} == named


def test_what_the_code_imports_is_named(bundle: Path) -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "shared").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {(n.module or "").split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom) and n.level == 0}
    where = packages_distributions()
    named = read(bundle)["required_packages_version"].keys() | {"monai", "torch", "numpy"}
    missing = [name for name in names - sys.stdlib_module_names if not named & {name, *where[name]}]
    assert not missing


def test_changelog_ends_with_the_version(bundle: Path) -> None:
    content = read(bundle)
    newest = max(content["changelog"], key=lambda version: tuple(map(int, version.split("."))))
    assert content["version"] == newest


def test_every_channel_has_a_name(bundle: Path) -> None:
    formats = read(bundle)["network_data_format"]
    for tensor in [*formats["inputs"].values(), *formats["outputs"].values()]:
        assert list(tensor["channel_def"]) == [str(channel) for channel in range(tensor["num_channels"])]


def test_licences_are_there(bundle: Path) -> None:
    assert (bundle / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (bundle / "docs" / "data_license.txt").read_text().strip()


def test_channels_are_the_default_labels(bundle: Path) -> None:
    if not bundle.name.startswith("abdominal_"):
        pytest.skip("not an abdominal bundle")
    formats = read(bundle)["network_data_format"]
    assert list(formats["inputs"]) == ["image"]
    assert list(formats["outputs"]) == ["pred"]
    channels = {"background": 0} | BTCV_LABELS
    assert formats["outputs"]["pred"]["channel_def"] == {str(label): name for name, label in channels.items()}
