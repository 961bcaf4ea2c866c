"""The report of a detection: collects what is found in the tiles of each region."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import ignite.distributed as idist
from ignite.engine import Engine, Events

from ..data import RegionEntry
from ..inferers import CandidateJudge, FindingsCollector
from ..metrics import Findings
from ..networks import PyramidAnchors
from ..reports.detection import (
    DETECTION_COLUMNS,
    LAYOUT,
    DetectionScoring,
    detection_rows,
    draw_detections,
    draw_errors,
    summarise_detections,
)
from ..reports.domains import DomainSummary
from ..reports.gallery import save_figure
from ..utils import writable_folder, write_csv

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class DetectionReport(DetectionScoring):
    """Score a detector on each domain of an evaluation, and write the report.

    Attach it to a `DetectionEvaluator` over the `shared.data.RegionTiles` of the regions. At the end the tiles of all
    ranks are put together, see `FindingsCollector`, and rank 0 writes to `output_dir`, each file whole or not at all:

    * `detections.csv`: each detection with its image, the centre in pixels, its class and score, and whether it is
      matched with a figure of its class (one-to-one, at any threshold);
    * `scores.csv`: a row for each domain, then the pooled images `in distribution`, `out of distribution` and of `all`
      domains: the scores of `detection_f1` and the average precision, with 95 % intervals over slides
      (`bootstrap_detection`); a score that is undefined is blank. A group without images has no row;
    * `summary.json`: the same, the other class at the same threshold, means over domains, the data set, the model's
      record, whether either is synthetic, where the threshold comes from, the versions, and what the scores mean;
    * `report.png`: precision-recall curves (dashed: out of distribution) with the threshold, and the F1 scores;
    * `gallery.png`: false positives and false negatives, each with its score and domain.

    It logs the table of the summary, and leaves in `engine.state.metrics` on all ranks `precision`, `recall`, `f1` and
    `average_precision` of all images (NaN where undefined) and `f1_<domain>` of each domain.

    Args:
        output_dir: folder of the files.
        regions: as `RegionTiles` has them, see `shared.data.load_regions`.
        anchors: as the network has them.
        class_id, match_radius, matching, threshold, class_names, train_domains, adapted, threshold_from, dataset,
            record, bootstrap, seed: by name, see `shared.reports.DetectionScoring`.
        suppress_radius, score_threshold, top_k, judge: by name, see `FindingsCollector`.

    Raises:
        ValueError: when the threshold, the class, its names, `matching` or `bootstrap` are out of range.
        DataError: when the folder cannot be written to; in the run, when the network's output is not finite.
    """

    output_dir: str | os.PathLike = field(kw_only=False)
    regions: Sequence[RegionEntry] = field(kw_only=False)
    anchors: PyramidAnchors = field(kw_only=False, repr=False)
    suppress_radius: float = 25.0
    top_k: int = 300
    judge: CandidateJudge | None = field(default=None, repr=False)
    detections: FindingsCollector = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.judge is not None:
            self.classifier = self.judge.about
        merging = (self.suppress_radius, self.score_threshold, self.top_k, self.judge)
        self.detections = FindingsCollector(self.regions, self.anchors, *merging)
        self.output_dir = writable_folder(self.output_dir)

    def attach(self, engine: Engine) -> None:
        self.detections.attach(engine)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _finish(self, engine: Engine) -> None:
        findings = self.detections.findings(self.match_radius)
        summary = summarise_detections(findings, self.regions, self)
        engine.state.metrics.update(summary.metrics(LAYOUT.scores, each="f1"))
        if idist.get_rank() == 0:
            self._write(findings, summary)

    def _write(self, findings: Findings, summary: DomainSummary) -> None:
        scored = (findings, self.regions, summary)
        write_csv(self.output_dir / "detections.csv", detection_rows(*scored), DETECTION_COLUMNS)
        summary.write(self.output_dir)
        save_figure(self.output_dir / "report.png", draw_detections(*scored))
        save_figure(self.output_dir / "gallery.png", draw_errors(*scored))
        logger.info(
            "%s\nwritten to %s: detections.csv, scores.csv, summary.json, report.png, gallery.png",
            summary.table(),
            self.output_dir,
        )
