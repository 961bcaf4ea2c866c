from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure

from ..utils import atomic_path, write_csv

logger = logging.getLogger(__name__)


class TrainingCurves:
    """Show how a training goes: a table, a picture and a line in the log after every epoch that was validated.

    Rank 0 writes to `output_dir`:

    * `training.csv`: epoch, its learning rate, mean loss of its batches (of this rank), metrics of the validation;
    * `training.png`: the losses above, the other metrics below.

    Attach it to the trainer, which must not decollate, behind the validation. Its `state_dict` keeps the history for a
    resumed run.

    Args:
        output_dir: folder of the two files.
        evaluator: the engine of the validation.
        optimizer: whose learning rate is shown.
        metrics: names in `evaluator.state.metrics`; those that end in "loss" are drawn beside the training's.
        title: of the picture.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        evaluator: Engine,
        optimizer: Any,
        metrics: Sequence[str] = ("val_loss", "val_auc", "val_balanced_accuracy"),
        title: str = "",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.evaluator = evaluator
        self.optimizer = optimizer
        self.metrics = list(metrics)
        self.title = title
        self.rows: list[dict[str, float]] = []
        self.losses: list[torch.Tensor] = []
        self.learning_rate = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

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

    def __call__(self, engine: Engine) -> None:
        if self.evaluator.state.epoch != engine.state.epoch:
            return
        loss = sum(float(value) for value in self.losses) / len(self.losses)
        row = {"epoch": engine.state.epoch, "learning_rate": self.learning_rate, "train_loss": loss}
        row |= {name: float(self.evaluator.state.metrics[name]) for name in self.metrics}
        self.rows.append(row)
        if idist.get_rank() == 0:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
            logger.info("epoch %d of %d: %s", engine.state.epoch, engine.state.max_epochs, shown)
            write_csv(self.output_dir / "training.csv", self.rows, list(row))
            with atomic_path(self.output_dir / "training.png") as temporary:
                self._figure().savefig(temporary, dpi=120)

    def _figure(self) -> Figure:
        figure = Figure(figsize=(8, 6))
        top, bottom = figure.subplots(2, sharex=True, gridspec_kw={"left": 0.1, "right": 0.97, "hspace": 0.08})
        epochs = [row["epoch"] for row in self.rows]
        for name in ("train_loss", *self.metrics):
            axes = top if name.endswith("loss") else bottom
            axes.plot(epochs, [row[name] for row in self.rows], marker="o", markersize=3, label=name)
        top.set(ylabel="loss", title=self.title)
        bottom.set(ylabel="score", xlabel="epoch", ylim=(-0.02, 1.02))
        for axes in (top, bottom):
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend(frameon=False)
        return figure
