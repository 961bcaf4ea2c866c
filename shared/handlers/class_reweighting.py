"""Dynamic class re-weighting: rules that set a loss's class weights by the scores of each evaluation.

Willoughby and Voiculescu, arXiv 2406.08217. Symbols: N foreground classes; `S_ij` score of class i in evaluation
j = 1, 2, ...; `w_i` weight of class i, 1 at first; u the evaluation in which the rule last fired, 0 before the first.
A class that was given the weight 0.1 is frozen. Shapes: T evaluations, N classes.
"""

from __future__ import annotations

import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypedDict

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import Evaluator, Workflow
from torch import Tensor, nn

from ..losses import check_class_weight_buffers, class_weight_buffers
from ..utils import DataError

logger = logging.getLogger(__name__)

# A class in an evaluation, counted from 1: its score, None where absent, the weight after it, whether the rule fired.
WeightRow = TypedDict(
    "WeightRow", {"evaluation": int, "class": str, "score": float | None, "weight": float, "fired": int}
)


@dataclass(kw_only=True, eq=False, repr=False)
class ClassReweighting(ABC):
    """What the re-weighting rules have in common: where scores come from, where weights go, and what is logged.

    `update` takes the scores of one evaluation and needs no engine. `attach` calls it whenever an epoch of an engine,
    an evaluator or a trainer, has completed, with the metric `metric_name` of that engine, and keeps
    `engine.state.class_weights`, a tensor (N,). A handler that saves checkpoints on the same engine must be attached
    after the rule, so that it saves the weights of this evaluation and not of the one before.

    The weights are written in place into every class-weight buffer of the loss, on whatever device the loss is; in a
    buffer of N + 1 the first, the background's, stays 1. They replace the weights that were there, so the loss must
    start from ones. `CrossEntropyLoss` divides by the sum of the weights: only the ratios between classes act in it.
    `GeneralizedDiceFocalLoss` applies weights to its focal term only.

    The log tells when the rule fires, and at the end how often it did. `TrainingReport` keeps the whole history, as a
    table and in TensorBoard.

    All ranks of a distributed run must call `update` together: they use the scores of rank 0.

    Args:
        loss: a loss that holds N or N + 1 class weights, all 1.0. None: only the arithmetic.
        metric_name: name in `engine.state.metrics` of the N scores in [0, 1], 1 the best, NaN for a class that is
            absent; as `shared.metrics.ClassDice` gives them.
        num_classes: N. May be left out where `class_names` is given.
        class_names: names of the N foreground classes in the order of their ids.
        frozen_weight: weight of a frozen class, in [0, 1).

    Raises:
        DataError: when the loss holds no class weights, or a wrong number of them, or others than floats of value 1,
            or names and number of the classes disagree.
        ValueError: when an option is out of its range.
    """

    loss: nn.Module | None = field(default=None, kw_only=False)
    metric_name: str = "val_class_dice"
    num_classes: int | None = None
    class_names: Sequence[str] | None = None
    frozen_weight: float = 0.1

    _deciding: ClassVar[tuple[str, ...]] = ()
    """The options on which firing depends."""

    def __post_init__(self) -> None:
        if not self.num_classes and not self.class_names:
            raise ValueError("Give num_classes, the number of foreground classes, or class_names.")
        names = list(self.class_names or (f"class_{i + 1}" for i in range(self.num_classes)))
        if self.num_classes is not None and len(names) != self.num_classes:
            raise DataError(
                f"class_names has {len(names)} names ({', '.join(names)}) for {self.num_classes} foreground "
                "classes. Name each class once, in the order of the ids and without the background."
            )
        if not 0 <= self.frozen_weight < 1:
            raise ValueError(f"frozen_weight must be in [0, 1), got {self.frozen_weight}.")
        self.class_names, self.num_classes = names, len(names)
        self._engine: Engine | None = None
        self._reported = False
        n = self.num_classes
        self._weights, self._frozen = torch.ones(n), torch.zeros(n, dtype=torch.bool)
        self._scores, self._weight_history = torch.empty(0, n, dtype=torch.float64), torch.empty(0, n)
        self._fired: list[bool] = []
        if self.loss is not None:
            self._check_weights_are_one(self.loss)

    @property
    def weights(self) -> Tensor:
        """The weights now in force: a copy, float32 (N,)."""
        return self._weights.clone()

    @property
    def scores(self) -> Tensor:
        """Those of the last evaluation: a copy, float64 (N,); NaN of a class that it lacked, and before the first."""
        return self._scores[-1].clone() if len(self._scores) else torch.full((self.num_classes,), math.nan).double()

    @property
    def evaluations(self) -> int:
        """Number j of evaluations so far."""
        return len(self._fired)

    @property
    def firings(self) -> int:
        """In how many evaluations the rule has acted."""
        return sum(self._fired)

    @property
    def last_firing(self) -> int:
        """The evaluation, counted from 1, in which the rule last fired; 0 before the first."""
        return max((j for j, fired in enumerate(self._fired, start=1) if fired), default=0)

    @abstractmethod
    def _reweight(self, scores: Tensor) -> bool:
        """Set `_weights` and `_frozen` by the newest scores, the last row of `_scores`. Return whether it fired."""

    def update(self, scores: Tensor | Sequence[float], source: str = "update(scores)") -> Tensor:
        """Take the N scores of one evaluation, write the weights that follow from them into the loss, return them.

        Args:
            scores: N scores in [0, 1]; NaN for a class that is absent from the evaluation.
            source: what errors call the scores.

        Returns:
            the weights after this evaluation, float32 (N,).

        Raises:
            DataError: when the number of scores is not N, or one is outside [0, 1].
        """
        checked = self._checked(scores, source)
        was_frozen = self._frozen.clone()
        self._scores = torch.cat([self._scores, checked[None]])
        self._fired.append(self._reweight(checked))
        self._weight_history = torch.cat([self._weight_history, self._weights[None]])
        self._reported = False
        self._publish()
        if self._fired[-1] and idist.get_rank() == 0:
            self._log_firing(froze=self._frozen & ~was_frozen, thawed=was_frozen & ~self._frozen)
        return self.weights

    def _checked(self, scores: Any, source: str) -> Tensor:
        """Rank 0's scores as float64 (N,), checked."""
        try:
            tensor = torch.as_tensor(scores, dtype=torch.float64).detach().cpu().as_subclass(torch.Tensor)
        except (TypeError, ValueError, RuntimeError) as e:
            raise DataError(f"{source} is a {type(scores).__name__}, expected {self.num_classes} numbers.") from e
        if tensor.shape != (self.num_classes,):
            raise DataError(
                f"{source} has the shape {tuple(tensor.shape)}, expected one score for each of the "
                f"{self.num_classes} classes ({', '.join(self.class_names)}). "
                "shared.metrics.ClassDice gives such scores; class_names and num_classes leave out the background."
            )
        tensor = idist.broadcast(tensor.clone(), src=0).cpu()  # nccl answers on the GPU
        for name, score in zip(self.class_names, tensor.tolist(), strict=True):
            if not (0 <= score <= 1 or math.isnan(score)):
                raise DataError(f"{source}: the score of {name} is {score:g}, expected a value in [0, 1], 1 the best.")
        return tensor

    def _check_weights_are_one(self, loss: nn.Module) -> None:
        for key, buffer in check_class_weight_buffers(loss, self.num_classes).items():
            if (buffer != 1).any():
                raise DataError(
                    f"{type(loss).__name__}.{key} starts from {buffer.tolist()}, but {type(self).__name__} replaces "
                    "the weights. Give the loss weights of 1.0."
                )

    @torch.no_grad()
    def _publish(self) -> None:
        """Write the weights into the loss and the engine's state."""
        if self.loss is not None:
            for buffer in class_weight_buffers(self.loss).values():
                buffer[-self.num_classes :].copy_(self._weights)
        if self._engine is not None:
            self._engine.state.class_weights = self.weights

    def _log_firing(self, froze: Tensor, thawed: Tensor) -> None:
        acts = [f"{verb} {self._named(mask)}" for verb, mask in (("froze", froze), ("thawed", thawed)) if mask.any()]
        weights = ", ".join(f"{n} {w:.3f}" for n, w in zip(self.class_names, self._weights.tolist(), strict=True))
        name, acted = type(self).__name__, " and ".join(acts)
        logger.info("%s fired in evaluation %d: %s. Weights: %s.", name, self.evaluations, acted, weights)

    def _named(self, mask: Tensor) -> str:
        chosen = zip(self.class_names, self._scores[-1].tolist(), mask.tolist(), strict=True)
        return ", ".join(f"{name} (score {score:.3f})" for name, score, picked in chosen if picked)

    def rows(self, since: int = 1) -> list[WeightRow]:
        """The history from the evaluation `since` on, evaluation by evaluation and class by class."""
        columns = self._scores[since - 1 :].tolist(), self._weight_history[since - 1 :].tolist()
        history = zip(*columns, self._fired[since - 1 :], strict=True)
        return [
            {
                "evaluation": j,
                "class": name,
                "score": None if math.isnan(score) else score,
                "weight": weight,
                "fired": int(fired),
            }
            for j, (scores, weights, fired) in enumerate(history, start=since)
            for name, score, weight in zip(self.class_names, scores, weights, strict=True)
        ]

    def attach(self, engine: Engine) -> None:
        """Update the weights at the end of every epoch of `engine`, whose metric `metric_name` holds the scores.

        Metrics of a MONAI engine must be attached before the rule, as its constructor does. With a plain ignite
        engine the order does not matter. At the end of a trainer's run `report` is called; an evaluator cannot know
        which of its runs is the last: call `report` after training, as `TrainingReport` does.

        Raises:
            DataError: when the loss cannot take the weights; when a MONAI engine has no metric of that name (another
                engine: at the end of its first epoch).
            RuntimeError: when attached already: it would count every evaluation twice.
        """
        if self._engine is not None:
            raise RuntimeError(f"{type(self).__name__} is attached to an engine already.")
        if self.loss is not None:
            check_class_weight_buffers(self.loss, self.num_classes)
        if isinstance(engine, Workflow) and self.metric_name not in _attached_metrics(engine):
            raise self._missing_metric(engine)
        self._engine = engine
        self._publish()
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _missing_metric(self, engine: Engine) -> DataError:
        found = dict.fromkeys([*_attached_metrics(engine), *engine.state.metrics])
        return DataError(
            f'{type(self).__name__} reads the metric "{self.metric_name}", but the engine\'s metrics are: '
            f"{', '.join(found) or 'none'}. Set metric_name (--reweighting_metric) to one that holds a "
            "score per class, as variants/score_found.json does, or add shared.metrics.ClassDice to the engine under "
            "that name, before the rule."
        )

    def _started(self, engine: Engine) -> None:
        """Publish the weights, and see to it that the metric is computed before it is read."""
        self._publish()
        # ignite runs handlers in the order in which they were attached, and has no public way to change it.
        handlers = engine._event_handlers[Events.EPOCH_COMPLETED]
        own = next(i for i, (handler, *_) in enumerate(handlers) if handler == self._epoch_completed)
        computed = next((i for i, entry in enumerate(handlers) if _metric_name(*entry[:2]) == self.metric_name), -1)
        if own < computed:
            handlers.insert(computed, handlers.pop(own))

    def _epoch_completed(self, engine: Engine) -> None:
        if self.metric_name not in engine.state.metrics:
            raise self._missing_metric(engine)
        self.update(engine.state.metrics[self.metric_name], source=f'The metric "{self.metric_name}"')

    def _completed(self, engine: Engine) -> None:
        if not isinstance(engine, Evaluator) and engine.state.max_epochs != 1:
            self.report()

    def report(self) -> None:
        """Log how often the rule fired, as a warning if never. To be called at the end of training."""
        if self._reported or idist.get_rank() != 0:
            return
        self._reported = True
        name = type(self).__name__
        if self.firings:
            logger.info("%s fired in %d of %d evaluations.", name, self.firings, self.evaluations)
        else:
            logger.warning(
                "%s never fired in %d evaluations: all class weights stayed 1 and training was that without the rule. "
                "Evaluate more often, train longer, or choose options that make it act (%s).",
                name,
                self.evaluations,
                ", ".join(f"{option}={json.dumps(getattr(self, option), default=float)}" for option in self._deciding),
            )

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as tensors and a string: `torch.load(..., weights_only=True)` reads it.

        Keys: `rule`; `weights` (N,) and `frozen` (N,) now; `scores` (T, N), `weight_history` (T, N) and `fired` (T,)
        for each evaluation, from which firings and the last of them follow.
        """
        return {
            "rule": type(self).__name__,
            "weights": self._weights.clone(),
            "frozen": self._frozen.clone(),
            "scores": self._scores.clone(),
            "weight_history": self._weight_history.clone(),
            "fired": torch.tensor(self._fired, dtype=torch.bool),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; the loss's weights are rewritten.

        Raises:
            DataError: when it is the state of another rule or of another number of classes.
        """
        rule, n = state_dict["rule"], len(state_dict["weights"])
        if rule != type(self).__name__ or n != self.num_classes:
            raise DataError(
                f"The checkpoint holds the state of {rule} with {n} classes, expected {type(self).__name__} with "
                f"{self.num_classes} ({', '.join(self.class_names)}). Resume with the settings it was trained with."
            )
        self._weights, self._frozen, self._scores, self._weight_history = (
            state_dict[key].detach().cpu().clone() for key in ("weights", "frozen", "scores", "weight_history")
        )
        self._fired = state_dict["fired"].tolist()
        self._publish()


def _metric_name(handler: Any, arguments: tuple) -> str | None:
    """The name under which an ignite metric puts its value, if `handler` is what does so."""
    return arguments[-1] if isinstance(getattr(handler, "__self__", None), Metric) and arguments else None


def _attached_metrics(engine: Engine) -> list[str]:
    names = (_metric_name(*entry[:2]) for entries in engine._event_handlers.values() for entry in entries)
    return [name for name in names if isinstance(name, str)]
