"""The record of a training, written while it goes on: tables, a picture, log lines and TensorBoard's scalars."""

from __future__ import annotations

import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.optim import Optimizer

from ..reports.gallery import save_figure
from ..utils import append_csv, write_csv
from .class_reweighting import ClassReweighting, WeightRow

logger = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class TrainingRecord(ABC):
    """What the records have in common: after every epoch that was validated, rank 0 writes a table and a picture.

    Attach it to the trainer behind the validation, and before what saves checkpoints. Its `state_dict` keeps the
    history for a resumed run.

    Args:
        output_dir: folder of the files.
        evaluator: the engine of the validation.
        title: of the picture.
    """

    output_dir: str | os.PathLike
    evaluator: Engine
    title: str = field(default="", kw_only=True)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if self.evaluator.state.epoch != engine.state.epoch:
            return
        self._add(engine)
        if idist.get_rank() == 0:
            self._write(engine)
            save_figure(Path(self.output_dir) / "training.png", self._figure())

    @abstractmethod
    def _add(self, engine: Engine) -> None:
        """Take the epoch's results into the history."""

    @abstractmethod
    def _write(self, engine: Engine) -> None:
        """Write the table, and a line in the log."""

    @abstractmethod
    def _figure(self) -> Figure:
        """The picture of the history."""


@dataclass(eq=False, repr=False)
class TrainingReport(TrainingRecord):
    """Show how each class fares in training, and what a re-weighting rule made of it.

    Rank 0 writes to `output_dir`:

    * `dice_per_class.csv`: epoch, mean Dice, Dice of every class (blank where it had no voxel);
    * `training.png`: Dice and loss weight of every class over the epochs;
    * `class_weights.csv`: for every evaluation of the rule and every class its score, the weight after it, and whether
      the rule fired in it. It grows by every evaluation. To TensorBoard go `class_score/NAME` and `class_weight/NAME`.

    Args:
        output_dir, evaluator, title: see `TrainingRecord`.
        class_names: the classes in the order of the scores.
        metric_name: the per-class metric in `evaluator.state.metrics`, N scores, NaN for a class without a voxel.
        rule: the re-weighting rule, attached to the evaluator, or to the trainer before this; at the end of the run it
            reports how often it fired. None where all weights are 1.
        summary_writer: TensorBoard's, or None.
    """

    class_names: Sequence[str]
    metric_name: str = "val_class_dice"
    rule: ClassReweighting | None = None
    summary_writer: Any = None

    def __post_init__(self) -> None:
        self.epochs: list[int] = []
        self.dice: list[list[float]] = []
        self.weights: list[list[float]] = []
        self._before = self._recorded = 0  # evaluations of the rule: before this epoch, and in this run's table

    def attach(self, engine: Engine) -> None:
        if self.rule is not None:
            engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.record_weights)
            engine.add_event_handler(Events.COMPLETED, self.rule.report)
        super().attach(engine)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": list(self.epochs), "dice": torch.tensor(self.dice), "weights": torch.tensor(self.weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epochs = list(state["epochs"])
        self.dice = state["dice"].tolist()
        self.weights = state["weights"].tolist()

    def start_epoch(self) -> None:
        """Keep how many evaluations of the rule there were before this epoch."""
        self._before = self.rule.evaluations

    def record_weights(self) -> None:
        """Write what the rule has evaluated in this epoch."""
        rows = self.rule.rows(since=self._before + 1)
        if not rows or idist.get_rank() != 0:
            return
        path, fields = Path(self.output_dir) / "class_weights.csv", list(WeightRow.__annotations__)
        if self._recorded == self._before > 0 and path.is_file():
            append_csv(path, _rounded(rows), fields)
        else:  # the whole history at first, as a resumed run must
            write_csv(path, _rounded(self.rule.rows()), fields)
        self._recorded = self.rule.evaluations
        for row in rows if self.summary_writer is not None else ():
            score = math.nan if row["score"] is None else row["score"]
            self.summary_writer.add_scalar(f"class_score/{row['class']}", score, row["evaluation"])
            self.summary_writer.add_scalar(f"class_weight/{row['class']}", row["weight"], row["evaluation"])

    def _add(self, engine: Engine) -> None:
        dice = torch.as_tensor(self.evaluator.state.metrics[self.metric_name], dtype=torch.float32).tolist()
        self.epochs.append(engine.state.epoch)
        self.dice.append(dice)
        self.weights.append([1.0] * len(dice) if self.rule is None else self.rule.weights.tolist())

    def _write(self, engine: Engine) -> None:
        means = torch.tensor(self.dice, dtype=torch.float64).nanmean(dim=1).tolist()
        zero = [name for name, value in zip(self.class_names, self.dice[-1], strict=True) if value == 0]
        epoch, still = self.epochs[-1], ", ".join(zero) or "none"
        logger.info("epoch %d: validation Dice %.3f; still at 0: %s", epoch, means[-1], still)
        fields = ["epoch", "mean", *self.class_names]
        history = zip(self.epochs, means, self.dice, strict=True)
        cells = [
            [epoch, *(None if math.isnan(x) else f"{x:.6f}" for x in (mean, *dice))] for epoch, mean, dice in history
        ]
        rows = [dict(zip(fields, row, strict=True)) for row in cells]
        write_csv(Path(self.output_dir) / "dice_per_class.csv", rows, fields)

    def _figure(self) -> Figure:
        # places in fixed shares of the picture: a layout that is worked out draws everything twice
        places = {"left": 0.07, "right": 0.76, "bottom": 0.08, "top": 0.94, "hspace": 0.08}
        figure, top, bottom = _two_axes((11, 7), height_ratios=[3, 2], gridspec_kw=places)
        marker = "o" if len(self.epochs) < 30 else None
        for i, name in enumerate(self.class_names):
            style = {"color": colormaps["tab20"](i % 20), "label": name, "marker": marker, "markersize": 3}
            top.plot(self.epochs, [row[i] for row in self.dice], **style)
            bottom.step(self.epochs, [row[i] for row in self.weights], where="post", **style)
        top.set(ylabel="validation Dice", ylim=(-0.02, 1.02), title=self.title)
        bottom.set(ylabel="weight in the loss", xlabel="epoch")
        top.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
        return figure


@dataclass(eq=False, repr=False)
class TrainingCurves(TrainingRecord):
    """Show how loss, learning rate and the metrics of the validation go.

    Rank 0 writes to `output_dir`:

    * `training.csv`: epoch, its learning rate, mean loss of its batches (of this rank), metrics of the validation, and
      the trainer's own, such as those of `PartnerCounts`;
    * `training.png`: the losses above, the other metrics below.

    The trainer must not decollate.

    Args:
        output_dir, evaluator, title: see `TrainingRecord`.
        optimizer: whose learning rate is shown.
        metrics: names in `evaluator.state.metrics`; those that end in "loss" are drawn beside the training's.
    """

    optimizer: Optimizer
    metrics: Sequence[str] = ("val_loss", "val_auc", "val_balanced_accuracy")

    def __post_init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.losses: list[torch.Tensor] = []
        self.learning_rate = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        super().attach(engine)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = [dict(row) for row in state["rows"]]

    def _start(self, engine: Engine) -> None:
        self.losses = []
        # of this epoch; after it, the schedule may have set the next one's already
        self.learning_rate = float(self.optimizer.param_groups[0]["lr"])

    def _collect(self, engine: Engine) -> None:
        self.losses.append(engine.state.output["loss"].detach())

    def _add(self, engine: Engine) -> None:
        loss = sum(float(value) for value in self.losses) / len(self.losses)
        row = {"epoch": engine.state.epoch, "learning_rate": self.learning_rate, "train_loss": loss}
        row |= {name: float(self.evaluator.state.metrics[name]) for name in self.metrics}
        self.rows.append(row | {name: v for name, v in engine.state.metrics.items() if isinstance(v, float)})

    def _write(self, engine: Engine) -> None:
        row = self.rows[-1]
        shown = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
        logger.info("epoch %d of %d: %s", engine.state.epoch, engine.state.max_epochs, shown)
        fields = dict.fromkeys(name for row in self.rows for name in row)
        write_csv(Path(self.output_dir) / "training.csv", self.rows, list(fields))

    def _figure(self) -> Figure:
        figure, top, bottom = _two_axes((8, 6), gridspec_kw={"left": 0.1, "right": 0.97, "hspace": 0.08})
        epochs = [row["epoch"] for row in self.rows]
        for name in ("train_loss", *self.metrics):
            axes = top if name.endswith("loss") else bottom
            axes.plot(epochs, [row[name] for row in self.rows], marker="o", markersize=3, label=name)
        top.set(ylabel="loss", title=self.title)
        bottom.set(ylabel="score", xlabel="epoch", ylim=(-0.02, 1.02))
        for axes in (top, bottom):
            if axes.lines:
                axes.legend(frameon=False)
        return figure


def _two_axes(size: tuple[float, float], **layout: Any) -> tuple[Figure, Axes, Axes]:
    """A figure with two axes, one above the other, that share their epochs."""
    figure = Figure(figsize=size)
    top, bottom = figure.subplots(2, sharex=True, **layout)
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    return figure, top, bottom


def _rounded(rows: Sequence[WeightRow]) -> list[dict[str, Any]]:
    return [{key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()} for row in rows]
