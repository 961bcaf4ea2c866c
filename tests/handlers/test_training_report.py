from __future__ import annotations

import csv
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import matplotlib.image
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Loss
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler, from_engine
from torch import Tensor, nn

from shared.handlers import ClassBoostStrategy, PlateauClassFreezing, TrainingCurves, TrainingReport
from shared.handlers.class_reweighting import ClassReweighting

NAN = math.nan


# --- the classes and the rule ----------------------------------------------------------------------------------------

NAMES = ["liver", "spleen"]
SCORES = [[0.9, NAN], [0.8, 0.5], [0.8, 0.6], [0.85, 0.7]]
WEIGHTS = """evaluation,class,score,weight,fired
1,liver,0.9,1.0,0
1,spleen,,1.0,0
2,liver,0.8,0.1,1
2,spleen,0.5,1.996008,1
3,liver,0.8,0.1,0
3,spleen,0.6,1.996008,0
"""


class Recorder:
    """A SummaryWriter that keeps what it is given."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))


def follow(
    folder: Path,
    rule: ClassReweighting | None,
    epochs: int,
    interval: int = 1,
    start: int = 0,
    state: dict[str, Any] | None = None,
    **options: Any,
) -> TrainingReport:
    """A training of so many epochs in all, those after `start`, whose validation has the scores above."""
    trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)

    def validate(engine: Engine) -> None:
        evaluator.state.epoch = engine.state.epoch
        evaluator.state.metrics["val_class_dice"] = torch.tensor(SCORES[engine.state.epoch // interval - 1])
        if rule is not None:
            rule.update(SCORES[engine.state.epoch // interval - 1])

    report = TrainingReport(folder, evaluator, NAMES, rule=rule, **options)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=interval), validate)
    report.attach(trainer)
    if state is not None:
        report.load_state_dict(state)
    trainer.state.epoch = trainer.state.iteration = start
    trainer.state.max_epochs, trainer.state.epoch_length = epochs, 1
    trainer.run([0])
    return report


def boost() -> ClassBoostStrategy:
    return ClassBoostStrategy(class_names=NAMES, window=0)


def test_the_rules_history(tmp_path: Path) -> None:
    writer = Recorder()
    follow(tmp_path, boost(), epochs=3, summary_writer=writer)
    assert (tmp_path / "class_weights.csv").read_text() == WEIGHTS
    assert [(tag, step) for tag, _, step in writer.scalars] == [
        (f"class_{kind}/{name}", step) for step in (1, 2, 3) for name in NAMES for kind in ("score", "weight")
    ]
    values = {(tag, step): value for tag, value, step in writer.scalars}
    assert values["class_weight/spleen", 2] == pytest.approx(1 / 0.501, abs=1e-7)
    assert values["class_score/liver", 3] == pytest.approx(0.8)
    assert math.isnan(values["class_score/spleen", 1])


def test_the_history_grows_by_the_epochs_with_an_evaluation(tmp_path: Path) -> None:
    rule, writer = boost(), Recorder()
    follow(tmp_path, rule, epochs=6, interval=2, summary_writer=writer)
    assert (tmp_path / "class_weights.csv").read_text() == WEIGHTS
    assert [step for _, _, step in writer.scalars] == [1] * 4 + [2] * 4 + [3] * 4


def test_the_history_starts_whole_after_a_resume_and_after_it_was_removed(tmp_path: Path) -> None:
    table = tmp_path / "class_weights.csv"
    trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)

    def report(rule: ClassReweighting, writer: Recorder) -> TrainingReport:
        made = TrainingReport(tmp_path, evaluator, ["a"], rule=rule, summary_writer=writer)
        made.attach(trainer)
        return made

    def epoch(report: TrainingReport, score: float) -> None:
        report.start_epoch()
        report.rule.update([score])
        report.record_weights()

    def evaluations() -> list[str]:
        return [row["evaluation"] for row in csv.DictReader(table.read_text().splitlines())]

    first = report(PlateauClassFreezing(num_classes=1), Recorder())
    epoch(first, 0.1)
    state = first.rule.state_dict()
    epoch(first, 0.2)  # of an epoch that is not in the checkpoint
    writer = Recorder()
    resumed = report(PlateauClassFreezing(num_classes=1), writer)
    resumed.rule.load_state_dict(state)
    epoch(resumed, 0.3)
    assert evaluations() == ["1", "2"]
    assert "0.2" not in table.read_text()
    table.unlink()
    epoch(resumed, 0.4)
    assert evaluations() == ["1", "2", "3"]
    table.write_text(table.read_text() + "a mark\n")
    epoch(resumed, 0.5)
    assert "a mark\n4,class_1," in table.read_text()  # added, not written anew
    assert [step for _, _, step in writer.scalars] == [2, 2, 3, 3, 4, 4]  # the earlier ones are there


def test_the_rule_reports_at_the_end_of_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the rule is attached to, and however short the run was."""
    follow(tmp_path, boost(), epochs=1)
    assert "ClassBoostStrategy never fired in 1 evaluations" in caplog.text


def test_the_dice_of_the_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        report = follow(tmp_path, boost(), epochs=2, title="a training")
    assert (tmp_path / "dice_per_class.csv").read_text().splitlines() == [
        "epoch,mean,liver,spleen",
        "1,0.900000,0.900000,",
        "2,0.650000,0.800000,0.500000",
    ]
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("training_report")]
    assert lines[1] == "epoch 2: validation Dice 0.650; still at 0: none"
    assert matplotlib.image.imread(tmp_path / "training.png").shape[:2] == (840, 1320)
    top, bottom = report._figure().axes
    assert top.get_title() == "a training"
    assert [line.get_label() for line in top.lines] == [line.get_label() for line in bottom.lines] == NAMES
    assert top.lines[0].get_xdata().tolist() == [1, 2]
    assert top.lines[0].get_ydata() == pytest.approx([0.9, 0.8])
    assert bottom.lines[0].get_ydata() == pytest.approx([1, 0.1])


def test_an_epoch_whose_classes_have_no_voxel_is_blank(tmp_path: Path) -> None:
    trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)
    evaluator.state.epoch = 1
    evaluator.state.metrics["val_class_dice"] = torch.tensor([NAN, NAN])
    TrainingReport(tmp_path, evaluator, NAMES).attach(trainer)
    trainer.run([0], max_epochs=1)
    assert (tmp_path / "dice_per_class.csv").read_text().splitlines()[1] == "1,,,"
    assert not (tmp_path / "class_weights.csv").exists()  # without a rule


def test_the_dice_of_a_resumed_run_has_the_whole_history(tmp_path: Path) -> None:
    follow(tmp_path / "whole", None, epochs=4)
    first = follow(tmp_path / "parts", None, epochs=2)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert set(state) == {"epochs", "dice", "weights"}  # as checkpoints hold it
    follow(tmp_path / "parts", None, epochs=4, start=2, state=state)
    for name in ("dice_per_class.csv", "training.png"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    writer = Recorder()
    report = follow(tmp_path, boost(), epochs=2, summary_writer=writer)
    assert report.epochs == [1, 2]
    assert not list(tmp_path.iterdir())
    assert not writer.scalars


# --- losses and metrics ----------------------------------------------------------------------------------------------

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
    started: Callable[[Engine], None] | None = None,
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
    if started:
        trainer.add_event_handler(Events.EPOCH_STARTED, started)
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
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("training_report")]
    assert lines[1] == f"epoch 2 of 3: learning_rate 0.4, train_loss 4, val_loss {loss:.4g}, val_auc 0.6"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["training.csv", "training.png"]


def test_the_trainers_own_metrics_stand_in_the_table_where_there_are_some(tmp_path: Path) -> None:
    def mixed(engine: Engine) -> None:
        engine.state.metrics = {"partners_most_chosen": 0.25} if engine.state.epoch == 2 else {}

    run(tmp_path, started=mixed)
    with (tmp_path / "training.csv").open(newline="") as file:
        assert [row["partners_most_chosen"] for row in csv.DictReader(file)] == ["", "0.25", ""]


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
