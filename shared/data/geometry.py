"""Which grids of voxels can be worked on: the same answer when data is prepared and when it is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence

import nibabel as nib
import numpy as np

from ..utils import DataError

# Largest cosine between two axes of a grid that are taken for perpendicular.
_SHEAR_TOLERANCE = 1e-3


def check_nifti_header(path: str | os.PathLike) -> None:
    """See to the header as it stands in the file: nibabel repairs a spacing ≤ 0 without saying where.

    Raises:
        DataError: as `check_geometry`. What nibabel raises of an unreadable file is not caught.
    """
    header_class = type(nib.load(path).header)
    with nib.openers.ImageOpener(path) as file:
        header = header_class.from_fileobj(file, check=False)
    rank = int(header["dim"][0])
    kind = header.get_data_dtype()
    channels = len(kind.names) if kind.names else 1
    check_geometry(path, header["dim"][1 : rank + 1].tolist(), header["pixdim"][1 : min(rank, 3) + 1], channels)


def check_geometry(path: str | os.PathLike, shape: Sequence[int], spacing: Sequence[float], channels: int) -> None:
    """See that a file holds one 3D volume with one value a voxel, and its voxels have a size.

    Args:
        path: for the message.
        shape: of all axes; those behind the third may have one voxel.
        spacing: of the first three, in mm.
        channels: values a voxel.

    Raises:
        DataError: when it does not.
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
        DataError: when the volume cannot be worked on.
    """
    matrix = affine[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    check_geometry(path, shape, spacing, channels)
    axes = matrix / spacing
    if np.abs(np.triu(axes.T @ axes, 1)).max() > _SHEAR_TOLERANCE:
        raise DataError(
            f"{path}: the axes of its grid are not perpendicular (a tilted gantry?), expected a box-shaped grid. "
            f"Resample it onto one. Affine:\n{affine}"
        )
