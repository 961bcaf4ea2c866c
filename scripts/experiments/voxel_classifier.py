"""How far voxel intensity and place alone get on a data set: the yardstick for the difficulty of synthetic CT.

A random forest sees of each voxel its HU at three scales and its place in the body's bounding box, but no
neighbourhood, shape or arrangement. What a segmentation network reaches above it, it owes to those.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier

from shared.utils import DataError, write_json

SPACING = 4.0  # mm
SCALES = (0.0, 4.0, 10.0)  # mm, standard deviations of the Gaussians
SAMPLES = 60_000  # training voxels, half of them background, the rest shared equally among the organs


def load(path: Path, order: int) -> np.ndarray:
    """A volume with its axes to the right, front and head, at `SPACING`: averaged (order 1) or nearest (order 0)."""
    image = nib.as_closest_canonical(nib.load(path))
    spacing = np.asarray(image.header.get_zooms()[:3], float)
    volume = np.asarray(image.dataobj)
    if order:
        volume = ndimage.uniform_filter(
            volume.astype(np.float32), np.maximum(1, np.round(SPACING / spacing)).astype(int)
        )
    shape = np.maximum(1, np.round(volume.shape * spacing / SPACING)).astype(int)
    return ndimage.zoom(volume, shape / volume.shape, order=order, grid_mode=True, mode="nearest")


def features(hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The body's mask and, for each voxel in it, HU at the scales and place in the body's bounding box (0 to 1)."""
    tissue = ndimage.binary_opening(hu > -300, iterations=2)
    parts, _ = ndimage.label(tissue)
    body = parts == np.argmax(np.bincount(parts[tissue])) if tissue.any() else tissue
    body = np.stack([ndimage.binary_fill_holes(body[..., k]) for k in range(body.shape[2])], axis=-1)
    where = np.argwhere(body)
    low, high = where.min(axis=0), where.max(axis=0)
    smooth = [ndimage.gaussian_filter(hu, s / SPACING)[body] if s else hu[body] for s in SCALES]
    return body, np.column_stack([*smooth, (where - low) / np.maximum(high - low, 1)]).astype(np.float32)


def read_split(folder: Path, items: list[dict[str, str]]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each case the features and labels of the body's voxels, and the voxel count of each label in the volume."""
    cases = []
    for item in items:
        hu, label = load(folder / item["image"], 1), load(folder / item["label"], 0)
        body, table = features(hu)
        cases.append((table, label[body], np.bincount(label.ravel(), minlength=256)))
    return cases


def sample(labels: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of the training voxels."""
    chosen = []
    for value in range(classes):
        index = np.flatnonzero(labels == value)
        count = SAMPLES // 2 if value == 0 else SAMPLES // 2 // (classes - 1)
        chosen.append(rng.permutation(index)[:count])
    return np.concatenate(chosen)


def dice(cases: list, predictions: list[np.ndarray], classes: int) -> np.ndarray:
    """Mean Dice of each organ over the cases that have it, NaN where none has."""
    scores = np.full((len(cases), classes - 1), np.nan)
    for row, (_, truth, counts), found in zip(scores, cases, predictions, strict=True):
        for k in range(1, classes):
            if counts[k]:
                row[k - 1] = 2 * np.sum((truth == k) & (found == k)) / (counts[k] + np.sum(found == k))
    present = ~np.isnan(scores)
    return np.where(present.any(0), np.nansum(scores, axis=0) / np.maximum(present.sum(0), 1), np.nan)


def voxel_classifier(data_dir: str, output: str) -> None:
    """Fit the voxel classifier on the training cases, print and write its Dice per organ on the test cases.

    Args:
        data_dir: the folder of a dataset.json with training, validation and test split.
        output: the JSON file to write: {"mean": …, "dice": {organ: …}}, null for an organ that no test case has.
    """
    start, folder = time.time(), Path(data_dir)
    if not (folder / "dataset.json").is_file():
        raise DataError(
            f"{folder}: holds no dataset.json. Make one with scripts/make_synthetic.py or prepare one first."
        )
    datalist = json.loads((folder / "dataset.json").read_bytes())
    names = [name for value, name in sorted(datalist["labels"].items(), key=lambda pair: int(pair[0])) if int(value)]
    classes, rng = len(names) + 1, np.random.default_rng(0)
    training, validation, test = (read_split(folder, datalist[k]) for k in ("training", "validation", "test"))
    table, labels = np.concatenate([c[0] for c in training]), np.concatenate([c[1] for c in training])
    chosen = sample(labels, classes, rng)
    forest = RandomForestClassifier(60, min_samples_leaf=4, max_features=3, n_jobs=-1, random_state=0)
    forest.fit(table[chosen], labels[chosen])
    known = forest.classes_
    prior = np.bincount(labels, minlength=classes)[known] / np.bincount(labels[chosen], minlength=classes)[known]

    def predict(cases: list, strength: float) -> list[np.ndarray]:
        return [known[np.argmax(p * prior**strength, axis=1)] for p in cases]

    # Balanced sampling favours small organs; how much of the true frequencies to restore, the validation split says.
    chances = [forest.predict_proba(c[0]) for c in validation]
    best = max(np.linspace(0, 1, 6), key=lambda s: np.nanmean(dice(validation, predict(chances, s), classes)))
    scores = dice(test, predict([forest.predict_proba(c[0]) for c in test], best), classes)
    for name, score in zip(names, scores, strict=True):
        print(f"{name:28s} {score:.3f}")
    print(f"{'mean':28s} {np.nanmean(scores):.3f}   ({time.time() - start:.0f} s)")
    values = {name: None if np.isnan(s) else float(s) for name, s in zip(names, scores, strict=True)}
    write_json(output, {"mean": float(np.nanmean(scores)), "dice": values})
