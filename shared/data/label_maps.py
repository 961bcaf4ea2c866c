"""Label maps as files hold them, made into ids of classes on the voxels of their image: one way for every use."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import ignite.distributed as idist
import nibabel as nib
import numpy as np
from tqdm.contrib.concurrent import thread_map

from ..utils import DataError
from ..utils.text import first_few
from .geometry import Grid
from .labels import MOST_FILE_ID
from .volumes import find_grid

logger = logging.getLogger(__name__)

_ROUNDING = 1e-3  # of labels, to a whole number; of voxel centres, in voxels
_AFFINE_TOLERANCE = 1e-3  # of affines whose axes agree: mm, or mm a voxel
_MOST_NAMES = 50  # in one message
_TOLD: set[tuple[int, ...]] = set()  # the classes whose left-out values were told of: many files need not repeat it


class LabelMap(NamedTuple):
    """Ids of classes, uint8, (x, y, z), and how the file had to be turned to lie as its image does.

    `reoriented` is "" where it did, "turned" where its axes have another order or direction, and "flipped" where left
    and right alone are exchanged. `left_out` are the values that stand for no class and have become background.
    """

    voxels: np.ndarray
    reoriented: str
    left_out: tuple[int, ...]


def to_label_map(
    voxels: np.ndarray, grid: Grid, classes: Mapping[int, int], others: bool = False, image: Grid | None = None
) -> LabelMap:
    """The label map of classes in the voxels of a file, on the voxels of an image.

    Values within 1e-3 of a whole number are taken for it: headers scale, and programs resample. A map with the same
    voxel centres as the image, but with its axes in another order or direction, is turned to the image's; whoever reads
    many counts these with `log_reoriented`.

    Args:
        voxels: (x, y, z), of any type.
        grid: where they lie.
        classes: id in the file → id of the class, 1 to 255; 0 is the background.
        others: other values, up to 65535, become background, which a line in the log says once.
        image: the grid that the map has to be on; None: its own.

    Raises:
        DataError: when it lies on other voxels, or holds values that are no labels; the message has them.
    """
    orientation = _orientation(grid, image or grid)
    found, values = _to_classes(voxels, grid.path, classes, others)
    if values and (key := tuple(classes)) not in _TOLD:
        _TOLD.add(key)
        logger.info(
            "%s: the values %s are not in label_ids and become background, here and in other files (said once)",
            grid.path,
            first_few([str(value) for value in values], 10),
        )
    reoriented = _in_words(orientation, image or grid)
    if reoriented:
        found = np.ascontiguousarray(nib.orientations.apply_orientation(found, orientation))
    return LabelMap(found, reoriented, values)


def tell_reoriented(
    source: str | os.PathLike, cases: Sequence[Mapping[str, Any]], assume_orientation: str | None = None
) -> None:
    """Say before a run, in one line of the log, how many label maps loading will turn, see `to_label_map`.

    Only headers are read, so that it is said of preprocessed cases that are kept, too. What cannot be read, or does not
    fit, is passed over: loading says what is wrong with it. Of several ranks the first does it.

    Args:
        source: the file that lists the cases.
        cases: dicts with `image` and `label`, full paths, and of a DICOM series in `image` its `series`.
        assume_orientation: see `LoadVolumed`.
    """
    if idist.get_rank() > 0:
        return

    def reoriented(case: Mapping[str, Any]) -> str:
        find = partial(find_grid, assumed=assume_orientation)
        try:
            image = find(case["image"], series=case.get("series"))[0]
            return _in_words(_orientation(find(case["label"])[0], image), image)
        except DataError:
            return ""

    found = thread_map(reoriented, cases, desc="headers of label maps", unit="case", delay=3, leave=False)
    names = [os.path.relpath(case["label"], os.path.dirname(source)) for case in cases]
    log_reoriented(source, dict(zip(names, found, strict=True)))


def log_reoriented(
    source: str | os.PathLike, reoriented: Mapping[str, str], what: str = "{} of {} label maps have their"
) -> None:
    """Say in one line of the log how many label maps were turned, and which are flipped.

    Args:
        source: what they belong to.
        reoriented: name of each → `LabelMap.reoriented`.
        what: begin of the sentence.
    """
    if not (turned := [name for name, how in reoriented.items() if how]):
        return
    text = what.format(len(turned), len(reoriented)) + " voxels in another order than their scan and are reoriented"
    flipped = [name for name in turned if reoriented[name] == "flipped"]
    if not flipped:
        logger.info("%s: %s", source, text)
        return
    logger.warning(
        "%s: %s; %d of these with left and right exchanged and nothing else: %s. Look whether left and right organs "
        "lie right there: often one of the two headers is wrong.",
        source,
        text,
        len(flipped),
        first_few(flipped, _MOST_NAMES),
    )


def _orientation(grid: Grid, image: Grid) -> np.ndarray:
    """How the map's axes have to be turned to lie as the image's, as nibabel says it."""
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
    return found


def _in_words(orientation: np.ndarray, image: Grid) -> str:
    """What `LabelMap.reoriented` says of it."""
    if np.array_equal(orientation, [[0, 1], [1, 1], [2, 1]]):
        return ""
    flipped = [int(axis) for axis, flip in orientation if flip < 0]
    in_order = np.array_equal(orientation[:, 0], [0, 1, 2])
    alone = in_order and [np.abs(image.affine[:3, axis]).argmax() for axis in flipped] == [0]
    return "flipped" if alone else "turned"


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
