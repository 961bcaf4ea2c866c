"""Images and what a stain normaliser makes of them, from which StainNet learns (Kang et al., Front. Med. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data import Region, list_images, open_region, tissue_mask
from ..data.tissue import has_colour
from ..utils import DataError, fault_list
from .preparation import refuse, repeated

TILE, TILES = 256, 8  # pixels of the side of a tile, and how many of a larger image are read at most
PIXELS = 1024  # of an image or tile that are learned from
LEAST_COLOUR = 0.01  # share of these, of all images, that has to be tissue
PAIRS = "pairs"  # the domain of what has none

Teacher = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class StainPair(NamedTuple):
    """An image, or a tile of one, and what the teacher makes of it.

    Attributes:
        name: of the image.
        domain: such as its scanner.
        source, wanted: uint8 (3, H, W), RGB.
    """

    name: str
    domain: str
    source: Tensor
    wanted: Tensor


def paired_images(source_dir: Path, teacher_dir: Path) -> list[dict[str, str]]:
    """The pictures of two folders that have the same names, but for their extensions.

    Args:
        source_dir: with the images as they are.
        teacher_dir: with the same as a teacher normalised them.

    Returns:
        `image` and `wanted`, the two paths, and `case`, the name; in alphabetical order.

    Raises:
        DataError: when a folder is missing or holds no picture, a picture has no partner, or pairs cannot be read or
            differ in size.
    """
    ours, theirs = _by_name(source_dir), _by_name(teacher_dir)
    for folder, own, other, others in (
        (source_dir, ours, teacher_dir, theirs),
        (teacher_dir, theirs, source_dir, ours),
    ):
        message = "{count} of its pictures have no partner of the same name in {other}: {few}. Expected pairs."
        refuse(folder, sorted(own.keys() - others.keys()), message, other=other)
    faults = [fault for name in ours if (fault := _fault(ours[name], theirs[name]))]
    if faults:
        raise DataError(
            f"{source_dir}: {len(faults)} of the {len(ours)} pairs with {teacher_dir} cannot be used. Export them "
            f"again, or take them out.{fault_list(faults)}"
        )
    return [{"image": str(ours[name]), "wanted": str(theirs[name]), "case": name} for name in sorted(ours)]


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Expected one with pictures.")
    files = [Path(image["image"]) for image in list_images(folder)]
    names = [file.relative_to(folder).with_suffix("").as_posix() for file in files]
    refuse(folder, repeated(names), "has several pictures called {0}. Which one is meant? Take the others out.")
    return dict(zip(names, files, strict=True))


def _fault(source: Path, wanted: Path) -> str | None:
    try:
        (width, height), other = (open_region(path).size for path in (source, wanted))
    except DataError as e:
        return str(e)
    differ = f"{source}: has {width} × {height} pixels, and {wanted} {other[0]} × {other[1]}."
    return None if (width, height) == other else differ


def read_pairs(
    entries: Sequence[Mapping[str, Any]], most: int, seed: int, teacher: Teacher | None = None
) -> Iterator[StainPair]:
    """Read images in random order, with a bar: small ones whole, of larger ones tiles with tissue in the middle.

    Args:
        entries: each with `image`, a path or `Region`, `case`, and `domain` where it has one.
        most: images and tiles at most; of more entries as many are drawn, and of an image as many tiles, up to 8, as
            there is room for.
        seed: of the order and of the places of tiles.
        teacher: makes of an entry whose `image` is uint8 (3, H, W) the same as it is wanted; None: the pixels wanted
            are those of the path under `wanted`.

    Raises:
        DataError: when an image cannot be read, and what the teacher raises.
    """
    rng = np.random.default_rng(seed)
    order, tiles = rng.permutation(len(entries))[:most], max(1, min(TILES, most // len(entries)))
    for i in tqdm(order.tolist(), desc="reading", unit="image", delay=2):
        entry, region = entries[i], open_region(entries[i]["image"])
        for window in _windows(region, tiles, rng):
            pixels = _read(region, window)
            wanted = teacher({**entry, "image": pixels})["image"] if teacher else _read(entry["wanted"], window)
            yield StainPair(entry["case"], entry.get("domain", PAIRS), pixels, wanted)


def _windows(region: Region, count: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """x, y, width and height of what is read, in pixels of the file."""
    if max(region.size) <= TILE:
        return [(0, 0, *region.size)]
    mask, scale = tissue_mask(region)
    places = np.argwhere(mask if mask.any() else np.ones_like(mask))[:, ::-1]
    extent = np.minimum(region.size, TILE)
    centres = (places[rng.integers(0, len(places), count)] + 0.5) * scale
    corners = np.clip(np.rint(centres - extent / 2), 0, region.size - extent).astype(int)
    return [(x, y, *extent.tolist()) for x, y in corners.tolist()]


def _read(image: str | Region, window: tuple[int, int, int, int]) -> Tensor:
    return torch.from_numpy(open_region(image).read(*window)).permute(2, 0, 1).contiguous()


def draw_pixels(pairs: Iterable[StainPair], seed: int) -> tuple[Tensor, Tensor]:
    """1024 pixels of each pair, at the same places in both; of smaller ones some several times.

    StainNet sees every pixel by itself, so that those around it add nothing.

    Returns:
        two of uint8 (N, 3, 1024).

    Raises:
        DataError: when hardly a pixel has the colour of tissue, here or there.
    """
    rng, drawn = np.random.default_rng(seed), []
    for pair in pairs:
        both = torch.stack([pair.source, pair.wanted]).flatten(2)
        chosen = rng.choice(both.shape[-1], PIXELS, replace=both.shape[-1] < PIXELS)
        drawn.append(both[..., torch.from_numpy(chosen)])
    source, wanted = torch.stack(drawn, dim=1)
    for pixels, what in ((source, "the images"), (wanted, "what the teacher makes of them")):
        coloured = has_colour(pixels.movedim(1, -1).numpy().astype(np.float32)).mean()
        if coloured < LEAST_COLOUR:
            raise DataError(
                f"Of {what}, {len(drawn)} to learn from, {coloured:.1%} of the pixels have the colour of tissue, "
                f"expected at least {LEAST_COLOUR:.0%}. Are they grey, or empty? StainNet needs slides with H&E."
            )
    return source, wanted
