from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shared.networks import (
    check_classifier_labels,
    check_subtype_labels,
    fusestyle_densenet,
    fusestyle_resnet,
    joint_domains,
    load_classifier,
    read_classifier_record,
    weights_of_classifier,
)
from shared.utils import DataError

LABELS = {"non_mitotic": 0, "mitotic": 1}
RECORD = {"bundle": "mitosis_fusestyle_cls", "labels": LABELS, "crop_size": 64, "patch_size": 64}


def save(folder: Path, network: nn.Module, name: str = "model.pt", **record: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / name)
    (folder / name).with_suffix(".json").write_text(json.dumps(RECORD | record))
    return folder / name


@pytest.mark.parametrize(
    "make",
    [lambda: fusestyle_resnet("resnet10"), lambda: fusestyle_resnet("resnet50"), lambda: fusestyle_densenet()],
    ids=["resnet10", "resnet50", "densenet121"],
)
def test_the_network_is_known_by_its_weights(tmp_path: Path, make: Any) -> None:
    network = make().eval()
    loaded = load_classifier(save(tmp_path, network))
    crops = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(crops), network(crops))
    assert not loaded.training


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, and still what ckpt_export writes with
def test_torchscript_brings_its_network(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 1, 64), nn.Flatten()).eval()
    path = save(tmp_path, network, "model.ts")
    torch.jit.script(network).save(path)
    crops = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(load_classifier(path)(crops), network(crops))


def test_the_folder_of_a_bundle_stands_for_its_weights(tmp_path: Path) -> None:
    save(tmp_path / "bundle" / "models", fusestyle_resnet("resnet10"))
    assert read_classifier_record(tmp_path / "bundle")["crop_size"] == 64
    assert isinstance(load_classifier(tmp_path / "bundle"), nn.Module)


def test_no_path_is_no_classifier() -> None:
    assert read_classifier_record("") == {}
    check_classifier_labels("", {}, LABELS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bundle": "mitosis_retinanet_fusestyle"}, "weights of mitosis_retinanet_fusestyle, and no classifier"),
        ({"bundle": None}, "weights of no known bundle"),
        ({"labels": {"a": 1, "b": 2}}, "expected two classes, 0 and 1"),
    ],
)
def test_records_of_something_else(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = save(tmp_path, fusestyle_resnet("resnet10"), **change)
    with pytest.raises(DataError, match=rf"model\.pt: .*{message}"):
        read_classifier_record(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.pt: there is no such classifier"):
        read_classifier_record(tmp_path / "gone.pt")
    path = save(tmp_path, fusestyle_resnet("resnet10"))
    path.with_suffix(".json").unlink()
    with pytest.raises(DataError, match=r"there is no model\.json beside it"):
        read_classifier_record(path)
    with pytest.raises(DataError, match=r"is a zip\. Unzip the package"):
        read_classifier_record(tmp_path / "package.zip")
    with pytest.raises(DataError, match=r"model\.json: is no file of weights\. Give the model\.pt"):
        read_classifier_record(tmp_path / "model.json")


@pytest.mark.parametrize("place", ["model.pt", "", ".."])
def test_the_folder_of_a_training_and_of_a_bundle_will_do(tmp_path: Path, place: str) -> None:
    path = save(tmp_path / "models", fusestyle_resnet("resnet10"))
    assert weights_of_classifier(path.parent / place).resolve() == path
    assert read_classifier_record(path.parent / place)["bundle"] == "mitosis_fusestyle_cls"


def test_weights_of_another_network_or_damaged_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"its 2 tensors .* are those of no ResNet or DenseNet with one logit"):
        load_classifier(save(tmp_path, nn.Linear(3, 1)))
    with pytest.raises(DataError, match="of no ResNet or DenseNet"):
        load_classifier(save(tmp_path, fusestyle_resnet("resnet10", num_classes=2)))
    network = fusestyle_resnet("resnet10")
    nn.init.constant_(network.fc.bias, torch.nan)
    with pytest.raises(DataError, match="the weights hold NaN or infinity"):
        load_classifier(save(tmp_path, network))


def test_classes_have_to_be_the_detectors() -> None:
    check_classifier_labels("a.pt", RECORD, dict(LABELS))
    with pytest.raises(
        DataError, match=r"a\.pt: this classifier tells Normal and Atypical apart, and the detector non_"
    ):
        check_classifier_labels("a.pt", {"labels": {"Atypical": 1, "Normal": 0}}, LABELS)


def test_kinds_of_figures_are_not_the_detectors_classes() -> None:
    check_subtype_labels("", {}, LABELS)
    check_subtype_labels("a.pt", {"labels": {"Atypical": 1, "Normal": 0}}, LABELS)
    with pytest.raises(DataError, match=r"a\.pt: this classifier tells non_mitotic and mitotic apart, as the detector"):
        check_subtype_labels("a.pt", RECORD, LABELS)


def test_domains_of_several_networks() -> None:
    assert joint_domains({"train_domains": ["XR", "CS"]}, {"train_domains": ["S360", "CS"]}) == ["CS", "S360", "XR"]
    assert joint_domains({"train_domains": ["XR"]}, {}) == ["XR"]
    assert joint_domains({}, {"train_domains": ["XR"]}) is None
    assert joint_domains({"train_domains": ["XR"]}, {"bundle": "x"}) is None
