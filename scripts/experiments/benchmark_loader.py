"""Measure how fast the crops of CTs come, against MONAI's transforms alone and workers that start in every epoch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import nibabel as nib
import numpy as np
from monai.bundle import ConfigParser

from shared.utils import write_json
from shared.utils.values import Several, Whole

from .runs import BUNDLES, AtLeastOne
from .timing import in_turns, seconds_of, show_quartiles

CONFIG = BUNDLES / "abdominal_unetr_cbs" / "configs" / "train.json"


def make_cases(folder: Path, cases: int, size: int, slices: int, spacing: Sequence[float]) -> None:
    """Noise with 13 boxes, a tenth of the volume, on the grid that the network is trained on."""
    entries = []
    for i in range(cases):
        rng = np.random.default_rng(i)
        image, label = rng.integers(-100, 100, (size, size, slices)), np.zeros((size, size, slices), np.uint8)
        for organ in range(1, 14):
            side = max(2, int(size * (0.35 if organ == 6 else 0.05 + 0.15 * rng.random())))
            label[tuple(slice(s, s + side) for s in rng.integers(0, np.subtract(label.shape, side)))] = organ
        entries.append({"image": f"image_{i}.nii.gz", "label": f"label_{i}.nii.gz"})
        for name, array in (("image", image.astype(np.int16)), ("label", label)):
            nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1])), folder / entries[-1][name])
    splits = {"training": entries, "validation": entries[:1], "test": entries[:1]}
    write_json(folder / "dataset.json", {"name": "boxes", "synthetic": True, **splits})


class Epoch:
    """One epoch after the other of the bundle's loader, as it is or `plain`."""

    def __init__(self, parser: ConfigParser, workers: int, plain: bool) -> None:
        parser["num_workers"] = workers
        if plain:
            parser["crop_centres"] = {"_target_": "Identityd", "keys": "label"}
            parser["train#dataloader#persistent_workers"] = False
            for key in ("fg_indices_key", "bg_indices_key"):
                parser[f"sampling#{key}"] = None
            for step in parser["augmentation"]:
                step["_target_"] = step["_target_"].replace("shared.transforms.RandRotateVolumesd", "RandRotated")
        parser.parse(reset=True)
        self.loader, self.number = parser.get_parsed_content("train#dataloader"), 0

    def run(self) -> None:
        self.loader.sampler.set_epoch(self.number)
        for _ in self.loader:
            pass

    def __call__(self) -> float:
        """Seconds of an epoch."""
        self.number += 1
        return seconds_of(self.run)


def benchmark_loader(
    output: str = "",
    workers: Annotated[Sequence[int], Several(Whole(1))] = (1, 2, 4),
    cases: AtLeastOne = 6,
    size: Annotated[int, Whole(96)] = 300,
    slices: Annotated[int, Whole(96)] = 200,
    cases_per_epoch: AtLeastOne = 18,
    rounds: AtLeastOne = 5,
) -> None:
    """Count the cases, four crops each, that come in a second, beside those of MONAI's transforms alone.

    Args:
        output: JSON file for the result.
        workers: numbers of processes to try.
        cases: made-up CTs, cached on disk.
        size: their width and height, in voxels of the network's spacing.
        slices: their depth.
        cases_per_epoch: draws in an epoch; BTCV has 18 cases for training.
        rounds: epochs that are counted; one more is not.
    """
    result: dict[str, Any] = {"cases": cases, "size": size, "slices": slices, "cases_per_epoch": cases_per_epoch}
    with tempfile.TemporaryDirectory() as folder:
        content = ConfigParser.load_config_file(CONFIG)
        make_cases(Path(folder), cases, size, slices, content["spacing"])
        content |= {"bundle_root": folder, "dataset_dir": folder, "cases_per_epoch": cases_per_epoch}
        kinds = {f"{count} {kind}": (count, kind == "plain") for count in workers for kind in ("own", "plain")}
        epochs = {name: Epoch(ConfigParser(deepcopy(content)), *kind) for name, kind in kinds.items()}
        seconds = in_turns(epochs, rounds, uncounted=1)
    for count in workers:
        own, plain = (cases_per_epoch / seconds[f"{count} {kind}"] for kind in ("own", "plain"))
        result[str(count)] = {
            "cases_per_second": show_quartiles(f"{count} workers: cases a second", own),
            "plain": show_quartiles("  of MONAI's alone", plain),
            "ratio": show_quartiles("  ratio", own / plain, aim=3, at_least=True),
        }
    if output:
        write_json(Path(output), result)
