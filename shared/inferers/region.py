"""Detection in images of any size: tiles through the network, what is found put together."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openslide
import torch
from monai.inferers import Inferer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data import MPP_TOLERANCE, Region, RegionTiles, TileData, collate_regions
from ..data.region_tiles import check_overlap
from ..metrics import MITOTIC, Detections, box_centres
from ..networks import PyramidAnchors
from ..utils import DataError, progress
from .detection import DetectionMerger, TilePlace
from .judge import CandidateJudge, SubtypeCaller, device_of, normalized

_FEW_TILES = 16  # read before worker processes would have started


class RegionInferer(Inferer):
    """Finds the figures in an image of any size, in bounded memory.

    Of a slide with `bounds` what was scanned is searched, and of a region with `roi` that. Overlapping tiles that cover
    all tissue go through the network in batches, read by worker processes while it runs; `DetectionMerger` makes one
    list of what is found in them. Where the image's pixels measure something else than those that the network was
    trained on, the tiles are resampled to these. Tiles beyond the border, and images that are smaller than one, are
    filled up with white; what is found there is left out (but for the strip of a few pixels that `DetectionMerger`
    allows for).

    What a region's `recolour` changes, the network sees; where its tissue is, is told by the colours in the file.

    It takes `Region`s, and images at hand: uint8 tensors (3, H, W) or (1, 3, H, W). The network has to be in eval mode,
    as the engines see to; mixed precision is that of the caller's `torch.autocast`.

    Args:
        anchors: as the network has them.
        tile_size: side of a tile, in pixels as the network sees them.
        overlap: of neighbouring tiles, in the same; best as wide as a figure and what has to be seen around it.
        batch_size: tiles a batch.
        num_workers: processes that read tiles; 0 reads between the batches. Images with fewer than 17 tiles, and where
            processes are not forked those that are decoded whole, are read without.
        timeout: seconds until a process that gives no tiles is given up; 0: never.
        image_mean, image_std: of the channels, scaled to 0 to 1, as in training: the network gets float32, scaled,
            less the mean, by the standard deviation. None: it gets uint8.
        mpp: µm per pixel that the network was trained with.
        mpp_tolerance: an image whose pixels are larger or smaller by this share at most is not resampled: scanners
            with the same magnification differ by as much, and networks are trained on them as they are.
        min_tissue: tiles with a smaller share of tissue are left out, see `RegionTiles`; 0 takes all, glass too.
        suppress_radius: in pixels as the network sees them: of detections that are no further apart, whatever their
            classes, the best is kept. 25, at 0.25 µm, are those of the MIDOG challenge's reference.
        score_threshold: detections with a lower score are left out.
        top_k: how many a tile has at most.
        input_mpp: µm per pixel of images at hand, which do not say it themselves.
        judge: what a classifier says of the detections in an image, see `CandidateJudge`; None: nothing.
        subtypes: says of which kind the mitotic figures are, see `SubtypeCaller`; None: nothing does.
        progress: show a bar over the tiles of an image, when they take more than a few seconds.

    Raises:
        ValueError: when a number is out of range; when called, for another input, or as `DetectionMerger`.
        DataError: when called: the image cannot be read, or does not say how large its pixels are.

    Example::

        inferer = RegionInferer(PyramidAnchors(), image_mean=[0.5] * 3, image_std=[0.2] * 3)
        found = inferer(Region("a.svs"), network.eval())  # {"box": (n, 4), "score": (n,), "label": (n,)}
    """

    def __init__(
        self,
        anchors: PyramidAnchors,
        tile_size: int = 512,
        overlap: int = 64,
        batch_size: int = 6,
        num_workers: int = 0,
        timeout: float = 0,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        mpp: float = 0.25,
        mpp_tolerance: float = MPP_TOLERANCE,
        min_tissue: float = 0.01,
        suppress_radius: float = 25.0,
        score_threshold: float = 0.05,
        top_k: int = 300,
        input_mpp: float | None = None,
        progress: bool = True,
        judge: CandidateJudge | None = None,
        subtypes: SubtypeCaller | None = None,
    ) -> None:
        super().__init__()
        check_overlap(tile_size, overlap)
        if batch_size < 1 or mpp <= 0 or min(mpp_tolerance, suppress_radius) < 0:
            raise ValueError(
                f"expected batch_size and mpp above 0, got {batch_size} and {mpp}; mpp_tolerance and suppress_radius "
                f"of 0 or more, got {mpp_tolerance} and {suppress_radius}."
            )
        self.anchors = anchors
        self.tile_size = tile_size
        self.overlap = overlap
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.timeout = timeout
        self.image_mean = image_mean
        self.image_std = image_std
        self.mpp = mpp
        self.mpp_tolerance = mpp_tolerance
        self.min_tissue = min_tissue
        self.suppress_radius = suppress_radius
        self.score_threshold = score_threshold
        self.top_k = top_k
        self.input_mpp = input_mpp
        self.progress = progress
        self.judge = judge
        self.subtypes = subtypes

    def scale(self, region: Region) -> float:
        """Pixels of the file to one of the network.

        Raises:
            DataError: when the file does not say how large its pixels are.
        """
        if region.mpp is None:
            raise DataError(
                f"{region.path}: does not say how many µm a pixel measures, and figures are found at one scale alone, "
                f"{self.mpp:g} µm. Give it with --mpp, as 0.25 for a 40x scanner or 0.5 for a 20x one."
            )
        ratio = self.mpp / region.mpp
        return 1.0 if max(ratio, 1 / ratio) <= 1 + self.mpp_tolerance else ratio

    @torch.no_grad()
    def __call__(
        self, inputs: Region | Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Detections:
        """The detections in an image.

        Args:
            inputs: the image.
            network: gives (B, K + 4, anchors) for a batch of tiles.
            args, kwargs: more that the network takes.

        Returns:
            `box` (n, 4) float32, x1, y1, x2, y2 in pixels of the image, which it may overhang, their middles do not;
            `score` (n,) float32, descending; `label` (n,) int64; with a judge `mitotic`, with subtypes
            `subtype`, (n,) float32.
        """
        given = _ImageInMemory(inputs, self.input_mpp) if isinstance(inputs, Tensor) else inputs
        region = given.searched()
        scale = self.scale(region)
        name = str(region.path)
        tiles = RegionTiles(
            [{"image": region, "case": name}],
            self.tile_size,
            self.overlap,
            scale=scale,
            min_tissue=self.min_tissue,
        )
        class_id = None if self.judge is None else MITOTIC
        merger = DetectionMerger(self.anchors, self.suppress_radius * scale, self.score_threshold, self.top_k, class_id)
        device = device_of(network)
        workers = self._workers(region, len(tiles))
        loader = DataLoader(
            tiles,
            self.batch_size,
            num_workers=workers,
            timeout=self.timeout if workers else 0,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
        )
        bar = tqdm(total=len(tiles), desc=name[-40:], unit="tile", leave=False, delay=3, disable=not self.progress)
        try:
            for count, batch in loader:
                if batch:
                    images = batch["image"].to(device, non_blocking=True)
                    images = self._normalized(images if region.recolour is None else region.recolour(images))
                    output = network(images, *args, **kwargs)
                    places = zip(batch["origin"], batch["core"], strict=True)
                    merger.add(output, images.shape[2:], [TilePlace(name, *at, scale, region.size) for at in places])
                bar.update(count)
                progress.beat()
            found = merger.merged(name)
        finally:
            bar.close()
            merger.clear()  # its thread, too: the next image may fork its reading workers
        if region.roi is not None:
            inside = region.roi.contains(box_centres(found["box"]))
            found = {key: value[inside] for key, value in found.items()}
        if self.judge is not None:
            found = self.judge(region, found)
        if self.subtypes is not None:
            found = self.subtypes(region, found)
        corner = (0, 0) if region is given else region.corner
        return {**found, "box": found["box"] + np.array(corner * 2, np.float32)}

    def _normalized(self, images: Tensor) -> Tensor:
        # Here and not tile by tile in the workers: a quarter of the bytes to send, and one operation for a batch.
        if self.image_mean is None or self.image_std is None:
            return images
        return normalized(images, self.image_mean, self.image_std)

    def _workers(self, region: Region, tiles: int) -> int:
        decoded_in_each = region.in_memory and multiprocessing.get_start_method() != "fork"
        if tiles <= _FEW_TILES or decoded_in_each:
            return 0
        if region.in_memory:
            region.read(0, 0, 1, 1)  # decodes it: the processes share it
        return self.num_workers


class _ImageInMemory(Region):
    """An image that is at hand, in place of a file."""

    def __init__(self, image: Tensor, mpp: float | None) -> None:
        image = image[0] if image.ndim == 4 and len(image) == 1 else image
        if image.ndim != 3 or len(image) != 3 or image.dtype != torch.uint8:
            raise ValueError(
                f"an image at hand must be uint8 (3, height, width), got {image.dtype} {tuple(image.shape)}."
            )
        self.path = "the image"
        self.size = (image.shape[2], image.shape[1])
        self.mpp = mpp
        self.in_memory = True
        self._image = openslide.ImageSlide(Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()))

    def _open(self) -> openslide.ImageSlide:
        return self._image


def _collate(items: Sequence[TileData]) -> tuple[int, dict[str, Any]]:
    """How many tiles there are, and of those that do not turn out to be glass the images in one tensor, the rest in
    lists; nothing where all are.
    """
    chosen = [item for item in items if item.get("tissue", True)]
    if not chosen:
        return len(items), {}
    batch = collate_regions(chosen)
    return len(items), batch | {"image": torch.stack(batch["image"])}
