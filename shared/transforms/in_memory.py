"""Volumes that a program hands over in memory instead of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from ..data.volumes import settle_sides
from ..utils import DataError

_LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])


def volume_in_memory(
    array: np.ndarray | torch.Tensor, name: Path, assumed: str | None = None, sided: tuple[str, ...] = ()
) -> tuple[MetaTensor, list[str]]:
    """A volume as it would come out of a file, float32 (1, x, y, z) on the CPU, and in words what to warn of.

    Args:
        array: real numbers, (x, y, z), (1, x, y, z) or (x, y, z, 1); it stays as it is. A `MetaTensor` says where its
            voxels lie, by its affine to mm, RAS, or LPS if its `space` is that. Any other array has voxels of 1 mm.
        name: what errors call it.
        assumed: where the axes of an array point to that has no affine, as RAS.
        sided: organs that have sides.

    Raises:
        DataError: when it is no 3D volume of one real number a voxel, its affine is no 4 × 4, or there are sided
            organs, an array without affine, and nothing is assumed.
    """
    meta = dict(array.meta) if isinstance(array, MetaTensor) else {}
    values = array.detach().cpu() if isinstance(array, torch.Tensor) else torch.from_numpy(_real(array, name))
    values = values.as_subclass(torch.Tensor)
    if values.is_complex():
        raise DataError(f"{name}: its voxels are {values.dtype}, expected real numbers, HU.")
    volume = _one_channel(values, name).to(torch.float32, copy=True)
    if isinstance(array, MetaTensor):
        affine, remarks = _affine_of(array, name), []
    else:
        affine, remarks = settle_sides(name, np.eye(4), "an array, without a MetaTensor's affine", assumed, sided)
        remarks.append(f"{name}: an array, without a MetaTensor's affine: its voxels are taken for 1 mm.")
    kept = {"filename_or_obj": str(meta.get("filename_or_obj") or ""), "space": "RAS", "remarks": ""}
    kept |= {"spatial_shape": np.array(volume.shape[1:]), "original_affine": torch.from_numpy(affine)}
    return MetaTensor(volume, affine=torch.from_numpy(affine), meta=kept), remarks


def _real(array: np.ndarray, name: Path) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name}: its voxels are {array.dtype}, expected real numbers, HU.")
    return np.array(array, np.float32)


def _one_channel(values: torch.Tensor, name: Path) -> torch.Tensor:
    """Channel first, of an array with or without a channel."""
    if values.ndim == 3:
        return values[None]
    if values.ndim == 4 and 1 in (values.shape[0], values.shape[-1]):
        return values if values.shape[0] == 1 else values.movedim(-1, 0)
    size = " × ".join(map(str, values.shape))
    raise DataError(
        f"{name}: an array of {values.ndim} axes ({size}), expected x × y × z voxels, or 1 × x × y × z. Give one "
        "volume, with one value a voxel."
    )


def _affine_of(volume: MetaTensor, name: Path) -> np.ndarray:
    affine = volume.affine.detach().cpu().double().numpy()
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise DataError(
            f"{name}: its affine is {affine.tolist()}, expected 4 × 4 finite numbers that lead from voxels to mm, RAS."
        )
    return _LPS_TO_RAS @ affine if volume.meta.get("space") == "LPS" else affine
