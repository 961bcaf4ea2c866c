from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.metrics.utils import get_code_to_measure_table
from scipy.ndimage import distance_transform_edt, find_objects
from scipy.spatial import KDTree

# Spacings come out of an affine matrix by rounding arithmetic: a distance equal to the tolerance counts as within it.
ROUNDING_MM = 1e-4


class ClassScores(NamedTuple):
    """How well one class of one case was segmented. A score that is not defined is NaN.

    Attributes:
        dice: Dice score, in [0, 1].
        nsd: normalised surface distance, in [0, 1].
        hd95: 95 % Hausdorff distance, in mm.
        label_voxels: voxels of the class in the label.
        pred_voxels: voxels of the class in the prediction.
    """

    dice: float
    nsd: float
    hd95: float
    label_voxels: int
    pred_voxels: int

    @property
    def status(self) -> str:
        """`"scored"`, `"missed"` (present, not predicted), `"absent"` or `"absent_but_predicted"`."""
        if self.label_voxels:
            return "scored" if self.pred_voxels else "missed"
        return "absent_but_predicted" if self.pred_voxels else "absent"


def _union(boxes: Sequence[tuple[slice, ...] | None]) -> tuple[slice, ...]:
    """The smallest box around boxes, of which None is an empty one."""
    axes = zip(*(box for box in boxes if box is not None), strict=True)
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in axes) or (slice(0),) * 3


def _surface(mask: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Where the surface elements of a mask lie, a mask of the voxels' corners, and their n areas in mm².

    The same as `monai.metrics.utils.get_mask_edges(..., spacing=spacing)`, which needs gigabytes and seconds for the
    one box around an organ and a stray voxel at the scan's other end.
    """
    area, code_weights = get_code_to_measure_table(spacing)
    size = [n + 1 for n in mask.shape]
    padded = np.pad(mask, 1).view(np.uint8)
    code = np.zeros(size, np.uint8)  # which of the eight voxels around this corner belong to the mask
    for offset, weight in np.ndenumerate(code_weights[0, 0].numpy().astype(np.uint8)):
        code += weight * padded[tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))]
    surface = (code != 0) & (code != 255)
    return surface, area.numpy()[code[surface]].astype(float)


def _distances(own: np.ndarray, other: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """How far each of the n elements of one surface lies from the other surface, (n,) in mm.

    A tree answers at once for surfaces that lie close to each other, however large their grid. For a point far away it
    looks at a good part of the other surface, and a network in its first epochs predicts millions of them. A distance
    transform takes the same time for all surfaces on a grid. Both are exact; the factors below only tell about how
    much of a distance transform's time for one grid point the tree needs.
    """
    queries, targets = np.count_nonzero(own), np.count_nonzero(other)
    if 20 * queries + 5 * targets < own.size:
        # Balancing and shrinking the nodes, the default, makes far queries on a lattice several times slower.
        tree = KDTree(np.argwhere(other) * spacing, balanced_tree=False, compact_nodes=False)
        points = np.argwhere(own) * spacing
        sample, _ = tree.query(points[:: queries // 200 + 1])
        # A query passes the points close to the sphere whose radius is the distance it finds.
        passed = np.minimum(targets, 4 * np.pi * sample**2 / math.prod(spacing) ** (2 / 3))
        if queries * passed.mean() < 50 * own.size:
            return tree.query(points, workers=-1)[0]
    squares = np.zeros(queries)
    nearest = distance_transform_edt(~other, spacing, return_distances=False, return_indices=True)
    for offset, index, edge in zip(nearest, np.indices(own.shape, np.int32, sparse=True), spacing, strict=True):
        offset -= index
        squares += (offset[own] * edge) ** 2
    return np.sqrt(squares)


def _surface_scores(
    pred: np.ndarray, label: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """NSD and HD95 (mm) of two masks that are not empty."""
    pred_surface, pred_areas = _surface(pred, spacing)
    label_surface, label_areas = _surface(label, spacing)
    sides = [
        (_distances(pred_surface, label_surface, spacing), pred_areas),
        (_distances(label_surface, pred_surface, spacing), label_areas),
    ]
    within = sum(areas[distances <= tolerance + ROUNDING_MM].sum() for distances, areas in sides)
    hd95 = max(np.quantile(distances, 0.95, weights=areas, method="inverted_cdf") for distances, areas in sides)
    return float(within / (pred_areas.sum() + label_areas.sum())), float(hd95)


def segmentation_scores(
    pred: np.ndarray | torch.Tensor,
    label: np.ndarray | torch.Tensor,
    spacing: Sequence[float],
    num_classes: int,
    tolerance: float = 2.0,
) -> list[ClassScores]:
    """Dice score, normalised surface distance and 95 % Hausdorff distance of each class of one case, in mm.

    The surface is that of Nikolov et al. (arXiv 1809.04430): an element for every 2 x 2 x 2 neighbourhood that the
    border crosses, at its centre, weighing the border's area in mm² within it. So a slice's flat face and a steep side
    count by their size, whatever the spacing. `monai.metrics.compute_surface_dice` gives the same NSD with
    `use_subvoxels=True`; without it, and in `compute_hausdorff_distance` always, it counts voxels of the border
    instead, whose share of the surface depends on the spacing.

    * NSD: the share of both surfaces' area that lies within `tolerance` of the other surface.
    * HD95: 95 % of a surface's area lies no farther than this from the other; the larger of the two directions.

    The default tolerance of 2 mm is the longest voxel edge of the grid that the bundles' networks work on
    (1.5 x 1.5 x 2.0 mm): a border that is off by no more than the network can resolve counts as right. Where the
    scan's slices lie farther apart, an error of one slice is beyond it.

    A class that the label lacks has no scores at all, whether predicted or not (`status` tells). A class that the
    label has and the prediction lacks has Dice 0 and no distances.

    Args:
        pred: label map of whole numbers in [0, num_classes], three spatial axes; 0 is the background.
        label: the true label map on the same grid.
        spacing: voxel edge along each axis in mm.
        num_classes: number of classes N without the background.
        tolerance: in mm, not negative.

    Returns:
        One `ClassScores` for each of the classes 1 … N, in this order.

    Raises:
        ValueError: when the grids differ, a spacing is not positive, the tolerance is negative or a label is out of
            range.
    """
    pred, label = np.asarray(pred), np.asarray(label)
    if pred.shape != label.shape or pred.ndim != 3:
        raise ValueError(f"pred and label must share one 3D grid, got {pred.shape} and {label.shape}.")
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"spacing must be three positive lengths in mm, got {tuple(spacing)}.")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0 mm, got {tolerance}.")
    for name, x in (("pred", pred), ("label", label)):
        if not np.issubdtype(x.dtype, np.integer) or x.size == 0 or x.min() < 0 or x.max() > num_classes:
            raise ValueError(
                f"{name} must hold whole numbers in [0, {num_classes}], got {x.dtype} {np.unique(x)[:20]}."
            )

    spacing = [float(s) for s in spacing]
    scores = []
    for class_id, boxes in enumerate(
        zip(find_objects(pred, num_classes), find_objects(label, num_classes), strict=True), start=1
    ):
        # All work on a class stays within the box around it: an organ fills little of an abdominal scan.
        box = _union(boxes)
        pred_mask, label_mask = pred[box] == class_id, label[box] == class_id
        pred_voxels, label_voxels = int(pred_mask.sum()), int(label_mask.sum())
        dice, nsd, hd95 = math.nan, math.nan, math.nan
        if label_voxels:
            dice = 2 * int((pred_mask & label_mask).sum()) / (pred_voxels + label_voxels)
        if label_voxels and pred_voxels:
            nsd, hd95 = _surface_scores(pred_mask, label_mask, spacing, tolerance)
        scores.append(ClassScores(dice, nsd, hd95, label_voxels, pred_voxels))
    return scores
