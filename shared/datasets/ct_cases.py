"""CT with label maps from other people's data sets: pairs checked, voxels counted, written as a datalist."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm.contrib.concurrent import thread_map

from ..data import SPLITS, foreground_labels, ids_in_files, write_datalist
from ..data.label_maps import log_reoriented, to_label_map
from ..data.volumes import read_grid, read_volume, sided_organs
from ..utils import DataError, DiskFullError, fault_list, text_table, write_csv
from ..utils.text import first_few
from .preparation import refuse

BTCV_LABELS: dict[str, int] = {
    "spleen": 1,
    "right_kidney": 2,
    "left_kidney": 3,
    "gallbladder": 4,
    "oesophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior_vena_cava": 9,
    "portal_and_splenic_veins": 10,
    "pancreas": 11,
    "right_adrenal_gland": 12,
    "left_adrenal_gland": 13,
}
"""The organs of the abdominal data sets, as the challenge BTCV numbers them."""

PAPER_VOXEL_SHARES = dict(
    zip(BTCV_LABELS, (9.1, 5.1, 5.1, 0.9, 0.5, 55.2, 14.1, 3.1, 2.8, 1.1, 2.8, 0.1, 0.1), strict=True)
)
"""Share of each organ among the labelled voxels in %, as reported by Willoughby & Voiculescu, arXiv 2406.08217."""

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class CtCase:
    """A volume and its label map.

    Attributes:
        name: no other case of the data set has it.
        image, label: NIfTI, NRRD or MetaImage files.
        voxels: label id → number of voxels, for the labels that occur, without the background.
        overlap: voxels that more than one mask claimed, where the label map was made of masks.
        reoriented: how the label map had to be turned to lie as the image, see `LabelMap`; "" where it did.
    """

    name: str
    image: Path
    label: Path
    voxels: Mapping[int, int] = field(default_factory=dict)
    overlap: int | None = None
    reoriented: str = ""


def refuse_cases(source: str | os.PathLike, faults: Mapping[str, str], count: int) -> None:
    """Raise a `DataError` if there are faults (name of the case → what is wrong) of `count` cases; name all of them."""
    if faults:
        names = sorted(faults)
        raise DataError(
            f"{source}: {len(faults)} of {count} cases cannot be used. Mend them, or add them to --exclude: "
            f"{','.join(names)}" + fault_list([faults[name] for name in names])
        )


def match_cases(
    source: str | os.PathLike,
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    exclude: Collection[str] = (),
    kinds: tuple[str, str] = ("image", "label map"),
) -> list[CtCase]:
    """The cases, sorted by name, each of which has an image and a label map, but for the names in `exclude`.

    Raises:
        DataError: when a case has one of the two alone (`kinds` is what they are called then), or a case to be left out
            is not there.
    """
    known = images.keys() | labels.keys()
    message = "has no case {few}. Its {all} cases are called as {called}. Correct --exclude."
    unknown, called = sorted(set(exclude) - known), first_few(sorted(known), 3)
    refuse(source, unknown, message, all=len(known), called=called)
    names = sorted(known - set(exclude))
    alone = [name for name in names if name not in images or name not in labels]
    faults = {n: f"{images.get(n) or labels[n]}: has no {kinds[n in images]}. Unpack it again." for n in alone}
    refuse_cases(source, faults, len(names))
    return [CtCase(name, images[name], labels[name]) for name in names]


def classes_of(label_ids: Mapping[str, int | Sequence[int]]) -> dict[str, int]:
    """The classes that `label_ids` names: in BTCV's numbering where they are its 13 organs, else numbered as they come.

    Raises:
        DataError: for ids that are no whole numbers from 1 to 65535, or an id twice.
    """
    labels = {name: i for i, name in enumerate(label_ids, 1)}
    labels = BTCV_LABELS if labels.keys() == BTCV_LABELS.keys() else foreground_labels(labels)
    ids_in_files(labels, label_ids)
    return dict(labels)


def check_ct_case(
    case: CtCase,
    labels: Mapping[str, int],
    label_ids: Mapping[str, int | Sequence[int]] | None = None,
    assume_orientation: str | None = None,
) -> CtCase:
    """The case with its `voxels`, read as training reads it. The voxels of its image are not read.

    Args:
        case: with its files.
        labels: name → id.
        label_ids, assume_orientation: see `LoadVolumed`.

    Raises:
        DataError: when image and label map do not lie on the same voxels, a label is not valid, or sides cannot be told
            of labels that have them.
    """
    known = {"assumed": assume_orientation, "sided": sided_organs(labels)}
    image, (voxels, grid) = read_grid(case.image, **known), read_volume(case.label, **known)
    names, files = dict(enumerate(labels, 1)), ids_in_files(labels, label_ids)
    classes = {i: k for k, name in names.items() for i in files[name]}
    found = to_label_map(voxels, grid, classes, label_ids is not None, image)
    counts = sum(np.bincount(part.ravel(), minlength=256) for part in found.voxels)  # it needs 8 bytes a voxel
    present = {labels[name]: int(counts[k]) for k, name in names.items() if counts[k]}
    return replace(case, voxels=dict(sorted(present.items())), reoriented=found.reoriented)


def check_ct_cases(
    source: str | os.PathLike,
    splits: Mapping[str, Sequence[CtCase]],
    labels: Mapping[str, int],
    num_workers: int = 4,
    label_ids: Mapping[str, int | Sequence[int]] | None = None,
    assume_orientation: str | None = None,
) -> dict[str, list[CtCase]]:
    """`check_ct_case` for the cases of all splits, several at a time; a `DataError` tells all faults."""
    cases = [case for part in splits.values() for case in part]
    check = partial(check_ct_case, labels=labels, label_ids=label_ids, assume_orientation=assume_orientation)
    found = map_cases(source, check, cases, num_workers, "checking")
    log_reoriented(source, {case.name: case.reoriented for case in found})
    checked = iter(found)
    return {split: [next(checked) for _ in part] for split, part in splits.items()}


def map_cases(
    source: str | os.PathLike,
    function: Callable[[CtCase], Result],
    cases: Sequence[CtCase],
    num_workers: int,
    description: str,
) -> list[Result]:
    """Apply a function to all cases, several at a time, with progress; after them a `DataError` tells all of theirs."""

    def attempt(case: CtCase) -> Result | DataError:
        try:
            return function(case)
        except DiskFullError:
            raise
        except DataError as e:
            return e

    # Threads, because zlib decompresses without holding Python's lock.
    results = thread_map(attempt, cases, max_workers=num_workers, desc=description, unit="case")
    pairs = zip(cases, results, strict=True)
    faults = {case.name: str(result) for case, result in pairs if isinstance(result, DataError)}
    refuse_cases(source, faults, len(cases))
    return results


def count_organs(labels: Mapping[str, int], splits: Mapping[str, Sequence[CtCase]]) -> list[dict[str, Any]]:
    """A row for each label: `organ`, `id`, in how many cases of each split it occurs, `voxels`, their share of all
    labelled ones as `share_percent`, and the paper's as `paper_percent`, or None.
    """
    cases = [case for part in splits.values() for case in part]
    total = sum(sum(case.voxels.values()) for case in cases)
    rows = []
    for name, i in sorted(labels.items(), key=lambda label: label[1]):
        voxels = sum(case.voxels.get(i, 0) for case in cases)
        counts = {split: sum(i in case.voxels for case in part) for split, part in splits.items()}
        share = round(100 * voxels / total, 2) if total else 0.0
        row = {"organ": name, "id": i, **counts, "voxels": voxels, "share_percent": share}
        rows.append({**row, "paper_percent": PAPER_VOXEL_SHARES.get(name)})
    return rows


def organ_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `count_organs` as text, the shares with one decimal below each other."""

    def percent(share: float | None) -> str:
        return " " * 5 if share is None else f"{share:5.1f}"

    return text_table([{k: percent(v) if k.endswith("_percent") else v for k, v in row.items()} for row in rows])


def write_ct_datalist(
    output_dir: str | os.PathLike,
    facts: Mapping[str, Any],
    labels: Mapping[str, int],
    splits: Mapping[str, Sequence[CtCase]],
    left_out: Sequence[CtCase] = (),
    overwrite: bool = False,
    label_ids: Mapping[str, int | Sequence[int]] | None = None,
    assume_orientation: str | None = None,
) -> str:
    """Write `dataset.json`, a datalist whose paths are relative to `output_dir`, with two tables beside it.

    `organs.csv` holds the rows of `count_organs`; `cases.csv` a row for each case with its split, the number of its
    organs, the names of those it lacks, and the voxels of each.

    Args:
        output_dir: is made where it is missing.
        facts: what the datalist says of the data set: its `name`, where its `split` comes from, and more.
        labels: name → id.
        splits: checked cases; a split without cases is left out.
        left_out: cases that are in `cases.csv` only.
        label_ids: name → id or ids in the label files, where these are others; the datalist names these.
        assume_orientation: where axes point to in files that do not say it.

    Returns:
        for people to read: `organs.csv` as a table, how many cases each split has, and the options that training needs
        for them.

    Raises:
        DataError: when there is no case for training, or another datalist in the way.
    """
    folder = Path(output_dir).resolve()
    if not splits.get("training"):
        raise DataError(f"{folder}: no case is left for training. See what the source holds.")

    def entry(case: CtCase) -> dict[str, str]:
        files = {"image": case.image, "label": case.label}
        return {"case": case.name} | {k: Path(os.path.relpath(p, folder)).as_posix() for k, p in files.items()}

    ordered = sorted(labels.items(), key=lambda label: label[1])
    in_files = sorted((i, name) for name, of in ids_in_files(labels, label_ids).items() for i in of)
    given = {"label_ids": label_ids, "assume_orientation": assume_orientation}
    facts = {**facts, **{key: value for key, value in given.items() if value is not None}}
    content = {"synthetic": False, **facts, "labels": {"0": "background"} | {str(i): name for i, name in in_files}}
    content |= {split: [entry(case) for case in splits[split]] for split in SPLITS if splits.get(split)}
    write_datalist(folder / "dataset.json", content, overwrite)
    rows, counts = count_organs(labels, splits), ", ".join(f"{len(part)} {split}" for split, part in splits.items())
    write_csv(folder / "organs.csv", rows, list(rows[0]))
    every = [(split, case) for split, part in {**splits, "left_out": left_out}.items() for case in part]
    cases = [_case_row(split, case, dict(ordered)) for split, case in every]
    write_csv(folder / "cases.csv", cases, list(cases[0]))
    needed = _training_options(labels, label_ids, assume_orientation)
    needed = f"\nTraining and evaluation need {needed}." if needed else ""
    return f"{organ_table(rows)}\nSplit by {facts['split']}: {counts}.{needed}"


def _training_options(
    labels: Mapping[str, int], label_ids: Mapping[str, int | Sequence[int]] | None, assume_orientation: str | None
) -> str:
    """What a bundle's command line has to say of label maps in which a label has such ids, if anything."""
    files = ids_in_files(labels, label_ids)
    ordered = [(name, files[name]) for name in sorted(labels, key=lambda name: labels[name])]
    single = {name: of[0] if len(of) == 1 else list(of) for name, of in ordered}
    classes = classes_of(single)
    options = {"labels": classes} if classes != BTCV_LABELS else {}
    options |= {"label_ids": single} if single != classes else {}
    options |= {"assume_orientation": assume_orientation} if assume_orientation else {}
    return " ".join(f'--{k} "{v}"' if isinstance(v, dict) else f"--{k} {v}" for k, v in options.items())


def _case_row(split: str, case: CtCase, labels: Mapping[str, int]) -> dict[str, Any]:
    lacking = " ".join(name for name, i in labels.items() if i not in case.voxels)
    row = {"case": case.name, "split": split, "organs": len(case.voxels), "lacking": lacking, "overlap": case.overlap}
    return row | {name: case.voxels.get(i, 0) for name, i in labels.items()}
