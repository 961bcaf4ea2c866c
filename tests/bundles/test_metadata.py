"""What metadata.json has to be, by our schema and the official one, and its classes. `verify_bundles` does the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bundle_tools.checks import SCHEMA
from jsonschema import Draft201909Validator
from monai.bundle import verify_metadata

from shared.datasets.ct_cases import BTCV_LABELS

ROOT = Path(__file__).resolve().parents[2]
OFFICIAL_SCHEMA = ROOT / "../shared/data/schema/meta_schema_20240725.json"
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))

pytestmark = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


def read(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "configs" / "metadata.json").read_text())


def errors(content: dict[str, Any]) -> list[str]:
    validator = Draft201909Validator(json.loads(SCHEMA.read_text()))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)]


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


def test_channels_are_the_default_labels(bundle: Path) -> None:
    if not bundle.name.startswith("abdominal_"):
        pytest.skip("not an abdominal bundle")
    formats = read(bundle)["network_data_format"]
    assert list(formats["inputs"]) == ["image"]
    assert list(formats["outputs"]) == ["pred"]
    channels = {"background": 0} | BTCV_LABELS
    assert formats["outputs"]["pred"]["channel_def"] == {str(label): name for name, label in channels.items()}
