from __future__ import annotations

import copy
import json
import logging
import math
import os
import shutil
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import ignite.distributed as idist
import monai
import torch
from ignite.engine import Engine, Events
from torch import nn

from ..networks import ModelRecord
from ..networks.archive import check_archive
from ..utils import DataError, atomic_path, flag, is_disk_full, unlock_folder, writable_folder, write_json
from ..utils.text import differences
from .event_log import EventLog
from .run_folders import FILES, RUN, check_ckpt_dir, resumed_file

logger = logging.getLogger(__name__)

PRECISION = ("amp", "amp_dtype")  # of a record: what follows from the machine


class TrainingCheckpoint:
    """Keep a training so that it can go on as if it had never stopped.

    In `ckpt_dir` stand, each written to a temporary name and renamed, by rank 0 alone:

    * `last.pt`: everything of the last epoch that was saved: the state dicts of all of `state`, the trainer's epoch,
      the gradient scaler, the evaluator's best metric. It is there from before the first epoch.
    * `best.pt`: the same of the epoch with the best key metric.
    * `model.pt`: the weights of that epoch alone, for inference, and beside it
    * `model.json`: the record of what they were trained on: `record` with the epoch, the key metric, the versions;
    * what `companions` names besides.

    Saved is at the end of an epoch: one that was validated, the last one, and any when `save_seconds` have passed. Of
    another epoch a copy is kept where the network is, in place of the one before, and saved should a signal or an error
    end the run. A kill alone takes more than the epoch that it falls in: the epochs since the last save.

    Attach it to the trainer as the last handler, after the validation and the learning-rate schedule, whose results
    it saves.

    Args:
        ckpt_dir: folder of the files.
        state: what has a `state_dict`, by name; `model` is the network, which may be wrapped for distributed training.
        evaluator: the engine of the validation, whose key metric decides on the best epoch.
        record: what `model.json` says; the epoch, its key metric and the versions are added.
        resume: continue from `last.pt`; `"best"`: from `best.pt`, giving up the epochs since.
        overwrite: start anew where the folder holds another run.
        save_seconds: from the end of a save to the next one, at least, of epochs without validation; 0: each is saved,
            and no copy kept.
        companions: JSON files that belong to `model.pt` and are written with it: name → what gives the content.
        output_dir: folder of the run's results. `run.json` there says whose they are, from the first epoch on.
        events: the scalars for TensorBoard, which go on behind those of the checkpoint; a new run removes earlier ones.

    Attributes:
        run: what tells this run from all others; it stands in its checkpoints and in `output_dir`.

    Raises:
        DataError: at once, when `resume` finds no `last.pt`, when a new run would overwrite an earlier one, or when
            the folder cannot be written to; at the start of the run, when the checkpoint is of another set-up.
            `claim_run` says the first two before anything is preprocessed.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike,
        state: Mapping[str, Any],
        evaluator: Engine,
        record: ModelRecord | None = None,
        resume: bool | str = False,
        overwrite: bool = False,
        save_seconds: float = 60,
        companions: Mapping[str, Callable[[], Mapping[str, Any]]] | None = None,
        output_dir: str | os.PathLike | None = None,
        events: EventLog | None = None,
    ) -> None:
        if save_seconds < 0:
            raise ValueError(f"save_seconds must be 0 or more, got {save_seconds}")
        self.save_seconds = save_seconds
        self.ckpt_dir = Path(ckpt_dir)
        self.state = dict(state)
        self.evaluator = evaluator
        self.record = dict(record or {})
        self.companions = dict(companions or {})
        self.source = resumed_file(self.ckpt_dir, resume)
        self.last = self.ckpt_dir / "last.pt"
        self.output_dir = output_dir and Path(output_dir)
        self.events = events
        self.run = uuid4().hex
        self._kept: tuple[Path, int] | None = None  # what an interrupted run would go on from, and its epoch
        self._saved_at = -math.inf
        self._unsaved: dict[str, Any] | None = None  # of the last epoch, where it is not in last.pt
        if not self.source and not flag("overwrite", overwrite):
            check_ckpt_dir(self.ckpt_dir)
        writable_folder(self.ckpt_dir)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)
        engine.add_event_handler(Events.COMPLETED, self._end)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._explain)

    def _start(self, engine: Engine) -> None:
        if self.source:
            self._load(engine, self.source)
            return
        idist.barrier()  # all ranks have looked for an earlier run before this one writes
        if idist.get_rank() == 0:
            self._clear()
            if self.output_dir:
                (self.output_dir / RUN).unlink(missing_ok=True)
            if self.events:
                self.events.load_state_dict({})
        self._save(engine)

    def _clear(self) -> None:
        """Remove the weights of the run that is overwritten: none of them beside a new run."""
        for name in (*FILES[1:], *self.companions):
            (self.ckpt_dir / name).unlink(missing_ok=True)

    def _objects(self, engine: Engine) -> dict[str, Any]:
        objects = {**self.state, "scaler": getattr(engine, "scaler", None)}
        objects["model"] = _unwrap(objects["model"])
        return {name: value for name, value in objects.items() if value is not None}

    def _save(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        epoch, best = engine.state.epoch, self.evaluator.state
        content = {name: value.state_dict() for name, value in self._objects(engine).items()}
        content["trainer"] = {key: getattr(engine.state, key) for key in ("epoch", "max_epochs", "epoch_length")}
        # MONAI's AUC is a NumPy scalar where two predictions tie, and torch would not load a file that holds one
        content["evaluator"] = {"best_metric": float(best.best_metric), "best_metric_epoch": best.best_metric_epoch}
        content |= {"record": self.record, "run": self.run}
        content |= {"events": self.events.state_dict()} if self.events else {}
        passed = time.monotonic() - self._saved_at >= self.save_seconds
        if passed or epoch in (best.epoch, engine.state.max_epochs):
            self._write(content)
        else:
            self._keep(content)

    def _keep(self, content: dict[str, Any]) -> None:
        """Keep a copy of the state, in place of the one before, which is let go of first: there is room for one."""
        self._unsaved = content  # whole as long as no step is taken, should the copying be interrupted
        try:
            self._unsaved = copy.deepcopy(content)
        except torch.OutOfMemoryError:
            logger.warning(
                "%s: the device has no room for a copy of the state, every epoch is saved from now on, as with "
                "--save_seconds 0",
                self.last,
            )
            self.save_seconds = 0
            self._write(content)

    def _write(self, content: Mapping[str, Any]) -> None:
        content, best = _in_main_memory(content), self.evaluator.state
        epoch = content["trainer"]["epoch"]
        # last.pt comes into place last: when a save is cut short, the resumed run does this epoch again, best and all.
        with atomic_path(self.last, durable=True) as temporary:
            torch.save(content, temporary)
            if epoch > 0 and best.best_metric_epoch == epoch:
                self._save_best(temporary, content, {best.key_metric_name: float(best.best_metric)})
            if epoch > 0:
                self._sign_results()
        self._kept, self._unsaved, self._saved_at = (self.last, epoch), None, time.monotonic()

    def _sign_results(self) -> None:
        """Say whose results are in the folder, before a kill can leave a checkpoint, or an event, without it."""
        if self.output_dir:
            write_json(self.output_dir / RUN, {"run": self.run, "ckpt_dir": str(self.ckpt_dir.resolve())})

    def _save_best(self, checkpoint: Path, saved: Mapping[str, Any], metric: Mapping[str, float]) -> None:
        with atomic_path(self.ckpt_dir / "best.pt", durable=True) as temporary:
            shutil.copyfile(checkpoint, temporary)
        with atomic_path(self.ckpt_dir / "model.pt", durable=True) as temporary:
            torch.save(saved["model"], temporary)
        versions = {"monai": monai.__version__, "torch": torch.__version__}
        record = {**self.record, "epoch": saved["trainer"]["epoch"], **metric, "versions": versions}
        write_json(self.ckpt_dir / "model.json", record, durable=True)
        for name, content in self.companions.items():
            write_json(self.ckpt_dir / name, content(), durable=True)

    def _load(self, engine: Engine, source: Path) -> None:
        content = _read(source)
        planned = content["trainer"]
        self._compare_plans(planned, engine)
        self._compare_records(content["record"])
        self._tell_of_precision(content["record"])
        self.run = content.get("run", self.run)
        total = getattr(self.state.get("lr_scheduler"), "t_total", None)
        for name, value in self._objects(engine).items():
            if name == "scaler" and not content.get(name):  # of a run on a CPU, or in another precision
                if value.is_enabled():
                    logger.info("%s: saved without a scale of the gradients, which are now scaled anew", source)
                continue
            if name not in content:
                raise DataError(
                    f"{source}: holds no state of {name}. Resume with the overlays, and the version, that it was "
                    "started with."
                )
            try:
                if isinstance(value, torch.optim.Optimizer):
                    load_optimizer(value, content[name])
                else:
                    value.load_state_dict(content[name])
            except (RuntimeError, ValueError, KeyError) as e:
                reason = textwrap.shorten(str(e), 300)
                raise DataError(
                    f"{source}: the state of {name} does not fit: {reason} Resume with the overlays and labels that "
                    "the run was started with."
                ) from e
        if (scheduler := self.state.get("lr_scheduler")) and hasattr(scheduler, "t_total"):
            scheduler.t_total = total  # of a run that is longer now
        self._scale_learning_rate(content["record"].get("learning_rate"))
        if idist.get_rank() == 0:
            if planned["epoch"] > 0:
                self._sign_results()
            if self.events and "events" in content:
                self.events.load_state_dict(content["events"])
        self._kept, self._saved_at = (source, planned["epoch"]), time.monotonic()
        engine.state.epoch = planned["epoch"]
        engine.state.iteration = planned["epoch"] * planned["epoch_length"]
        for key, value in content["evaluator"].items():
            setattr(self.evaluator.state, key, value)
        logger.info("resumed %s after epoch %d of %d", source, engine.state.epoch, engine.state.max_epochs)

    def _compare_plans(self, planned: Mapping[str, int], engine: Engine) -> None:
        for key in ("max_epochs", "epoch_length"):
            before, now = planned[key], getattr(engine.state, key)
            more = key == "max_epochs" and now > before == planned["epoch"]  # for a run that had come to its end
            if before != now and not more:
                raise DataError(
                    f"{self.source}: this run was planned with {key} = {before}, now it is {now}; its schedule and "
                    "data order depend on it. Resume with the settings and data of the run (when it has come to its "
                    "end, more epochs may follow), or start a new one from its weights with --pretrained."
                )

    def _compare_records(self, before: Mapping[str, Any]) -> None:
        """What the run is must stay. Only the data may be called otherwise, when its folder has moved, and the learning
        rate and the precision may be others. What an older checkpoint does not say is not compared.
        """
        now = json.loads(json.dumps(self.record))
        before = json.loads(json.dumps(before))
        kept = (before.keys() & now) - {"name", "version", "learning_rate", "leakage", *PRECISION}
        differ = [key for key in sorted(kept) if before[key] != now[key]]
        if differ:
            pairs = [pair for key in differ for pair in differences(key, before[key], now[key])]
            changes = "; ".join(f"{key} was {then}, now it is {here}" for key, then, here in pairs[:5])
            raise DataError(
                f"{self.source}: this run was started with other settings: {changes}. Resume with those of the run, or "
                "start a new one from its weights with --pretrained."
            )

    def _tell_of_precision(self, before: Mapping[str, Any]) -> None:
        """A run may go on where there is a GPU, or none, or in another type."""
        for key in PRECISION:
            if key in before and key in self.record and before[key] != self.record[key]:
                logger.info("%s: %s was %s, now it is %s", self.source, key, before[key], self.record[key])

    def _scale_learning_rate(self, before: float | None) -> None:
        """Bring the rates of a resumed run to the learning rate that is now set, where the schedule has led them."""
        now = self.record.get("learning_rate")
        if now and not before:
            logger.warning("%s does not say its learning rate: it is kept, --learning_rate has no effect", self.source)
        if not before or not now or before == now:
            return
        factor = now / before
        for group in self.state["optimizer"].param_groups:
            group.update({key: group[key] * factor for key in ("lr", "initial_lr") if key in group})
        scheduler = self.state.get("lr_scheduler")
        for name in {"base_lrs", "_last_lr"} & vars(scheduler).keys() if scheduler else ():
            setattr(scheduler, name, [rate * factor for rate in getattr(scheduler, name)])
        logger.info("the learning rate was %g, now it is %g: all rates times %.4g", before, now, factor)

    def _end(self) -> None:
        try:
            if self._unsaved:
                self._write(self._unsaved)
        finally:
            for folder in filter(None, (self.ckpt_dir, self.output_dir)):
                unlock_folder(folder)

    def _explain(self, engine: Engine, error: BaseException) -> None:
        if is_disk_full(error):
            self._unsaved = None  # nor does it fit
        try:
            self._end()
        except Exception as e:  # where the device that holds it has failed, say
            logger.warning("%s: the last whole epoch could not be saved (%s)", self.last, e)
        if isinstance(error, KeyboardInterrupt) and self._kept and idist.get_rank() == 0:
            state, (file, epoch) = engine.state, self._kept
            iterations = state.iteration - epoch * state.epoch_length
            lost = f"the {iterations} iterations since then are" if iterations else "nothing is"
            how = f"in epoch {state.epoch}; go on with --resume {'best' if file.name == 'best.pt' else 'true'}"
            logger.warning("interrupted %s: %s holds epoch %d, %s lost", how, file, epoch, lost)
            raise KeyboardInterrupt(f"{error} {how}".strip()) from error  # what the program ends with
        raise error


def _read(source: Path) -> dict[str, Any]:
    """The content of a checkpoint, which all ranks read when the first has seen that it is whole."""
    other = "Go on from the best epoch with --resume best" if source.name == "last.pt" else "Start a new run"
    remedy = f"{other}, or from the weights of another file with --pretrained."
    if idist.get_rank() == 0:
        check_archive(source, remedy)
    idist.barrier()
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as e:  # torch and pickle raise whatever the content leads to
        raise DataError(f"{source}: cannot be read as a checkpoint ({type(e).__name__}). {remedy}") from e
    parts = {"trainer", "record", "evaluator", "model"}
    if not isinstance(content, dict) or not parts <= content.keys():
        raise DataError(
            f"{source}: is no checkpoint of a training, whose parts are {', '.join(sorted(parts))}. {remedy}"
        )
    return content


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state that another machine may have saved: the kernels, and the memory layout, stay those of this one.

    A fused kernel walks parameter and moments side by side in memory: laid out differently, they would be paired
    wrongly without a word.
    """
    kernels = ("fused", "foreach", "capturable")
    groups = [
        saved | {key: own[key] for key in kernels if key in own}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _in_main_memory(value: Any) -> Any:
    """The same with its tensors in the main memory: a file of them can be read where there is no GPU."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        moved = copy.copy(value)  # with what torch keeps beside the items, the versions of the modules
        moved.update({key: _in_main_memory(item) for key, item in value.items()})
        return moved
    return type(value)(map(_in_main_memory, value)) if isinstance(value, list | tuple) else value


def _unwrap(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
