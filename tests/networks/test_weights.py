from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from shared.networks import load_weights, read_model_record, record_with_history
from shared.utils import DataError

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
        assert load_weights(target, path, LABELS) is target
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
        DataError, match=r"weight is missing in the file;.*\(and 7 more\).*an overlay is missing, e\.g\."
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
    with pytest.raises(DataError, match=r"model\.ts: cannot be read as weights .*cut short"):
        load_weights(target, path)


def test_weights_for_other_labels(tmp_path: Path) -> None:
    path = save(tmp_path, nn.Linear(3, 2), labels={"liver": 1, "spleen": 2})
    with pytest.raises(DataError, match=r"trained for the labels \{'liver': 1.*the configuration has \{'spleen': 1"):
        load_weights(nn.Linear(3, 2), path, LABELS)


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
