"""Grids that lie differently over the same body, and label maps taken from one to the other the long way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile


def make_grids(codes: str, native_shape: tuple[int, ...], crop: int) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """A native grid of the given orientation, obliquely placed, and a coarser RAS-ordered one that is cut out of it."""
    angle = 0.2
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    transform = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    ras_shape = tuple(int(native_shape[int(j)]) for j in transform[:, 0])
    ras_spacing = np.array([0.8, 0.9, 2.5])
    ras = np.eye(4)
    ras[:3, :3] = turn @ np.diag(ras_spacing)
    ras[:3, 3] = [-10, 20, 5]
    native = ras @ nib.orientations.inv_ornt_aff(transform, ras_shape)
    spacing = np.array([1.5, 1.4, 2.0])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = (ras @ [crop, crop, 0, 1])[:3]
    extent = (np.array(ras_shape) - 1 - [2 * crop, 2 * crop, 0]) * ras_spacing
    return affine, native, tuple(int(n) for n in np.floor(extent / spacing) + 1)


def full_computation(
    logits: torch.Tensor, affine: np.ndarray, native_affine: np.ndarray, native_shape: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax, every channel resampled, argmax; and where the best two classes are a tie."""
    native = np.stack(np.meshgrid(*map(np.arange, native_shape), indexing="ij"), -1)
    to_grid = np.linalg.inv(affine) @ native_affine
    positions = native @ to_grid[:3, :3].T + to_grid[:3, 3]
    size = np.array(logits.shape[1:])
    outside = ((positions < -0.5001) | (positions > size - 0.4999)).any(-1)
    normal = 2 * positions / np.maximum(size - 1, 1) - 1
    normal[..., size == 1] = 0
    grid = torch.from_numpy(normal[..., ::-1].copy())[None]
    resampled = F.grid_sample(logits.softmax(0)[None].double(), grid, padding_mode="border", align_corners=True)[0]
    labels = resampled.argmax(0)
    labels[torch.from_numpy(outside)] = 0
    best, second = resampled.topk(2, dim=0).values
    return labels, (best - second) < 1e-5


def peak_bytes(work: Callable[[], Any]) -> int:
    """Highest sum of the bytes of tensors that are allocated at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    sums = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return int(sums.max())
