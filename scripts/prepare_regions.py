"""Turn images and the figures that people have marked in them into a datalist for the detection bundle."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from command_line import Seed, run_command

from shared.data import RegionEntry, list_images
from shared.datasets.histology_entries import count_regions, write_histology_datalist
from shared.datasets.midog import MIDOG_LABELS
from shared.datasets.region_annotations import FORMATS, by_image, read_annotations
from shared.datasets.region_entries import CLASSES, KINDS, Sources, class_of, region_entries
from shared.datasets.splits import split_regions
from shared.utils import DataError, text_table
from shared.utils.values import MPP, Choice, Number, Table

Classes = Annotated[Mapping[str, str], Table(Choice(KINDS), f"names of classes, and for each {', '.join(KINDS)}")]


def main(
    annotations: str,
    image_dir: str,
    output: str,
    format: Annotated[str, Choice(tuple(FORMATS))],
    classes: Classes | None = None,
    box_size: Annotated[float, Number(above=0)] = 50.0,
    table: str = "",
    scanner: str = "folder",
    slide: str = "file",
    others: Annotated[str, Choice(("unlabelled", "empty", "leave_out"))] = "unlabelled",
    mpp: Annotated[float, MPP] | None = None,
    seed: Seed = 0,
    name: str = "",
    overwrite: bool = False,
) -> None:
    """Read the figures marked in images, split the images by slide within each scanner, and write a datalist.

    One fifth of each scanner's slides is for testing, a fifth of the others for validation. The images stay where they
    are; the datalist holds their paths relative to itself, and boxes cut off at the images' edges.

    Args:
        annotations: file, or folder of files that are called like their images.
        image_dir: folder with the images and slides, those below it included.
        output: the datalist to write, a .json file.
        format: geojson (QuPath), coco, voc, yolo, csv (columns image, label, and x, y or x1, y1, x2, y2), or
            sliderunner (its SQLite file, also of EXACT).
        classes: what the annotations' classes are, such as {'Mitosis': 'mitotic', 'NMF': 'non_mitotic', 'Tumor':
            'ignore'}; usual names are known.
        box_size: pixels, the side of the box around a point.
        table: CSV file with the columns file, scanner and slide, which goes before the two following options.
        scanner: folder (the one that the image lies in), header (what its file says), or a name that holds for all.
        slide: file (each is a slide of its own), folder, or a regular expression whose group is the slide's name in
            that of the file.
        others: images that the annotations do not name: unlabelled (unless their slide is held out for validation or
            test), empty (someone looked and found nothing), or leave_out.
        mpp: µm a pixel of images that do not say it, or name the objective alone.
        seed: of the split.
        name: of the data set; the folder of the annotations by default.
        overwrite: replace another datalist of that name.
    """
    target, folder = Path(output).resolve(), Path(image_dir).expanduser().resolve()
    images = [image["image"] for image in list_images(folder, slides=True)]
    found = read_annotations(annotations, format)
    figures = by_image(found, images, folder, annotations)
    counts = Counter(figure.name for of_image in figures.values() for figure in of_image)
    known = {label: class_of(label, classes) for label in counts}
    if unknown := [f"{label!r} ({counts[label]})" for label, kind in known.items() if kind is None]:
        raise DataError(
            f"{annotations}: the classes {', '.join(unknown)} are not known. Say what they are with --classes "
            f"\"{{'NAME': 'mitotic'}}\", of {', '.join(KINDS)}. Known by themselves: {', '.join(CLASSES)}."
        )
    sources = Sources(folder, Path(table) if table else None, scanner, slide)
    regions = region_entries(images, figures, found, known, sources, box_size, others, mpp)
    labelled = [region for region in regions if region["labelled"]]
    unlabelled = [region for region in regions if not region["labelled"]]
    splits = split_regions(labelled, seed)
    held_out = {(r["domain"], r["slide"]) for split in ("validation", "test") for r in splits[split]}
    unlabelled = [region for region in unlabelled if (region["domain"], region["slide"]) not in held_out]
    for region in [*unlabelled, *(region for members in splits.values() for region in members)]:
        region["image"] = os.path.relpath(region["image"], target.parent)
    facts = {"box_mode": "xyxy", "split_unit": "slide", "split_seed": seed}
    source = Path(annotations).resolve()
    name = name or (source if source.is_dir() else source.parent).name
    write_histology_datalist(target, name, MIDOG_LABELS, splits | {"unlabelled": unlabelled}, facts, overwrite)
    for label, count in counts.most_common():
        print(f"{label or '(no class)'}: {count} figures, taken as {known[label]}")
    show_counts(splits, unlabelled)
    print(f"{sum(len(region['box']) for region in labelled)} figures in {len(labelled)} images: {target}")


def show_counts(splits: Mapping[str, Sequence[RegionEntry]], unlabelled: Sequence[RegionEntry]) -> None:
    print(text_table(count_regions(splits)))
    for domain, count in sorted(Counter(region["domain"] for region in unlabelled).items()):
        print(f"Unlabelled: {count} images of {domain}.")


if __name__ == "__main__":
    run_command(main)
