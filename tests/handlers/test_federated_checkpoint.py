from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import is_locked
from ignite.engine import Engine, Events
from monai.engines import Workflow

from shared.handlers import FederatedCheckpoint
from shared.utils import DataError, write_json


class Client:
    """A trainer of one weight, which each epoch sets to the next of the values; a score is its own validation."""

    def __init__(self, folder: Path, *values: float, **options: Any) -> None:
        self.network = torch.nn.Linear(1, 1, bias=False)
        self.values = list(values)
        self.evaluator = Workflow(
            "cpu", 1, [0], prepare_batch=None, iteration_update=lambda engine, batch: None, event_names=[]
        )
        self.evaluator.state.key_metric_name = "score"
        self.trainer = Engine(lambda engine, batch: None)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        self.checkpoint = FederatedCheckpoint(
            folder / "models", state={"model": self.network}, evaluator=self.evaluator, output_dir=folder, **options
        )
        self.checkpoint.attach(self.trainer)

    def _epoch(self, engine: Engine) -> None:
        value, state = self.values.pop(0), self.evaluator.state
        torch.nn.init.constant_(self.network.weight, value)
        state.epoch = engine.state.epoch
        if value > state.best_metric:
            state.best_metric, state.best_metric_epoch = value, engine.state.epoch

    def round(self, epochs: int = 1) -> None:
        self.trainer.state.max_epochs = self.trainer.state.epoch + epochs
        self.trainer.run([0], max_epochs=self.trainer.state.max_epochs)


def best(folder: Path) -> float:
    return torch.load(folder / "models" / "model.pt")["weight"].item()


def test_the_best_model_is_that_of_the_round(tmp_path: Path) -> None:
    client = Client(tmp_path, 0.5, 0.75, 0.25, 0.125)
    client.round(2)
    assert best(tmp_path) == 0.75
    assert not is_locked(tmp_path)
    client.round(2)
    assert best(tmp_path) == 0.25
    assert json.loads((tmp_path / "models" / "model.json").read_text())["federated"] is True


def test_a_round_without_a_best_epoch_has_no_best_model(tmp_path: Path) -> None:
    client = Client(tmp_path, 0.5, float("nan"))
    client.round()
    client.round()
    assert not (tmp_path / "models" / "model.pt").exists()


def test_weights_of_others_are_kept_and_those_of_an_earlier_client_replaced(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "model.pt").write_text("earlier")
    write_json(models / "model.json", {"name": "earlier"})
    Client(tmp_path, 0.5).round()
    assert (models / "before" / "model.pt").read_text() == "earlier"
    Client(tmp_path, 0.25).round()
    assert best(tmp_path) == 0.25
    (models / "model.json").unlink()  # a client that ended before its first validation: what is left says so
    Client(tmp_path, 0.125).round()
    assert best(tmp_path) == 0.125
    write_json(models / "model.json", {"name": "another"})
    with pytest.raises(DataError, match=r"models/last.pt: these weights would go to .*before, which holds others"):
        Client(tmp_path, 0.5).round()


@pytest.mark.parametrize("resume", [True, "true", "best"])
def test_nothing_is_resumed(resume: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="starts from the server's weights"):
        Client(tmp_path, resume=resume)
