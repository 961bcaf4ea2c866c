"""Copies of a datalist's images in other styles, for STRAP (Yamashita et al., IEEE TMI 2021, arXiv 2102.01678)."""

from __future__ import annotations

import hashlib
import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..data import Region, open_region, read_rgb, weights_digest
from ..data.histology_datalist import HistologyDatalist, PatchDatalist, RegionDatalist
from ..networks.style_transfer import EPSILON, AdaINNetwork, Moments, PyramidTransfer, StyleTransfer
from ..utils import DataError, atomic_path, fault_list, is_disk_full, read_json_object, writable_folder, write_json
from .preparation import NEW_FOLDER, repeated
from .styles import Styles

LEAST = 64  # pixels of a side that is redrawn at least; smaller images are mirrored at their edges
TILE, TIFF_TILE = 1024, 256  # pixels of a region that are redrawn at a time, and of its file


@dataclass(frozen=True)
class Drawing:
    """How images are redrawn.

    Attributes:
        styles: folder of pictures; None: made-up textures.
        encoder, decoder: weights of AdaIN's network; None: in Laplacian pyramids.
        alpha: how far towards the style, 0 to 1.
        content_size: pixels to which the shorter side of a patch is scaled for the network of AdaIN; 0: as it is.
            Regions are redrawn as they are.
        style_size: side of a picture in pixels.
        seed: of the draw of styles.
        device: where it is done, as torch calls it.
    """

    styles: Path | None = None
    encoder: Path | None = None
    decoder: Path | None = None
    alpha: float = 1.0
    content_size: int = 256
    style_size: int = 256
    seed: int = 0
    device: str = "cpu"

    def settings(self) -> dict[str, Any]:
        """What the copies depend on."""
        facts = {key: value for key, value in asdict(self).items() if key not in ("styles", "device")}
        for name in ("encoder", "decoder"):
            facts[name] = facts[name] and weights_digest(facts[name])
        files = _tools(self)[1].files
        names = "\n".join(file.relative_to(self.styles).as_posix() for file in files)
        style = f"{len(files)} pictures, {hashlib.sha256(names.encode()).hexdigest()[:16]}" if files else "textures"
        return {"method": "AdaIN" if self.encoder else "Laplacian pyramids", "styles": style, **facts}


class Copy(NamedTuple):
    """An image that is to be redrawn.

    Attributes:
        name: its path in the datalist, which decides its style.
        source: its file.
        target: that of the copy.
    """

    name: str
    source: Path
    target: Path

    def is_done(self) -> bool:
        """Whether the copy is there, and no older than the image."""
        return self.target.is_file() and self.target.stat().st_mtime >= self.source.stat().st_mtime


@lru_cache(maxsize=1)
def _tools(drawing: Drawing) -> tuple[StyleTransfer, Styles]:
    """Made once in each process."""
    if bool(drawing.encoder) != bool(drawing.decoder):
        raise DataError("AdaIN needs both --encoder and --decoder; without both, pyramids are taken.")
    network = AdaINNetwork(drawing.encoder, drawing.decoder) if drawing.encoder else PyramidTransfer()
    styles = Styles(drawing.styles, drawing.style_size, drawing.seed)
    return network.eval().to(drawing.device).requires_grad_(False), styles


@lru_cache(maxsize=4096)
def _style(drawing: Drawing, number: int) -> list[Moments]:
    network, styles = _tools(drawing)
    return network.moments(_padded(_to_tensor(styles.picture(number), drawing.device)[None], network.grid))


def style_of(drawing: Drawing, name: str) -> str:
    """What the style of an image is called."""
    styles = _tools(drawing)[1]
    return styles.title(styles.number(name))


def redraw_patches(drawing: Drawing, images: Sequence[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
    """Images of one size, each in its style.

    Args:
        drawing: how.
        images: uint8 (H, W, 3).
        names: decide their styles.

    Returns:
        the same of the same size.
    """
    network, styles = _tools(drawing)
    moments = [_style(drawing, styles.number(name)) for name in names]
    style = [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*moments, strict=True)]
    batch = torch.stack([_to_tensor(image, drawing.device) for image in images])
    size = batch.shape[-2:]
    scaled = drawing.content_size / min(size) if drawing.encoder and drawing.content_size else 1
    if scaled != 1:
        large = [max(1, round(length * scaled)) for length in size]
        batch = F.interpolate(batch, large, mode="bilinear", antialias=True)
    drawn = network(_padded(batch, network.grid), style, alpha=drawing.alpha)[..., : batch.shape[-2], : batch.shape[-1]]
    if scaled != 1:
        drawn = F.interpolate(drawn, tuple(size), mode="bilinear", antialias=True)
    return [_to_pixels(image) for image in drawn]


def redraw_region(drawing: Drawing, region: Region, name: str, tile: int = TILE) -> Iterator[np.ndarray]:
    """A region of any size in its style, in stripes from the top, (h, width, 3) each.

    Tile by tile, each with what is around it, and twice: first to see the moments of the whole, then to redraw by them.
    So it comes out as if it were redrawn at once, without seams, in the memory of a tile.
    """
    network, styles = _tools(drawing)
    style, own = _style(drawing, styles.number(name)), _region_moments(drawing, region, tile)
    for y in range(0, region.size[1], tile):
        stripe = [
            _to_pixels(network(_window(drawing, region, x, y, tile), style, own, drawing.alpha)[0])
            for x in range(0, region.size[0], tile)
        ]
        inner = [
            part[network.margin : network.margin + tile, network.margin : network.margin + tile] for part in stripe
        ]
        yield np.concatenate(inner, axis=1)[: region.size[1] - y, : region.size[0]]


def _region_moments(drawing: Drawing, region: Region, tile: int) -> list[Moments]:
    """Those of all of it, from sums over tiles without what is around them."""
    network, sums = _tools(drawing)[0], []
    for y in range(0, region.size[1], tile):
        for x in range(0, region.size[0], tile):
            window = _window(drawing, region, x, y, tile)
            width, height = min(tile, region.size[0] - x), min(tile, region.size[1] - y)
            for i, part in enumerate(network.features(window)):
                step = window.shape[-1] // part.shape[-1]
                first = network.margin // step
                inner = part[..., first : first + -(-height // step), first : first + -(-width // step)].double()
                found = torch.stack([torch.full_like(inner[0, :, 0, 0], inner[0, 0].numel()), inner[0].sum((1, 2))])
                found = torch.cat([found, inner[0].square().sum((1, 2))[None]])
                sums[i : i + 1] = [sums[i] + found if i < len(sums) else found]
    moments = []
    for count, total, squares in sums:
        mean = total / count
        variance = (squares - count * mean**2) / (count - 1).clamp(min=1)
        std = (variance.clamp(min=0) + EPSILON).sqrt()
        moments.append((mean.float()[None, :, None, None], std.float()[None, :, None, None]))
    return moments


def _window(drawing: Drawing, region: Region, x: int, y: int, tile: int) -> Tensor:
    """A tile with a margin around it, mirrored where the region ends."""
    margin = _tools(drawing)[0].margin
    edges = [
        (max(0, at - margin), min(length, at + tile + margin)) for at, length in zip((x, y), region.size, strict=True)
    ]
    (left, right), (top, bottom) = edges
    pixels = region.read(left, top, right - left, bottom - top)
    before = margin - (y - top), margin - (x - left)
    after = tile + 2 * margin - before[0] - (bottom - top), tile + 2 * margin - before[1] - (right - left)
    pads = (*zip(before, after, strict=True), (0, 0))
    return _to_tensor(np.pad(pixels, pads, mode="symmetric"), drawing.device)[None]


def _padded(batch: Tensor, grid: int) -> Tensor:
    """Mirrored at the right and the lower edge, to a multiple of the grid and no less than `LEAST`."""
    for axis in (-1, -2):
        length = batch.shape[axis]
        wanted = max(LEAST, math.ceil(length / grid) * grid)
        index = np.pad(np.arange(length), (0, wanted - length), mode="symmetric")
        batch = batch.index_select(axis, torch.from_numpy(index).to(batch.device))
    return batch


def _to_tensor(pixels: np.ndarray, device: str) -> Tensor:
    return torch.tensor(pixels).to(device).permute(2, 0, 1).float() / 255


def _to_pixels(image: Tensor) -> np.ndarray:
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def write_patches(drawing: Drawing, copies: Sequence[Copy]) -> list[str]:
    """Redraw and write patches, those of one size together; what is wrong with some of them."""
    faults: list[str] = []
    sizes: dict[tuple[int, int], list[tuple[Copy, np.ndarray]]] = {}
    for copy in copies:
        try:
            image = np.array(read_rgb(copy.source))
        except DataError as e:
            faults.append(str(e))
        else:
            sizes.setdefault(image.shape[:2], []).append((copy, image))
    for alike in sizes.values():
        drawn = redraw_patches(drawing, [image for _, image in alike], [copy.name for copy, _ in alike])
        for (copy, _), image in zip(alike, drawn, strict=True):
            with atomic_path(copy.target) as temporary:
                Image.fromarray(image).save(temporary)
    return faults


def write_regions(drawing: Drawing, copies: Sequence[Copy]) -> list[str]:
    """Redraw and write regions as tiled TIFF, of which training reads parts; what is wrong with some of them."""
    faults = []
    for copy in copies:
        try:
            region = open_region(copy.source)
            with atomic_path(copy.target) as temporary:
                _write_tiff(temporary, redraw_region(drawing, region, copy.name), region)
        except DataError as e:
            if is_disk_full(e):
                raise
            faults.append(str(e))
    return faults


def _write_tiff(path: Path, stripes: Iterator[np.ndarray], region: Region) -> None:
    def tiles() -> Iterator[np.ndarray]:
        for stripe in stripes:
            for y in range(0, len(stripe), TIFF_TILE):
                for x in range(0, region.size[0], TIFF_TILE):
                    yield np.ascontiguousarray(stripe[y : y + TIFF_TILE, x : x + TIFF_TILE])

    resolution = {} if region.mpp is None else {"resolution": (1e4 / region.mpp,) * 2, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(
            tiles(),
            shape=(*region.size[::-1], 3),
            dtype=np.uint8,
            tile=(TIFF_TILE, TIFF_TILE),
            photometric="rgb",
            compression="zlib",
            metadata=None,
            **resolution,
        )


def stylize_datalist(
    datalist: Path, output: Path, drawing: Drawing, lists: str, batch_size: int, processes: int
) -> tuple[dict[str, Any], list[Copy]]:
    """Redraw the images of a datalist of patches or regions, but for those that are done.

    Args:
        datalist: a JSON file.
        output: of the new datalist; the copies go into a folder beside it, called like it without `.json`.
        drawing: how.
        lists: "training", or "all" for all that are labelled.
        batch_size: patches at a time, in each process.
        processes: how many.

    Returns:
        the new datalist, whose entries have `stylized`, the path of the copy, where there is one; and the copies.

    Raises:
        DataError: when the datalist, the styles or the weights cannot be used, the folder holds copies that were made
            otherwise, or some images cannot be read: the others are redrawn then, and kept.
    """
    found, folder = read_datalist(datalist), output.with_suffix("")
    names = ["training"] if lists == "training" else [n for n in found.image_lists() if n != "unlabelled"]
    images = dict.fromkeys(os.path.normpath(entry["image"]) for name in names for entry in found.entries(name))
    is_region = isinstance(found, RegionDatalist)
    copies = {name: Copy(name, datalist.parent / name, copy_path(folder, name, is_region)) for name in images}
    if twice := repeated(copy.target for copy in copies.values()):
        raise DataError(f"{datalist}: two images would have the copy {twice[0]}. Rename one of them.")
    claim(folder, drawing)
    lost = [str(copy.source) for copy in copies.values() if not copy.source.is_file()]
    if lost:
        raise DataError(f"{datalist}: {len(lost)} of {len(copies)} images are not there:{fault_list(lost, 5)}")
    _redraw_all(datalist, drawing, list(copies.values()), is_region, batch_size, processes)
    content = {
        key: [_entry(entry, datalist, output, copies) for entry in value] if key in found.image_lists() else value
        for key, value in found.content.items()
    }
    return content | {"stylized": {"lists": lists, **drawing.settings()}}, list(copies.values())


def read_datalist(path: Path) -> HistologyDatalist:
    """A datalist of regions where it has a `box_mode`, else of patches."""
    patches = PatchDatalist(path)
    return RegionDatalist(path) if "box_mode" in patches.content else patches


def copy_path(folder: Path, name: str, is_region: bool) -> Path:
    """Below the folder as the image lies below that of the datalist, or below what they have in common."""
    parts = [part for part in Path(name).parts if part not in ("..", Path(name).anchor)]
    path = folder.joinpath("images", *parts)
    return path.with_name(path.stem + (".tif" if is_region else ".png"))


def claim(folder: Path, drawing: Drawing) -> None:
    """Make the folder, or go on in one whose copies were made alike, which `settings.json` in it tells."""
    settings, mark = drawing.settings(), writable_folder(folder) / "settings.json"
    before = read_json_object(mark, "the settings of an earlier run", NEW_FOLDER) if mark.exists() else settings
    if differ := [f"{key} {before.get(key)}" for key, value in settings.items() if before.get(key) != value]:
        raise DataError(f"{folder}: holds copies made otherwise: {', '.join(differ)}. Choose another --output.")
    write_json(mark, settings)


def _redraw_all(
    datalist: Path, drawing: Drawing, copies: Sequence[Copy], is_region: bool, batch_size: int, processes: int
) -> None:
    waiting = [copy for copy in copies if not copy.is_done()]
    size = 1 if is_region else batch_size
    batches = [waiting[i : i + size] for i in range(0, len(waiting), size)]
    write = partial(write_regions if is_region else write_patches, drawing)
    bar = tqdm(total=len(copies), initial=len(copies) - len(waiting), desc="redrawing", unit="image")
    faults: list[str] = []
    with bar:
        for batch, wrong in zip(batches, _in_processes(write, batches, processes), strict=True):
            faults += wrong
            bar.update(len(batch))
    if faults:
        raise DataError(
            f"{datalist}: {len(faults)} of {len(copies)} images cannot be redrawn; the others are, and kept. Copy "
            f"these again, or take them out of the datalist, and run the same command again.{fault_list(faults)}"
        )


def _in_processes(write: partial, batches: Sequence[Sequence[Copy]], processes: int) -> Iterator[list[str]]:
    if min(processes, len(batches)) <= 1:
        yield from map(write, batches)
        return
    # Forking a process that has threads may deadlock; a spawned one starts clean.
    with ProcessPoolExecutor(min(processes, len(batches)), get_context("spawn"), _start) as pool:
        yield from pool.map(write, batches)


def _start() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what began is finished, and no other is begun


def _entry(entry: Mapping[str, Any], datalist: Path, output: Path, copies: Mapping[str, Copy]) -> dict[str, Any]:
    """An entry of the new datalist, with paths from its folder."""
    copy = copies.get(os.path.normpath(entry["image"]))
    moved = {**entry, "image": os.path.relpath(datalist.parent / entry["image"], output.parent)}
    moved.pop("stylized", None)
    return moved | ({"stylized": os.path.relpath(copy.target, output.parent)} if copy else {})
