"""TotalSegmentator's CT data set, versions 1 and 2: masks of single organs made into label maps in BTCV's numbering.

Both versions have a folder for each case with `ct.nii.gz` and `segmentations`, and name the files of these 13 organs
alike (`class_map` of github.com/wasserth/TotalSegmentator, `total_v1` and `total`). In version 2 kidney cysts are
files of their own, and no part of the kidneys. Version 1 and 2 use the same case names for different labels.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from ..data.label_maps import log_reoriented, to_label_map
from ..data.volumes import read_grid, read_volume, sided_organs
from ..utils import DataError, atomic_path
from .ct_cases import (
    BTCV_LABELS,
    PAPER_VOXEL_SHARES,
    CtCase,
    check_ct_case,
    map_cases,
    match_cases,
)
from .preparation import read_table, refuse
from .splits import split_cases

logger = logging.getLogger(__name__)

_OTHER_NAMES = {
    "right_kidney": "kidney_right",
    "left_kidney": "kidney_left",
    "oesophagus": "esophagus",
    "portal_and_splenic_veins": "portal_vein_and_splenic_vein",
    "right_adrenal_gland": "adrenal_gland_right",
    "left_adrenal_gland": "adrenal_gland_left",
}
TOTALSEGMENTATOR_ORGANS = {_OTHER_NAMES.get(organ, organ): organ for organ in BTCV_LABELS}
"""Name of the mask's file → name of the organ in `BTCV_LABELS`."""

# From the largest organ to the smallest, those of the same share by number: what comes later lies on top.
_PAINTED = sorted(TOTALSEGMENTATOR_ORGANS.items(), key=lambda m: (-PAPER_VOXEL_SHARES[m[1]], BTCV_LABELS[m[1]]))
_KINDS = ("ct.nii.gz", "segmentations")
_SPLITS = {"train": "training", "val": "validation", "test": "test"}


def find_totalsegmentator(
    data_dir: str | os.PathLike, output_dir: str | os.PathLike, exclude: Collection[str] = ()
) -> list[CtCase]:
    """The cases of a download, with the label maps that `merge_totalsegmentator` is to write.

    Raises:
        DataError: when the folder holds no case, a case has no CT or no masks, or one to be left out is not there.
    """
    folder = Path(data_dir)
    images, masks = ({p.parent.name: p for p in folder.glob(f"*/{kind}")} for kind in _KINDS)
    if not images and not masks:
        raise DataError(
            f"{folder}: holds no case. Expected a folder for each with ct.nii.gz and segmentations, as in "
            "s0011/ct.nii.gz: the folder that the archive of the CT data set unpacks to."
        )
    labels = Path(output_dir) / "labels"
    cases = match_cases(folder, images, masks, exclude, _KINDS)
    return [replace(case, label=labels / f"{case.name}.nii.gz") for case in cases]


def merge_masks(image: str | os.PathLike, assume_orientation: str | None = None) -> tuple[np.ndarray, int, str]:
    """The label map of a case, made of the 13 masks in `segmentations` beside its CT.

    Where masks overlap, the organ with the smaller share of voxels in the paper's table wins, whatever their size in
    this case; of two with the same share the one with the higher number.

    Args:
        image: the CT.
        assume_orientation: see `LoadVolumed`.

    Returns:
        uint8, (x, y, z), in BTCV's numbering; how many voxels more than one mask claims; and how masks had to be turned
        to lie as the CT does, see `LabelMap`.

    Raises:
        DataError: a mask is missing or cannot be read, lies on other voxels than the CT, or holds other values than 0
            and 1; or the header of one says nothing of sides and nothing is assumed.
    """
    known = {"assumed": assume_orientation, "sided": sided_organs(BTCV_LABELS)}
    ct = read_grid(image, **known)
    labels = np.zeros(ct.shape, np.uint8)
    contested = np.zeros(ct.shape, bool)
    reoriented = set()
    for name, path in zip((organ for _, organ in _PAINTED), _mask_paths(image), strict=True):
        mask = to_label_map(*read_volume(path, **known), {1: 1}, image=ct)
        reoriented.add(mask.reoriented)
        inside = mask.voxels == 1
        contested |= inside & (labels > 0)
        labels[inside] = BTCV_LABELS[name]
    return labels, int(np.count_nonzero(contested)), min(reoriented - {""}, default="")  # "flipped" before "turned"


def merge_totalsegmentator(
    data_dir: str | os.PathLike,
    cases: Sequence[CtCase],
    num_workers: int = 4,
    overwrite: bool = False,
    assume_orientation: str | None = None,
) -> list[CtCase]:
    """Write the label map of each case, with its CT's affine and header, and read it back.

    A label map that was made of the very same files is not made again. A line in the log counts the cases whose masks
    had to be turned.

    Returns:
        the cases, which `find_totalsegmentator` gave, with `voxels`, `overlap` and, of their masks, `reoriented`.

    Raises:
        DataError: before any is written, when a label map is there that was made of other files and `overwrite` is
            false; after all other cases are done, with the faults.
    """
    if earlier := [case for case in cases if case.label.is_file() and not overwrite]:
        foreign = map_cases(data_dir, _is_foreign, earlier, num_workers, "earlier label maps")
        names = [case.label.name for case, is_foreign in zip(earlier, foreign, strict=True) if is_foreign]
        message = "{count} label maps were made of other files than {source} now holds: {few}. "
        remedy = "Choose another --output_dir, or replace them with --overwrite."
        refuse(earlier[0].label.parent, names, message + remedy, source=data_dir)
    merge = partial(_merge_case, assume_orientation=assume_orientation)
    merged = map_cases(data_dir, merge, cases, num_workers, "label maps")
    log_reoriented(data_dir, {case.name: case.reoriented for case in merged}, "the masks of {} of {} cases have their")
    return merged


def _merge_case(case: CtCase, assume_orientation: str | None) -> CtCase:
    source = _fingerprint(case.image)
    known = _known_merge(case.label, source)
    if known is None:
        labels, *known = merge_masks(case.image, assume_orientation)
        ct = nib.load(case.image)
        header = ct.header.copy()
        header.set_data_dtype(np.uint8)
        header["cal_min"] = header["cal_max"] = 0  # the CT's window
        header["descrip"] = " ".join(["overlap", str(known[0]), "source", source, known[1]]).strip().encode()
        with atomic_path(case.label) as temporary:
            nib.save(nib.Nifti1Image(labels, ct.affine, header), temporary)
    checked = check_ct_case(case, BTCV_LABELS, assume_orientation=assume_orientation)
    return replace(checked, overlap=known[0], reoriented=known[1])


def _is_foreign(case: CtCase) -> bool:
    """Whether the label map that is there would be made anew."""
    try:
        source = _fingerprint(case.image)
    except DataError:  # nothing will be made of these files
        return False
    return _known_merge(case.label, source) is None


def _mask_paths(image: str | os.PathLike) -> list[Path]:
    """The files of the 13 masks, in the order of painting."""
    folder = Path(image).parent / "segmentations"
    paths = [folder / f"{name}.nii.gz" for name, _ in _PAINTED]
    missing = [path.name for path in paths if not path.is_file()]
    # The data set has a file for an absent organ too, an empty mask.
    refuse(folder, missing, "lacks {count} of the 13 masks: {few}. Unpack it again.")
    return paths


def _fingerprint(image: Path) -> str:
    """Another one where the CT or a mask was replaced."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in (image, *_mask_paths(image))]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def _known_merge(label: Path, source: str) -> tuple[int, str] | None:
    """What the header of a finished label map tells: its overlap, and how masks were turned; None: it is to be made."""
    try:
        read_grid(label, "RAS")  # of its header it is only asked whether it can be read
        words = nib.load(label).header["descrip"].item().decode(errors="replace").split()
    except DataError:  # missing or damaged
        return None
    if words[:1] != ["overlap"] or words[2:4] != ["source", source]:
        return None
    return int(words[1]), " ".join(words[4:])


def split_totalsegmentator(
    data_dir: str | os.PathLike, cases: Sequence[CtCase], seed: int = 0
) -> tuple[dict[str, list[CtCase]], str]:
    """Deal out cases as the column `split` of `meta.csv` says.

    Where that leaves no case for validation, a fifth of its training cases is, chosen with the seed; without the file
    or the column, a fifth of all cases is for testing and a fifth for validation. Cases of the file that have no
    folder, and a split that no case is left of, are warned of.

    Returns:
        the splits, and in words where they come from.

    Raises:
        DataError: `meta.csv` cannot be read, lacks one of the cases, or calls a split something else; or there are too
            few cases.
    """
    path = Path(data_dir) / "meta.csv"
    known = _read_meta(path, cases)
    if known is None:
        return split_cases(cases, seed), f"seed {seed}: a fifth for testing, a fifth for validation"
    gone = sum(not (path.parent / name).is_dir() for name in known)
    if gone:
        logger.warning("%s: %d of its %d cases have no folder here: a part of the data set?", path, gone, len(known))
    ordered = sorted(cases, key=lambda case: case.name)
    splits = {split: [c for c in ordered if known[c.name] == part] for part, split in _SPLITS.items()}
    remedies = {"val": "A fifth of its training cases is for validation.", "test": "There is no test split."}
    for part, remedy in remedies.items():
        if not splits[_SPLITS[part]]:
            count = sum(found == part for found in known.values())
            logger.warning("%s: none of its %d cases of the split %s is used. %s", path, count, part, remedy)
    if splits["validation"]:
        return splits, "meta.csv"
    splits = split_cases(splits["training"], seed, splits["test"])
    return splits, f"meta.csv; validation is a fifth of its training cases, seed {seed}"


def _read_meta(path: Path, cases: Sequence[CtCase]) -> dict[str, str] | None:
    """Name → split as the file has it, or None where nothing is said."""
    if not path.is_file():
        return None
    header, rows = read_table(path, "Unpack it again.")
    found = {row["image_id"]: row["split"] for row in rows} if {"image_id", "split"} <= set(header) else {}
    if not found:
        return None
    missing = [case.name for case in cases if case.name not in found]
    refuse(path, missing, f"lacks {{count}} of {len(cases)} cases: {{few}}. Add their split.")
    strange = sorted({found[case.name] for case in cases} - _SPLITS.keys(), key=str)
    refuse(path, strange, f"the split of a case is {{0!r}}. Expected one of {', '.join(_SPLITS)}.")
    return found
