from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events

logger = logging.getLogger(__name__)


class WarmUp:
    """Let what a method adds to the plain training begin once the network has learned something.

    The loss, or the trainer, that has an attribute `warming_up` finds it true in the first steps and false from then
    on; others need no warm-up, and nothing happens. Where the loss changes at that point, so do its gradients, by
    orders of magnitude: the optimizer's moments are emptied in place.

    A checkpoint keeps how long that is, so that a run that has ended and goes on for more epochs does not warm up
    again.

    Args:
        loss: of the training.
        optimizer: of the training.
        warm_up: below 1 a share of all steps, from 1 on a number of steps.

    Attributes:
        steps: of the warm-up; None before the first one.

    Raises:
        ValueError: when `warm_up` is negative.
    """

    def __init__(self, loss: Any, optimizer: torch.optim.Optimizer, warm_up: float = 0.1) -> None:
        if not 0 <= warm_up < math.inf:
            raise ValueError(f"warm_up must be at least 0, got {warm_up}")
        self.loss, self.optimizer, self.warm_up = loss, optimizer, warm_up
        self.steps: int | None = None

    def attach(self, engine: Engine) -> None:
        if hasattr(self.loss, "warming_up") or hasattr(engine, "warming_up"):
            engine.add_event_handler(Events.ITERATION_STARTED, self)

    def state_dict(self) -> dict[str, int | None]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        self.steps = state["steps"]

    def _plan(self, engine: Engine) -> int:
        """How many of the steps of a run are its warm-up, which the log is told."""
        total = engine.state.max_epochs * engine.state.epoch_length
        steps = math.ceil(self.warm_up * total) if self.warm_up < 1 else round(self.warm_up)
        method = next(type(x).__name__ for x in (self.loss, engine) if hasattr(x, "warming_up"))
        if steps >= total:
            logger.warning(
                "%s: the run has %d steps and a warm-up of %d, which it never leaves: it trains as without the method. "
                "Set --warm_up lower, such as to 0.1 for a tenth of the steps.",
                method,
                total,
                steps,
            )
        else:
            logger.info("%s: begins behind a warm-up of %d of %d steps", method, steps, total)
        return steps

    def __call__(self, engine: Engine) -> None:
        if self.steps is None:
            self.steps = self._plan(engine)
        for subject in (self.loss, engine):
            if hasattr(subject, "warming_up"):
                subject.warming_up = engine.state.iteration <= self.steps
        if hasattr(self.loss, "warming_up") and engine.state.iteration == self.steps + 1 > 1:
            for state in self.optimizer.state.values():
                for value in state.values():
                    if isinstance(value, torch.Tensor):
                        value.zero_()
