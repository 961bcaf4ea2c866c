"""Patches by which a classifier learns to judge what a detector finds: figures, and what it took for such."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial import cKDTree
from tqdm import tqdm

from ..data import PatchEntry, RegionEntry, check_leakage, load_regions, open_region, region_labels, write_datalist
from ..data.datalist import holds_datalist
from ..metrics import MITOTIC, box_centres
from ..utils import DataError, atomic_path, read_csv, read_json_object
from .preparation import refuse_other_content
from .splits import split_patches

FALSE_POSITIVE = "false_positive"
_OWN = re.compile(rf"\d{{4,}}/\d{{4,}}_(figure|{FALSE_POSITIVE})_[01]\.png")  # of what is written
_REMEDY = "Evaluate the detector with --evaluate_split training, and give the folder `evaluation` that it writes."


def read_evaluation(folder: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """An evaluation of a detector on the training list of its datalist.

    Returns:
        Its summary, and by image the middles of the detections, their scores, and 1 for those called mitotic, else 0,
        (n, 4), from the highest score on.

    Raises:
        DataError: when the folder holds none, that of another list (slides of validation and test never train), or one
            that a classifier has judged.
    """
    folder = Path(folder)
    for name in ("summary.json", "detections.csv"):
        if not (folder / name).is_file():
            raise DataError(f"{folder}: there is no {name}. {_REMEDY}")
    summary = read_json_object(folder / "summary.json", "the summary of an evaluation", _REMEDY)
    split = (summary.get("dataset") or {}).get("split")
    if split != "training" or "match_radius" not in summary:
        raise DataError(
            f"{folder}: is an evaluation of {split or 'something else'}, expected one of a detector on 'training': "
            f"slides of validation and test never train. {_REMEDY}"
        )
    if summary.get("classifier"):
        raise DataError(
            f"{folder}: a classifier has judged these detections, and another would learn from what that one thinks. "
            "Evaluate the detector without --classifier."
        )
    found = defaultdict(list)
    for row in read_csv(folder / "detections.csv"):
        called = row["class"] == summary["class_names"][MITOTIC]
        found[row["image"]].append([*(float(row[key]) for key in ("x", "y", "score")), float(called)])
    arrays = {image: np.array(rows) for image, rows in found.items()}
    return summary, {image: rows[np.argsort(-rows[:, 2], kind="stable")] for image, rows in arrays.items()}


def judge_places(region: RegionEntry, found: np.ndarray, radius: float) -> list[dict[str, Any]]:
    """Where patches of a region are to be cut: `x`, `y`, `label`, `kind`, and the detector's `score` and whether it
    `called` it mitotic (0 and false where it saw nothing).

    From the highest score on, a detection stands for the nearest figure within the radius that no other stands for, of
    whatever class, and gets its label, so that figures lie in their patches as they will when the classifier judges: a
    detector is some pixels off. Figures that none stands for are cut around their own middle. What lies near no figure
    is a false positive; a further detection of one is left out.

    Args:
        region: with `box` and `label`.
        found: of the detections, (n, 4), see `read_evaluation`.
        radius: in pixels.
    """
    centres = box_centres(np.reshape(region["box"], (-1, 4)).astype(np.float64))
    tree, taken, places = cKDTree(centres), set(), []

    def add(x: float, y: float, label: int, kind: str, score: float = 0.0, called: float = 0.0) -> None:
        places.append({"x": x, "y": y, "label": label, "kind": kind, "score": score, "called": bool(called)})

    for x, y, score, called in found.tolist():
        near = sorted(tree.query_ball_point((x, y), radius), key=lambda i: np.hypot(*(centres[i] - (x, y))))
        free = [i for i in near if i not in taken]
        if free:
            taken.add(free[0])
            add(x, y, region["label"][free[0]], "figure", score, called)
        elif not near:
            add(x, y, 1 - MITOTIC, FALSE_POSITIVE, score, called)
    for i in sorted(set(range(len(centres))) - taken):
        add(*centres[i].tolist(), region["label"][i], "figure")
    return places


def keep_hardest(patches: Sequence[PatchEntry], share: float) -> list[PatchEntry]:
    """Of each domain all figures, and the hardest false positives, `share` for a figure: first those that were called
    mitotic, of both kinds from the highest score on.
    """
    kept = []
    for domain in sorted({patch["domain"] for patch in patches}):
        own = [patch for patch in patches if patch["domain"] == domain]
        figures = [patch for patch in own if patch["kind"] != FALSE_POSITIVE]
        false = sorted((p for p in own if p["kind"] == FALSE_POSITIVE), key=lambda p: (not p["called"], -p["score"]))
        kept += figures + false[: round(share * len(figures))]
    return kept


def cut_candidates(
    datalist: str | os.PathLike,
    evaluation: str | os.PathLike,
    output_dir: str | os.PathLike,
    size: int = 64,
    share: float = 1.0,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, list[PatchEntry]]:
    """Write the patches, PNG files below `output_dir`, and their `dataset.json`.

    They are cut out of the training regions alone, of the domains that the detector was trained on. Their slides are
    dealt out anew to `training` and `validation`; `test` is empty.

    Args:
        datalist: of the detector.
        evaluation: see `read_evaluation`.
        output_dir: gets the folder `patches` and the datalist.
        size: side of a patch in pixels of the regions. Beyond their edges they are reflected.
        share: see `keep_hardest`.
        seed: of the split.
        overwrite: replace what an earlier call has written.

    Returns:
        The entries of each list.

    Raises:
        DataError: when training and other lists of the datalist have slides in common, the evaluation is another one, a
            domain has too few slides, or the folder holds something else.
    """
    check_leakage(datalist)
    summary, found = read_evaluation(evaluation)
    trained = summary.get("train_domains") or list(summary["domains"])
    domains = [name for name in summary["domains"] if name in trained]
    regions = load_regions(datalist, "training", domains)
    known = {region["case"] for region in load_regions(datalist, "training")}
    if strange := sorted(found.keys() - known):
        raise DataError(
            f"{evaluation}: has detections in {strange[0]}, which is not in 'training' of {datalist}. {_REMEDY}"
        )
    _check_counts(evaluation, summary, datalist, regions)
    patches = [
        patch for i, region in enumerate(regions) for patch in _patches(i, region, found, summary["match_radius"])
    ]
    splits = split_patches(keep_hardest(patches, share), seed=seed, testing=False)
    _check_classes(evaluation, splits)
    output = Path(output_dir)
    content = read_json_object(Path(datalist), "a datalist", "")
    head = {"name": f"{content.get('name') or Path(datalist).resolve().parent.name}, candidates"}
    head |= {"synthetic": content.get("synthetic") is True}
    head |= {"labels": {str(i): name for name, i in region_labels(datalist).items()}}
    mpp = _pixel_size(summary, regions)
    head |= {"mpp": mpp} if mpp else {}
    head |= {"split_unit": "slide", "split_seed": seed, "detector": summary.get("weights")}
    holds_datalist(output / "dataset.json", head | splits, overwrite)  # refused before the patches are cut
    _write(regions, splits, output / "patches", size, overwrite)
    write_datalist(output / "dataset.json", head | splits, overwrite)
    return splits


def _pixel_size(summary: Mapping[str, Any], regions: Sequence[RegionEntry]) -> float | None:
    """µm a pixel that the detector was trained with, or else, mostly, the regions have; None where nothing says it."""
    stated = [region["mpp"] for region in regions if region.get("mpp")]
    return (summary.get("model") or {}).get("mpp") or (float(np.median(stated)) if stated else None)


def _patches(number: int, region: RegionEntry, found: Mapping[str, np.ndarray], radius: float) -> list[dict[str, Any]]:
    places = judge_places(region, found.get(region["case"], np.empty((0, 4))), radius)
    where = {"domain": region["domain"], "slide": region["slide"], "region": region["case"]}
    return [
        {
            "image": f"patches/{number:04d}/{i:04d}_{place['kind']}_{place['label']}.png",
            **where,
            **{key: round(value, 4) if isinstance(value, float) else value for key, value in place.items()},
        }
        for i, place in enumerate(places)
    ]


def _check_counts(
    evaluation: str | os.PathLike,
    summary: Mapping[str, Any],
    datalist: str | os.PathLike,
    regions: Sequence[RegionEntry],
) -> None:
    """Raise a `DataError` where an evaluation was of other regions, which may not show in what it found."""
    for domain in sorted({region["domain"] for region in regions}):
        own = [region for region in regions if region["domain"] == domain]
        here = {"images": len(own), "figures": sum(list(region["label"]).count(MITOTIC) for region in own)}
        there = {key: summary["domains"][domain][key] for key in here}
        if here != there:
            raise DataError(
                f"{evaluation}: has seen {there['images']} images of {domain} with {there['figures']} mitotic figures, "
                f"and 'training' of {datalist} has {here['images']} with {here['figures']}: it is of other data. "
                f"{_REMEDY}"
            )


def _check_classes(evaluation: str | os.PathLike, splits: Mapping[str, Sequence[PatchEntry]]) -> None:
    for split in ("training", "validation"):
        counts = Counter(patch["label"] for patch in splits[split])
        if len(counts) < 2:
            raise DataError(
                f"{evaluation}: of the {sum(counts.values())} patches for {split} all are of one class. Take another "
                "--seed, a detector that finds more, or more slides."
            )


def _write(
    regions: Sequence[RegionEntry], splits: Mapping[str, Sequence[PatchEntry]], folder: Path, size: int, overwrite: bool
) -> None:
    there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    refuse_other_content(folder, [name for name in there if not (overwrite and _OWN.fullmatch(name))])
    by_case = defaultdict(list)
    for patch in (patch for patches in splits.values() for patch in patches):
        by_case[patch["region"]].append(patch)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for region in tqdm([r for r in regions if r["case"] in by_case], desc="cutting patches", unit="region"):
            opened = open_region(region["image"], region.get("mpp"))
            for patch in by_case[region["case"]]:
                path = temporary / Path(patch["image"]).relative_to("patches")
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(opened.square(patch["x"], patch["y"], size)).save(path, compress_level=1)
        if folder.exists():
            shutil.rmtree(folder)
