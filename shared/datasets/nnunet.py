"""Raw data sets of nnU-Net (version 1 and 2) and of the Medical Segmentation Decathlon, whose layout it took over."""

from __future__ import annotations

import json
import operator
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.inputs import VOLUME_SUFFIXES
from ..data.labels import MOST_CLASSES, MOST_FILE_ID, ids_in_files
from ..utils import DataError, parse_json, read_json_object
from ..utils.text import first_few
from ..utils.values import Whole
from .ct_cases import CtCase, classes_of, match_cases
from .preparation import refuse, repeated
from .splits import split_cases

_FORMAT = 'nnU-Net\'s description of a data set: {"labels": {"background": 0, "spleen": 1, ...}, ...}'


def read_nnunet(
    data_dir: str | os.PathLike,
    exclude: Collection[str] = (),
    label_ids: Mapping[str, int | Sequence[int]] | None = None,
) -> tuple[dict[str, Any], dict[str, int], list[CtCase], list[CtCase]]:
    """A raw data set: `dataset.json`, `imagesTr/NAME_0000.nii.gz` (or `NAME.nii.gz`) and `labelsTr/NAME.nii.gz`.

    Args:
        data_dir: its folder.
        exclude: names of cases to leave out.
        label_ids: name → id or ids in the label files, of the classes that are wanted; None: the data set's own labels.

    Returns:
        what a datalist says of the data set (`name` and `modality`), the labels as name → id without the background,
        see `classes_of`, the cases, and the labelled cases for testing (`imagesTs` and `labelsTs`), often none.

    Raises:
        DataError: `dataset.json` cannot be used, the images have several channels or another format, there are regions
            of several labels and no `label_ids`, or ids in these that it has not, or a label to be ignored, an image or
            a label map is missing, there are more or fewer cases than `numTraining`, one name is in `labelsTr` and
            `labelsTs`, or a case to be left out is not there.
    """
    folder = Path(data_dir)
    path = folder / "dataset.json"
    content = read_json_object(path, _FORMAT, "Check --data_dir: the folder of one data set, as Dataset017_BTCV.")
    channels = content.get("channel_names", content.get("modality", {"0": "CT"}))  # version 2, version 1
    if not isinstance(channels, Mapping) or len(channels) != 1:
        raise DataError(f"{path}: the channels are {json.dumps(channels)}. Only images of one channel can be used.")
    ending = content.get("file_ending", ".nii.gz")
    if ending not in VOLUME_SUFFIXES:
        raise DataError(f"{path}: file_ending is {ending!r}. Expected one of {', '.join(VOLUME_SUFFIXES)}. Convert it.")
    facts = {"name": str(content.get("name") or folder.resolve().name)}
    facts["modality"] = {"0": str(*channels.values())}
    return facts, _labels(path, content.get("labels"), label_ids), *_cases(path, content, ending, exclude)


def _cases(
    path: Path, content: Mapping[str, Any], ending: str, exclude: Collection[str]
) -> tuple[list[CtCase], list[CtCase]]:
    """The cases for training, and the labelled ones for testing."""
    folder, listed = path.parent, content.get("dataset")
    images, labels = _listed(folder, listed) if isinstance(listed, Mapping) else _find(folder, "Tr", ending)
    if not labels:
        raise DataError(f"{folder / 'labelsTr'}: holds no {ending} file. Expected the label maps of the data set.")
    count = len(images.keys() | labels.keys())
    test_images, test_labels = _find(folder, "Ts", ending)
    twice = sorted(labels.keys() & test_labels.keys())
    refuse(folder, twice, "{few} are in labelsTr and in labelsTs. Expected names of one case each.")
    images |= {name: image for name, image in test_images.items() if name in test_labels}  # the others are no cases
    cases = match_cases(folder, images, labels | test_labels, exclude)
    if content.get("numTraining", count) != count:
        raise DataError(
            f"{path}: numTraining is {json.dumps(content['numTraining'])}, and {count} cases are there. Unpack the "
            "data set again, or correct the number."
        )
    return [case for case in cases if case.name in labels], [case for case in cases if case.name in test_labels]


def _labels(path: Path, found: object, label_ids: Mapping[str, int | Sequence[int]] | None) -> dict[str, int]:
    """Name → id, from that (version 2) or from id → name (version 1), or of the classes that `label_ids` names."""
    try:
        pairs = _pairs(dict(found))
    except (TypeError, ValueError) as e:
        raise DataError(
            f"{path}: 'labels' is {json.dumps(found)}. Expected an id for each name, or a name for each id."
        ) from e
    labels = {str(name): i for name, i in pairs if i != 0}
    if "ignore" in labels:
        raise DataError(f"{path}: label {labels['ignore']} is to be ignored. Only fully labelled images can be used.")
    if label_ids is not None:
        classes, own = classes_of(label_ids), {i for _, i in pairs}
        files = ids_in_files(classes, label_ids)
        unknown = [f"{i} for {name}" for name, ids in files.items() for i in ids if i not in own]
        refuse(path, unknown, "has no label {few} of --label_ids. Its labels are {own}.", own=json.dumps(found))
        return classes
    regions = [str(name) for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    message = "{few} has several labels: a region, which nnU-Net lets overlap. Say with --label_ids which labels make "
    refuse(path, regions, message + "each class, none twice, as in \"{{'liver': [1, 2], 'kidneys': 3}}\".")
    ids, kind = [i for _, i in pairs if i != 0], Whole(1, MOST_FILE_ID)
    if not 0 < len(set(ids)) == len(labels) == len(ids) <= MOST_CLASSES or not all(map(kind.accepts, ids)):
        raise DataError(
            f"{path}: 'labels' is {json.dumps(found)}. Expected 0 (background) and 1 to {MOST_CLASSES} names, each "
            f"with an id of its own from 1 to {MOST_FILE_ID}."
        )
    return labels


def _pairs(found: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Each id with its name; those of a region one by one."""
    pairs = []
    for key, value in found.items():
        if isinstance(value, str):
            pairs.append((value, int(key)))
        else:
            pairs += [(key, operator.index(i)) for i in (value if isinstance(value, list) else [value])]
    return pairs


def _listed(folder: Path, dataset: Mapping[str, Any]) -> tuple[dict[str, Path], dict[str, Path]]:
    """As `_find`, where `dataset.json` of version 2 lists the files itself, relative to the folder."""
    found: tuple[dict[str, Path], dict[str, Path]] = ({}, {})
    for name, files in dataset.items():
        images = files.get("images") if isinstance(files, Mapping) else None
        if not isinstance(images, list) or len(images) != 1 or not isinstance(files.get("label"), str):
            raise DataError(
                f"{folder / 'dataset.json'}: the case {name} is {json.dumps(files)}. Expected "
                '{"images": ["a path"], "label": "a path"}, with one channel.'
            )
        found[0][name], found[1][name] = folder / images[0], folder / files["label"]
    return found


def _find(folder: Path, part: str, ending: str) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and label maps, each by the name of the case."""
    found = [sorted((folder / f"{kind}{part}").glob(f"[!.]*{ending}")) for kind in ("images", "labels")]
    stems, labels = ({path.name.removesuffix(ending): path for path in paths} for paths in found)
    for stem, path in stems.items():
        if stem.endswith("_0001") and stem.removesuffix("_0001") in labels:
            raise DataError(f"{path}: is a second channel. Only images of one channel can be used.")
    # The Decathlon has no channels, and its names may end as one.
    return {s if s in labels else s.removesuffix("_0000"): path for s, path in stems.items()}, labels


def split_nnunet(
    cases: Sequence[CtCase],
    test: Sequence[CtCase],
    splits: str | os.PathLike | None = None,
    fold: int = 0,
    seed: int = 0,
    exclude: Collection[str] = (),
) -> tuple[dict[str, list[CtCase]], str]:
    """Deal out the cases of `read_nnunet`.

    * With labelled test cases these are `test`, and a fold's `val` is `validation`.
    * Without, a fold's `val` is `test`: it is what nnU-Net reports its scores of, and takes no part in training.
    * What neither gives is a fifth of the cases (`test`), and a fifth (`validation`), chosen with the seed.

    Args:
        cases: with labels.
        test: cases for testing, with labels; may be empty.
        splits: `splits_final.json`, a list of folds `{"train": [...], "val": [...]}`.
        exclude: names of cases that folds may have and `cases` lacks.

    Returns:
        the splits, and in words where they come from.

    Raises:
        DataError: the file cannot be used, has no such fold, or names a case twice or one that is not there.
    """
    if splits is None:
        return split_cases(cases, seed, test or None), f"seed {seed}" + (" and labelsTs" if test else "")
    train, val = _read_fold(Path(splits), fold, {case.name: case for case in cases}, exclude)
    origin = f"fold {fold} of {Path(splits).name}"
    if test:
        return {"training": train, "validation": val, "test": list(test)}, f"{origin} and labelsTs"
    return split_cases(train, seed, val), f"{origin} (its val is test); validation is a fifth of its train, seed {seed}"


def _read_fold(
    path: Path, fold: int, cases: Mapping[str, CtCase], exclude: Collection[str]
) -> tuple[list[CtCase], list[CtCase]]:
    try:
        folds = parse_json(path)
        if fold < 0:
            raise IndexError("below 0")
        train, val = (
            [str(name) for name in folds[fold][part] if str(name) not in exclude] for part in ("train", "val")
        )
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise DataError(
            f"{path}: has no fold {fold} ({type(e).__name__}: {e}). Expected a list of "
            '{"train": [...], "val": [...]}, and --fold counted from 0.'
        ) from e
    missing = [name for name in train + val if name not in cases]
    refuse(path, missing, f"{{count}} of the cases of fold {fold} are not there: {{few}}.")
    twice = sorted(repeated(train + val))
    if twice or not train or not val:
        found = f"{first_few(twice)} twice" if twice else "no case"
        raise DataError(f"{path}: fold {fold} has {found} in train or val. Expected cases in both, each once.")
    return [cases[name] for name in sorted(train)], [cases[name] for name in sorted(val)]
