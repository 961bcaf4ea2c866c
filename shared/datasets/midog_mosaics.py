"""Regions for a detector, put together of patches that others have cropped around MIDOG's figures."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data import PatchEntry, RegionEntry
from ..utils import DataError, atomic_path
from .midog import BOX_SIDE, MidogFigure, MidogImage
from .preparation import refuse_other_content


def write_mosaics(
    images: Sequence[MidogImage], patches: Sequence[PatchEntry], output_dir: str | os.PathLike, columns: int = 4
) -> list[RegionEntry]:
    """Put the patches of each image side by side, as PNG files below `output_dir`, with the figures in them.

    In the middle of each lies the figure that it is named after; marked are all whose middle lies in it, hard negatives
    too. Boxes end at the border of their patch, beyond which is other tissue. A row that is not full ends in white.

    Args:
        images: from `read_midog`.
        patches: of them, as `named_patches` gives them, squares of one size.
        output_dir: gets the folder `regions`.
        columns: patches side by side.

    Returns:
        Entries of a datalist, a region for each image that has a patch.

    Raises:
        DataError: when patches are no squares of one size, or the folder holds anything.
    """
    folder = Path(output_dir) / "regions"
    refuse_other_content(folder, [path.name for path in folder.glob("*")])
    side, figures, entries = _side(patches), {image.file_name: image.figures for image in images}, []
    by_image = defaultdict(list)
    for patch in patches:
        by_image[patch["file_name"]].append(patch)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for name, members in tqdm(sorted(by_image.items()), desc="regions", unit="region"):
            corners = [(side * (i % columns), side * (i // columns)) for i in range(len(members))]
            width, height = np.max(corners, axis=0) + side
            mosaic, boxes = Image.new("RGB", (int(width), int(height)), "white"), []
            for patch, corner in zip(members, corners, strict=True):
                with Image.open(patch["image"]) as image:
                    mosaic.paste(image.convert("RGB"), corner)
                boxes += [box for figure in figures[name] if (box := _box(figure, patch, corner, side))]
            mosaic.save(temporary / f"{Path(name).stem}.png")
            kept = ("domain", "slide", "labelled", "scanner", "tumor_type", "species", "origin")
            entry = {key: members[0][key] for key in kept if key in members[0]}
            entry |= {"image": f"regions/{Path(name).stem}.png", "width": int(width), "height": int(height)}
            entries.append(entry | {"box": [box for box, _ in boxes], "label": [label for _, label in boxes]})
    return entries


def _side(patches: Sequence[PatchEntry]) -> int:
    sizes = {}
    for patch in patches:
        with Image.open(patch["image"]) as image:
            sizes.setdefault(image.size, patch["image"])
    (width, height), *others = sizes
    if others or width != height:
        some = "; ".join(f"{path} has {size[0]} × {size[1]} pixels" for size, path in sizes.items())
        raise DataError(f"The patches have to be squares of one size: {some}.")
    return width


def _box(figure: MidogFigure, patch: PatchEntry, corner: tuple[int, int], side: int) -> tuple[list[float], int] | None:
    """The box of a figure in the mosaic and its label; None where its middle is not in the patch."""
    middle = np.array([figure["x"] - patch["x"], figure["y"] - patch["y"]]) + side / 2
    if (middle < 0).any() or (middle >= side).any():
        return None
    low, high = np.clip([middle - BOX_SIDE / 2, middle + BOX_SIDE / 2], 0, side) + corner
    return [*low.tolist(), *high.tolist()], figure["label"]
