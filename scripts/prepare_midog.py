"""Prepare MIDOG 2021, MIDOG 2022 or MIDOG++, as downloaded, for the bundles."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import fire

from shared.data import leaked_slides, write_datalist
from shared.datasets import (
    MIDOG_LABELS,
    MidogImage,
    claim_folder,
    clipped_boxes,
    count_midog,
    count_patches,
    count_regions,
    crop_midog,
    find_midog,
    midog_patches,
    midog_region_settings,
    midog_regions,
    midog_settings,
    read_midog,
    split_patches,
    split_regions,
)
from shared.utils import DataError, flag, show_errors_briefly, text_table, write_csv


def patches(
    annotations: str,
    image_dir: str,
    output_dir: str,
    size: int = 64,
    domain: str = "scanner",
    dataset: str = "",
    scanners: str = "",
    unit: str = "slide",
    seed: int = 0,
    unlabelled_per_image: int = 20,
    allow_missing: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
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
    workers = min(os.cpu_count() or 1, 8) if workers is None else workers
    _check_numbers(size=(size, 8), seed=(seed, 0), unlabelled_per_image=(unlabelled_per_image, 0), workers=(workers, 1))
    target, fields = _outside(output_dir, image_dir), _fields(domain)

    name, listed = read_midog(annotations, str(dataset), scanners)
    wanted = [image for image in listed if image.labelled or unlabelled_per_image]
    images = find_midog(wanted, image_dir, flag("--allow_missing", allow_missing), workers)
    labelled = midog_patches(images, fields)
    if not labelled:
        raise DataError(f"{image_dir}: of the images in {annotations} only such without annotations are at hand.")
    splits = split_patches(labelled, unit=unit, seed=seed)
    settings = midog_settings(annotations, size, unlabelled_per_image)
    claim_folder(target, settings, ("dataset.json", "confounding.csv"), [image.stem for image in listed])
    unlabelled = crop_midog(images, image_dir, target, fields, size, unlabelled_per_image, workers)

    content = {"name": name, "labels": {str(v): k for k, v in MIDOG_LABELS.items()}, "synthetic": False}
    content |= {"patch_size": size, "domain_fields": " + ".join(fields), "split_unit": unit, "split_seed": seed}
    content |= {**splits, "unlabelled": unlabelled}
    write_datalist(target / "dataset.json", content, flag("--overwrite", overwrite))
    _write_confounding(target, images)
    print(text_table(count_patches(splits)))
    for own, count in sorted(Counter(patch["domain"] for patch in unlabelled).items()):
        print(f"Unlabelled: {count} patches of {own}.")
    _report_missing(annotations, images, listed)
    if unit == "patch":
        leaked, tested = leaked_slides(splits)
        print(f"Split by patch: of {leaked} of the {tested} slides of the test split, training has seen other patches.")
    print(f"{len(labelled)} patches: {target / 'dataset.json'}")


def tiles(
    annotations: str,
    image_dir: str,
    output_dir: str,
    domain: str = "scanner",
    dataset: str = "",
    scanners: str = "",
    seed: int = 0,
    allow_missing: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
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
    workers = min(os.cpu_count() or 1, 8) if workers is None else workers
    _check_numbers(seed=(seed, 0), workers=(workers, 1))
    target, fields = _outside(output_dir, image_dir), _fields(domain)

    name, listed = read_midog(annotations, str(dataset), scanners)
    images = find_midog(listed, image_dir, flag("--allow_missing", allow_missing), workers)
    if not any(image.figures for image in images):
        raise DataError(f"{image_dir}: of the images in {annotations} only such without annotations are at hand.")
    regions = midog_regions(images, image_dir, target, fields, workers)
    splits = split_regions([region for region in regions if region["labelled"]], seed)
    unlabelled = [region for region in regions if not region["labelled"]]
    claim_folder(target, midog_region_settings(annotations), ("dataset.json", "confounding.csv"), [])

    content = {"name": name, "labels": {str(v): k for k, v in MIDOG_LABELS.items()}, "synthetic": False}
    content |= {"box_mode": "xyxy", "domain_fields": " + ".join(fields), "split_unit": "slide", "split_seed": seed}
    content |= {**splits, "unlabelled": unlabelled}
    write_datalist(target / "dataset.json", content, flag("--overwrite", overwrite))
    _write_confounding(target, images)
    print(text_table(count_regions(splits)))
    for own, count in sorted(Counter(region["domain"] for region in unlabelled).items()):
        print(f"Unlabelled: {count} images of {own}.")
    _report_missing(annotations, images, listed)
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


def _outside(output_dir: str, image_dir: str) -> Path:
    target = Path(output_dir).resolve()
    if target == Path(image_dir).resolve() or Path(image_dir).resolve() in target.parents:
        raise DataError(f"{output_dir}: is inside of --image_dir, which stays as it is. Choose another --output_dir.")
    return target


def _fields(domain: object) -> list[str]:
    return [field.strip() for field in str(domain).split("+")]


def _write_confounding(target: Path, images: Sequence[MidogImage]) -> None:
    confounding = count_midog(images)
    write_csv(target / "confounding.csv", confounding, list(confounding[0]))
    print(text_table(confounding), end="\n\n")


def _report_missing(annotations: str, images: Sequence[MidogImage], listed: Sequence[MidogImage]) -> None:
    if len(images) < len(listed):
        print(f"{len(listed) - len(images)} of the {len(listed)} images in {annotations} are left out.")


def _check_numbers(**numbers: tuple[int, int]) -> None:
    for name, (value, least) in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise DataError(f"--{name} is {value}, expected a whole number of {least} or above.")


if __name__ == "__main__":
    show_errors_briefly()
    fire.Fire({"patches": patches, "tiles": tiles})
