"""Turn Camelyon17-WILDS, as downloaded, into a datalist for the classification bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import torch
from command_line import run_command

from shared.datasets.camelyon17 import CAMELYON17_LABELS, read_camelyon17
from shared.datasets.histology_entries import check_image_files, count_patches, write_histology_datalist
from shared.utils import text_table
from shared.utils.values import Whole

SAMPLE = 1000


def main(
    data_dir: str,
    output: str,
    check_images: bool = False,
    allow_missing: bool = False,
    overwrite: bool = False,
    workers: Annotated[int, Whole(1)] = 4,
) -> None:
    """Check the patches and write a datalist with the default split of WILDS.

    The lists are training and validation (centres 0, 3 and 4), ood_validation (centre 1) and test (centre 2). The
    patches stay where they are; the datalist holds their paths relative to itself.

    Args:
        data_dir: the folder camelyon17_v1.0, with metadata.csv and patches.
        output: the datalist to write, a .json file.
        check_images: decode all patches, which takes many minutes; 1,000 of them otherwise. That the files are there is
            seen of all of them.
        allow_missing: leave out patches whose file is not there.
        overwrite: replace another datalist of that name.
        workers: files opened at a time.
    """
    folder, target = Path(data_dir).resolve(), Path(output).resolve()
    splits = read_camelyon17(folder, allow_missing)
    images = [str(folder / patch["image"]) for patches in splits.values() for patch in patches]
    if not check_images:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        images = [images[i] for i in sorted(order[:SAMPLE].tolist())]
    remedy = "Unpack the archive again."
    check_image_files(folder / "metadata.csv", images, workers, size=(96, 96), remedy=remedy)
    counts = count_patches(splits)
    where = os.path.relpath(folder, target.parent)
    for patches in splits.values():
        for patch in patches:
            patch["image"] = f"{where}/{patch['image']}"
    facts = {"split_unit": "patch"}  # of validation
    write_histology_datalist(target, "Camelyon17-WILDS", CAMELYON17_LABELS, splits, facts, overwrite=overwrite)
    print(text_table([row for row in counts if row["slides"]]))
    print("The validation split has other patches of the training slides; ood_validation and test are other centres.")
    print(f"{sum(map(len, splits.values()))} patches: {target}")


if __name__ == "__main__":
    run_command(main)
