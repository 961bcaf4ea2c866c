"""The bundles at a size that trains in seconds: made-up data sets, and the settings that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image
from workflows import BUNDLES, config_files

from shared.utils import write_json

SEGMENT, SEGMENT_LAMBDA = "abdominal_unetr_cbs", "abdominal_lambda3d_cbs"
CLASSIFY, DETECT = "mitosis_fusestyle_cls", "mitosis_retinanet_fusestyle"
METHODS = ("coral", "domain_adversarial", "domain_mix", "fish", "group_dro", "ib_irm", "lisa", "vrex")
ORGANS = {"liver": 1, "spleen": 2}
SIZE = 64  # pixels of a patch
SMALL: dict[str, dict[str, Any]] = {
    SEGMENT: {"labels": ORGANS},
    CLASSIFY: {"network_def#name": "resnet10", "crop_size": SIZE, "patch_size": SIZE},
    DETECT: {"network_def#backbone": "resnet10", "network_def#channels": 32},
}
SMALL[SEGMENT_LAMBDA] = SMALL[SEGMENT]
QUICK: dict[str, dict[str, Any]] = {
    SEGMENT: {"max_epochs": 2, "val_interval": 1, "warmup_epochs": 1, "learning_rate": 0.01, "num_samples": 1},
    CLASSIFY: {"max_epochs": 2, "batch_size": 2},
    DETECT: {"max_epochs": 2, "batch_size": 2, "tile_size": 96, "val_tile_size": 96, "empty_tiles_per_region": 1},
}
QUICK[SEGMENT_LAMBDA] = QUICK[SEGMENT]


def ct_data(folder: Path) -> None:
    """Six bodies with two organs, two for each split; where one organ lies differs from body to body."""
    rng = np.random.default_rng(0)
    cases = []
    for i in range(6):
        image, label = np.full((32, 32, 32 + 4 * i), -90.0), np.zeros((32, 32, 32 + 4 * i), np.uint8)
        label[2 : 16 + 2 * i, 4:20, 4:20] = 1
        label[20:30, 20:28, 6 + i : 20] = 2
        image += 100 * label + rng.normal(0, 10, image.shape)
        entry = {"image": f"image_{i}.nii.gz", "label": f"label_{i}.nii.gz"}
        for name, array in (("image", image.astype(np.int16)), ("label", label)):
            nib.save(nib.Nifti1Image(array, np.diag([-6, -6, 6, 1])), folder / entry[name])
        cases.append(entry)
    splits = {"training": cases[:2], "validation": cases[2:4], "test": cases[4:]}
    write_json(folder / "dataset.json", {"name": "boxes", "synthetic": True, **splits})


def histology_data(folder: Path, width: int, images: int, boxes: bool) -> None:
    """Images of one scanner with a dark square in half of them, or, with boxes, in each."""
    rng = np.random.default_rng(0)
    splits: dict[str, list[dict[str, Any]]] = {"training": [], "validation": [], "test": []}
    for split, entries in splits.items():
        for i in range(images):
            pixels = rng.normal((220, 180, 210), 12, (width, width, 3))
            x, y = (int(v) for v in rng.integers(25, width - 24, 2)) if boxes else (width // 2,) * 2
            pixels[y - 8 : y + 8, x - 8 : x + 8] -= 110 * (boxes or i % 2)
            name = f"{split}_{i}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
            found = {"box": [[x - 25, y - 25, x + 25, y + 25]], "label": [1]} if boxes else {"label": i % 2}
            entries.append({"image": name, "domain": "XR", "slide": name, **found})
    head = {"name": "squares", "synthetic": True, "labels": {"0": "non_mitotic", "1": "mitotic"}}
    write_json(folder / "dataset.json", {**head, **({"box_mode": "xyxy", "mpp": 0.25} if boxes else {}), **splits})


def configs_of(bundle: str, configs: Sequence[str], overlays: Sequence[str] = ()) -> list[str]:
    return config_files(BUNDLES / bundle, [*configs, "variants/demo", *overlays])


def training(bundle: str, data: dict[str, Path], folder: Path, **options: Any) -> dict[str, Any]:
    places = {"dataset_dir": str(data[bundle]), "output_dir": str(folder), "ckpt_dir": str(folder), "num_workers": 0}
    places |= {"cache_dir": str(folder / "cache")} if bundle in (SEGMENT, SEGMENT_LAMBDA) else {}
    return {**places, **SMALL[bundle], **QUICK[bundle], **options}


def write_data(bundle: str, folder: Path) -> None:
    """The data set, and in `input` what inference gets."""
    folder.mkdir()
    if bundle in (SEGMENT, SEGMENT_LAMBDA):
        ct_data(folder)
    else:
        histology_data(folder, 128 if bundle == DETECT else SIZE, 4, boxes=bundle == DETECT)
    (folder / "input").mkdir()
    for path in [*folder.glob("image_*"), *folder.glob("test_*.png")]:
        (folder / "input" / path.name).symlink_to(path)


def flows(
    bundle: str, folder: Path, overlays: Sequence[str] = (), **common: Any
) -> list[tuple[list[str], dict[str, Any], list[str]]]:
    """A training, an evaluation and an inference on the set in `data`: config files, options, names of engines."""
    options = training(bundle, {bundle: folder / "data"}, folder, **common)
    evaluation = {key: value for key, value in options.items() if key not in QUICK[bundle] or key.endswith("tile_size")}
    evaluation |= {"bootstrap": 1} | ({} if bundle in (SEGMENT, SEGMENT_LAMBDA) else {"batch_size": 2})
    places = {"input": str(folder / "data" / "input"), "output_dir": str(folder / "eval"), "num_workers": 0}
    inference = {**SMALL[bundle], **common, **places, "ckpt_path": str(folder / "model.pt")}
    inference |= {"mpp": 0.25, "inferer#progress": False} if bundle == DETECT else {}
    return [
        (configs_of(bundle, ["train"], overlays), options, ["train#trainer", "validate#evaluator"]),
        (configs_of(bundle, ["train", "evaluate"], overlays), evaluation, ["validate#evaluator"]),
        (configs_of(bundle, ["inference"], overlays), inference, ["evaluator"]),
    ]
