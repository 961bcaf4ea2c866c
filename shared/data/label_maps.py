"""Label maps as files hold them, made into ids of classes on the voxels of their image: one way for every use."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import NamedTuple

import nibabel as nib
import numpy as np

from ..utils import DataError
from ..utils.text import first_few
from .geometry import Grid
from .labels import MOST_FILE_ID

logger = logging.getLogger(__name__)

REORIENTED = "has the voxels of its image, with the axes in another order or direction, and is turned to the image's"

_ROUNDING = 1e-3  # of labels, to a whole number; of voxel centres, in voxels
_AFFINE_TOLERANCE = 1e-3  # of affines whose axes agree: mm, or mm a voxel
_TOLD: set[tuple[int, ...]] = set()  # the classes whose left-out values were told of: many files need not repeat it


class LabelMap(NamedTuple):
    """Ids of classes, uint8, (x, y, z), and whether the file has the axes of its image in another order or direction.

    `left_out` are the values of the file that stand for no class and have become background.
    """

    voxels: np.ndarray
    reoriented: bool
    left_out: tuple[int, ...]


def to_label_map(
    voxels: np.ndarray, grid: Grid, classes: Mapping[int, int], others: bool = False, image: Grid | None = None
) -> LabelMap:
    """The label map of classes in the voxels of a file, on the voxels of an image.

    Values within 1e-3 of a whole number are taken for it: headers scale, and programs resample. A map with the same
    voxel centres as the image, but with its axes in another order or direction, is turned to the image's; one that
    differs in left and right alone is warned of, since it may as well be a mistake.

    Args:
        voxels: (x, y, z), of any type.
        grid: where they lie.
        classes: id in the file → id of the class, 1 to 255; 0 is the background.
        others: other values, up to 65535, become background, which a line in the log says once.
        image: the grid that the map has to be on; None: its own.

    Raises:
        DataError: when it lies on other voxels, or holds values that are no labels; the message has them.
    """
    orientation = _orientation(grid, image) if image else None
    found, values = _to_classes(voxels, grid.path, classes, others)
    if values and (key := tuple(classes)) not in _TOLD:
        _TOLD.add(key)
        logger.info(
            "%s: the values %s are not in label_ids and become background, here and in other files (said once)",
            grid.path,
            first_few([str(value) for value in values], 10),
        )
    if orientation is None:
        return LabelMap(found, False, values)
    return LabelMap(np.ascontiguousarray(nib.orientations.apply_orientation(found, orientation)), True, values)


def _orientation(grid: Grid, image: Grid) -> np.ndarray | None:
    """How the map's axes have to be turned to lie as the image's, as nibabel says it; None where they do."""
    remedy = "The label map has to be drawn on, or resampled (nearest neighbour) to, this image."
    found = nib.io_orientation(np.linalg.inv(image.affine) @ grid.affine)
    same = np.array_equal(found, [[0, 1], [1, 1], [2, 1]])
    shape = tuple(grid.shape[i] for i in np.argsort(found[:, 0]))
    if shape != tuple(image.shape):
        size = " × ".join(map(str, grid.shape))
        expected = " × ".join(map(str, image.shape))
        raise DataError(f"{grid.path}: a grid of {size} voxels, expected {expected} as in {image.path}. {remedy}")
    affine = grid.affine @ nib.orientations.inv_ornt_aff(found, grid.shape)
    if same:
        fits = np.abs(affine - image.affine).max() <= _AFFINE_TOLERANCE
    else:
        corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(image.shape) - 1)
        places = nib.affines.apply_affine(np.linalg.inv(image.affine) @ affine, corners)
        fits = np.abs(places - corners).max() <= _ROUNDING
    if not fits:
        raise DataError(
            f"{grid.path}: its affine is\n{grid.affine}\nexpected that of {image.path}\n{image.affine}\n{remedy}"
        )
    if same:
        return None
    flipped = [int(axis) for axis, flip in found if flip < 0]
    if np.array_equal(found[:, 0], [0, 1, 2]) and [np.abs(image.affine[:3, axis]).argmax() for axis in flipped] == [0]:
        logger.warning(
            "%s: has the voxels of %s, stored from left to right instead of right to left, or the other way round, and "
            "is turned. Look whether left and right organs lie right: often one of the two headers is wrong.",
            grid.path,
            image.path,
        )
    return found


def _to_classes(
    voxels: np.ndarray, path: str | os.PathLike, classes: Mapping[int, int], others: bool
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The classes, uint8, and the values that have become background."""
    table = np.zeros(MOST_FILE_ID + 1, np.uint8)
    table[list(classes)] = list(classes.values())
    known = np.full(MOST_FILE_ID + 1, others)
    known[[0, *classes]] = True
    result, seen, strange = np.empty(voxels.shape, np.uint8), np.zeros(MOST_FILE_ID + 1, bool), []
    slowest = int(np.argmax(voxels.strides))
    for part, target in zip(np.moveaxis(voxels, slowest, 0), np.moveaxis(result, slowest, 0), strict=True):
        with np.errstate(invalid="ignore"):  # NaN, which is no label
            whole = part if part.dtype.kind in "iu" else np.rint(part)
            wrong = ~((np.abs(part - whole) <= _ROUNDING) & (whole >= 0) & (whole <= MOST_FILE_ID))
        ids = np.where(wrong, 0, whole).astype(np.uint16)
        wrong |= ~known[ids]
        if wrong.any():
            strange.append(part[wrong])
        seen[ids] = True
        target[...] = table[ids]
    if strange:
        _refuse_values(path, np.concatenate(strange), classes, others)
    seen[[0, *classes]] = False
    return result, tuple(np.flatnonzero(seen).tolist())


def _refuse_values(path: str | os.PathLike, wrong: np.ndarray, classes: Mapping[int, int], others: bool) -> None:
    # the shortest text that tells a value from its neighbours: 0.998 must not read as 1
    shown = [f"{value:.0f}" if value == np.rint(value) else str(value) for value in np.unique(wrong)]
    ids = sorted(classes)
    if others:
        expected = f"from 0 to {MOST_FILE_ID}"
    elif ids == list(range(1, len(ids) + 1)):
        expected = f"from 0 to {len(ids)}"
    else:
        expected = "0 and " + first_few([str(i) for i in ids], 20)
    raise DataError(
        f"{path}: holds the label values {first_few(shown, 10)} in {len(wrong)} voxels, expected whole numbers "
        f"{expected}. Correct the file, or set `labels` to what the files hold, or map their ids with `label_ids`."
    )
