"""The report of a classification: collects the patches of each domain."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field

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


@dataclass(kw_only=True, eq=False)
class ClassificationReport(DomainScoring):
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
        threshold, class_names, train_domains, adapted, threshold_from, dataset, record, bootstrap, seed: by name, see
            `shared.reports.DomainScoring`.

    Raises:
        ValueError: when the threshold, the class names or `bootstrap` are out of range.
        DataError: when the folder cannot be written to; in the run, when a logit is not a number.
    """

    output_dir: str | os.PathLike = field(kw_only=False)
    patches: dict[str, Patch] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.output_dir = writable_folder(self.output_dir)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.patches, self.shifts = {}, {}

    def _collect(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        labels = output["label"].reshape(-1).int().tolist()
        probabilities = checked_probabilities(torch.sigmoid(output["pred"].double()), batch["case"])
        columns = (batch["case"], batch["domain"], batch["slide"], labels, probabilities)
        self.patches.update({patch.case: patch for patch in map(Patch, *columns)})
        self.shifts.update(zip(batch["domain"], batch.get("logit_shift", ()), strict=False))

    def _finish(self, engine: Engine) -> None:
        of_ranks = idist.all_gather((self.patches, self.shifts))
        gathered = {case: patch for of_rank, _ in of_ranks for case, patch in of_rank.items()}
        self.shifts = {domain: shift for _, of_rank in of_ranks for domain, shift in of_rank.items()}
        patches = [gathered[case] for case in sorted(gathered)]
        summary = summarise_patches(patches, self)
        engine.state.metrics.update(summary.metrics(("accuracy", "balanced_accuracy", "auc"), each="accuracy"))
        if idist.get_rank() == 0:
            self._write(patches, summary)

    def _write(self, patches: list[Patch], summary: DomainSummary) -> None:
        write_csv(self.output_dir / "predictions.csv", prediction_rows(patches, self), PREDICTION_COLUMNS)
        summary.write(self.output_dir)
        save_figure(self.output_dir / "report.png", draw_patches(patches, summary))
        logger.info(
            "%s\nwritten to %s: predictions.csv, scores.csv, summary.json, report.png",
            summary.table(),
            self.output_dir,
        )
