from __future__ import annotations

import logging
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events

from ..metrics import best_threshold, classification_scores
from ..reports.classification import checked_probabilities

logger = logging.getLogger(__name__)


class DecisionThreshold:
    """Choose the probability above which a patch counts as positive, on the validated patches, after each validation.

    The threshold with the greatest balanced accuracy over all of them, see `best_threshold`, or one that is given. It
    leaves `val_balanced_accuracy` at this threshold in `engine.state.metrics`.

    Attach it to the evaluator of the validation, which must not decollate; `pred` are logits (B, 1). `content` is what
    `threshold.json` holds.

    Args:
        domains: of the validated patches, for the record.
        split: the list that they are from, for the record.
        threshold: what it is to be, in [0, 1], whatever the patches say; None: chosen.

    Raises:
        ValueError: when `threshold` is out of range.
        DataError: when the network gives no number; after a validation whose patches are all of one class.
    """

    def __init__(
        self, domains: list[str] | None = None, split: str = "validation", threshold: float | None = None
    ) -> None:
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}")
        self.domains, self.split, self.given = domains, split, threshold
        self.probabilities: list[float] = []
        self.labels: list[int] = []
        self.threshold = 0.5
        self.balanced_accuracy = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._choose)

    def _start(self, engine: Engine) -> None:
        self.probabilities, self.labels = [], []

    def _collect(self, engine: Engine) -> None:
        output = engine.state.output
        cases = engine.state.batch.get("case", ["validation"] * len(output["pred"]))
        self.probabilities += checked_probabilities(torch.sigmoid(output["pred"].double()), cases)
        self.labels += output["label"].int().flatten().tolist()

    def _choose(self, engine: Engine) -> None:
        of_ranks = zip(*idist.all_gather((self.probabilities, self.labels)), strict=True)
        # in a type of their own: a rank without patches gives empty lists
        prob, label = (np.concatenate(parts).astype(kind) for parts, kind in zip(of_ranks, (float, int), strict=True))
        self.threshold, self.balanced_accuracy = best_threshold(prob, label)
        if self.given is not None:
            self.threshold = self.given
            self.balanced_accuracy = classification_scores(prob, label, self.given)["balanced_accuracy"]
        engine.state.metrics["val_balanced_accuracy"] = self.balanced_accuracy

    def content(self) -> dict[str, Any]:
        """What `threshold.json` holds."""
        return {
            "threshold": self.threshold,
            "chosen_for": "balanced accuracy" if self.given is None else None,
            "balanced_accuracy": self.balanced_accuracy,
            "split": self.split,
            "domains": self.domains,
        }
