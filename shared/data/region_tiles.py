"""Tiles of regions: a data set of those that cover them, and the items that those for training are drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from ..utils import DataError
from .entries import RegionEntry
from .inputs import case_name
from .regions import open_region, thumbnail_scale
from .tissue import MASK_SIZE, tissue_mask, tissue_share

TILE_KINDS = ("mitotic", "non_mitotic", "empty", "unlabelled")
"""What a tile is drawn for: a figure of one of the two classes, tissue without any, an image nobody annotated."""


class TileItem(RegionEntry):
    """What a tile for training is drawn from: a region, and what the tile has to show.

    Attributes:
        kind: one of `TILE_KINDS`.
        center: (x, y) of a figure in pixels of the file, or None.
    """

    kind: str
    center: tuple[float, float] | None


class Tile(NamedTuple):
    """A square of an image, and the part of it that is nearer to its middle than to its neighbours'.

    Attributes:
        x, y: top left corner in pixels of the grid.
        core: `(x1, y1, x2, y2)` in pixels of the tile. x1 and y1 belong to it, x2 and y2 do not; towards the image's
            border it has no end (±inf).
    """

    x: int
    y: int
    core: tuple[float, float, float, float]


def check_overlap(tile: int, overlap: int) -> None:
    """Raise a `DataError` unless tiles of this side can overlap by so much, both in pixels."""
    if not 0 <= overlap < tile:
        raise DataError(f"tile_overlap is {overlap}, expected a whole number from 0 to {tile - 1}, tiles have {tile}.")


def tile_origins(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin, so that they cover all pixels of a line and overlap by `overlap` at least.

    The last one ends with the line, unless the line is shorter than a tile: then there is one, at 0.

    Raises:
        ValueError: when the length is not positive.
        DataError: when the overlap is not from 0 to below the tile.
    """
    check_overlap(tile, overlap)
    if length < 1:
        raise ValueError(f"length must be positive, got {length}.")
    last = max(length - tile, 0)
    return [*range(0, last, tile - overlap), last]


def tile_grid(size: tuple[int, int], tile: int, overlap: int) -> list[Tile]:
    """Tiles that cover an image, row by row from the top left.

    Every point lies in the core of one tile and no other, at least half of the overlap away from the tile's edges,
    unless they are the image's.

    Args:
        size: width and height of the image.
        tile: side of a tile.
        overlap: of neighbours, in pixels, at least.

    Raises:
        ValueError: see `tile_origins`.
    """
    columns, rows = (_cores(tile_origins(length, tile, overlap), tile) for length in size)
    return [Tile(x, y, (x1, y1, x2, y2)) for y, y1, y2 in rows for x, x1, x2 in columns]


def _cores(origins: Sequence[int], tile: int) -> list[tuple[int, float, float]]:
    """Origin, and where its core begins and ends: in the middle of what it shares with the next."""
    borders = [-math.inf, *((a + tile + b) / 2 for a, b in pairwise(origins)), math.inf]
    return [(x, borders[i] - x, borders[i + 1] - x) for i, x in enumerate(origins)]


class TileData(TypedDict):
    """A tile as `RegionTiles` reads it, before its transform.

    Attributes:
        image: uint8, (3, tile_size, tile_size), white beyond the image.
        region: index of its region.
        case: `"name x,y"`.
        origin: (x, y) of the tile's corner in pixels of the file.
        scale: pixels of the file a pixel of the tile.
        core: as in `Tile`.
        size: width and height of the region in pixels of the file.
        domain, slide: where the region has them.
        tissue: with `min_tissue`: whether the tile has so much.
        box: float32, (n, 4), where the region has `box` and `label`: the boxes whose centre lies in the tile, in pixels
            of the tile and clipped to it. Tiles overlap, so that a box may be in several.
        label: their classes, int64 (n,).
    """

    image: torch.Tensor
    region: int
    case: str
    origin: tuple[float, float]
    scale: float
    core: tuple[float, float, float, float]
    size: tuple[int, int]
    domain: NotRequired[str]
    slide: NotRequired[str]
    tissue: NotRequired[bool]
    box: NotRequired[torch.Tensor]
    label: NotRequired[torch.Tensor]


class RegionTiles(Dataset):
    """The tiles of images of any size, read one by one by whoever asks: in the workers of a DataLoader, too.

    An item is a `TileData`, or what the transform makes of it.

    Args:
        regions: of which `image` alone has to be there.
        tile_size: side of a tile in pixels.
        overlap: of neighbouring tiles, in pixels of a tile, at least.
        transform: what an item goes through.
        scale: pixels of the file a pixel of a tile, for all regions or for each.
        min_tissue: tiles with less tissue than this share are left out, so that a region may have none. Of a TIFF
            without a pyramid all are there, because to see where its tissue is takes longer than to read the tiles:
            their `tissue` tells. By 0, every tile is there, and nothing is looked for. Tiles that no region of
            interest reaches are left out.

    Attributes:
        tiles: pairs of the index of a region and a `Tile`, of a grid in pixels of a tile; region after region.

    Raises:
        DataError: a file cannot be opened; when an item is read, it cannot be decoded.
        ValueError: when a scale is not positive or their number is not that of the regions, or see `tile_origins`.
    """

    def __init__(
        self,
        regions: Sequence[RegionEntry],
        tile_size: int = 512,
        overlap: int = 64,
        transform: Callable[[TileData], Any] | None = None,
        scale: float | Sequence[float] = 1.0,
        min_tissue: float = 0.0,
    ) -> None:
        self.regions = [dict(region) for region in regions]
        self.tile_size = tile_size
        self.transform = transform
        self.min_tissue = min_tissue
        self.scales = [float(s) for s in (scale if isinstance(scale, Sequence) else [scale] * len(self.regions))]
        if len(self.scales) != len(self.regions) or not all(0 < s < math.inf for s in self.scales):
            raise ValueError(f"scale must be positive, one for all or one for each region, got {scale}.")
        self.tiles: list[tuple[int, Tile]] = []
        self.sizes: list[tuple[int, int]] = []
        for i, (entry, factor) in enumerate(zip(self.regions, self.scales, strict=True)):
            region = open_region(entry["image"], entry.get("mpp"))
            self.sizes.append(region.size)
            width, height = (math.ceil(length / factor) for length in region.size)
            grid = tile_grid((width, height), tile_size, overlap)
            if min_tissue > 0 and (region.in_memory or region.coarsest() >= 4):
                grid = _with_share(*tissue_mask(region), grid, tile_size, factor, min_tissue)
            if region.roi is not None:
                mask_scale = thumbnail_scale(region, MASK_SIZE)
                mask = region.roi.mask(tuple(math.ceil(n / mask_scale) for n in region.size[::-1]), mask_scale)
                grid = _with_share(mask, mask_scale, grid, tile_size, factor, 1e-9)
            self.tiles += [(i, tile) for tile in grid]

    @property
    def data(self) -> list[dict[str, Any]]:
        """Of each tile what is known without reading it: `domain` and `slide`, where its region has them."""
        known = [{key: entry[key] for key in ("domain", "slide") if key in entry} for entry in self.regions]
        return [known[i] for i, _ in self.tiles]

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> Any:
        i, tile = self.tiles[index]
        entry, scale = self.regions[i], self.scales[i]
        x, y = tile.x * scale, tile.y * scale
        region = open_region(entry["image"], entry.get("mpp"))
        pixels = region.read(x, y, self.tile_size, self.tile_size, scale)
        item: TileData = {
            "image": torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
            "region": i,
            "origin": (x, y),
            "core": tile.core,
            "scale": scale,
            "size": self.sizes[i],
            "case": f"{entry.get('case') or case_name(region.path)} {x:g},{y:g}",
            **{key: entry[key] for key in ("domain", "slide") if key in entry},
        }
        if self.min_tissue > 0:
            width, height = (math.ceil((length - at) / scale) for length, at in zip(region.size, (x, y), strict=True))
            item["tissue"] = tissue_share(pixels[:height, :width]) >= self.min_tissue
        if "box" in entry and "label" in entry:
            item |= _boxes_within(entry, x, y, scale, self.tile_size)
        return self.transform(item) if self.transform else item


def _boxes_within(entry: RegionEntry, x: float, y: float, scale: float, size: int) -> dict[str, torch.Tensor]:
    boxes = torch.as_tensor(entry["box"], dtype=torch.float64).reshape(-1, 4)
    boxes = (boxes - torch.tensor([x, y, x, y], dtype=torch.float64)) / scale
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    within = ((centres >= 0) & (centres < size)).all(dim=1)
    labels = torch.as_tensor(entry["label"], dtype=torch.int64).reshape(-1)
    return {"box": boxes[within].clamp(0, size).float(), "label": labels[within]}


def _with_share(
    mask: np.ndarray, mask_scale: float, grid: Sequence[Tile], size: int, scale: float, share: float
) -> list[Tile]:
    ratio = scale / mask_scale  # pixels of the mask a pixel of the grid

    def part(start: int, length: int) -> slice:
        return slice(min(int(start * ratio), length - 1), math.ceil((start + size) * ratio))

    return [tile for tile in grid if mask[part(tile.y, len(mask)), part(tile.x, mask.shape[1])].mean() >= share]


def tile_items(regions: Sequence[RegionEntry], empty_per_region: int = 1) -> list[TileItem]:
    """What tiles for training are drawn from: an item for each figure, and some for each region.

    Args:
        regions: as `load_regions` gives them, labelled or not.
        empty_per_region: items for tissue without a figure, in each labelled region; 0 for none. How often they are
            drawn is for `TileSampler` to say.

    Returns:
        For regions without labels one item each, of the kind "unlabelled".

    Raises:
        ValueError: when `empty_per_region` is negative.
    """
    if empty_per_region < 0:
        raise ValueError(f"empty_per_region must be 0 or more, got {empty_per_region}")
    items: list[TileItem] = []
    for region in regions:
        if not region["labelled"]:
            items.append({**region, "kind": "unlabelled", "center": None})
            continue
        for (x1, y1, x2, y2), label in zip(region["box"], region["label"], strict=True):
            kind = "mitotic" if label == 1 else "non_mitotic"
            items.append({**region, "kind": kind, "center": ((x1 + x2) / 2, (y1 + y2) / 2)})
        items += [{**region, "kind": "empty", "center": None}] * empty_per_region
    return items
