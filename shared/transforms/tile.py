from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.apps.detection.transforms.box_ops import flip_boxes, swapaxes_boxes
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, RandomizableTransform
from torch import Tensor

from ..data import Region, open_region, tissue_share

_PLACES = 32  # random places that the best of is taken, where no figure says where


class RandTiled(MapTransform, Randomizable):
    """Read a tile at a random place of a region, and the figures in it: for the items of `shared.data.tile_items`.

    An item with a `center` gets a tile that holds it, anywhere in it but close to its edges. One of the kind "empty"
    gets a tile with tissue and without a mitotic figure, an unlabelled one a tile with tissue; where there is no such
    place, that with the fewest mitotic figures, and the most tissue. Tiles lie inside of the region; one that is
    smaller lies anywhere in the tile, with white around it.

    `image` becomes a uint8 tensor (3, tile_size, tile_size), RGB; `box` a float32 tensor (N, 4) of x1, y1, x2, y2 in
    pixels of the tile and `label` an int64 tensor (N,), of the figures whose centre lies in the tile, cut off at its
    and the region's edges. `origin` is the tile's corner (x, y) in the region; `center` goes.

    Args:
        keys: of the path of the region, or of a `Region`, whose `recolour` the tile goes through; the first of them
            that an item has.
        box_key: of its boxes, (N, 4), x1, y1, x2, y2; without any for an item whose `labelled` is false.
        label_key: of their classes, 1 for mitotic figures.
        tile_size: side of the tile in pixels.
        margin: how far from the tile's edges the point `center` lies at least, in pixels, where the region reaches so
            far: cut in half, a figure teaches little. Others that the tile holds may be cut.
        min_tissue: share of a tile that has to be tissue, where no figure says where it lies.
        attempts: tiles that are read at most to find tissue.

    Raises:
        DataError: when called: the file is missing, cannot be read, or is not RGB.
        ValueError: when `tile_size` or `attempts` is less than 1, `margin` negative or `min_tissue` not in [0, 1].
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        box_key: str = "box",
        label_key: str = "label",
        tile_size: int = 512,
        margin: int = 32,
        min_tissue: float = 0.1,
        attempts: int = 8,
    ) -> None:
        if tile_size < 1 or attempts < 1 or margin < 0 or not 0 <= min_tissue <= 1:
            raise ValueError(
                "tile_size and attempts must be 1 or more, margin 0 or more and min_tissue in [0, 1], got "
                f"{tile_size}, {attempts}, {margin} and {min_tissue}"
            )
        super().__init__(keys, allow_missing_keys=True)
        self.box_key = box_key
        self.label_key = label_key
        self.tile_size = tile_size
        self.margin = min(margin, (tile_size - 1) // 2)
        self.min_tissue = min_tissue
        self.attempts = attempts
        self._origins = np.zeros((1, 2), np.int64)

    def randomize(self, size: Sequence[int], center: Sequence[float] | None = None) -> None:
        """Draw the corners of tiles: one that holds the point `center`, or `_PLACES` where that is None."""
        tile, size = self.tile_size, np.asarray(size)
        low, high = np.minimum(0, size - tile), np.maximum(0, size - tile)
        if center is not None:
            pixel = np.floor(_inside(center, size)).astype(np.int64)
            first, last = pixel - tile + 1 + self.margin, pixel - self.margin
            low, high = np.clip(first, low, high), np.clip(last, low, high)
        count = _PLACES if center is None else 1
        self._origins = self.R.randint(low, high + 1, (count, 2))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        key, center = self.first_key(d), d.pop("center", None)
        region = open_region(d[key], d.get("mpp"))
        boxes, labels = self._figures(d)
        self.randomize(region.size, center)
        mitotic = boxes[labels == 1] if d.get("kind") == "empty" else boxes[:0]
        (x, y), pixels = self._read(region, mitotic, center is not None)
        held = self._holds((x, y), boxes, region.size)
        edges = np.maximum((x, y), 0), np.minimum(np.add((x, y), self.tile_size), region.size)
        shown = np.clip(boxes[held].reshape(-1, 2, 2), *edges) - (x, y)
        tile = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        d[key] = tile if region.recolour is None else region.recolour(tile)
        d[self.box_key] = torch.from_numpy(shown.reshape(-1, 4)).float()
        d[self.label_key] = torch.from_numpy(labels[held])
        d["origin"] = (x, y)
        return d

    def _figures(self, d: Mapping[Hashable, Any]) -> tuple[np.ndarray, np.ndarray]:
        if d.get("labelled", True) is False:
            return np.zeros((0, 4)), np.zeros(0, np.int64)
        return np.asarray(d[self.box_key], np.float64).reshape(-1, 4), np.asarray(d[self.label_key], np.int64)

    def _holds(self, origin: Sequence[int], boxes: np.ndarray, size: Sequence[int]) -> np.ndarray:
        """Which boxes have their centre in the tile."""
        offset = _inside((boxes[:, :2] + boxes[:, 2:]) / 2, size) - origin
        return ((offset >= 0) & (offset < self.tile_size)).all(axis=1)

    def _read(self, region: Region, mitotic: np.ndarray, anything: bool) -> tuple[tuple[int, int], np.ndarray]:
        """The corner and the pixels of the first of the drawn tiles that will do, or of the next best."""
        counts = [self._holds(origin, mitotic, region.size).sum() for origin in self._origins]
        fewest = self._origins[np.equal(counts, min(counts))].tolist()
        best = None
        for x, y in fewest[: self.attempts]:
            pixels = region.read(x, y, self.tile_size, self.tile_size)
            tissue = 1.0 if anything else tissue_share(pixels)
            if best is None or tissue > best[0]:
                best = (tissue, (x, y), pixels)
            if tissue >= self.min_tissue:
                break
        return best[1:]


def _inside(points: Sequence[float] | np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Centres of boxes that overhang the region may lie outside; the pixel next to them is as good."""
    return np.clip(points, 0, np.asarray(size) - 0.5)


class RandFlipRotateBoxd(MapTransform, RandomizableTransform):
    """Show an image and its boxes in one of their eight orientations at random: mirrored or not, turned or not.

    MONAI's `RandFlipBoxd` and `RandRotateBox90d` take box corners in the order of the image's axes, y before x.

    Args:
        keys: of images (channels, H, W). Where H is not W, half of the orientations are W high and H wide.
        box_key: of boxes (N, 4), x1, y1, x2, y2 in pixels; N may be 0.
        prob: of a change; each of the eight orientations is then as likely as any other, that as it was included.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        box_key: str = "box",
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.box_key = box_key
        self._changes = (False, False, False)

    def randomize(self, data: Any = None) -> None:
        super().randomize(None)
        self._changes = tuple(bool(bit) for bit in self.R.randint(0, 2, 3))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize()
        if not self._do_transform:
            return d
        for key in self.key_iterator(d):
            height, width = d[key].shape[-2:]
            d[key] = orient(d[key], *self._changes)
        d[self.box_key] = orient_boxes(d[self.box_key], (height, width), *self._changes)
        return d


def orient(image: Tensor, transpose: bool, flip_x: bool, flip_y: bool) -> Tensor:
    """Exchange the last two axes of an image (..., H, W), then turn its columns, then its rows around."""
    if transpose:
        image = image.transpose(-1, -2)
    return image.flip([axis for axis, flip in ((-1, flip_x), (-2, flip_y)) if flip]).contiguous()


def orient_boxes(boxes: Tensor, size: Sequence[int], transpose: bool, flip_x: bool, flip_y: bool) -> Tensor:
    """Boxes (N, 4), x1, y1, x2, y2, in an image of the size (height, width) after `orient`."""
    height, width = size
    if transpose:
        boxes, height, width = swapaxes_boxes(boxes, 0, 1), width, height
    return flip_boxes(boxes, (width, height), [axis for axis, flip in ((0, flip_x), (1, flip_y)) if flip])
