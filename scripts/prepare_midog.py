"""Prepare MIDOG 2021, MIDOG 2022 or MIDOG++, as downloaded, for the bundles."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from command_line import AtATime, Seed, run_command

from shared.data import leaked_slides
from shared.datasets.histology_entries import count_patches, count_regions, write_histology_datalist
from shared.datasets.midog import MIDOG_LABELS, MidogImage, find_midog, read_midog
from shared.datasets.midog_crops import crop_beside, crop_midog
from shared.datasets.midog_datalist import (
    claim_folder,
    clipped_boxes,
    midog_patches,
    midog_regions,
    named_patches,
    write_midog,
)
from shared.datasets.midog_mosaics import write_mosaics
from shared.datasets.preparation import refuse_other_content, resolve_folders, worker_count
from shared.datasets.splits import SPLIT_UNITS, split_patches, split_regions
from shared.utils import text_table
from shared.utils.values import Choice, Whole


def patches(
    annotations: str,
    image_dir: str,
    output_dir: str,
    size: Annotated[int, Whole(8)] = 64,
    domain: str = "scanner",
    dataset: str = "",
    scanners: str = "",
    unit: Annotated[str, Choice(SPLIT_UNITS)] = "slide",
    seed: Seed = 0,
    unlabelled_per_image: Annotated[int, Whole(0)] = 20,
    allow_missing: bool = False,
    overwrite: bool = False,
    workers: AtATime = None,
) -> None:
    """Crop the mitotic figures (label 1) and hard negatives (label 0), and write a datalist for classification.

    OUTPUT_DIR then holds dataset.json, patches with PNG files, and confounding.csv, which tells how scanner, tumour,
    species and origin go together. Of each domain a fifth of the slides is for testing, a fifth of the others for
    validation. Images that nobody annotated (Leica GT450 of 2021, melanoma of 2022) give crops around dark nuclei in
    the list "unlabelled", never a negative. The same arguments give the same bytes; an interrupted run goes on where
    it stopped. About a second an image.

    Args:
        annotations: MIDOG.json, MIDOG2022_training.json or MIDOG++.json.
        image_dir: folder with the TIFF files.
        output_dir: a new or empty folder, or that of an earlier run with the same settings.
        size: side of the crops in pixels.
        domain: what the domains are: scanner, tumor_type, species, origin, or several joined by +.
        dataset: midog21, midog22 or midog++, where the annotation file does not say it.
        scanners: CSV table with file_name and any of scanner, tumor_type, species, origin, labelled (true or false);
            it goes before what the annotation file and the known numbering say.
        unit: slide, so that no slide is in two splits; or patch, the paper's way, which leaks slides into the test.
        seed: of the split.
        unlabelled_per_image: crops of each image that was not annotated, at most; 0 for none.
        allow_missing: go on with the TIFF files at hand.
        overwrite: replace another datalist in OUTPUT_DIR; the crops stay.
        workers: images cropped at a time, 160 MB each; by default one for each core, 8 at most.
    """
    workers = worker_count(workers)
    _, target = resolve_folders(image_dir, output_dir, "--image_dir")
    fields = _split_fields(domain)

    name, listed = read_midog(annotations, dataset, scanners)
    wanted = [image for image in listed if image.labelled or unlabelled_per_image]
    images = find_midog(wanted, image_dir, allow_missing, workers)
    labelled = midog_patches(images, fields)
    splits = split_patches(labelled, unit=unit, seed=seed)
    claim_folder(target, annotations, {"size": size, "unlabelled_per_image": unlabelled_per_image}, listed)
    unlabelled = crop_midog(images, image_dir, target, fields, size, unlabelled_per_image, workers)

    facts = {"patch_size": size, "domain_fields": " + ".join(fields), "split_unit": unit, "split_seed": seed}
    print(write_midog(target, name, images, splits | {"unlabelled": unlabelled}, facts, overwrite), end="\n\n")
    _print_counts(count_patches(splits), unlabelled, "patches")
    _print_left_out(annotations, images, listed)
    if unit == "patch":
        slides, tested = leaked_slides(splits["training"] + splits["validation"], splits["test"])
        leaked = len(slides)
        print(f"Split by patch: of {leaked} of the {tested} slides of the test split, training has seen other patches.")
    print(f"{len(labelled)} patches: {target / 'dataset.json'}")


def tiles(
    annotations: str,
    image_dir: str,
    output_dir: str,
    domain: str = "scanner",
    dataset: str = "",
    scanners: str = "",
    seed: Seed = 0,
    allow_missing: bool = False,
    overwrite: bool = False,
    workers: AtATime = None,
) -> None:
    """Write a datalist of whole images with boxes around mitotic figures (label 1) and hard negatives (label 0).

    For the detector, which draws tiles from the TIFF files; these stay as they are and where they are. OUTPUT_DIR then
    holds dataset.json and confounding.csv, which tells how scanner, tumour, species and origin go together. Of each
    domain a fifth of the slides is for testing, a fifth of the others for validation: the same as `patches` takes with
    the same seed. Boxes are cut off at the image's edges. Images that nobody annotated (Leica GT450 of 2021, melanoma
    of 2022) are in the list "unlabelled", without boxes. The same arguments give the same bytes.

    Args:
        annotations: MIDOG.json, MIDOG2022_training.json or MIDOG++.json.
        image_dir: folder with the TIFF files.
        output_dir: a new or empty folder, or that of an earlier run for the same annotations.
        domain: what the domains are: scanner, tumor_type, species, origin, or several joined by +.
        dataset: midog21, midog22 or midog++, where the annotation file does not say it.
        scanners: CSV table with file_name and any of scanner, tumor_type, species, origin, labelled (true or false);
            it goes before what the annotation file and the known numbering say.
        seed: of the split.
        allow_missing: go on with the TIFF files at hand.
        overwrite: replace another datalist in OUTPUT_DIR.
        workers: headers read at a time; by default one for each core, 8 at most.
    """
    workers = worker_count(workers)
    _, target = resolve_folders(image_dir, output_dir, "--image_dir")
    fields = _split_fields(domain)

    name, listed = read_midog(annotations, dataset, scanners)
    images = find_midog(listed, image_dir, allow_missing, workers)
    regions = midog_regions(images, image_dir, target, fields, workers)
    splits = split_regions([region for region in regions if region["labelled"]], seed)
    unlabelled = [region for region in regions if not region["labelled"]]
    claim_folder(target, annotations, {"content": "regions"})

    facts = {"box_mode": "xyxy", "domain_fields": " + ".join(fields), "split_unit": "slide", "split_seed": seed}
    print(write_midog(target, name, images, splits | {"unlabelled": unlabelled}, facts, overwrite), end="\n\n")
    _print_counts(count_regions(splits), unlabelled, "images")
    _print_left_out(annotations, images, listed)
    negative, beyond = clipped_boxes(images)
    print(f"Cut off at the edges: {negative} boxes with a negative coordinate, {beyond} others that overhang.")
    unknown = sum("mpp" not in region for region in regions)
    if unknown:
        print(f"{unknown} of the {len(regions)} TIFF files do not state the size of a pixel.")
    strips = sum(not region["tiled"] for region in regions)
    if strips:
        print(
            f"{strips} of the {len(regions)} TIFF files are stored in strips, and each tile costs the decoding of a "
            "whole region: a quarter of a second instead of a sixtieth. For a long training, convert them to tiles, "
            "for instance with libvips: vips tiffsave IN OUT --tile --compression deflate"
        )
    print(f"{sum(len(image.figures) for image in images)} figures: {target / 'dataset.json'}")


def named(
    annotations: str,
    patch_dir: str,
    output: str,
    positive: str,
    prefix: str = "",
    domain: str = "scanner",
    dataset: str = "",
    scanners: str = "",
    unit: Annotated[str, Choice(SPLIT_UNITS)] = "slide",
    seed: Seed = 0,
    name: str = "",
    overwrite: bool = False,
) -> None:
    """Write a datalist of patches that others have cropped around MIDOG's figures and labelled anew, as AMi-Br.

    PATCH_DIR holds a folder for each of two classes, whose PNG files are called after their annotations' ids; scanner
    and slide follow from these. Of each domain a fifth of the slides is for testing, a fifth of the others for
    validation. The patches stay where they are.

    Args:
        annotations: MIDOG.json, MIDOG2022_training.json or MIDOG++.json: whose ids the names hold.
        patch_dir: the folder with the classes.
        output: the datalist to write, a .json file.
        positive: the folder of the class to find, such as Atypical.
        prefix: before the ids in the files' names, such as MIDOG21_; files with another one are left out.
        domain: what the domains are: scanner, tumor_type, species, origin, or several joined by +.
        dataset: midog21, midog22 or midog++, where the annotation file does not say it.
        scanners: CSV table with file_name and any of scanner, tumor_type, species and origin.
        unit: slide, so that no slide is in two splits; or patch, which leaks slides into the test.
        seed: of the split.
        name: of the data set; that of PATCH_DIR by default.
        overwrite: replace another datalist of that name.
    """
    target, fields = Path(output).resolve(), _split_fields(domain)
    _, images = read_midog(annotations, dataset, scanners)
    labels, entries = named_patches(images, patch_dir, positive, prefix, fields)
    splits = split_patches(entries, unit=unit, seed=seed)
    for entry in (entry for members in splits.values() for entry in members):
        entry["image"] = os.path.relpath(entry["image"], target.parent)
    facts = {"domain_fields": " + ".join(fields), "split_unit": unit, "split_seed": seed}
    write_histology_datalist(target, name or Path(patch_dir).resolve().name, labels, splits, facts, overwrite)
    print(text_table(count_patches(splits)))
    print(f"{len(entries)} patches: {target}")


def nuclei(
    annotations: str,
    patch_dir: str,
    output_dir: str,
    prefix: str = "",
    size: Annotated[int, Whole(8)] = 40,
    domain: str = "scanner",
    dataset: str = "",
    scanners: str = "",
    seed: Seed = 0,
    name: str = "",
    overwrite: bool = False,
    workers: AtATime = None,
) -> None:
    """From patches around mitotic figures that others have cropped, as AMi-Br, make the task mitotic or not.

    Each gives the crop of its figure (label 1) and that of the darkest other nucleus in it (label 0), which is easier
    to tell apart than MIDOG's hard negatives. Scanner and slide follow from the files' names, see `named`. OUTPUT_DIR
    then holds dataset.json, split by slide, and patches.

    Args:
        annotations: MIDOG.json, MIDOG2022_training.json or MIDOG++.json: whose ids the names hold.
        patch_dir: the folder with a folder for each class, whatever they are.
        output_dir: a new or empty folder.
        prefix: before the ids in the files' names, such as MIDOG21_; files with another one are left out.
        size: side of the crops in pixels.
        domain: what the domains are: scanner, tumor_type, species, origin, or several joined by +.
        dataset: midog21, midog22 or midog++, where the annotation file does not say it.
        scanners: CSV table with file_name and any of scanner, tumor_type, species and origin.
        seed: of the split.
        name: of the data set; that of PATCH_DIR by default.
        overwrite: replace another datalist in OUTPUT_DIR.
        workers: patches cropped at a time; by default one for each core, 8 at most.
    """
    target, fields = _new_folder(patch_dir, output_dir, overwrite), _split_fields(domain)
    _, images = read_midog(annotations, dataset, scanners)
    _, figures = named_patches(images, patch_dir, None, prefix, fields)
    crops = crop_beside(figures, target, size, worker_count(workers))
    splits = split_patches(crops, seed=seed)
    facts = {"patch_size": size, "domain_fields": " + ".join(fields), "split_unit": "slide", "split_seed": seed}
    name = f"{name or Path(patch_dir).resolve().name}, figures and other nuclei"
    write_histology_datalist(target / "dataset.json", name, MIDOG_LABELS, splits, facts, overwrite)
    print(text_table(count_patches(splits)))
    print(f"{len(crops)} patches of {len(figures)} figures: {target / 'dataset.json'}")


def mosaics(
    annotations: str,
    patch_dir: str,
    output_dir: str,
    prefix: str = "",
    columns: Annotated[int, Whole(1)] = 4,
    domain: str = "scanner",
    dataset: str = "",
    scanners: str = "",
    seed: Seed = 0,
    name: str = "",
    overwrite: bool = False,
) -> None:
    """From patches around mitotic figures that others have cropped, as AMi-Br, put together regions for the detector.

    The patches of an image lie side by side; marked are all figures that the annotations know, hard negatives too. Real
    tissue of a few megabytes, but with seams: to try a detector, not to judge it. OUTPUT_DIR then holds dataset.json,
    split by slide, and regions.

    Args:
        annotations: MIDOG.json, MIDOG2022_training.json or MIDOG++.json: whose ids the names hold.
        patch_dir: the folder with a folder for each class, whatever they are.
        output_dir: a new or empty folder.
        prefix: before the ids in the files' names, such as MIDOG21_; files with another one are left out.
        columns: patches side by side.
        domain: what the domains are: scanner, tumor_type, species, origin, or several joined by +.
        dataset: midog21, midog22 or midog++, where the annotation file does not say it.
        scanners: CSV table with file_name and any of scanner, tumor_type, species and origin.
        seed: of the split.
        name: of the data set; that of PATCH_DIR by default.
        overwrite: replace another datalist in OUTPUT_DIR.
    """
    target, fields = _new_folder(patch_dir, output_dir, overwrite), _split_fields(domain)
    _, images = read_midog(annotations, dataset, scanners)
    _, patches = named_patches(images, patch_dir, None, prefix, fields)
    regions = write_mosaics(images, patches, target, columns)
    splits = split_regions(regions, seed)
    facts = {"box_mode": "xyxy", "domain_fields": " + ".join(fields), "split_unit": "slide", "split_seed": seed}
    name = f"{name or Path(patch_dir).resolve().name}, patches side by side"
    write_histology_datalist(target / "dataset.json", name, MIDOG_LABELS, splits, facts, overwrite)
    print(text_table(count_regions(splits)))
    print(f"{len(patches)} patches in {len(regions)} regions: {target / 'dataset.json'}")


def _split_fields(domain: str) -> list[str]:
    return [field.strip() for field in domain.split("+")]


def _new_folder(patch_dir: str, output_dir: str, overwrite: bool) -> Path:
    """The output folder; another datalist in it is refused before anything is cut."""
    _, target = resolve_folders(patch_dir, output_dir, "--patch_dir")
    if not overwrite:
        refuse_other_content(target, [path.name for path in target.glob("dataset.json")])
    return target


def _print_counts(rows: Sequence[Mapping[str, Any]], unlabelled: Sequence[Mapping[str, Any]], what: str) -> None:
    print(text_table(rows))
    for domain, count in sorted(Counter(entry["domain"] for entry in unlabelled).items()):
        print(f"Unlabelled: {count} {what} of {domain}.")


def _print_left_out(annotations: str, images: Sequence[MidogImage], listed: Sequence[MidogImage]) -> None:
    if len(images) < len(listed):
        print(f"{len(listed) - len(images)} of the {len(listed)} images in {annotations} are left out.")


if __name__ == "__main__":
    run_command({"patches": patches, "tiles": tiles, "named": named, "nuclei": nuclei, "mosaics": mosaics})
