from __future__ import annotations

import numpy as np
import pytest
import torch
from grids import full_computation, make_grids, peak_bytes

from shared.inferers import axis_maps, restore_label_map


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAI", "SRA", "PIL", "ASR"])
@pytest.mark.parametrize(("native_shape", "crop"), [((23, 31, 20), 0), ((28, 17, 19), 3)])
def test_equals_the_full_computation(codes: str, native_shape: tuple[int, ...], crop: int) -> None:
    affine, native_affine, shape = make_grids(codes, native_shape, crop)
    logits = 3 * torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    expected, tie = full_computation(logits, affine, native_affine, native_shape)
    result = restore_label_map(logits, affine, native_affine, native_shape, slab=5)
    assert result.dtype == torch.uint8
    assert result.shape == native_shape
    assert ((result == expected) | tie).all()
    assert tie.float().mean() < 0.01
    assert set(result.unique().tolist()) == set(range(5))


def test_thickness_of_the_slabs_makes_no_difference() -> None:
    affine, native_affine, shape = make_grids("LPI", (20, 21, 22), 2)
    logits = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    results = [restore_label_map(logits, affine, native_affine, (20, 21, 22), slab=s) for s in (1, 7, 100)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_class_far_behind_in_a_slab_is_skipped_without_a_trace() -> None:
    """Logits hundreds apart: most classes are skipped in most slabs, and exp underflows."""
    logits = torch.full((6, 30, 8, 8), -300.0)
    owner = torch.arange(30) // 5
    logits[owner, torch.arange(30)] = 300.0
    affine, fine = np.eye(4), np.diag([0.5, 1, 1, 1])
    expected, tie = full_computation(logits, affine, fine, (59, 8, 8))
    result = restore_label_map(logits, affine, fine, (59, 8, 8), slab=4)
    assert ((result == expected) | tie).all()


def test_voxels_beyond_half_a_voxel_of_the_grid_are_background() -> None:
    logits = torch.stack([torch.zeros(2, 2, 2), torch.ones(2, 2, 2)])
    native_affine = np.diag([0.25, 1, 1, 1])
    native_affine[0, 3] = -1
    result = restore_label_map(logits, np.eye(4), native_affine, (13, 2, 2))
    position = -1 + 0.25 * np.arange(13)
    expected = (position >= -0.5) & (position <= 1.5)
    assert result[:, 0, 0].tolist() == expected.astype(int).tolist()
    apart = np.eye(4)
    apart[0, 3] = 100
    assert not restore_label_map(logits, np.eye(4), apart, (3, 3, 3)).any()


def test_half_precision_logits() -> None:
    affine, native_affine, shape = make_grids("RAS", (20, 21, 22), 0)
    logits = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)).half()
    single = restore_label_map(logits.float(), affine, native_affine, (20, 21, 22))
    assert torch.equal(restore_label_map(logits, affine, native_affine, (20, 21, 22)), single)


def test_peak_memory_is_that_of_a_few_slabs_of_logits() -> None:
    """However many planes the volume has."""

    def peak(planes: int) -> int:
        logits = torch.zeros(60, planes, 24, 24)
        logits[0, ::2] = logits[-1, 1::2] = 1
        fine, shape = np.diag([0.5, 0.5, 0.5, 1]), (2 * planes, 48, 48)
        return peak_bytes(lambda: restore_label_map(logits, np.eye(4), fine, shape, slab=8)) - int(np.prod(shape))

    slab = 60 * 6 * 24 * 24 * 4
    few, many = peak(24), peak(96)
    assert slab < few < 6 * slab
    assert many <= few * 1.05


def test_rotated_grids_are_refused() -> None:
    angle = 0.3
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    with pytest.raises(ValueError, match=r"rotated or sheared.*parallel axes"):
        restore_label_map(torch.zeros(2, 9, 9, 9), np.eye(4), turned, (9, 9, 9))
    with pytest.raises(ValueError, match="rotated or sheared"):
        axis_maps(np.eye(4), np.array([[1, 0.9, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), (9, 9, 9))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_affine_without_an_inverse_is_refused(value: float) -> None:
    flat = np.diag([1.0, 1.0, value, 1.0])
    for affines, grid in (((flat, np.eye(4)), "preprocessed"), ((np.eye(4), flat), "native")):
        with pytest.raises(ValueError, match=f"affine of the {grid} grid has no inverse"):
            axis_maps(*affines, (4, 4, 4))


def test_damaged_logits_are_refused() -> None:
    logits = torch.zeros(2, 4, 4, 4)
    logits[1, 2, 2, 2] = float("nan")
    with pytest.raises(ValueError, match="The network gives no number here"):
        restore_label_map(logits, np.eye(4), np.eye(4), (4, 4, 4))
    with pytest.raises(ValueError, match=r"\(C, X, Y, Z\).*got shape \(4, 4, 4\)"):
        restore_label_map(logits[0], np.eye(4), np.eye(4), (4, 4, 4))
