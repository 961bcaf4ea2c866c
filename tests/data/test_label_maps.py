from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series

from shared.data import tell_reoriented
from shared.data.geometry import Grid
from shared.data.label_maps import to_label_map
from shared.transforms import LoadVolumed
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
        assert bool(found.reoriented) == (order != (0, 1, 2) or flips != (1, 1, 1))


def test_only_a_flip_of_left_and_right_alone_is_told_from_other_turns() -> None:
    image = IMAGE._replace(affine=np.diag([-5.0, 5, 5, 1]))
    for flips in product((1, -1), repeat=3):
        found = to_label_map(*turned(np.array([*zip(range(3), flips, strict=True)]), image), CLASSES, image=image)
        assert (found.reoriented == "flipped") == (flips == (-1, 1, 1))
    found = to_label_map(*turned(np.array([[1, 1], [0, -1], [2, 1]]), image), CLASSES, image=image)
    assert found.reoriented == "turned"


def write_pairs(folder: Path, turns: Mapping[str, list[list[int]]]) -> list[dict[str, str]]:
    """Cases with a scan and a label map in the order of axes given, by their names."""
    cases = []
    for name, turn in turns.items():
        image = nib.Nifti1Image(LABELS.astype(np.int16), np.diag([-5.0, 5, 5, 1]))
        label = nib.Nifti1Image(LABELS, image.affine).as_reoriented(np.array(turn))
        for key, stored in (("image", image), ("label", label)):
            nib.save(stored, folder / f"{name}_{key}.nii.gz")
        cases.append({key: str(folder / f"{name}_{key}.nii.gz") for key in ("image", "label")})
    return cases


SAME, FLIPPED, TURNED = [[0, 1], [1, 1], [2, 1]], [[0, -1], [1, 1], [2, 1]], [[1, 1], [0, -1], [2, 1]]


def test_label_maps_that_will_be_turned_are_counted_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    turns = {"a": SAME, "b": TURNED, "c": FLIPPED, "d": SAME, "e": FLIPPED}
    cases = write_pairs(tmp_path, turns)
    tell_reoriented(tmp_path / "dataset.json", cases[:1])
    assert not caplog.records
    tell_reoriented(tmp_path / "dataset.json", cases[:2])
    said = "voxels in another order than their scan and are reoriented"
    assert caplog.messages == [f"{tmp_path}/dataset.json: 1 of 2 label maps have their {said}"]
    caplog.clear()
    Path(cases[3]["image"]).write_bytes(b"what loading refuses")
    cases[3]["label"] = "/nowhere.nii.gz"
    tell_reoriented(tmp_path / "dataset.json", cases)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(
        f"{tmp_path}/dataset.json: 3 of 5 label maps have their {said}; 2 of these with left and right exchanged and "
        "nothing else: c_label.nii.gz, e_label.nii.gz. Look whether"
    )
    caplog.clear()
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    tell_reoriented(tmp_path / "dataset.json", cases)
    assert not caplog.records


def test_label_maps_of_a_series_and_of_files_that_say_nothing_of_sides_are_counted_as_they_are_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write_series(tmp_path / "ct", 3)
    write_series(tmp_path / "ct", 2, "other{}.dcm", SeriesInstanceUID="1.2.4", SeriesNumber="3")
    case = {"image": str(tmp_path / "ct"), "label": str(tmp_path / "label.nii.gz"), "series": "1.2.3"}
    scan = LoadVolumed("image")(case)["image"]
    label = nib.Nifti1Image(np.zeros(scan.shape[1:], np.uint8), scan.affine.numpy())
    for turn, how in ((SAME, 0), (FLIPPED, 1), (TURNED, 1)):
        nib.save(label.as_reoriented(np.array(turn)), case["label"])
        caplog.clear()
        tell_reoriented(tmp_path / "dataset.json", [case])
        assert len([m for m in caplog.messages if "1 of 1 label maps" in m]) == how
        assert LoadVolumed(["image", "label"], "label")(case)["label"].shape == scan.shape
    voxels = np.zeros(SHAPE, np.int16)
    image = nib.Nifti1Image(voxels, nib.affines.from_matvec(np.diag([-5.0, 5, 5]), [25, 0, 0]))
    label = nib.Nifti1Image(voxels, None)
    label.header.set_zooms((5, 5, 5))
    case = {key: str(tmp_path / f"{key}.nii.gz") for key in ("image", "label")}
    for key, volume in (("image", image), ("label", label)):
        nib.save(volume, case[key])
    caplog.clear()
    tell_reoriented(tmp_path / "dataset.json", [case])
    assert not caplog.records
    tell_reoriented(tmp_path / "dataset.json", [case], "RAS")
    assert "nothing else: label.nii.gz." in caplog.text


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
