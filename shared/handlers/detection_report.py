from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from ..data import RegionEntry
from ..inferers import FindingsCollector
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


class DetectionReport:
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
        threshold: a detection counts from this score on, in [0, 1].
        class_names: of class 0 and class 1.
        class_id: the class that the report is about.
        match_radius: how far from a figure a detection of it may lie, in pixels of the image.
        matching: `"one_to_one"` or `"many_to_one"`, see `detection_f1`.
        train_domains: what the network was trained on; None: `train_domains` of the record, and where it has none
            nothing is known to be in or out of distribution.
        dataset: what `shared.data.dataset_info` says.
        record: what the weights were trained on, as `shared.networks.read_model_record` returns it.
        bootstrap: number of resamples.
        seed: of the resamples.
        adapted: whether batch norm was adapted to each domain, for the report.
        threshold_from: where the threshold comes from, for the report, such as the path of its file.
        merging: options of `FindingsCollector`.

    Raises:
        ValueError: when the threshold, the class, its names, `matching` or `bootstrap` are out of range.
        DataError: when the folder cannot be written to; in the run, when the network's output is not finite.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        regions: Sequence[RegionEntry],
        anchors: PyramidAnchors,
        threshold: float = 0.5,
        class_names: Sequence[str] = ("non_mitotic", "mitotic"),
        class_id: int = 1,
        match_radius: float = 30.0,
        matching: str = "one_to_one",
        train_domains: Sequence[str] | None = None,
        dataset: Mapping[str, Any] | None = None,
        record: Mapping[str, Any] | None = None,
        bootstrap: int = 1000,
        seed: int = 0,
        adapted: bool = False,
        threshold_from: str | None = None,
        **merging: Any,
    ) -> None:
        self.detections = FindingsCollector(regions, anchors, **merging)
        self.how = DetectionScoring(
            dataset=dataset,
            record=record,
            bootstrap=bootstrap,
            seed=seed,
            threshold=threshold,
            class_names=class_names,
            train_domains=train_domains,
            adapted=adapted,
            threshold_from=threshold_from,
            class_id=class_id,
            match_radius=match_radius,
            matching=matching,
            score_threshold=self.detections.merger.score_threshold,
        )
        self.output_dir = writable_folder(output_dir)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.detections.clear()

    def _add(self, engine: Engine) -> None:
        self.detections.add(engine.state.batch, engine.state.output["pred"])

    def _finish(self, engine: Engine) -> None:
        findings = self.detections.findings(self.how.match_radius)
        summary = summarise_detections(findings, self.detections.regions, self.how)
        engine.state.metrics.update(summary.metrics(LAYOUT.scores, each="f1"))
        if idist.get_rank() == 0:
            self._write(findings, summary)

    def _write(self, findings: Findings, summary: DomainSummary) -> None:
        scored = (findings, self.detections.regions, summary)
        write_csv(self.output_dir / "detections.csv", detection_rows(*scored), DETECTION_COLUMNS)
        summary.write(self.output_dir)
        save_figure(self.output_dir / "report.png", draw_detections(*scored))
        save_figure(self.output_dir / "gallery.png", draw_errors(*scored))
        logger.info(
            "%s\nwritten to %s: detections.csv, scores.csv, summary.json, report.png, gallery.png",
            summary.table(),
            self.output_dir,
        )
