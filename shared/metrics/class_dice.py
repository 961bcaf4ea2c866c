from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine
from ignite.metrics import MetricsLambda
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric, DiceMetric
from torch import Tensor

from ..utils import DataError


class ClassDice(IgniteMetricHandler):
    """Dice of each foreground class, averaged over the cases in which the class is present; an ignite metric.

    A case whose label shows a class that is not predicted scores 0. A case whose label does not show the class takes
    no part in its mean, whatever was predicted. A class that no case shows is NaN: absent, neither bad nor good.
    In a distributed run the cases of all ranks are gathered. The (cases, N) table is `engine.state.metric_details`.

    The value is a tensor (N,) with entries in [0, 1] or NaN. Use `MeanClassDice` on it for a scalar key metric.

    Args:
        num_classes: number N of foreground classes, with the ids 1..N; background is 0.
        output_transform: takes `engine.state.output` to a pair (prediction, label), each a tensor (B, channels,
            spatial...) or a list of tensors (channels, spatial...), as `monai.handlers.from_engine(["pred", "label"])`
            does. A label is a map of ids with one channel. A prediction is that too, or holds N + 1 channels of
            logits, probabilities or one-hot values, of which the greatest counts.
        case_transform: takes `engine.state.batch` to the names of its cases. A case then counts once, where the sampler
            of a distributed run with fewer cases than ranks gives it to several.

    Raises:
        ValueError: when updated with another number of channels.

    Example:
        >>> class_dice = ClassDice(num_classes=13, output_transform=from_engine(["pred", "label"]))
        >>> evaluator = SupervisedEvaluator(
        ...     ...,
        ...     key_val_metric={"val_mean_dice": MeanClassDice(class_dice)},
        ...     additional_metrics={"val_class_dice": class_dice},
        ... )
    """

    def __init__(
        self,
        num_classes: int,
        output_transform: Callable = lambda x: x,
        case_transform: Callable[[Any], Sequence[str]] | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.case_transform = case_transform
        super().__init__(metric_fn=self._case_metric(), output_transform=output_transform)

    def _case_metric(self) -> CumulativeIterationMetric:
        """What scores cases, given as label maps: (N,) of each, NaN where its label does not show a class."""
        return DiceMetric(include_background=False, reduction="none", num_classes=self.num_classes + 1)

    def _label_map(self, prediction: Tensor) -> Tensor:
        channels = prediction.shape[1]
        if channels == self.num_classes + 1:
            return prediction.argmax(dim=1, keepdim=True)
        if channels == 1:
            return prediction
        raise ValueError(
            f"A prediction has shape {tuple(prediction.shape)}: {channels} channels. Expected 1 (label map) "
            f"or {self.num_classes + 1} (background and {self.num_classes} classes)."
        )

    def update(self, output: Sequence[Tensor | Sequence[Tensor]]) -> None:
        predictions, labels = output
        if isinstance(predictions, Tensor):
            super().update([self._label_map(predictions), labels])
        else:
            super().update([[self._label_map(p[None])[0] for p in predictions], labels])

    def reset(self) -> None:
        super().reset()
        self.cases: list[str] = []

    def iteration_completed(self, engine: Engine) -> None:
        super().iteration_completed(engine)
        if self.case_transform is not None:
            self.cases += self.case_transform(engine.state.batch)

    def compute(self) -> Tensor:
        table = self._table()
        if self._engine is not None:
            self._engine.state.metric_details[self._name] = table
        return table.double().nanmean(dim=0).float().cpu()

    def _table(self) -> Tensor:
        """The scores of the cases, (cases, N), of all ranks."""
        table = self.metric_fn.get_buffer()
        if self.case_transform is None:
            return table
        first: dict[str, int] = {}
        for row, case in enumerate(case for of_rank in idist.all_gather(self.cases) for case in of_rank):
            first.setdefault(case, row)
        return table[list(first.values())]


def _mean(class_dice: Tensor) -> float:
    if class_dice.isnan().all():
        raise DataError(
            "Mean Dice: none of the classes occurs in any label of this evaluation. "
            "Check the datalist's label files and the config key `labels`."
        )
    return float(class_dice.nanmean())


class MeanClassDice(MetricsLambda):
    """The mean of a `ClassDice` over the classes that are present: a scalar, fit to be a key metric.

    The Dice is computed once for both. Attach both to the same engine, in any order.

    Args:
        class_dice: the metric to average.

    Raises:
        DataError: when no class occurs in any label of the evaluation. (As a key metric NaN would be kept as the best
            value for ever.)
    """

    def __init__(self, class_dice: ClassDice) -> None:
        super().__init__(_mean, class_dice)
