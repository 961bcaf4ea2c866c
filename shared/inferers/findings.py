from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from torch import Tensor

from ..data import Region, RegionEntry, open_region
from ..metrics import MITOTIC, Detections, Findings, box_centres
from ..networks import PyramidAnchors
from .detection import DetectionMerger, TilePlace
from .judge import CandidateJudge

Result = TypeVar("Result")


class FindingsCollector:
    """Collects what a detector finds in the tiles of regions while one engine, or one on each rank, goes through them.

    A region counts once, wherever its tiles are worked on, and whether or not a sampler repeats some of them: what
    all ranks detected is put together before one detection is kept of those that lie close together. A region of
    which no tile was looked at counts as well, without a detection.

    Args:
        regions: as `shared.data.load_regions` gives them, with `box` and `label`.
        anchors: as the network has them.
        suppress_radius, score_threshold, top_k: see `DetectionMerger`.
        judge: what a classifier says of the detections in a region, see `CandidateJudge`; the ranks share the regions.
            None: nothing.
        class_id: see `DetectionMerger`; with a judge that of mitotic figures.

    Raises:
        ValueError: when a region has no boxes, not even an empty list of them.
    """

    def __init__(
        self,
        regions: Sequence[RegionEntry],
        anchors: PyramidAnchors,
        suppress_radius: float = 25.0,
        score_threshold: float = 0.05,
        top_k: int = 300,
        judge: CandidateJudge | None = None,
        class_id: int | None = None,
    ) -> None:
        unlabelled = [region.get("case") for region in regions if "box" not in region]
        if unlabelled:
            raise ValueError(f"{unlabelled[0]} has no boxes: a region that nobody annotated cannot be scored")
        self.regions = list(regions)
        self.judge = judge
        class_id = class_id if judge is None else MITOTIC
        self.merger = DetectionMerger(anchors, suppress_radius, score_threshold, top_k, class_id)

    def attach(self, engine: Engine) -> None:
        """Take in all that a `DetectionEvaluator` gives, from the start of each run on."""
        engine.add_event_handler(Events.STARTED, self.clear)
        engine.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: self.add(engine.state.batch, engine.state.output["pred"])
        )

    def clear(self) -> None:
        self.merger.clear()

    def add(self, batch: Mapping[str, Any], output: Tensor) -> None:
        """Take in what a network says of a batch of `shared.data.RegionTiles`.

        Raises:
            DataError: here, later or by `findings`, when the network's output is not finite.
        """
        keys = ("region", "origin", "core", "scale", "size", "case")
        tiles = [TilePlace(*place) for place in zip(*(batch[key] for key in keys), strict=True)]
        self.merger.add(output, batch["image"].shape[-2:], tiles)

    def detections(self) -> list[Detections]:
        """Of all regions, in their order, from all ranks, not judged yet; to be called on all of them together."""
        of_ranks = idist.all_gather(dict(self.merger.parts))
        self.merger.clear()
        parts = self.merger.parts
        for of_rank in of_ranks:
            for region, tiles in of_rank.items():
                parts[region] += tiles
        return [self.merger.merged(i) for i in range(len(self.regions))]

    def findings(self, match_radius: float) -> Findings:
        """Of all regions, in their order, from all ranks, matched; to be called on all of them together."""
        found = self.detections()
        if self.judge is not None:
            found = self.of_each(self.judge, found)
        return self.matched(found, match_radius)

    def of_each(self, work: Callable[[Region, Detections], Result], found: Sequence[Detections]) -> list[Result]:
        """What `work` makes of each region and the detections in it, in their order; the ranks share them out."""
        rank, ranks = idist.get_rank(), idist.get_world_size()
        own = {
            i: work(open_region(region["image"], region.get("mpp")), found[i])
            for i, region in enumerate(self.regions)
            if i % ranks == rank
        }
        for part in idist.all_gather(own) if ranks > 1 else ():
            own |= part
        return [own[i] for i in range(len(self.regions))]

    def matched(self, found: Sequence[Detections], match_radius: float) -> Findings:
        """Detections in all regions, in their order, matched with the regions' figures."""
        return Findings.matched(
            [box_centres(image["box"]) for image in found],
            [image["score"] for image in found],
            [image["label"] for image in found],
            [box_centres(np.reshape(region["box"], (-1, 4))) for region in self.regions],
            [region["label"] for region in self.regions],
            match_radius,
        )
