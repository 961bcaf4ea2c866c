from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
from torch import Tensor

from ..data import RegionEntry
from ..metrics import Findings, box_centres
from ..networks import PyramidAnchors
from .detection import DetectionMerger, TilePlace


class FindingsCollector:
    """Collects what a detector finds in the tiles of regions while one engine, or one on each rank, goes through them.

    A region counts once, wherever its tiles are worked on, and whether or not a sampler repeats some of them: what
    all ranks detected is put together before one detection is kept of those that lie close together. A region of
    which no tile was looked at counts as well, without a detection.

    Args:
        regions: as `shared.data.load_regions` gives them, with `box` and `label`.
        anchors: as the network has them.
        suppress_radius, score_threshold, top_k: see `DetectionMerger`.

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
    ) -> None:
        unlabelled = [region.get("case") for region in regions if "box" not in region]
        if unlabelled:
            raise ValueError(f"{unlabelled[0]} has no boxes: a region that nobody annotated cannot be scored")
        self.regions = list(regions)
        self.merger = DetectionMerger(anchors, suppress_radius, score_threshold, top_k)

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

    def findings(self, match_radius: float) -> Findings:
        """Of all regions, in their order, from all ranks; to be called on all of them together."""
        of_ranks = idist.all_gather(dict(self.merger.parts))
        self.merger.clear()
        parts = self.merger.parts
        for of_rank in of_ranks:
            for region, tiles in of_rank.items():
                parts[region] += tiles
        found = [self.merger.merged(i) for i in range(len(self.regions))]
        return Findings.matched(
            [box_centres(image["box"]) for image in found],
            [image["score"] for image in found],
            [image["label"] for image in found],
            [box_centres(np.reshape(region["box"], (-1, 4))) for region in self.regions],
            [region["label"] for region in self.regions],
            match_radius,
        )
