from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..metrics import Detections, box_centres
from ..networks import PyramidAnchors, decode_detections
from .suppression import suppress_within_radius

SLACK = 8  # pixels of a tile; two tiles that see a figure from its two sides differ by less about its centre


class DetectionMerger:
    """Puts the detections in the tiles of an image together: each figure once, wherever the tiles' borders lie.

    A tile answers for its core, and a little around it: what it detects with a centre elsewhere is left to the tile
    whose core that is, which sees more around it. What is then found from both sides of a border is one figure by
    `suppress_within_radius`, over the whole image and the classes together.

    Args:
        anchors: as the network has them.
        radius: of the suppression, in pixels of the image.
        score_threshold: detections with a lower score are left out.
        top_k: how many a tile has at most, the best of those that the suppression leaves.

    Example:
        >>> merger = DetectionMerger(PyramidAnchors(), radius=25)
        >>> merger.add("a.png", output, [512, 512], origin=(448, 0), core=(32, 0, 512, 480))  # doctest: +SKIP
        >>> merger.merged("a.png")["score"]  # doctest: +SKIP
    """

    def __init__(
        self, anchors: PyramidAnchors, radius: float = 25.0, score_threshold: float = 0.05, top_k: int = 300
    ) -> None:
        self.anchors = anchors
        self.radius = radius
        self.score_threshold = score_threshold
        self.top_k = top_k
        self.parts: dict[Hashable, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = defaultdict(list)
        self.cache: dict[tuple, Tensor] = {}

    def add(
        self,
        image: Hashable,
        output: Tensor,
        image_size: Sequence[int],
        origin: Sequence[float] = (0.0, 0.0),
        core: Sequence[float] = (-np.inf, -np.inf, np.inf, np.inf),
        scale: float = 1.0,
        size: Sequence[float] | None = None,
    ) -> None:
        """Take in what the network says of one tile.

        Args:
            image: which image the tile is of.
            output: (K + 4, A), of the network.
            image_size: height and width of the tile in its own pixels.
            origin: x and y of the tile's corner, in pixels of the image.
            core: x1, y1, x2, y2 in pixels of the tile.
            scale: pixels of the image to one of the tile.
            size: width and height of the image; what has its centre beyond is no figure. None: anything goes.

        Raises:
            ValueError: as `decode_detections`.
        """
        anchors = self._anchors(image_size, output.device)
        decoded = decode_detections(output, anchors, self.score_threshold, top_k=len(anchors))
        box, score, label = (part.cpu().numpy() for part in decoded)
        centre = box_centres(box)
        low, high = np.reshape(core, (2, 2)) + [[-SLACK], [SLACK]]
        if size is not None:
            low, high = np.maximum(low, -np.divide(origin, scale)), np.minimum(high, np.subtract(size, origin) / scale)
        own = np.flatnonzero(((centre >= low) & (centre < high)).all(axis=1))
        # Some ten anchors find the same figure: those of the clearest ones would leave no room for others.
        kept = own[suppress_within_radius(centre[own], score[own], self.radius / scale)[: self.top_k]]
        box = box[kept] * np.float32(scale) + np.array([*origin, *origin], np.float32)
        self.parts[image].append((box, score[kept], label[kept]))

    def merged(self, image: Hashable) -> Detections:
        """The detections in an image, from the highest score to the lowest; none where no tile of it was added."""
        parts = self.parts.get(image)
        if not parts:
            return {"box": np.empty((0, 4), np.float32), "score": np.empty(0, np.float32), "label": np.empty(0, int)}
        box, score, label = (np.concatenate(part) for part in zip(*parts, strict=True))
        kept = suppress_within_radius(box_centres(box), score, self.radius)
        return {"box": box[kept], "score": score[kept], "label": label[kept]}

    def clear(self) -> None:
        """Forget all images."""
        self.parts.clear()

    def _anchors(self, image_size: Sequence[int], device: torch.device) -> Tensor:
        key = (*map(int, image_size), str(device))
        if key not in self.cache:
            self.cache = {key: self.anchors(image_size, device)}  # tiles of a run have one size
        return self.cache[key]
