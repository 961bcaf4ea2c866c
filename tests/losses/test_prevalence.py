from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.losses import DiceLoss

from shared.losses import check_class_weight_buffers, label_voxel_counts, prevalence_weights
from shared.utils import DataError

LABELS = {"aorta": 3, "liver": 1, "spleen": 2}


def write_label(path: Path, label: Any) -> dict[str, str]:
    nibabel.save(nibabel.Nifti1Image(np.asarray(label), np.diag([10, 10, 10, 1])), path)
    return {"label": str(path)}


def test_weights_are_inverse_to_prevalence_with_mean_1() -> None:
    counts = {"liver": 6000, "spleen": 1500, "aorta": 100}
    weights = prevalence_weights(counts)
    assert np.mean(weights) == pytest.approx(1)
    products = [weight * count for weight, count in zip(weights, counts.values(), strict=True)]
    assert products == pytest.approx([products[0]] * 3)
    assert prevalence_weights([0.6, 0.15, 0.01]) == pytest.approx(weights)  # shares, in whatever unit


def test_power_tempers_the_weights() -> None:
    square_root = prevalence_weights([6400, 100], power=0.5)
    assert square_root[1] / square_root[0] == pytest.approx(8)
    assert prevalence_weights([6400, 100], power=0) == [1, 1]


def test_weights_fit_a_loss() -> None:
    weights = prevalence_weights([3, 2, 1], include_background=True)
    assert weights[0] == 1
    assert all(type(weight) is float for weight in weights)
    assert check_class_weight_buffers(DiceLoss(weight=weights), num_classes=3)


@pytest.mark.parametrize(("counts", "named"), [({"liver": 5, "spleen": 0}, "spleen"), ([1, float("nan")], "class 2")])
def test_a_class_without_a_voxel_is_refused(counts: Any, named: str) -> None:
    with pytest.raises(DataError, match=f"No weight by prevalence for {named}: not a single voxel"):
        prevalence_weights(counts)


def test_counts_over_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 4, shape) for shape in ((4, 5, 6), (3, 3, 3), (7, 2, 2))]
    types = (np.uint8, np.int16, np.float32)
    items = [
        write_label(tmp_path / f"{i}.nii.gz", label.astype(kind))
        for i, (label, kind) in enumerate(zip(labels, types, strict=True))
    ]
    counts = label_voxel_counts(items, LABELS)
    assert list(counts) == ["liver", "spleen", "aorta"]  # in the order of the ids
    assert counts == {name: sum(int((label == i).sum()) for label in labels) for name, i in LABELS.items()}
    others = label_voxel_counts(items, LABELS, label_ids={"aorta": 2, "liver": [1, 3], "spleen": 7})
    assert others == {"liver": counts["liver"] + counts["aorta"], "spleen": 0, "aorta": counts["spleen"]}
    assert label_voxel_counts([], LABELS) == {"liver": 0, "spleen": 0, "aorta": 0}


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.full((2, 2, 2), 4, np.uint8), "holds the label values 4 in 8 voxels, expected whole numbers from 0 to 3"),
        (np.full((2, 2, 2), -1, np.int16), "holds the label values -1 in 8 voxels"),
        (np.full((2, 2, 2), 1.5, np.float32), "holds the label values 1.5 in 8 voxels"),
        (np.full((2, 2, 2), np.nan, np.float32), "8 of 8 voxels are NaN or infinite"),
    ],
)
def test_wrong_values_are_refused_by_file(label: np.ndarray, message: str, tmp_path: Path) -> None:
    item = write_label(tmp_path / "case.nii.gz", label)
    with pytest.raises(DataError, match=f"case.nii.gz: {message}"):
        label_voxel_counts([item], LABELS)


@pytest.mark.parametrize(("content", "message"), [(None, "there is no such file"), (b"no image", "cannot be read")])
def test_unreadable_files_are_refused_by_name(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "case.nii.gz"
    if content:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"case.nii.gz: {message}"):
        label_voxel_counts([{"label": str(path)}], LABELS)
