from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Engine
from ignite.metrics import Metric
from ignite.metrics.metric import EpochWise
from torch import Tensor

from ..data import RegionEntry
from ..inferers import FindingsCollector
from ..metrics import average_precision, best_detection_threshold
from ..networks import PyramidAnchors

METRICS = ("val_f1", "val_ap")


class DetectionThreshold(Metric):
    """Choose the score above which a detection counts, on the validation split, after each validation.

    The threshold with the greatest F1 of a class over all regions, whose tiles are put together first; see
    `best_detection_threshold` and `FindingsCollector`. It leaves `val_f1`, the F1 at this threshold, and `val_ap`, the
    average precision, in `engine.state.metrics`.

    Attach it to a `DetectionEvaluator` over `shared.data.RegionTiles`: as its key metric, under either name, or as one
    of its handlers. `content` is what `threshold.json` holds.

    Args:
        regions: of the validation, as `RegionTiles` has them, see `shared.data.load_regions`.
        anchors: as the network has them.
        match_radius: how far from a figure a detection of it may lie, in pixels of the image.
        class_id: the class.
        merging: options of `FindingsCollector`.

    Raises:
        ValueError: when it is attached under another name.
        DataError: after a validation without a figure of the class, or when the network's output is not finite.
    """

    def __init__(
        self,
        regions: Sequence[RegionEntry],
        anchors: PyramidAnchors,
        match_radius: float = 30.0,
        class_id: int = 1,
        **merging: Any,
    ) -> None:
        self.detections = FindingsCollector(regions, anchors, **merging)
        self.match_radius = float(match_radius)
        self.class_id = class_id
        self.threshold = 0.5
        self.f1 = self.average_precision = 0.0
        super().__init__()

    def attach(self, engine: Engine, name: str = "val_f1", usage: Any = EpochWise.usage_name) -> None:
        if name not in METRICS:
            raise ValueError(f"DetectionThreshold gives {' and '.join(METRICS)}, not {name}")
        super().attach(engine, name, usage)

    def reset(self) -> None:
        self.detections.clear()

    def iteration_completed(self, engine: Engine) -> None:
        self.update((engine.state.batch, engine.state.output["pred"]))

    def update(self, output: tuple[Mapping[str, Any], Tensor]) -> None:
        self.detections.add(*output)

    def completed(self, engine: Engine, name: str) -> None:
        engine.state.metrics.update(self.compute())

    def compute(self) -> dict[str, float]:
        findings = self.detections.findings(self.match_radius)
        threshold, self.f1 = best_detection_threshold(findings, self.class_id)
        # What scores less was left out already, here and by whoever uses the threshold.
        self.threshold = max(threshold, self.detections.merger.score_threshold)
        self.average_precision = average_precision(findings, self.class_id)
        return {"val_f1": self.f1, "val_ap": self.average_precision}

    def content(self) -> dict[str, Any]:
        """What `threshold.json` holds."""
        return {
            "threshold": self.threshold,
            "chosen_for": "F1",
            "f1": self.f1,
            "average_precision": self.average_precision,
            "match_radius": self.match_radius,
            "suppress_radius": self.detections.merger.radius,
            "split": "validation",
            "domains": sorted({region["domain"] for region in self.detections.regions}),
        }
