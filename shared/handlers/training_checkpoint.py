from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai
import torch
from ignite.engine import Engine, Events
from torch import nn

from ..utils import DataError, atomic_path, writable_folder, write_json

logger = logging.getLogger(__name__)


class TrainingCheckpoint:
    """Keep a training so that it can go on as if it had never stopped.

    In `ckpt_dir` stand, each written to a temporary name and renamed, by rank 0 alone:

    * `last.pt`: everything of the last complete epoch: the state dicts of all of `state`, the trainer's epoch, the
      gradient scaler, the evaluator's best metric. It is there from before the first epoch.
    * `best.pt`: the same of the epoch with the best key metric.
    * `model.pt`: the weights of that epoch alone, for inference, and beside it
    * `model.json`: the record of what they were trained on: `record` with the epoch, the mean Dice, the versions.

    Attach it to the trainer as the last handler, after the validation and the learning-rate schedule, whose results
    it saves.

    Args:
        ckpt_dir: folder of the files.
        state: what has a `state_dict`, by name; `model` is the network, which may be wrapped for distributed training.
        evaluator: the engine of the validation, whose key metric decides on the best epoch.
        record: what `model.json` says besides: data set, whether it is synthetic, labels, …
        resume: continue from `last.pt`.
        overwrite: start anew where `last.pt` holds another run.

    Raises:
        DataError: at once, when `resume` finds no `last.pt`, when a new run would overwrite an earlier one, or when
            the folder cannot be written to; at the start of the run, when the checkpoint is of another set-up.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike,
        state: Mapping[str, Any],
        evaluator: Engine,
        record: Mapping[str, Any] | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.ckpt_dir = Path(ckpt_dir)
        self.state = dict(state)
        self.evaluator = evaluator
        self.record = dict(record or {})
        self.resume, overwrite = _flag("resume", resume), _flag("overwrite", overwrite)
        self.last = self.ckpt_dir / "last.pt"
        if self.resume and not self.last.is_file():
            raise DataError(
                f"{self.last}: there is no run to resume. Start one without --resume, or give its --ckpt_dir."
            )
        if not self.resume and not overwrite and self.last.is_file():
            raise DataError(
                f"{self.last}: an earlier run is kept here. Continue it with --resume true, keep it by choosing "
                "another --ckpt_dir, or replace it with --overwrite true."
            )
        writable_folder(self.ckpt_dir)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._explain)

    def _start(self, engine: Engine) -> None:
        if self.resume:
            self._load(engine)
        else:
            self._save(engine)

    def _objects(self, engine: Engine) -> dict[str, Any]:
        objects = {**self.state, "scaler": getattr(engine, "scaler", None)}
        objects["model"] = _unwrapped(objects["model"])
        return {name: value for name, value in objects.items() if value is not None}

    def _save(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        epoch, best = engine.state.epoch, self.evaluator.state
        content = {name: value.state_dict() for name, value in self._objects(engine).items()}
        content["trainer"] = {key: getattr(engine.state, key) for key in ("epoch", "max_epochs", "epoch_length")}
        content["evaluator"] = {key: getattr(best, key) for key in ("best_metric", "best_metric_epoch")}
        content["record"] = self.record
        with atomic_path(self.last) as temporary:
            torch.save(content, temporary)
        if epoch and best.best_metric_epoch == epoch:
            self._save_best(epoch, float(best.best_metric))

    def _save_best(self, epoch: int, metric: float) -> None:
        with atomic_path(self.ckpt_dir / "best.pt") as temporary:
            shutil.copyfile(self.last, temporary)
        with atomic_path(self.ckpt_dir / "model.pt") as temporary:
            torch.save(_unwrapped(self.state["model"]).state_dict(), temporary)
        versions = {"monai": monai.__version__, "torch": torch.__version__}
        write_json(
            self.ckpt_dir / "model.json", {**self.record, "epoch": epoch, "mean_dice": metric, "versions": versions}
        )

    def _load(self, engine: Engine) -> None:
        content = torch.load(self.last, map_location="cpu", weights_only=True)
        planned = content["trainer"]
        for key in ("max_epochs", "epoch_length"):
            if planned[key] != getattr(engine.state, key):
                raise DataError(
                    f"{self.last}: this run was planned with {key} = {planned[key]}, now it is "
                    f"{getattr(engine.state, key)}; its schedule and data order depend on it. Resume with the settings "
                    "and data of the run, or start a new one from its weights with --pretrained."
                )
        for name, value in self._objects(engine).items():
            if name not in content:
                raise DataError(
                    f"{self.last}: holds no state of {name}. Resume with the overlays the run was started with."
                )
            try:
                value.load_state_dict(content[name])
            except (RuntimeError, ValueError, KeyError) as e:
                reason = " ".join(str(e).split())
                raise DataError(
                    f"{self.last}: the state of {name} does not fit: {reason} Resume with the overlays and labels that "
                    "the run was started with."
                ) from e
        engine.state.epoch = planned["epoch"]
        engine.state.iteration = planned["epoch"] * planned["epoch_length"]
        for key, value in content["evaluator"].items():
            setattr(self.evaluator.state, key, value)
        logger.info("resumed %s after epoch %d of %d", self.last, engine.state.epoch, engine.state.max_epochs)

    def _explain(self, engine: Engine, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt) and idist.get_rank() == 0:
            logger.warning(
                "interrupted in epoch %d; %s holds the state before it: go on with --resume true",
                engine.state.epoch,
                self.last,
            )
        raise error


def _unwrapped(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def _flag(name: str, value: object) -> bool:
    """`--resume false` on a command line arrives as a string, which is true."""
    found = {"true": True, "false": False}.get(str(value).lower())
    if found is None:
        raise DataError(f"{name} is {value!r}, expected true or false.")
    return found
