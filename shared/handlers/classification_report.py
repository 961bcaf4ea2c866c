from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from ..reports.classification import (
    PREDICTION_COLUMNS,
    Patch,
    checked_probabilities,
    draw_patches,
    prediction_rows,
    summarise_patches,
)
from ..reports.domains import DomainScoring, DomainSummary
from ..reports.gallery import save_figure
from ..utils import writable_folder, write_csv

logger = logging.getLogger(__name__)


class ClassificationReport:
    """Score a binary patch classifier on each domain of an evaluation, and write the report.

    It reads `engine.state.output["pred"]`, logits (B, 1), and `["label"]`, (B, 1) of 0 and 1, and of
    `engine.state.batch` the lists `case` (names that no two patches share), `domain` and `slide`: attach it to a
    `SupervisedEvaluator` with `decollate=False`.

    At the end the patches of all ranks are gathered, one that several ranks had counts once, and rank 0 writes to
    `output_dir`, each file whole or not at all:

    * `predictions.csv`: each patch with its label, its probability and the class it was called;
    * `scores.csv`: a row for each domain, then the pooled patches `in distribution`, `out of distribution` and of
      `all` domains: the scores of `classification_scores` with 95 % intervals over slides (`bootstrap_scores`); a
      score that is undefined is blank. A group without patches has no row;
    * `summary.json`: the same, means over domains, the data set, the model's record, whether either is synthetic,
      where the threshold comes from, the versions, and what the scores mean;
    * `report.png`: ROC curves (dashed: out of distribution) and confusion matrices.

    It logs the table of the summary, and leaves in `engine.state.metrics` on all ranks `accuracy`,
    `balanced_accuracy` and `auc` of all patches (NaN where undefined) and `accuracy_<domain>` of each domain.

    Example::

        ClassificationReport("output", threshold=0.4, train_domains=["XR", "CS"]).attach(evaluator)

    Args:
        output_dir: folder of the files.
        threshold: a patch is positive from this probability on, in [0, 1].
        class_names: of class 0 and class 1.
        train_domains: what the network was trained on; None: `train_domains` of the record, and where it has none
            nothing is known to be in or out of distribution.
        dataset: what `shared.data.dataset_info` says.
        record: what the weights were trained on, as `shared.networks.read_model_record` returns it.
        bootstrap: number of resamples.
        seed: of the resamples.
        adapted: whether batch norm was adapted to each domain, for the report.
        threshold_from: where the threshold comes from, for the report, such as the path of its file.

    Raises:
        ValueError: when the threshold, the class names or `bootstrap` are out of range.
        DataError: when the folder cannot be written to; in the run, when a logit is not a number.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        threshold: float = 0.5,
        class_names: Sequence[str] = ("negative", "positive"),
        train_domains: Sequence[str] | None = None,
        dataset: Mapping[str, Any] | None = None,
        record: Mapping[str, Any] | None = None,
        bootstrap: int = 1000,
        seed: int = 0,
        adapted: bool = False,
        threshold_from: str | None = None,
    ) -> None:
        self.how = DomainScoring(
            dataset=dataset,
            record=record,
            bootstrap=bootstrap,
            seed=seed,
            threshold=threshold,
            class_names=class_names,
            train_domains=train_domains,
            adapted=adapted,
            threshold_from=threshold_from,
        )
        self.output_dir = writable_folder(output_dir)
        self.patches: dict[str, Patch] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.patches = {}

    def _collect(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        labels = output["label"].reshape(-1).int().tolist()
        probabilities = checked_probabilities(torch.sigmoid(output["pred"].double()), batch["case"])
        columns = (batch["case"], batch["domain"], batch["slide"], labels, probabilities)
        self.patches.update({patch.case: patch for patch in map(Patch, *columns)})

    def _finish(self, engine: Engine) -> None:
        gathered: dict[str, Patch] = {}
        for part in idist.all_gather(self.patches):
            gathered.update(part)
        patches = [gathered[case] for case in sorted(gathered)]
        summary = summarise_patches(patches, self.how)
        engine.state.metrics.update(summary.metrics(("accuracy", "balanced_accuracy", "auc"), each="accuracy"))
        if idist.get_rank() == 0:
            self._write(patches, summary)

    def _write(self, patches: Sequence[Patch], summary: DomainSummary) -> None:
        write_csv(self.output_dir / "predictions.csv", prediction_rows(patches, self.how), PREDICTION_COLUMNS)
        summary.write(self.output_dir)
        save_figure(self.output_dir / "report.png", draw_patches(patches, summary))
        logger.info(
            "%s\nwritten to %s: predictions.csv, scores.csv, summary.json, report.png",
            summary.table(),
            self.output_dir,
        )
