from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tqdm.contrib.concurrent import thread_map

from ..transforms import LoadVolumed
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


def label_voxel_counts(
    items: Sequence[Mapping[str, str]],
    labels: Mapping[str, int],
    key: str = "label",
    num_workers: int = 2,
    label_ids: Mapping[str, int | Sequence[int]] | None = None,
) -> dict[str, int]:
    """Voxels of each class over the label files of a datalist.

    Voxels are counted on the files' own grids: a class's share is that of its voxels, whatever the voxel's size.

    Args:
        items: the cases; `item[key]` is the path of a case's label file.
        labels: class name to id, the ids being 1..N.
        key: where an item holds the path.
        num_workers: files read at a time.
        label_ids: class name to its id or ids in the files, where these are others than those of `labels`.

    Returns:
        class name to number of voxels, in the order of the ids.

    Raises:
        DataError: when a file cannot be read, or holds anything but whole numbers from 0 to N.
    """
    names = sorted(labels, key=lambda name: labels[name])
    load = LoadVolumed(key, label_key=key, labels=labels, label_ids=label_ids)

    def count(item: Mapping[str, str]) -> np.ndarray:
        return np.bincount(load({key: item[key]})[key].numpy().ravel(), minlength=len(labels) + 1)

    counts = thread_map(count, items, max_workers=num_workers, desc="Counting label voxels", unit="file")
    total = np.sum(counts, axis=0, dtype=np.int64) if counts else np.zeros(len(labels) + 1, dtype=np.int64)
    return {name: int(total[labels[name]]) for name in names}
