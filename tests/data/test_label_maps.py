from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from shared.data.geometry import Grid
from shared.data.label_maps import to_label_map
from shared.utils import DataError

SHAPE = (6, 5, 4)
AFFINE = nib.affines.from_matvec(np.array([[0.1, -4.9, 0.0], [4.9, 0.1, 0.0], [0, 0, 6.0]]), [-200.25, 31, 900])
IMAGE = Grid(Path("ct.nii.gz"), SHAPE, AFFINE)
LABELS = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
CLASSES = {1: 1, 2: 2}


def turned(orientation: np.ndarray, image: Grid = IMAGE) -> tuple[np.ndarray, Grid]:
    """The label map stored in another order and direction of axes, with the affine in single precision as in files."""
    stored = nib.Nifti1Image(LABELS, image.affine).as_reoriented(orientation)
    affine = stored.affine.astype(np.float32).astype(float)
    return np.asanyarray(stored.dataobj), Grid(Path("label.nii.gz"), stored.shape, affine)


@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_every_order_and_direction_of_axes_comes_to_the_same(order: tuple[int, ...]) -> None:
    for flips in product((1, -1), repeat=3):
        found = to_label_map(*turned(np.array([*zip(order, flips, strict=True)])), CLASSES, image=IMAGE)
        assert np.array_equal(found.voxels, LABELS)
        assert found.reoriented is (order != (0, 1, 2) or flips != (1, 1, 1))


def test_only_a_flip_of_left_and_right_alone_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    image, warned = IMAGE._replace(affine=np.diag([-5.0, 5, 5, 1])), []
    for flips in product((1, -1), repeat=3):
        to_label_map(*turned(np.array([*zip(range(3), flips, strict=True)]), image), CLASSES, image=image)
        assert bool(caplog.records) == (flips == (-1, 1, 1))
        warned += [record.getMessage() for record in caplog.records]
        caplog.clear()
    to_label_map(*turned(np.array([[1, 1], [0, -1], [2, 1]]), image), CLASSES, image=image)
    assert not caplog.records
    assert warned[0].startswith("label.nii.gz: has the voxels of ct.nii.gz, stored from left to right")


def test_centres_may_differ_by_a_thousandth_of_a_voxel() -> None:
    voxels, grid = turned(np.array([[1, -1], [0, 1], [2, 1]]))
    for shift, fits in ((0.0009, True), (0.0012, False)):
        moved = grid._replace(affine=grid.affine + 6 * shift * np.eye(4, k=1) * np.array([[0], [0], [1], [0]]))
        if fits:
            assert np.array_equal(to_label_map(voxels, moved, CLASSES, image=IMAGE).voxels, LABELS)
        else:
            with pytest.raises(DataError, match=r"label.nii.gz: its affine is\n"):
                to_label_map(voxels, moved, CLASSES, image=IMAGE)


def test_a_shape_that_fits_in_no_order_is_told_as_the_file_has_it() -> None:
    voxels, grid = turned(np.array([[1, -1], [0, 1], [2, 1]]))
    with pytest.raises(DataError, match=r"label.nii.gz: a grid of 5 × 6 × 3 voxels, expected 6 × 5 × 4 as in ct"):
        to_label_map(voxels[..., :3], grid._replace(shape=(5, 6, 3)), CLASSES, image=IMAGE)


def test_rounding_is_forgiven_and_no_more() -> None:
    grid = Grid(Path("label.nii.gz"), SHAPE, AFFINE)
    for rounded in (LABELS * np.float32(0.9999999), LABELS * 255.0 * np.float32(1 / 255), LABELS + 9e-4, LABELS - 9e-4):
        assert np.array_equal(to_label_map(rounded, grid, CLASSES).voxels, LABELS)
    for off, shown in ((2e-3, "0.002, 1.002, 2.002"), (-2e-3, "-0.002, 0.998, 1.998")):
        with pytest.raises(DataError, match=rf"holds the label values {shown} in 120 .* from 0 to 2\."):
            to_label_map((LABELS + off).astype(np.float32), grid, CLASSES)


def test_ids_without_a_class() -> None:
    grid = Grid(Path("label.nii.gz"), SHAPE, AFFINE)
    found = to_label_map(LABELS.astype(np.int64) * 150, grid, {300: 7}, others=True)
    assert np.array_equal(found.voxels, (LABELS == 2) * 7)
    assert found.left_out == (150,)
    with pytest.raises(DataError, match=r"holds the label values 150 in .* expected whole numbers 0 and 300\."):
        to_label_map(LABELS.astype(np.int64) * 150, grid, {300: 7})
    for value in (-1, 65536, np.nan, 1e9):
        with pytest.raises(DataError, match=rf"holds the label values {value:.0f} in 120 .* from 0 to 65535"):
            to_label_map(np.full(SHAPE, value), grid, {300: 7}, others=True)
