from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from shared.networks import known_domains, load_weights, read_model_record, record_with_history
from shared.utils import DataError
from shared.utils.bundle_run import CommandLine

LABELS = {"spleen": 1, "liver": 2}


def save(folder: Path, network: nn.Module, **record: object) -> Path:
    path = folder / "model.pt"
    torch.save(network.state_dict(), path)
    if record:
        (folder / "model.json").write_text(json.dumps(record))
    return path


def test_all_weights_are_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    path = save(tmp_path, source, labels=LABELS, synthetic=False)
    with caplog.at_level(logging.WARNING):
        assert load_weights(target, path, labels=LABELS) is target
    assert torch.equal(source.weight, target.weight)
    assert torch.equal(source.bias, target.bias)
    assert read_model_record(path) == {"labels": LABELS, "synthetic": False}
    assert not caplog.records


def test_full_checkpoint(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    torch.save({"model": source.state_dict(), "optimizer": {"step": 3}}, tmp_path / "last.pt")
    load_weights(target, tmp_path / "last.pt")
    assert torch.equal(source.weight, target.weight)


def test_synthetic_and_unknown_origin_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_weights(nn.Linear(3, 2), save(tmp_path, nn.Linear(3, 2)))
    assert "nobody knows what these weights were trained on" in caplog.text
    load_weights(nn.Linear(3, 2), save(tmp_path, nn.Linear(3, 2), synthetic=True, name="made up"))
    assert "synthetic data (made up): not for real scans" in caplog.text


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.pt: there are no weights\. Train first.*--ckpt_path"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")


def test_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_text("weights")
    with pytest.raises(DataError, match=r"model\.pt: cannot be read as weights"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")


def test_weights_of_another_network(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    before = network.weight.clone()
    path = save(tmp_path, nn.Linear(3, 4), labels=LABELS, network_overlay="configs/variants/demo.json")
    with pytest.raises(
        DataError,
        match=r"another network: weight is \(4, 3\) in the file and \(2, 3\) in the network.*"
        r"overlay configs/variants/demo\.json is missing",
    ):
        load_weights(network, path)
    assert torch.equal(network.weight, before)
    path = save(tmp_path, nn.Sequential(*[nn.Linear(3, 2) for _ in range(5)]), labels=LABELS)
    with pytest.raises(
        DataError,
        match=r"weight is missing in the file;.*\(and 7 more\)\. Probably an overlay, e\.g\. configs.*json, is missing",
    ):
        load_weights(network, path)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, and still what ckpt_export writes with
def test_an_exported_network_takes_the_place_of_its_weights(tmp_path: Path) -> None:
    source, target = nn.Sequential(nn.Linear(3, 2), nn.Dropout()), nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    path, x = tmp_path / "model.ts", torch.rand(5, 3)
    torch.jit.save(torch.jit.script(source), path)
    loaded = load_weights(target, path)
    assert isinstance(loaded, torch.jit.ScriptModule)
    torch.testing.assert_close(loaded(x), source.eval()(x))  # eval mode: no dropout
    with pytest.raises(DataError, match=r"model\.ts: these weights belong to another network: 0\.weight is \(2, 3\)"):
        load_weights(nn.Sequential(nn.Linear(4, 2)), path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"model\.ts: is cut short or damaged"):
        load_weights(target, path)


TRAINED = {
    "bundle": "abdominal_lambda3d_cbs",
    "version": "0.1.0",
    "network_overlay": "configs/variants/demo.json",
    "labels": {"liver": 1, "spleen": 2},
    "label_ids": None,
    "spacing": [1.5, 1.5, 2.0],
    "intensity_range": [-175, 250],
    "image_std": [0.2, 0.2, 0.2],
}


def test_settings_that_agree_with_the_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = save(tmp_path, nn.Linear(3, 2), **TRAINED)
    settings = {key: value for key, value in TRAINED.items() if key != "version"}
    same = {"labels": {"spleen": 2, "liver": 1}, "spacing": (1.5, 1.5, 2.0 + 1e-7), "intensity_range": [-175.0, 250.0]}
    load_weights(nn.Linear(3, 2), path, **settings | same)
    assert not caplog.records
    load_weights(nn.Linear(3, 2), path, label_ids={"liver": 5, "spleen": 1})  # of other data
    assert "label_ids is {'liver': 5, 'spleen': 1}; the weights were trained with None" in caplog.text
    caplog.clear()
    load_weights(nn.Linear(3, 2), path, crop_size=64, labels=TRAINED["labels"])
    assert "its record does not know everything; crop_size: as the configuration has them" in caplog.text
    save(tmp_path, nn.Linear(3, 2)).with_suffix(".json").unlink()
    load_weights(nn.Linear(3, 2), path, **settings)
    assert "no model.json beside it" in caplog.text
    assert "on; image_std, intensity_range, label_ids, labels, spacing: as the configuration" in caplog.text


OTHER = {
    "bundle": ("abdominal_unetr_cbs", r"weights of abdominal_lambda3d_cbs 0\.1\.0, this is abdominal_unetr_cbs\. Give"),
    "network_overlay": (
        "",
        r"of the network of configs/variants/demo\.json, the .* own network\. Add configs/variants/de",
    ),
    "labels": (LABELS, r"labels is \{'spleen': 1.*trained with \{'liver': 1.* Leave --labels out"),
    "spacing": ((1.5, 1.5, 3), r"spacing is \[1\.5, 1\.5, 3\], .* with \[1\.5, 1\.5, 2\.0\]\. Leave --spacing out"),
    "intensity_range": ([-175], r"intensity_range is \[-175\], .* with \[-175, 250\]"),
    "image_std": ([0.2, 0.2, 0.20001], r"image_std is \[0\.2, 0\.2, 0\.20001\], .* with \[0\.2, 0\.2, 0\.2\]"),
}


@pytest.mark.parametrize("key", OTHER)
def test_settings_that_differ_from_the_record(tmp_path: Path, key: str) -> None:
    value, message = OTHER[key]
    path = save(tmp_path, nn.Linear(3, 2), **TRAINED)
    with pytest.raises(DataError, match=rf"model\.pt: .*{message}"):
        load_weights(nn.Linear(3, 2), path, **{key: value})
    save(tmp_path, nn.Linear(3, 2), **{k: v for k, v in TRAINED.items() if k != key})
    load_weights(nn.Linear(3, 2), path, **{key: value})  # a record that does not know this


INFERENCE, EVALUATE = ["configs/inference.json"], ["configs/train.json", "configs/evaluate.json"]
DEMO, UNET = "configs/variants/demo.json", "configs/variants/unet3d.json"
COMMANDS: dict[str, tuple[str, str, CommandLine | None, str]] = {
    "one overlay less": (
        "",
        DEMO,
        CommandLine([*INFERENCE, DEMO], {"input": "a scan", "labels": {"liver": 1}}),
        f"Leave {DEMO} out of --config_file: python -m monai.bundle run --config_file configs/inference.json "
        "--input 'a scan' --labels \"{'liver': 1}\"",
    ),
    "one more, behind the base": (
        DEMO,
        "",
        CommandLine([*EVALUATE, "configs/multi_gpu_evaluate.json"], {"bootstrap": 10}),
        f"Add {DEMO} to --config_file: python -m monai.bundle run --config_file \"['configs/train.json',"
        f"'configs/evaluate.json','{DEMO}','configs/multi_gpu_evaluate.json']\" --bootstrap 10",
    ),
    "another": (
        DEMO,
        UNET,
        CommandLine([f"b/{file}" for file in (*INFERENCE, UNET)], {}),
        f"in place of {UNET}: python -m monai.bundle run --config_file \"['b/configs/inference.json','b/{DEMO}']\"",
    ),
    "one that is part of a package": ("", DEMO, CommandLine(INFERENCE, {}), f"Leave {DEMO} out of --config_file."),
    "a configuration of one's own": (DEMO, "", CommandLine(["my.json"], {}), f"Add {DEMO} to --config_file."),
    "no command line": (DEMO, "", None, f"Add {DEMO} to --config_file."),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_the_command_with_the_right_overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    recorded, given, line, message = COMMANDS[kind]
    path = save(tmp_path, nn.Linear(3, 2), network_overlay=recorded)
    monkeypatch.setattr("shared.networks.record.command_line", lambda: line)
    with pytest.raises(DataError) as caught:
        load_weights(nn.Linear(3, 2), path, network_overlay=given)
    assert str(caught.value).endswith(message)


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    with torch.no_grad():
        network.bias[1] = torch.nan
    with pytest.raises(DataError, match=r"model\.pt: the weights hold NaN or infinity, in bias \(1 of 2 tensors\)"):
        load_weights(nn.Linear(3, 2), save(tmp_path, network))
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"model\.pt: holds no weights, the state dict in it is empty"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")


DAMAGED: dict[str, dict[str, object]] = {
    "labels": {"labels": "liver"},
    "empty labels": {"labels": {}},
    "ids as text": {"labels": {"liver": "1"}},
    "image_mean": {"image_mean": "abc"},
    "crop_size": {"crop_size": -4},
    "spacing": {"spacing": [1.5, 0, 2]},
    "network_overlay": {"network_overlay": None},
    "train_domains": {"train_domains": "XR"},
    "val_domains": {"val_domains": "XR"},
    "label_ids": {"label_ids": {"liver": "5"}},
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_value_in_the_record(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path, nn.Linear(3, 2), **DAMAGED[kind])
    (key,) = DAMAGED[kind]
    with pytest.raises(DataError, match=rf"model\.json: {key} is .*, expected .*copy it beside the weights again"):
        read_model_record(path)


def test_damaged_record(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(DataError, match=r"model\.json: not readable as JSON"):
        read_model_record(tmp_path / "model.pt")


def test_domains_that_earlier_weights_have_seen_count_as_seen(tmp_path: Path) -> None:
    path = save(tmp_path, nn.Linear(3, 2), train_domains=["XR", "CS"], synthetic=True)
    record = record_with_history({"train_domains": ["S360", "XR"], "name": "new"}, path)
    assert record["train_domains"] == ["CS", "S360", "XR"]
    assert record["pretrained"] == {"file": "model.pt", "record": {"train_domains": ["XR", "CS"], "synthetic": True}}
    assert record_with_history({"train_domains": ["XR"]}, None) == {"train_domains": ["XR"], "pretrained": None}


def test_domains_that_chose_the_epoch_are_known_too(tmp_path: Path) -> None:
    path = save(tmp_path, nn.Linear(3, 2), train_domains=["XR"], val_domains=["CS"])
    record = record_with_history({"train_domains": ["XR"], "val_domains": ["S360"]}, path)
    assert record["val_domains"] == ["CS", "S360"]
    assert known_domains(record) == ["CS", "S360", "XR"]
    assert known_domains({"train_domains": ["XR"]}) == ["XR"]
    assert known_domains({"val_domains": ["XR"]}) is None
