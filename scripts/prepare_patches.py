"""Turn any table of labelled image patches into a datalist for the classification bundle."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import fire

from shared.data import leaked_slides, scanner_name, write_datalist
from shared.datasets import count_patches, read_patch_table, split_patches
from shared.utils import flag, show_errors_briefly, text_table


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
    unit: str = "slide",
    seed: int = 0,
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
    patches = read_patch_table(table, image_dir, str(positive), str(negative) or None, **columns)
    _warn_of_names(Path(table), domain_column, patches)
    splits = split_patches(patches, unit=unit, seed=seed)
    target = Path(output).resolve()
    classes = {"0": str(negative) or f"not {positive}", "1": str(positive)}
    content = {"name": name or Path(table).resolve().parent.name, "labels": classes, "synthetic": False}
    content |= {"split_unit": unit, "split_seed": seed}
    for split, members in splits.items():
        content[split] = [{**p, "image": os.path.relpath(p["image"], target.parent)} for p in members]
    write_datalist(target, content, flag("--overwrite", overwrite))
    print(text_table(count_patches(splits)))
    if unit == "patch":
        leaked, tested = leaked_slides(splits)
        print(f"Split by patch: of {leaked} of the {tested} slides of the test split, training has seen other patches.")
    print(f"{len(patches)} patches: {target}")


def _warn_of_names(table: Path, domain_column: str, patches: list[dict[str, Any]]) -> None:
    with table.open(newline="", encoding="utf-8-sig") as file:
        spellings = {row[domain_column].strip() for row in csv.DictReader(file)}
    for domain in sorted({patch["domain"] for patch in patches}):
        merged = sorted(name for name in spellings if scanner_name(name) == domain)
        if len(merged) > 1:
            print(f"Warning: {', '.join(merged)} are taken for one domain, {domain}.")
    domains = defaultdict(set)
    for patch in patches:
        domains[patch["slide"]].add(patch["domain"])
    twice = [slide for slide, names in domains.items() if len(names) > 1]
    if twice:
        print(
            f"Warning: {len(twice)} slide names, such as {twice[0]}, occur in several domains. If these are the same "
            "slides on several scanners, training sees slides of the test split: split such a table by patient."
        )


if __name__ == "__main__":
    show_errors_briefly()
    fire.Fire(main)
