"""From logits on a preprocessed grid to a label map on the grid of the image file, in little memory.

Shape suffixes: C classes, X Y Z the preprocessed grid, x y z the native grid in the preprocessed grid's axis order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from torch.nn import functional as F

from ..utils import DataError
from ..utils.errors import NO_NUMBER

Taps = tuple[torch.Tensor, torch.Tensor]

# By how much larger slabs are on a GPU, which has no cache to stay in, and takes its time to begin with each.
_ON_GPU = 8
# How far, in voxels of the preprocessed grid, rounding in the affines may move a point off its axis.
_OFF_AXIS = 0.5
# Probabilities that are interpolated at a time: what they need stays in a CPU's cache.
_PIECE = 2**18


def axis_maps(
    affine: np.ndarray, native_affine: np.ndarray, native_shape: Sequence[int]
) -> list[tuple[int, np.ndarray]]:
    """Where the native voxel centres lie on the axes of another grid that is parallel to the native one.

    Args:
        affine: 4 × 4, voxel indices of the other grid → mm.
        native_affine: 4 × 4, voxel indices of the native grid → mm.
        native_shape: number of voxels along the three native axes.

    Returns:
        For each axis of the other grid the native axis that is parallel to it, and the positions of the native voxel
        centres on it, float64, in voxels of the other grid.

    Raises:
        ValueError: when the grids are not parallel: more than a permutation of axes, flips, scales and a shift. When
            an affine has no inverse.
    """
    for grid, matrix in (("preprocessed", np.asarray(affine)), ("native", np.asarray(native_affine))):
        if not (np.isfinite(matrix).all() and np.linalg.matrix_rank(matrix) == 4):
            raise ValueError(f"The affine of the {grid} grid has no inverse, expected three axes of voxels:\n{matrix}")
    relative = np.linalg.inv(np.asarray(affine, float)) @ np.asarray(native_affine, float)
    matrix, shift = relative[:3, :3], relative[:3, 3]
    native_axes = np.abs(matrix).argmax(axis=1)
    reach = np.abs(matrix) * (np.asarray(native_shape) - 1)
    reach[range(3), native_axes] = 0
    if sorted(native_axes) != [0, 1, 2] or reach.sum(axis=1).max() > _OFF_AXIS:
        raise ValueError(
            "The two grids are rotated or sheared against each other, expected parallel axes. "
            f"Affine of the preprocessed grid:\n{affine}\nof the native grid:\n{native_affine}"
        )
    return [(int(j), matrix[i, j] * np.arange(native_shape[j]) + shift[i]) for i, j in enumerate(native_axes)]


def _inside(positions: np.ndarray, size: int) -> slice:
    """The positions that lie at most half a voxel beyond the outermost of `size` voxel centres (they are monotonic)."""
    inside = np.flatnonzero((positions > -0.5 - 1e-4) & (positions < size - 0.5 + 1e-4))
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)


def _taps(positions: np.ndarray, size: int) -> Taps:
    """Neighbours and their weights, both (n, k), for linear interpolation held at the ends.

    k is 2, or 1 where all positions are voxel centres.
    """
    positions = positions.clip(0, size - 1).round(6)  # rounding in the affines makes no neighbour
    lower, upper = np.floor(positions), np.ceil(positions)
    neighbours, weights = np.stack([lower, upper], 1), np.stack([1 - (positions - lower), positions - lower], 1)
    k = 2 if (lower != upper).any() else 1
    return torch.from_numpy(neighbours[:, :k].astype(np.int64)), torch.from_numpy(weights[:, :k].astype(np.float32))


def _block_labels(logits: torch.Tensor, taps: Sequence[Taps]) -> torch.Tensor:
    """Labels (x, y, z), uint8, of a block from the logits (C, X, Y, Z) of the voxels around it.

    Where all neighbours of a point have the same winner it is the point's, too, whatever their weights: probabilities
    are interpolated where they do not agree alone, which is the case at the borders of organs.
    """
    probability = torch.softmax(logits.float(), 0)
    if not probability.sum().isfinite():
        raise DataError(f"The network gives no number here. {NO_NUMBER}")
    lowest = highest = logits.max(0).indices.to(torch.uint8)
    for dim in (2, 1, 0):  # the fastest axis first: most of the work is then done on long contiguous rows
        neighbours = taps[dim][0].T
        lowest = reduce(torch.minimum, [lowest.index_select(dim, n) for n in neighbours])
        highest = reduce(torch.maximum, [highest.index_select(dim, n) for n in neighbours])
    labels = lowest.flatten()
    unsure = torch.nonzero(labels != highest.flatten()).flatten()
    if not len(unsure):
        return lowest
    table = probability.flatten(1).T.contiguous()  # the classes of a voxel lie together
    for piece in unsure.split(_PIECE // len(logits)):
        corners, weights = torch.zeros_like(piece)[:, None], torch.ones_like(piece, dtype=torch.float32)[:, None]
        for axis, at in enumerate(torch.unravel_index(piece, lowest.shape)):
            neighbours, shares = (tap[at][:, None] for tap in taps[axis])
            corners = (corners[..., None] * logits.shape[1 + axis] + neighbours).flatten(1)
            weights = (weights[..., None] * shares).flatten(1)
        mixed = F.embedding_bag(corners, table, mode="sum", per_sample_weights=weights)
        labels[piece] = mixed.max(1).indices.to(torch.uint8)
    return labels.view(lowest.shape)


class NativeLabels:
    """A label map on the native grid that grows as the planes of another grid come in, one after the other.

    It is the argmax over classes of the linearly interpolated softmax of the logits, as `restore_label_map` has it.
    What lies between two planes needs both: the last of the planes that were given has to be given again.

    Args:
        affine: 4 × 4, voxel indices (X, Y, Z) of the other grid → mm.
        native_affine: 4 × 4, voxel indices of the result → mm.
        native_shape: shape of the result.
        shape: X, Y, Z of the other grid.
        axis: of the other grid, along which the planes come.
        slab: native planes along X that are worked on at a time; more on a GPU.

    Attributes:
        labels: the result, uint8 on the CPU; 0 where nothing has come in yet.

    Raises:
        ValueError: when the grids are not parallel.
    """

    def __init__(
        self,
        affine: np.ndarray,
        native_affine: np.ndarray,
        native_shape: Sequence[int],
        shape: Sequence[int],
        axis: int = 0,
        slab: int = 16,
    ) -> None:
        maps = axis_maps(affine, native_affine, native_shape)
        inside = [_inside(positions, size) for (_, positions), size in zip(maps, shape, strict=True)]
        self.shape = list(shape)
        self.taps = [
            _taps(positions[part], size) for (_, positions), part, size in zip(maps, inside, shape, strict=True)
        ]
        self.axis = axis
        self.slab = slab
        self.labels = torch.zeros(tuple(int(n) for n in native_shape), dtype=torch.uint8)
        self._inside = self.labels.permute([native_axis for native_axis, _ in maps])[tuple(inside)]
        self._there: list[Taps] | None = None  # the taps, where the logits are
        self._given = 0  # planes so far

    def add(self, logits: torch.Tensor, first: int = 0) -> None:
        """Make what the planes allow for that has not been made yet.

        Args:
            logits: (C, X, Y, Z), C ≤ 256, class 0 is the background; along `axis` some planes, otherwise the whole
                grid. On any device, where the work is then done.
            first: index of the first of them.

        Raises:
            ValueError: when the logits have another shape, or do not go on where the last ones ended.
            DataError: when they hold NaN or +infinity.
        """
        there = [self.shape[i] if i == self.axis else n for i, n in enumerate(logits.shape[1:])]
        if not 1 <= len(logits) <= 256 or there != self.shape:
            raise ValueError(
                "logits must be (C, X, Y, Z) with 1 to 256 classes on the grid that was announced, got shape "
                f"{tuple(logits.shape)}."
            )
        end = first + logits.shape[self.axis + 1]
        if first > max(self._given - 1, 0) or end > self.shape[self.axis]:
            raise ValueError(
                f"planes {first} to {end - 1} of {self.shape[self.axis]} do not follow plane {self._given - 1}."
            )
        last_needed = self.taps[self.axis][0][:, -1]
        todo = torch.nonzero((last_needed >= self._given) & (last_needed < end)).flatten().tolist()
        self._given = max(end, self._given)
        if not self._inside.numel() or not todo:
            return
        if self._there is None:  # once: the host waits for every copy to a GPU
            self._there = [tuple(t.to(logits.device) for t in taps) for taps in self.taps]
        native = [slice(0, n) for n in self._inside.shape]
        native[self.axis] = slice(todo[0], todo[-1] + 1)
        slab = self.slab if logits.device.type == "cpu" else self.slab * _ON_GPU
        for start in range(native[0].start, native[0].stop, slab):
            block = [slice(start, min(start + slab, native[0].stop)), *native[1:]]
            given, taps = zip(*(self._part(i, part, first) for i, part in enumerate(block)), strict=True)
            self._inside[tuple(block)] = _block_labels(logits[(slice(None), *given)], taps).cpu()

    def _part(self, dim: int, native: slice, first: int) -> tuple[slice, Taps]:
        """What some native voxels need of the logits along an axis, and the taps in that."""
        needed = self.taps[dim][0][native]
        low, high = int(needed.min()), int(needed.max())
        neighbours, weights = (tap[native] for tap in self._there[dim])
        begin = first if dim == self.axis else 0
        return slice(low - begin, high + 1 - begin), (neighbours - low, weights)


def restore_label_map(
    logits: torch.Tensor,
    affine: np.ndarray,
    native_affine: np.ndarray,
    native_shape: Sequence[int],
    slab: int = 16,
) -> torch.Tensor:
    """Label map on the native grid: argmax over classes of the linearly interpolated softmax of the logits.

    The result is that of softmax, resampling every channel and argmax, but it is made slab by slab along the first
    axis of the preprocessed grid, and interpolated only where the voxels around a point differ: beside logits and
    result it needs the memory of a few slabs of logits.

    Native voxels up to half a voxel beyond the preprocessed grid take the value at its border; those further out (the
    grid may be a crop) are background.

    Args:
        logits: (C, X, Y, Z), class 0 is the background; on any device, where the work is then done.
        affine: 4 × 4, voxel indices (X, Y, Z) → mm.
        native_affine: 4 × 4, voxel indices of the result → mm.
        native_shape: shape of the result.
        slab: native planes along X that are worked on at a time; more on a GPU.

    Returns:
        uint8 tensor of shape `native_shape` on the CPU.

    Raises:
        ValueError: when the logits are not (C, X, Y, Z) with C ≤ 256, or the grids are not parallel.
        DataError: when they hold NaN or +infinity (−infinity is a probability of 0).
    """
    native = NativeLabels(
        affine, native_affine, native_shape, logits.shape[1:] if logits.ndim == 4 else (1,) * 3, 0, slab
    )
    native.add(logits)
    return native.labels
