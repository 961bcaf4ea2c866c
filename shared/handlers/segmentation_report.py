"""The report of a segmentation: collects the scores of each case."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, field

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from ..metrics import segmentation_scores
from ..reports.gallery import save_figure
from ..reports.segmentation import (
    OrganScore,
    SegmentationScoring,
    SegmentationSummary,
    draw_scores,
    summarise_scores,
)
from ..utils import writable_folder

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class SegmentationReport(SegmentationScoring):
    """Score each case of an evaluation in its native grid, in mm, and write the report.

    For every case of the (decollated) batch it compares `engine.state.output[i]["pred"]`, a label map (1, x, y, z) on
    the grid of the label file, with `engine.state.batch[i]["label"]`, a `MetaTensor` whose affine gives the spacing,
    by `segmentation_scores`. `engine.state.batch[i]["case"]` is its name.

    At the end the rows of all ranks are gathered, a case that several ranks had counts once, and rank 0 writes to
    `output_dir`, each file whole or not at all:

    * `scores.csv`: for each case and organ `dice`, `nsd`, `hd95_mm`, `label_ml`, `pred_ml` and `status`: `scored`,
      `missed` (Dice 0, distances blank), `absent` or `absent_but_predicted` (all blank);
    * `summary.json`: means with 95 % bootstrap intervals over cases (`bootstrap_means`), counts of what was missed,
      the data set, the model's record, whether either is synthetic, the versions;
    * `report.png`: the Dice scores of every organ.

    It logs the table of the summary, and leaves `mean_dice`, `mean_nsd` and `mean_hd95_mm` in `engine.state.metrics`
    on all ranks (NaN where nothing was scored).

    Example::

        SegmentationReport("output", labels={"spleen": 1, "liver": 2}).attach(evaluator)

    Args:
        output_dir: folder of the files.
        labels, tolerance, dataset, record, bootstrap, seed: by name, see `shared.reports.SegmentationScoring`.

    Raises:
        ValueError: when `labels` does not number its names from 1 to N, or `bootstrap` is not positive.
        DataError: when the folder cannot be written to.
    """

    output_dir: str | os.PathLike = field(kw_only=False)
    scores: dict[str, list[OrganScore]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.output_dir = writable_folder(self.output_dir)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.scores = {}

    def _score(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            self.scores[item["case"]] = self._scores(item["case"], output["pred"], item["label"])

    def _scores(self, case: str, pred: torch.Tensor, label: MetaTensor) -> list[OrganScore]:
        spacing = label.pixdim.tolist()
        ml = math.prod(spacing) / 1000
        grids = (x[0].cpu().numpy().astype(np.uint8) for x in (pred, label))
        scores = segmentation_scores(*grids, spacing, len(self.labels), self.tolerance)
        return [
            OrganScore(
                case=case,
                organ=organ,
                id=i,
                dice=score.dice,
                nsd=score.nsd,
                hd95_mm=score.hd95,
                label_ml=score.label_voxels * ml,
                pred_ml=score.pred_voxels * ml,
                status=score.status,
            )
            for (organ, i), score in zip(self.labels.items(), scores, strict=True)
        ]

    def _finish(self, engine: Engine) -> None:
        scores = {case: rows for of_rank in idist.all_gather(self.scores) for case, rows in of_rank.items()}
        summary = summarise_scores([row for case in sorted(scores) for row in scores[case]], self)
        engine.state.metrics.update(summary.metrics())
        if idist.get_rank() == 0:
            self._write(summary)

    def _write(self, summary: SegmentationSummary) -> None:
        summary.write(self.output_dir)
        save_figure(self.output_dir / "report.png", draw_scores(summary))
        logger.info("%s\nwritten to %s: scores.csv, summary.json, report.png", summary.table(), self.output_dir)
