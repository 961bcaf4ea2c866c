from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import matplotlib.image
import pytest
import torch
from ignite.metrics import Loss
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler, from_engine
from torch import Tensor, nn

from shared.handlers import TrainingCurves

METRICS = ("val_loss", "val_auc")


class Scripted(nn.Module):
    """A loss that the test chooses, one value a batch."""

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        self.values = iter(values)

    def forward(self, pred: Tensor, label: Tensor) -> Tensor:
        return pred.mean() * 0 + next(self.values)


def run(
    folder: Path,
    epochs: int = 3,
    interval: int = 1,
    metrics: Sequence[str] = METRICS,
    resume: dict | None = None,
    start: int = 0,
) -> TrainingCurves:
    """Three batches an epoch with losses 0, 1, 2, ..., validated; the learning rate halves after each validation."""
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.8 * 0.5**start)
    items = [{"image": torch.tensor([float(i)]), "label": torch.tensor([float(i % 2)])} for i in range(6)]
    values = iter([0.5, 0.6, 0.7, 0.8][start:])

    def score(engine: SupervisedEvaluator) -> None:
        engine.state.metrics["val_auc"] = next(values)

    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(items), batch_size=4),
        network=network,
        key_val_metric={"val_loss": Loss(nn.MSELoss(), output_transform=from_engine(["pred", "label"]))},
        val_handlers=[LrScheduleHandler(torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), print_lr=False)],
        decollate=False,
    )
    evaluator.add_event_handler("EPOCH_COMPLETED", score)
    curves = TrainingCurves(folder, evaluator, optimizer, metrics, title="a training")
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=DataLoader(Dataset(items), batch_size=2),
        network=network,
        optimizer=optimizer,
        loss_function=Scripted(range(3 * start, 100)),
        train_handlers=[ValidationHandler(interval=interval, validator=evaluator), curves],
        decollate=False,
    )
    trainer.state.epoch, trainer.state.iteration = start, 3 * start
    if resume:
        curves.load_state_dict(resume)
    trainer.run()
    curves.network = network
    return curves


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "training.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        curves = run(tmp_path)
    inputs, labels = torch.arange(6.0)[:, None], (torch.arange(6) % 2)[:, None].float()
    loss = (curves.network(inputs) - labels).square().mean().item()  # nothing is learned: the same each epoch
    found = rows(tmp_path)
    assert list(found[0]) == ["epoch", "learning_rate", "train_loss", "val_loss", "val_auc"]
    assert [row["epoch"] for row in found] == [1, 2, 3]
    assert [row["train_loss"] for row in found] == [1, 4, 7]
    assert [row["val_loss"] for row in found] == pytest.approx([loss] * 3, rel=1e-6)
    assert [row["val_auc"] for row in found] == [0.5, 0.6, 0.7]
    # what the epoch was trained with, though the schedule has gone on when the row is written
    assert [row["learning_rate"] for row in found] == pytest.approx([0.8, 0.4, 0.2])
    assert curves.rows == found
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("training_curves")]
    assert lines[1] == f"epoch 2 of 3: learning_rate 0.4, train_loss 4, val_loss {loss:.4g}, val_auc 0.6"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["training.csv", "training.png"]


def test_the_picture(tmp_path: Path) -> None:
    curves = run(tmp_path)
    picture = matplotlib.image.imread(tmp_path / "training.png")
    assert picture.shape[:2] == (720, 960)
    top, bottom = curves._figure().axes
    assert top.get_title() == "a training"
    drawn = {line.get_label(): line.get_xydata().tolist() for axes in (top, bottom) for line in axes.lines}
    assert [line.get_label() for line in top.lines] == ["train_loss", "val_loss"]
    assert [line.get_label() for line in bottom.lines] == ["val_auc"]
    assert drawn["train_loss"] == [[1, 1], [2, 4], [3, 7]]
    assert drawn["val_auc"] == [[1, 0.5], [2, 0.6], [3, 0.7]]


def test_losses_alone(tmp_path: Path) -> None:
    run(tmp_path, metrics=["val_loss"])
    assert list(rows(tmp_path)[0]) == ["epoch", "learning_rate", "train_loss", "val_loss"]


def test_epochs_without_validation_have_no_row(tmp_path: Path) -> None:
    run(tmp_path, epochs=5, interval=2)
    assert [(row["epoch"], row["train_loss"], row["val_auc"]) for row in rows(tmp_path)] == [(2, 4, 0.5), (4, 10, 0.6)]


def test_a_resumed_run_has_the_whole_history(tmp_path: Path) -> None:
    run(tmp_path / "whole", epochs=4)
    first = run(tmp_path / "parts", epochs=2)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    first.rows[0]["val_auc"] = 0.0  # of the other handler alone
    resumed = run(tmp_path / "parts", epochs=4, resume=state, start=2)
    for key in ("epoch", "learning_rate", "train_loss", "val_auc"):
        assert [row[key] for row in rows(tmp_path / "parts")] == [row[key] for row in rows(tmp_path / "whole")]
    assert len(resumed.state_dict()["rows"]) == 4
    assert len(state["rows"]) == 2
