"""Synthetic data for the commands of a bundle, made with the generators of the collection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from shared.datasets import make_synthetic_ct, make_synthetic_histology

from .bundle import Bundle, read_json


class Sample(NamedTuple):
    datalist: Path
    image: Path  # for inference


def make_sample(bundle: Bundle, folder: Path) -> Sample:
    """A small data set of the kind that the bundle's metadata tells of."""
    image = next(iter(bundle.metadata["network_data_format"]["inputs"].values()))
    if image["modality"] == "CT":
        path = make_synthetic_ct(folder, 3, processes=1)
        coarse(path)
        relabel(path, bundle.config("train").get("labels", {}))
    else:
        make_synthetic_histology(folder, 3, 2, 1, processes=1)
        path = folder / ("tiles.json" if bundle.metadata["task"].startswith("Detection") else "dataset.json")
    return Sample(path, folder / read_json(path)["test"][0]["image"])


def coarse(datalist: Path) -> None:
    """Keep every third voxel along each axis: a few voxels are enough to run on."""
    for path in datalist.parent.rglob("*.nii.gz"):
        volume = nib.load(path)
        nib.save(nib.Nifti1Image(volume.dataobj[::3, ::3, ::3], volume.slicer[::3, ::3, ::3].affine), path)


def relabel(datalist: Path, labels: dict[str, int]) -> None:
    """Give a data set other labels than its organs, each of them a slab of the voxels that have any."""
    content = read_json(datalist)
    names = {"0": "background"} | {str(value): name for name, value in labels.items()}
    if not labels or content["labels"] == names:
        return
    values = np.array(sorted(labels.values()), np.uint8)
    for case in content["training"] + content["validation"] + content["test"]:
        path = datalist.parent / case["label"]
        image = nib.load(path)
        array = np.asarray(image.dataobj).astype(np.uint8)
        marked = array > 0
        array[marked] = values[np.arange(marked.sum()) * len(values) // marked.sum()]
        nib.save(nib.Nifti1Image(array, image.affine), path)
    datalist.write_text(json.dumps(content | {"labels": names}), encoding="utf-8")
