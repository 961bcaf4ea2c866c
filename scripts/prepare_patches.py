"""Turn any table of labelled image patches into a datalist for the classification bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from command_line import Seed, run_command

from shared.data import leaked_slides
from shared.datasets.histology_entries import count_patches, write_histology_datalist
from shared.datasets.patch_table import misleading_names, read_patch_table
from shared.datasets.splits import SPLIT_UNITS, split_patches
from shared.utils import text_table
from shared.utils.values import Choice


def main(
    table: str,
    image_dir: str,
    output: str,
    positive: str,
    negative: str = "",
    image_column: str = "file",
    label_column: str = "label",
    domain_column: str = "scanner",
    slide_column: str = "slide",
    unit: Annotated[str, Choice(SPLIT_UNITS)] = "slide",
    seed: Seed = 0,
    name: str = "",
    overwrite: bool = False,
) -> None:
    """Check the images that a CSV table lists, split them within each domain, and write a datalist.

    One fifth of each domain's slides is for testing, a fifth of the others for validation. The images stay where they
    are; the datalist holds their paths relative to itself, and every column of the table. The same table and seed
    give the same datalist.

    Args:
        table: CSV file with a header and a row for each patch.
        image_dir: folder that the table's file names are relative to.
        output: the datalist to write, a .json file.
        positive: the label of the class to find, such as mitotic.
        negative: the other label; needed only to make sure that there is no third.
        image_column: column with the file names.
        label_column: column with the labels.
        domain_column: column with the scanner, centre or whatever else the domains are.
        slide_column: column with the slide (or patient) that a patch is from.
        unit: slide, so that no slide is in two splits; or patch, the paper's way, which leaks slides into the test.
        seed: of the split.
        name: of the data set; the table's folder by default.
        overwrite: replace another datalist of that name.
    """
    columns = {"image_column": image_column, "label_column": label_column}
    columns |= {"domain_column": domain_column, "slide_column": slide_column}
    patches = read_patch_table(table, image_dir, positive, negative or None, **columns)
    for warning in misleading_names(table, domain_column, patches):
        print(warning)
    splits = split_patches(patches, unit=unit, seed=seed)
    target = Path(output).resolve()
    for patch in (patch for members in splits.values() for patch in members):
        patch["image"] = os.path.relpath(patch["image"], target.parent)
    labels = {negative or f"not {positive}": 0, positive: 1}
    facts = {"split_unit": unit, "split_seed": seed}
    name = name or Path(table).resolve().parent.name
    write_histology_datalist(target, name, labels, splits, facts, overwrite)
    print(text_table(count_patches(splits)))
    if unit == "patch":
        slides, tested = leaked_slides(splits["training"] + splits["validation"], splits["test"])
        leaked = len(slides)
        print(f"Split by patch: of {leaked} of the {tested} slides of the test split, training has seen other patches.")
    print(f"{len(patches)} patches: {target}")


if __name__ == "__main__":
    run_command(main)
