from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib import colormaps
from matplotlib.figure import Figure

from ..utils import atomic_path, write_csv
from .class_reweighting import ClassReweighting

logger = logging.getLogger(__name__)


class TrainingReport:
    """Show how each class fares in training: a table, a picture and a line in the log.

    After every validation, rank 0 writes to `output_dir`:

    * `dice_per_class.csv`: epoch, mean Dice, Dice of every class (blank where it had no voxel);
    * `training.png`: Dice and loss weight of every class over the epochs.

    Attach it to the evaluator, behind the re-weighting rule if that is attached there too. Its `state_dict` keeps the
    history for a resumed run.

    Args:
        output_dir: folder of the two files.
        class_names: the classes in the order of the scores.
        metric_name: the per-class metric in `engine.state.metrics`, N scores, NaN for a class without a voxel.
        rule: the re-weighting rule, whose `weights` are shown; None where all weights are 1.
        title: of the picture.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        class_names: Sequence[str],
        metric_name: str = "val_class_dice",
        rule: ClassReweighting | None = None,
        title: str = "",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = list(class_names)
        self.metric_name = metric_name
        self.rule = rule
        self.title = title
        self.epochs: list[int] = []
        self.dice: list[list[float]] = []
        self.weights: list[list[float]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": list(self.epochs), "dice": torch.tensor(self.dice), "weights": torch.tensor(self.weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epochs = list(state["epochs"])
        self.dice = state["dice"].tolist()
        self.weights = state["weights"].tolist()

    def __call__(self, engine: Engine) -> None:
        dice = torch.as_tensor(engine.state.metrics[self.metric_name], dtype=torch.float32).tolist()
        self.epochs.append(engine.state.epoch)
        self.dice.append(dice)
        self.weights.append([1.0] * len(dice) if self.rule is None else self.rule.weights.tolist())
        if idist.get_rank() == 0:
            self._write()

    def _write(self) -> None:
        epoch, dice = self.epochs[-1], dict(zip(self.class_names, self.dice[-1], strict=True))
        scored = {name: value for name, value in dice.items() if not math.isnan(value)}
        zero = [name for name, value in scored.items() if value == 0]
        mean = float(np.mean(list(scored.values()))) if scored else math.nan
        logger.info("epoch %d: validation Dice %.3f; still at 0: %s", epoch, mean, ", ".join(zero) or "none")
        rows = [
            {"epoch": e, "mean": _cell(np.nanmean(row) if not np.isnan(row).all() else math.nan)}
            | {name: _cell(value) for name, value in zip(self.class_names, row, strict=True)}
            for e, row in zip(self.epochs, self.dice, strict=True)
        ]
        write_csv(self.output_dir / "dice_per_class.csv", rows, ["epoch", "mean", *self.class_names])
        with atomic_path(self.output_dir / "training.png") as temporary:
            self._figure().savefig(temporary, dpi=120)

    def _figure(self) -> Figure:
        # places in fixed shares of the picture: a layout that is worked out draws everything twice
        figure = Figure(figsize=(11, 7))
        places = {"left": 0.07, "right": 0.76, "bottom": 0.08, "top": 0.94, "hspace": 0.08}
        top, bottom = figure.subplots(2, sharex=True, height_ratios=[3, 2], gridspec_kw=places)
        marker = "o" if len(self.epochs) < 30 else None
        for i, name in enumerate(self.class_names):
            style = {"color": colormaps["tab20"](i % 20), "label": name, "marker": marker, "markersize": 3}
            top.plot(self.epochs, [row[i] for row in self.dice], **style)
            bottom.step(self.epochs, [row[i] for row in self.weights], where="post", **style)
        top.set(ylabel="validation Dice", ylim=(-0.02, 1.02), title=self.title)
        bottom.set(ylabel="weight in the loss", xlabel="epoch")
        for axes in (top, bottom):
            axes.grid(alpha=0.3)
        top.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
        return figure


def _cell(value: float) -> str | None:
    return None if math.isnan(value) else f"{value:.6f}"
