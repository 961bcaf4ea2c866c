from __future__ import annotations

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from ..utils import progress

# What a step of a training does after an event: for the rank that is waited for, and the order in which ranks come
# to a collective. That of a validation, and the end of a step, come before the first of the next step.
STAGES = {
    Events.GET_BATCH_STARTED: "waiting for a batch",
    Events.ITERATION_STARTED: "computing the loss",
    IterationEvents.LOSS_COMPLETED: "computing the gradients",
    IterationEvents.BACKWARD_COMPLETED: "updating the weights",
}
ENDED, EVALUATING, EVALUATED = -3, -2, -1


def follow_steps(evaluator: Engine, trainer: Engine | None = None) -> None:
    """Let the ranks of a distributed run tell one another how far their engines have come; alone, do nothing.

    Args:
        evaluator: that of a validation, an evaluation or an inference.
        trainer: of the training that the evaluator validates.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    if not isinstance(evaluator.network, torch.jit.ScriptModule):  # it takes no hooks
        evaluator.network.register_forward_hook(lambda *_: progress.beat())  # a case may have thousands of windows
    if trainer is not None:
        for stage, (event, what) in enumerate(STAGES.items()):
            trainer.add_event_handler(event, _train, stage, what, event is not Events.GET_BATCH_STARTED)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, _train, ENDED, "between two steps", False)
    for event in (Events.STARTED, Events.ITERATION_COMPLETED):
        evaluator.add_event_handler(event, _evaluate, trainer, event is Events.ITERATION_COMPLETED)


def _train(engine: Engine, stage: int, what: str, in_step: bool) -> None:
    state, ended = engine.state, stage == ENDED
    steps = state.iteration - in_step
    in_epoch = steps - (state.epoch - 1) * state.epoch_length
    where = f"in epoch {state.epoch}, after {in_epoch} steps: {what}"
    progress.move("training", (1, steps, stage), where, ended, ended and in_epoch == state.epoch_length)


def _evaluate(engine: Engine, trainer: Engine | None, done: bool) -> None:
    steps, cases, share = trainer.state.iteration if trainer else 0, engine.state.iteration, engine.state.epoch_length
    all_done = not share or cases == share
    epoch = f"in the validation of epoch {trainer.state.epoch}" if trainer else "in the evaluation"
    where = f"{epoch}, after {cases} of {share} batches"
    progress.move("evaluation", (1, steps, EVALUATED if all_done else EVALUATING), where, done, all_done)
