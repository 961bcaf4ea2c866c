from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from monai.transforms import LoadImage
from tqdm.contrib.concurrent import thread_map

from ..utils import DataError


def prevalence_weights(
    counts: Mapping[str, float] | Sequence[float], power: float = 1.0, include_background: bool = False
) -> list[float]:
    """Static class weights by inverse prevalence: proportional to `counts ** -power`, with mean 1.

    Args:
        counts: how much there is of each foreground class: voxels or shares, by class or in class order.
        power: 1 for the inverse, 0.5 for its square root, 0 for equal weights.
        include_background: whether a weight of 1 for the background is put in front.

    Returns:
        plain floats, as a loss's `weight` takes them.

    Raises:
        DataError: when a class has no voxel, so that no finite weight would be right.
    """
    names = list(counts) if isinstance(counts, Mapping) else [f"class {i + 1}" for i in range(len(counts))]
    values = np.asarray(list(counts.values()) if isinstance(counts, Mapping) else counts, dtype=np.float64)
    absent = [name for name, value in zip(names, values, strict=True) if not (np.isfinite(value) and value > 0)]
    if absent:
        raise DataError(
            f"No weight by prevalence for {', '.join(absent)}: not a single voxel in the training labels. "
            "Leave the class out of `labels`, add cases that show it, or use another weighting."
        )
    weights = (values / values.sum()) ** -power
    weights /= weights.mean()
    return [1.0] * include_background + weights.tolist()


def _count_file(path: str, num_classes: int) -> np.ndarray:
    """Voxels of the ids 0..num_classes in one label file."""
    try:
        label = np.asarray(LoadImage(image_only=True)(path))
    except Exception as e:  # the readers raise what they like; the cause stays attached
        raise DataError(f"{path}: cannot be read as a label map ({e}). Check that it exists and is not damaged.") from e
    if not np.isfinite(label).all():
        raise DataError(f"{path}: holds NaN or infinity, expected whole numbers from 0 to {num_classes}.")
    ids = label.astype(np.int64).ravel()
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > num_classes or not np.array_equal(ids, label.ravel()):
        raise DataError(
            f"{path}: holds values from {label.min():g} to {label.max():g}, "
            f"expected whole numbers from 0 to {num_classes}. Convert the label file, or correct `labels`."
        )
    return np.bincount(ids, minlength=num_classes + 1)


def label_voxel_counts(
    items: Sequence[Mapping[str, str]], labels: Mapping[str, int], key: str = "label", num_workers: int = 2
) -> dict[str, int]:
    """Voxels of each class over the label files of a datalist.

    Voxels are counted on the files' own grids: a class's share is that of its voxels, whatever the voxel's size.

    Args:
        items: the cases; `item[key]` is the path of a case's label file.
        labels: class name to id, the ids being 1..N.
        key: where an item holds the path.
        num_workers: files read at a time.

    Returns:
        class name to number of voxels, in the order of the ids.

    Raises:
        DataError: when a file cannot be read, or holds anything but whole numbers from 0 to N.
    """
    names = sorted(labels, key=lambda name: labels[name])
    files = [str(item[key]) for item in items]
    count = partial(_count_file, num_classes=len(labels))
    counts = thread_map(count, files, max_workers=num_workers, desc="Counting label voxels", unit="file")
    total = np.sum(counts, axis=0, dtype=np.int64) if counts else np.zeros(len(labels) + 1, dtype=np.int64)
    return {name: int(total[labels[name]]) for name in names}
