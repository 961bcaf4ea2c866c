from __future__ import annotations

import math
from itertools import product
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_surface_dice
from monai.metrics.utils import get_mask_edges
from scipy.ndimage import distance_transform_edt
from scipy.spatial.distance import cdist
from skimage.measure import marching_cubes, mesh_surface_area

from shared.metrics import ClassScores, segmentation_scores

SPACING = (0.8, 1.3, 3.0)


def ellipsoid(shape: tuple[int, int, int], centre: tuple[float, ...], radius: tuple[float, ...]) -> np.ndarray:
    grid = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    return sum(((x - c) / r) ** 2 for x, c, r in zip(grid, centre, radius, strict=True)) <= 1


def literal_surface(mask: np.ndarray, spacing: tuple[float, ...]) -> list[tuple[np.ndarray, float]]:
    """Each 2 x 2 x 2 neighbourhood that the border crosses: its place in mm and marching cubes' area within it."""
    padded = np.pad(mask, 1).astype(float)
    elements = []
    for corner in product(*(range(n - 1) for n in padded.shape)):
        cell = padded[tuple(slice(i, i + 2) for i in corner)]
        if 0 < cell.sum() < 8:
            vertices, faces, _, _ = marching_cubes(cell, 0.5, spacing=spacing, method="lorensen")
            elements.append((np.array(corner) * spacing, float(mesh_surface_area(vertices, faces))))
    return elements


def literal_scores(
    pred: np.ndarray, label: np.ndarray, spacing: tuple[float, ...], tolerance: float
) -> tuple[float, float, float]:
    """Dice, NSD and HD95, point by point after their definitions."""
    dice = 2 * (pred & label).sum() / (pred.sum() + label.sum())
    surfaces = literal_surface(pred, spacing), literal_surface(label, spacing)
    within = total = 0.0
    hd95 = []
    for one, other in (surfaces, surfaces[::-1]):
        distances = [(min(float(np.linalg.norm(p - q)) for q, _ in other), area) for p, area in one]
        within += sum(area for d, area in distances if d <= tolerance)
        total += (own := sum(area for _, area in distances))
        reached = 0.0
        for d, area in sorted(distances):
            reached += area
            if reached >= 0.95 * own:
                hd95.append(d)
                break
    return float(dice), within / total, max(hd95)


def one_class(
    pred: np.ndarray, label: np.ndarray, spacing: tuple[float, ...] = SPACING, **kwargs: float
) -> ClassScores:
    return segmentation_scores(pred.astype(np.uint8), label.astype(np.uint8), spacing, 1, **kwargs)[0]


BODIES = [
    (ellipsoid((14, 12, 8), (6, 5, 3), (4.6, 3.7, 2.2)), ellipsoid((14, 12, 8), (7, 5.5, 4), (4.2, 4.1, 1.9))),
    # reaching past the volume's edge on several sides
    (ellipsoid((9, 8, 6), (0, 3, 5), (5.1, 3.3, 3.2)), ellipsoid((9, 8, 6), (1, 4, 5), (5.6, 4.4, 2.4))),
    # far apart
    (ellipsoid((12, 6, 6), (2, 2, 2), (1.5, 1.5, 1.5)), ellipsoid((12, 6, 6), (9, 3, 3), (2.2, 2.2, 1.2))),
]


@pytest.mark.parametrize("body", range(len(BODIES)))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING, (4.0, 0.7, 0.7)])
def test_scores_are_those_of_the_definition(body: int, spacing: tuple[float, ...]) -> None:
    pred, label = BODIES[body]
    for tolerance in (0.0, 1.1, 2.0, 3.5):
        scores = one_class(pred, label, spacing, tolerance=tolerance)
        np.testing.assert_allclose(scores[:3], literal_scores(pred, label, spacing, tolerance), rtol=1e-5)


# MONAI calls itself with an argument that it has deprecated.
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_monai_agrees_where_it_computes_the_same() -> None:
    rng = np.random.default_rng(0)
    pred, label = (rng.random((2, 9, 10, 8)) < 0.3).astype(np.uint8)  # speckle: every kind of neighbourhood
    p, y = (torch.from_numpy(x)[None, None].float() for x in (pred, label))
    for tolerance in (0.5, 1.0):
        scores = one_class(pred, label, tolerance=tolerance)
        nsd = compute_surface_dice(p, y, [tolerance], include_background=True, spacing=SPACING, use_subvoxels=True)
        assert scores.nsd == pytest.approx(nsd.item(), rel=1e-5)
        assert scores.dice == pytest.approx(compute_dice(p, y).item())


def brute_force(
    pred: np.ndarray, label: np.ndarray, spacing: tuple[float, ...], tolerance: float
) -> tuple[float, float]:
    """NSD and HD95 out of the distances between all points of two surfaces."""
    masks = (torch.from_numpy(np.pad(x, 1)) for x in (pred, label))
    *surfaces, pred_areas, label_areas = get_mask_edges(*masks, crop=False, spacing=spacing)
    points = [surface.argwhere().numpy() * spacing for surface in surfaces]
    areas = [a[surface].double().numpy() for a, surface in zip((pred_areas, label_areas), surfaces, strict=True)]
    apart = cdist(*points)
    within, hd95 = 0.0, []
    for distances, area in zip((apart.min(1), apart.min(0)), areas, strict=True):
        within += area[distances <= tolerance].sum()
        order = np.argsort(distances)
        hd95.append(distances[order][np.cumsum(area[order]) >= 0.95 * area.sum()][0])
    return within / sum(a.sum() for a in areas), max(hd95)


ROOMY = (64, 60, 40)
BALL = ellipsoid(ROOMY, (12, 12, 8), (9, 9, 4))
STRAY = ellipsoid(ROOMY, (60, 55, 36), (2, 2, 1))


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("spacing", [SPACING, (4.0, 0.7, 0.7)])
@pytest.mark.parametrize(
    ("pred", "label", "transforms"),
    [
        (np.roll(BALL, 2, 0), BALL, 2),
        (np.roll(BALL, 2, 0) | STRAY, BALL, 0),
        (STRAY, BALL, 0),
        (ellipsoid(ROOMY, (45, 42, 28), (18, 17, 11)), ellipsoid(ROOMY, (14, 13, 9), (13, 12, 8)), 2),
        (np.random.default_rng(3).random(ROOMY) < 0.02, STRAY, 1),
        (~ellipsoid(ROOMY, (32, 30, 20), (30, 28, 18)), ellipsoid(ROOMY, (32, 30, 20), (4, 4, 3)), 1),
    ],
    ids=["near", "stray", "small", "large and far", "flooded", "around"],
)
def test_trees_and_distance_transforms_find_the_shortest_of_all_distances(
    pred: np.ndarray,
    label: np.ndarray,
    transforms: int,
    spacing: tuple[float, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transform = Mock(wraps=distance_transform_edt)
    monkeypatch.setattr("shared.metrics.segmentation.distance_transform_edt", transform)
    scores = one_class(pred, label, spacing, tolerance=3.3)
    np.testing.assert_allclose(scores[1:3], brute_force(pred, label, spacing, 3.3), rtol=1e-9)
    assert transform.call_count == transforms


def test_each_class_is_scored_as_if_alone() -> None:
    rng = np.random.default_rng(1)
    pred, label = rng.integers(0, 4, (2, 7, 8, 9), dtype=np.uint8)
    scores = segmentation_scores(torch.from_numpy(pred), torch.from_numpy(label), SPACING, 3)
    for i, score in enumerate(scores, 1):
        assert score == one_class(pred == i, label == i)
        assert (score.pred_voxels, score.label_voxels) == ((pred == i).sum(), (label == i).sum())


def test_identical_masks_are_perfect() -> None:
    label = BODIES[0][0]
    assert one_class(label, label)[:3] == (1, 1, 0)


def test_a_shift_of_one_slice_is_the_spacing_of_slices() -> None:
    label = np.zeros((20, 20, 12), bool)
    label[3:17, 3:17, 4:7] = True  # flat, so that more than 5 % of its surface faces along z
    pred = np.roll(label, 1, axis=2)
    assert one_class(pred, label).hd95 == pytest.approx(SPACING[2])
    assert one_class(pred, label, tolerance=SPACING[2]).nsd == 1
    assert one_class(pred, label, tolerance=0.99 * SPACING[2]).nsd < 0.7


def test_swapping_and_scaling() -> None:
    pred, label = BODIES[0]
    scores, swapped = one_class(pred, label), one_class(label, pred)
    assert swapped[:3] == pytest.approx(scores[:3])
    doubled = one_class(pred, label, tuple(2 * s for s in SPACING), tolerance=4.0)
    assert doubled[:3] == pytest.approx((scores.dice, scores.nsd, 2 * scores.hd95))
    turned = one_class(pred.transpose(2, 0, 1), label.transpose(2, 0, 1), (SPACING[2], *SPACING[:2]))
    assert turned[:3] == pytest.approx(scores[:3])


def test_a_distance_equal_to_the_tolerance_counts_in_spite_of_rounding() -> None:
    label = np.zeros((5, 5, 6), bool)
    label[1:4, 1:4, 1:3] = True
    spacing = (1.0, 1.0, float(np.linalg.norm([1.2, 1.6])) + 1e-7)
    assert one_class(np.roll(label, 1, axis=2), label, spacing, tolerance=2.0).nsd == 1


def test_absent_and_missed_classes_keep_their_scores_blank() -> None:
    label, pred = np.zeros((2, 6, 6, 6), np.uint8)
    label[:2] = 1
    label[2:4] = 2
    pred[:2] = 1
    pred[5, 5, :3] = 3
    scores = segmentation_scores(pred, label, SPACING, 4)
    assert [s.status for s in scores] == ["scored", "missed", "absent_but_predicted", "absent"]
    assert scores[1].dice == 0
    assert math.isnan(scores[1].nsd)
    assert math.isnan(scores[1].hd95)
    assert all(math.isnan(v) for s in scores[2:] for v in s[:3])
    assert [s.pred_voxels for s in scores] == [72, 0, 3, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": np.zeros((3, 3, 4), np.uint8)}, r"one 3D grid, got \(3, 3, 4\)"),
        ({"spacing": (1, 0, 1)}, "three positive lengths"),
        ({"tolerance": -1.0}, "at least 0 mm, got -1"),
        ({"label": np.full((3, 3, 3), 3, np.uint8)}, r"label must hold whole numbers in \[0, 2\], got uint8 \[3\]"),
        ({"pred": np.zeros((3, 3, 3))}, "pred must hold whole numbers"),
    ],
)
def test_bad_arguments(change: dict, message: str) -> None:
    good = {"pred": np.zeros((3, 3, 3), np.uint8), "label": np.zeros((3, 3, 3), np.uint8), "spacing": (1, 1, 1)}
    with pytest.raises(ValueError, match=message):
        segmentation_scores(**(good | {"num_classes": 2} | change))
