"""Crops of the images of MIDOG, around the annotated figures and around dark nuclei."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin
from scipy.ndimage import gaussian_filter, minimum_filter
from tqdm.contrib.concurrent import thread_map

from ..data.region_files import no_limit
from ..data.regions import reflected_indices
from ..utils import DataError, atomic_path
from .histology_entries import Entry
from .midog import MidogImage
from .midog_datalist import midog_entry
from .preparation import refuse_other_content


def crop_midog(
    images: Sequence[MidogImage],
    image_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    domain: Sequence[str] = ("scanner",),
    size: int = 64,
    unlabelled_per_image: int = 20,
    num_workers: int = 4,
) -> list[Entry]:
    """Write the crops of all images as PNG files below `output_dir`.

    Each image is decoded once, about 160 MB at a time for each worker. The crops of an image appear together when
    they are complete; images that have them are passed over, so an interrupted run goes on where it stopped.

    Args:
        images: as `find_midog` gives them.
        image_dir: where the TIFF files are.
        output_dir: gets a folder `patches` with a folder for each image.
        domain: fields for `midog_domain`.
        size: side of the crops in pixels. Beyond the edges the image is reflected.
        unlabelled_per_image: crops around dark nuclei of each image that was not annotated, at most.

    Returns:
        entries of a datalist for the crops of images that were not annotated, without a label.

    Raises:
        DataError: an image cannot be decoded, or the folder of its crops holds other files.
    """
    crop = partial(_crop_image, Path(image_dir), Path(output_dir) / "patches", size, unlabelled_per_image)
    # Threads, because Pillow decodes and encodes without holding Python's lock.
    with no_limit():  # the sizes are known and checked
        names = thread_map(crop, images, max_workers=num_workers, desc="cropping", unit="image")
    unlabelled = []
    for image, found in zip(images, names, strict=True):
        for name in [] if image.labelled else found:
            x, y = map(int, re.findall(r"\d+", name))
            entry = midog_entry(image, domain, {"image": f"patches/{image.stem}/{name}"})
            unlabelled.append(entry | {"x": float(x), "y": float(y)})
    return unlabelled


def _crop_image(image_dir: Path, patches: Path, size: int, unlabelled: int, image: MidogImage) -> list[str]:
    """Write the crops of one image, unless they are there. Returns their file names, in order."""
    folder = patches / image.stem
    centres = {f"{figure['annotation_id']}.png": (figure["x"], figure["y"]) for figure in image.figures}
    if folder.is_dir():
        found = sorted(path.name for path in folder.iterdir())
        wanted = centres if image.labelled else [n for n in found if re.fullmatch(r"x\d{5,}_y\d{5,}\.png", n)]
        if set(found) != set(wanted):
            raise DataError(f"{folder}: holds other files than the crops of {image.file_name}. Delete it, and go on.")
        return found
    if image.labelled and not centres:
        return []
    try:
        with TiffImagePlugin.TiffImageFile(image_dir / image.file_name) as pixels:
            pixels.load()
    except (OSError, SyntaxError, ValueError) as e:
        raise DataError(
            f"{image_dir / image.file_name}: cannot be decoded ({e}). Download it again, and start again: the images "
            "before it are done."
        ) from e
    if not image.labelled:
        centres = {f"x{x:05d}_y{y:05d}.png": (x, y) for x, y in dark_nuclei(pixels, unlabelled, size)}
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for name, (x, y) in centres.items():
            Image.fromarray(crop_square(pixels, x, y, size)).save(temporary / name)
    return sorted(centres)


def crop_beside(
    entries: Sequence[Entry], output_dir: str | os.PathLike, size: int = 40, num_workers: int = 4
) -> list[Entry]:
    """Of patches around a mitotic figure write its crop, and that of the darkest other nucleus, as PNG files.

    Such a nucleus is an ordinary one: easier to tell from a mitotic figure than the hard negatives that MIDOG has.

    Args:
        entries: of the patches, with full paths, the figure in the middle of each.
        output_dir: gets a folder `patches`.
        size: side of the crops in pixels; the two do not overlap. Patches without another nucleus give one crop.

    Returns:
        entries of a datalist for the crops, label 1 for figures and 0 for nuclei.

    Raises:
        DataError: when there is a folder `patches` already.
    """
    folder = Path(output_dir) / "patches"
    refuse_other_content(folder, [path.name for path in folder.glob("*")])

    def crop(temporary: Path, entry: Entry) -> list[Entry]:
        with Image.open(entry["image"]) as opened:
            patch = opened.convert("RGB")
        x, y = patch.width / 2, patch.height / 2
        others = [(a, b) for a, b in dark_nuclei(patch, 9, size // 2) if max(abs(a - x), abs(b - y)) >= size]
        found = []
        for name, label, place in (("figure", 1, [(x, y)]), ("nucleus", 0, others[:1])):
            for centre in place:
                file = f"{entry['annotation_id']}_{name}.png"
                Image.fromarray(crop_square(patch, *centre, size)).save(temporary / file)
                found.append({**entry, "image": f"patches/{file}", "label": label})
        return found

    with atomic_path(folder) as temporary:
        temporary.mkdir()
        parts = thread_map(partial(crop, temporary), entries, max_workers=num_workers, desc="cropping", unit="patch")
    return [entry for part in parts for entry in part]


def crop_square(image: Image.Image, x: float, y: float, size: int) -> np.ndarray:
    """The square around (x, y), in pixels from the image's corner; beyond its edges the image is reflected.

    The square begins at the pixel ⌊x − size / 2⌋; the edge itself is not repeated, as in `numpy.pad`'s "reflect".

    Returns:
        uint8, (size, size, 3).
    """
    columns, rows = (
        reflected_indices(np.arange(size) + math.floor(centre - size / 2), length)
        for centre, length in ((x, image.width), (y, image.height))
    )
    left, top = int(columns.min()), int(rows.min())
    part = np.asarray(image.crop((left, top, int(columns.max()) + 1, int(rows.max()) + 1)))
    return part[np.ix_(rows - top, columns - left)]


def dark_nuclei(image: Image.Image, count: int, size: int) -> list[tuple[int, int]]:
    """Centres of the darkest nuclei: minima of the smoothed red channel, which haematoxylin absorbs and eosin doesn't.

    Where blue is not clearly above green there is no stain: white ground, black borders and dust are no nuclei.

    Args:
        image: RGB, about 0.25 µm a pixel.
        count: how many at most.
        size: the centres are at least this many pixels apart in one direction, and half of it from the edges.

    Returns:
        (x, y) in pixels, from the darkest to the brightest.
    """
    shrink = 4  # to about 1 µm a pixel; a nucleus is 6 to 12
    small = np.asarray(image.reduce(shrink), np.float32)
    red, green, blue = (gaussian_filter(small[..., channel], 2) for channel in range(3))
    minimum = (red == minimum_filter(red, 7)) & (blue - green > 10)
    rows, columns = np.nonzero(minimum)
    xs, ys = columns * shrink + shrink // 2, rows * shrink + shrink // 2
    margin = size / 2
    inside = (xs >= margin) & (xs <= image.width - margin) & (ys >= margin) & (ys <= image.height - margin)
    order = np.argsort(np.where(inside, red[rows, columns], np.inf), kind="stable")[: inside.sum()]
    chosen: list[tuple[int, int]] = []
    for x, y in zip(xs[order].tolist(), ys[order].tolist(), strict=True):
        if len(chosen) == count:
            break
        if all(max(abs(x - a), abs(y - b)) >= size for a, b in chosen):
            chosen.append((x, y))
    return chosen
