from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events

from ..data import Region, RegionEntry
from ..inferers import CropClassifier, FindingsCollector, combine_scores
from ..metrics import MITOTIC, Detections, average_precision, best_detection_threshold, box_centres
from ..networks import PyramidAnchors
from ..utils import DataError, text_table, writable_folder, write_json

logger = logging.getLogger(__name__)

WEIGHTS = tuple(i / 10 for i in range(11))
FLOORS = (0.75, 0.5, 0.25, 0.0)  # shares of the threshold at which the detector alone has its greatest F1


class CascadeChoice:
    """Choose of which detections a classifier is asked, how much its word counts, and from which score on they count.

    Attach it to a `DetectionEvaluator` over the `shared.data.RegionTiles` of validation regions. At the end each
    detection, whatever the detector calls it, gets a crop of its own and so the classifier's probability. For each of
    eleven weights from 0 to 1, see `combine_scores`, and of four floors, see `CandidateJudge`, 0 and a quarter, a half
    and three quarters of the detector's own threshold, the threshold of the greatest F1 of mitotic figures is looked
    for. The highest floor is taken at which some weight has as great an F1 as any without a floor, for what the
    classifier is not asked about costs no time. At that floor the weight with the greatest F1 is taken, of equals that
    with the greatest average precision, then the one that trusts the detector more. Rank 0 writes them to `path`,
    whole or not at all, for `shared.metrics.read_cascade`. It leaves `val_f1` and `val_ap` in `engine.state.metrics`.

    Args:
        path: of the file.
        regions: as `RegionTiles` has them, see `shared.data.load_regions`.
        anchors: as the network has them.
        classify: see `CropClassifier`.
        match_radius: how far from a figure a detection of it may lie, in pixels of the image.
        suppress_radius, score_threshold, top_k: see `FindingsCollector`.
        weights: digests of both networks, see `shared.inferers.cascade_digest`.
        split: the list that the regions are from, for the record.

    Raises:
        DataError: when there is no classifier, or the folder cannot be written to; in the run, when no region has a
            mitotic figure, or a network's output is not finite.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        regions: Sequence[RegionEntry],
        anchors: PyramidAnchors,
        classify: CropClassifier | None,
        match_radius: float = 30.0,
        suppress_radius: float = 25.0,
        score_threshold: float = 0.05,
        top_k: int = 300,
        weights: str | None = None,
        split: str = "validation",
    ) -> None:
        if classify is None:
            raise DataError("No classifier is given, whose weight could be chosen. Give one with --classifier.")
        self.path = writable_folder(Path(path).parent) / Path(path).name
        merging = (suppress_radius, score_threshold, top_k)
        self.detections = FindingsCollector(regions, anchors, *merging, class_id=MITOTIC)
        self.classify = classify
        self.match_radius = float(match_radius)
        self.weights = weights
        self.split = split

    def attach(self, engine: Engine) -> None:
        self.detections.attach(engine)
        engine.add_event_handler(Events.COMPLETED, self._choose)

    def _choose(self, engine: Engine) -> None:
        found = self.detections.detections()
        judged = self.detections.of_each(self._judge, found)
        floors = np.multiply(FLOORS, self._scores(0.0, 0.0, found, judged)["threshold"]).tolist()
        tried = {floor: [self._scores(weight, floor, found, judged) for weight in WEIGHTS] for floor in floors}
        bests = {
            floor: max(rows, key=lambda row: (row["f1"], row["average_precision"])) for floor, rows in tried.items()
        }
        best = next(row for row in bests.values() if row["f1"] >= bests[0.0]["f1"])
        engine.state.metrics.update(val_f1=best["f1"], val_ap=best["average_precision"])
        if idist.get_rank() == 0:
            write_json(self.path, self._content(best, [row for rows in tried.values() for row in rows]))
            shown = [{key: f"{value:.3f}" for key, value in row.items()} for row in tried[best["floor"]]]
            logger.info(
                "%s\nweight %g, floor %.3g, threshold %.3g, written to %s",
                text_table(shown),
                *(best[key] for key in ("weight", "floor", "threshold")),
                self.path,
            )

    def _judge(self, region: Region, found: Detections) -> np.ndarray:
        return self.classify(region, box_centres(found["box"].astype(np.float64)))

    def _scores(
        self, weight: float, floor: float, found: Sequence[Detections], judged: Sequence[np.ndarray]
    ) -> dict[str, float]:
        both = [
            {
                "box": image["box"],
                "score": combine_scores(image["mitotic"], classified * (image["mitotic"] >= floor), weight),
                "label": np.full(len(classified), MITOTIC),
            }
            for image, classified in zip(found, judged, strict=True)
        ]
        findings = self.detections.matched(both, self.match_radius)
        threshold, f1 = best_detection_threshold(findings, MITOTIC)
        ap = average_precision(findings, MITOTIC)
        return {"weight": weight, "floor": floor, "threshold": threshold, "f1": f1, "average_precision": ap}

    def _content(self, best: dict[str, float], rows: Sequence[dict[str, float]]) -> dict[str, Any]:
        return {
            **best,
            "chosen_for": "F1",
            "match_radius": self.match_radius,
            "flips": self.classify.flips,
            "split": self.split,
            "domains": sorted({region["domain"] for region in self.detections.regions}),
            "weights": self.weights,
            "tried": list(rows),
        }
