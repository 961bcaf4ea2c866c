"""Which grids of voxels can be worked on: the same answer when data is prepared and when it is loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from ..utils import DataError

DEFLATED = 1032
"""Bytes that a byte of gzip, zlib or PNG stands for at most."""
# Largest cosine between two axes of a grid that are taken for perpendicular.
_SHEAR_TOLERANCE = 1e-3
_GZIP, _NIFTI_HEADERS = b"\x1f\x8b", (348, 540)  # with which files begin; the latter is their header's size
SIDES_MM = (20, 2500)
"""The longest side that a CT of a body, or of a part of it, may have."""


class Grid(NamedTuple):
    """Where the voxels of a file lie: their number along the three axes, and (4, 4), from voxels to mm, RAS."""

    path: Path
    shape: tuple[int, ...]
    affine: np.ndarray


def check_nifti_header(path: str | os.PathLike) -> None:
    """See to the header as it stands in the file: nibabel repairs a spacing ≤ 0 without saying where.

    Raises:
        DataError: as `check_geometry` and `check_claim`; also where voxels are complex numbers, or the name says gzip
            and the content does not, or the other way round. What nibabel raises of an unreadable file is not caught.
    """
    _check_packing(path)
    image = nib.load(path)
    files = {kind: image.file_map.get(kind, image.file_map["image"]).filename for kind in ("header", "image")}
    with nib.openers.ImageOpener(files["header"]) as file:
        header = type(image.header).from_fileobj(file, check=False)
    rank = int(header["dim"][0])
    kind = header.get_data_dtype()
    channels = len(kind.names) if kind.names else 1
    shape = header["dim"][1 : rank + 1].tolist()
    claimed = int(header["vox_offset"]) + math.prod(shape) * kind.itemsize
    check_claim(files["image"], claimed, DEFLATED if str(path).lower().endswith(".gz") else 1)
    check_geometry(path, shape, header["pixdim"][1 : min(rank, 3) + 1], channels)
    if kind.kind == "c":
        raise DataError(f"{path}: its voxels are complex numbers ({kind}), expected real ones. Export it again.")


def _check_packing(path: str | os.PathLike) -> None:
    with open(path, "rb") as file:
        start = file.read(4)
    named = str(path).lower().endswith(".gz")
    if start[:2] == _GZIP and not named:
        raise DataError(f"{path}: is compressed by gzip, which its name does not say. Rename it, to end in .gz.")
    if named and any(int.from_bytes(start, order) in _NIFTI_HEADERS for order in ("little", "big")):
        raise DataError(f"{path}: is not compressed, and its name says .gz. Rename it, without that.")


def check_claim(path: str | os.PathLike, claimed: int, ratio: int) -> None:
    """See that a file can hold the `claimed` bytes, before memory is taken for them; each of it is `ratio` at most.

    Raises:
        DataError: when it cannot.
    """
    size = os.path.getsize(path)
    if claimed > size * ratio:
        raise DataError(
            f"{path}: its header claims {claimed:,} bytes, a file of {size:,} bytes holds {size * ratio:,} at most. "
            "It was cut short, or its header is damaged: copy or export it again."
        )


def check_geometry(path: str | os.PathLike, shape: Sequence[int], spacing: Sequence[float], channels: int) -> None:
    """See that a file holds one 3D volume with one value a voxel, and its voxels have a size.

    Args:
        path: for the message.
        shape: of all axes; those behind the third may have one voxel.
        spacing: of the first three, in mm.
        channels: values a voxel.

    Raises:
        DataError: when it does not, or is larger than this machine's memory.
    """
    size = " × ".join(str(n) for n in shape)
    if channels != 1:
        raise DataError(
            f"{path}: a colour or multi-channel picture ({size}, {channels} values a voxel), expected a CT volume with "
            "one value a voxel."
        )
    if len(shape) < 3:
        raise DataError(f"{path}: a {len(shape)}D picture ({size}), expected a 3D volume.")
    if 0 in shape:
        raise DataError(f"{path}: an axis is empty ({size} voxels), expected a 3D volume. Export it again.")
    needed, there = 4 * math.prod(shape), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise DataError(
            f"{path}: a grid of {size} voxels needs {needed / 1e9:,.0f} GB of memory, and this machine has "
            f"{there / 1e9:,.0f}. Cut or resample the volume, or export it again where its header is wrong."
        )
    if any(n != 1 for n in shape[3:]):
        raise DataError(
            f"{path}: a {len(shape)}D volume ({size}), expected 3D. Split it, and give one time point or channel."
        )
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise DataError(
            f"{path}: the spacing in its header is {' × '.join(f'{s:g}' for s in spacing)} mm, expected three positive "
            "numbers. Correct the header, or convert the original again."
        )


def check_grid(path: str | os.PathLike, shape: Sequence[int], affine: np.ndarray, channels: int = 1) -> None:
    """`check_geometry` with the spacing that an affine gives, whose axes have to be perpendicular.

    Args:
        path, shape, channels: as there.
        affine: (4, 4), from voxels to mm.

    Raises:
        DataError: when the volume cannot be worked on, or its longest side is no CT's.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    check_geometry(path, shape, spacing, channels)
    if shear(affine) > _SHEAR_TOLERANCE:
        raise DataError(
            f"{path}: the axes of its grid are not perpendicular (a tilted gantry?), expected a box-shaped grid. "
            f"Resample it onto one. Affine:\n{affine}"
        )
    longest = longest_side(shape, affine)
    if not SIDES_MM[0] * (1 - 1e-6) <= longest <= SIDES_MM[1] * (1 + 1e-6):
        raise DataError(
            f"{path}: its longest side is {longest:.4g} mm, expected {SIDES_MM[0]} to {SIDES_MM[1]} mm. Correct the "
            "spacing in its header, or the unit of it, or convert the original again."
        )


def longest_side(shape: Sequence[int], affine: np.ndarray) -> float:
    """Of a grid, in the unit of its affine."""
    return float((np.linalg.norm(affine[:3, :3], axis=0) * shape[:3]).max())


def shear(affine: np.ndarray) -> float:
    """The largest cosine between two axes of a grid: 0 where they are perpendicular."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(np.triu(axes.T @ axes, 1)).max())
