from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..metrics import Detections, box_centres
from ..networks import PyramidAnchors, decode_batch
from ..utils import DataError
from ..utils.errors import NO_NUMBER
from .suppression import suppress_within_radius

SLACK = 8  # pixels of a tile; two tiles that see a figure from its two sides differ by less about its centre
_PENDING = 4  # batches at most that the network is ahead of the suppression

TileDetections = tuple[np.ndarray, ...]  # what `Detections` holds, in that order
_COLUMNS = ("box", "score", "label", "mitotic")


class TilePlace(NamedTuple):
    """Where in which image a tile lies.

    Attributes:
        image: which image the tile is of.
        origin: x and y of the tile's corner, in pixels of the image.
        core: x1, y1, x2, y2 in pixels of the tile.
        scale: pixels of the image to one of the tile.
        size: width and height of the image; what has its centre beyond is no figure. None: anything goes.
        name: of the tile, for messages; by default that of the image.
    """

    image: Hashable
    origin: Sequence[float] = (0.0, 0.0)
    core: Sequence[float] = (-np.inf, -np.inf, np.inf, np.inf)
    scale: float = 1.0
    size: Sequence[float] | None = None
    name: str | None = None


class DetectionMerger:
    """Puts the detections in the tiles of an image together: each figure once, wherever the tiles' borders lie.

    A tile answers for its core, and a little around it: what it detects with a centre elsewhere is left to the tile
    whose core that is, which sees more around it. What is then found from both sides of a border is one figure by
    `suppress_within_radius`, over the whole image and the classes together.

    A batch is decoded where the network's output is, comes to main memory in one piece, and is worked on in a thread
    while the network has the next: the caller waits only where it is several batches ahead. What is wrong with a batch
    is therefore raised by a later `add`, or by `parts` and `merged`.

    Args:
        anchors: as the network has them.
        radius: of the suppression, in pixels of the image.
        score_threshold: detections with a lower score are left out.
        top_k: how many a tile has at most, the best of those that the suppression leaves.
        class_id: a class whose probability each detection is to have, as `mitotic`; None: they have it not.

    Example:
        >>> merger = DetectionMerger(PyramidAnchors(), radius=25)
        >>> tile = TilePlace("a.png", origin=(448, 0), core=(32, 0, 512, 480))
        >>> merger.add(output, [512, 512], [tile])  # doctest: +SKIP
        >>> merger.merged("a.png")["score"]  # doctest: +SKIP
    """

    def __init__(
        self,
        anchors: PyramidAnchors,
        radius: float = 25.0,
        score_threshold: float = 0.05,
        top_k: int = 300,
        class_id: int | None = None,
    ) -> None:
        self.anchors = anchors
        self.radius = radius
        self.score_threshold = score_threshold
        self.top_k = top_k
        self.class_id = class_id
        self._parts: dict[Hashable, list[TileDetections]] = defaultdict(list)
        self._pending: deque[Future] = deque()
        self._thread: ThreadPoolExecutor | None = None

    def add(self, output: Tensor, image_size: Sequence[int], tiles: Sequence[TilePlace]) -> None:
        """Take in what the network says of a batch of tiles.

        Args:
            output: (B, K + 4, A), of the network.
            image_size: height and width of the tiles in their own pixels.
            tiles: where each lies.

        Raises:
            ValueError: when the number of anchors or tiles differs.
            DataError: here or later, when a value of the output is not finite.
        """
        if len(output) != len(tiles):
            raise ValueError(f"the output is of {len(output)} tiles, and {len(tiles)} places are given")
        anchors = self.anchors(image_size, output.device)
        found = decode_batch(output.detach(), anchors, len(anchors), self.class_id)
        arrived = None
        if found.device.type != "cpu":
            found = found.to("cpu", non_blocking=True)
            arrived = torch.Event(output.device)
            arrived.record(torch.accelerator.current_stream(output.device))  # which need not be the current device
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "merging")
        self._pending.append(self._thread.submit(self._take_in, found, arrived, list(tiles)))
        try:
            while len(self._pending) > _PENDING:
                self._pending.popleft().result()
        except BaseException:
            self._stop()
            raise

    def _take_in(self, found: Tensor, arrived: torch.Event | None, tiles: Sequence[TilePlace]) -> None:
        if arrived is not None:
            arrived.synchronize()
        for rows, tile in zip(found.numpy(), tiles, strict=True):
            if np.isnan(rows[:, 4]).any():
                raise DataError(f"{tile.name or tile.image}: the network gives no number here. {NO_NUMBER}")
            self._parts[tile.image].append(self._kept(rows[rows[:, 4] >= self.score_threshold], tile))

    def _kept(self, rows: np.ndarray, tile: TilePlace) -> TileDetections:
        box, score, label = rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)
        centre = box_centres(box)
        low, high = np.reshape(tile.core, (2, 2)) + [[-SLACK], [SLACK]]
        if tile.size is not None:
            low = np.maximum(low, -np.divide(tile.origin, tile.scale))
            high = np.minimum(high, np.subtract(tile.size, tile.origin) / tile.scale)
        own = np.flatnonzero(((centre >= low) & (centre < high)).all(axis=1))
        # Some ten anchors find the same figure: those of the clearest ones would leave no room for others.
        kept = own[suppress_within_radius(centre[own], score[own], self.radius / tile.scale)[: self.top_k]]
        box = box[kept] * np.float32(tile.scale) + np.array([*tile.origin] * 2, np.float32)
        return box, score[kept], label[kept], *(column[kept] for column in rows[:, 6:].T)

    @property
    def parts(self) -> dict[Hashable, list[TileDetections]]:
        """Boxes, scores and classes of each tile of each image, when all that was added is taken in."""
        try:
            while self._pending:
                self._pending.popleft().result()
        finally:
            self._stop()  # no thread is left: processes that load data may be forked next
        return self._parts

    def merged(self, image: Hashable) -> Detections:
        """The detections in an image, from the highest score to the lowest; none where no tile of it was added."""
        parts = self.parts.get(image)
        if not parts:
            none = np.empty(0, np.float32)
            found = {"box": np.empty((0, 4), np.float32), "score": none, "label": np.empty(0, int)}
            return found if self.class_id is None else {**found, "mitotic": none}
        columns = [np.concatenate(part) for part in zip(*parts, strict=True)]
        kept = suppress_within_radius(box_centres(columns[0]), columns[1], self.radius)
        return {name: column[kept] for name, column in zip(_COLUMNS, columns, strict=False)}

    def clear(self) -> None:
        """Forget all images."""
        self._stop()
        self._parts.clear()

    def _stop(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
        self._pending.clear()
