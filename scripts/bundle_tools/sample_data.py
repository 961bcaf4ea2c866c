"""Small made-up data on which a bundle's commands can be tried: boxes and squares, which look like nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

TASKS = ("segmentation", "classification", "detection")


def task_of(metadata: Mapping[str, Any]) -> str:
    """Which of the tasks a bundle's metadata tells of.

    Raises:
        ValueError: when it is none.
    """
    if found := [task for task in TASKS if task in metadata["task"].lower()]:
        return found[0]
    raise ValueError(f"`task` in metadata.json is {metadata['task']!r}, expected one of {', '.join(TASKS)}: no data.")


def write_scans(folder: Path, labels: dict[str, int]) -> Path:
    """Four CTs of a body with a box for each organ, and their list; gives the one for testing."""
    random, cases = np.random.default_rng(0), []
    for number in range(4):
        image, label = np.full((40, 34, 32), -1000.0), np.zeros((40, 34, 32), np.uint8)
        image[2:38, 2:30] = -90
        for place, value in enumerate(labels.values()):
            x, y, z = 4 + 5 * (place % 6), 4 + 4 * (place // 6 % 6), 4 + 6 * (place // 36)
            label[x : x + 5, y : y + 4, z : z + 6] = value
        image += 30 * label + random.normal(0, 10, image.shape)
        case = {"image": f"image_{number}.nii.gz", "label": f"label_{number}.nii.gz"}
        for name, array in (("image", image.astype(np.int16)), ("label", label)):
            nib.save(nib.Nifti1Image(array, np.diag([5.0, 5.0, 6.0, 1.0])), folder / case[name])
        cases.append(case)
    splits = {"training": cases[:2], "validation": cases[2:3], "test": cases[3:]}
    content = {"name": "boxes", "synthetic": True, **splits}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / cases[3]["image"]


def write_images(folder: Path, width: int, boxes: bool) -> Path:
    """Images of three scanners, and their list; gives one for testing. Half of them have a dark square, boxes all."""
    random = np.random.default_rng(0)
    content: dict[str, Any] = {"name": "squares", "synthetic": True, "labels": {"0": "non_mitotic", "1": "mitotic"}}
    content |= {"box_mode": "xyxy", "mpp": 0.25} if boxes else {}
    for split in ("training", "validation", "test"):
        content[split] = []
        for number in range(12):
            pixels = random.normal((220, 180, 210), 12, (width, width, 3))
            x, y = (int(v) for v in random.integers(25, width - 24, 2)) if boxes else (width // 2, width // 2)
            pixels[y - 8 : y + 8, x - 8 : x + 8] -= 110 * (boxes or number % 2)
            slide = f"{split}_{number}"
            case = {"image": f"{slide}.png", "slide": slide, "domain": ("XR", "S360", "CS")[number // 4]}
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / case["image"])
            found = {"box": [[x - 25, y - 25, x + 25, y + 25]], "label": [number % 2]}
            content[split].append(case | (found if boxes else {"label": number % 2}))
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / content["test"][0]["image"]


def write_sample(folder: Path, task: str, labels: dict[str, int]) -> dict[str, str]:
    """Data for a task, in a new folder; gives the options that name it.

    Args:
        folder: becomes the data set.
        task: `segmentation`, `classification` or `detection`.
        labels: of a segmentation, by their names.
    """
    folder.mkdir()
    if task == "segmentation":
        image = write_scans(folder, labels)
    else:
        image = write_images(folder, *((256, True) if task == "detection" else (64, False)))
    return {"dataset_dir": str(folder), "datalist": str(folder / "dataset.json"), "input": str(image)}
