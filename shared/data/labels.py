"""The classes of a segmentation: their names and ids, and the ids that stand for them in label files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..utils import DataError
from ..utils.values import Text, Whole

logger = logging.getLogger(__name__)

MOST_CLASSES = 255  # label maps are uint8
MOST_FILE_ID = 65535
_EXAMPLE = "{'liver': 1, 'spleen': 2}"


def foreground_labels(labels: Any) -> dict[str, int]:
    """The classes that a network tells apart beside the background: the setting `labels`, checked.

    Args:
        labels: name → id, ids 1 … N each once. An entry with id 0, whatever its name, is the background and left out;
            a line in the log says so.

    Returns:
        name → id in the order of the ids.

    Raises:
        DataError: for anything else; the message says which name or id is at fault.
    """
    expected = f"Expected names and their ids from 1 on, each once and without a gap, as in {_EXAMPLE}."
    if not isinstance(labels, Mapping):
        raise DataError(f"labels is {labels!r}, no table of names and ids. {expected}")
    if wrong := [name for name in labels if not Text().accepts(name)]:
        raise DataError(f"labels has the name {wrong[0]!r}. {expected}")
    if strange := {name: i for name, i in labels.items() if not Whole(0).accepts(i)}:
        raise DataError(f"labels has {strange}, no whole number of 0 or above. {expected}")
    _refuse_twice("labels", list(labels.items()), expected)
    found = {name: i for name, i in sorted(labels.items(), key=lambda item: item[1]) if i > 0}
    if not 0 < len(found) <= MOST_CLASSES:
        raise DataError(f"labels has {len(found)} classes beside the background, not 1 to {MOST_CLASSES}. {expected}")
    if list(found.values()) != list(range(1, len(found) + 1)):
        missing = sorted(set(range(1, len(found) + 1)) - set(found.values()))
        numbered = {name: i for i, name in enumerate(found, 1)}
        raise DataError(
            f"labels is {dict(labels)}: there is no {', '.join(map(str, missing))}. {expected} Where the label files "
            f'hold these ids, number the classes and map them: --labels "{numbered}" --label_ids "{found}"'
        )
    if background := [name for name, i in labels.items() if i == 0]:
        logger.info("labels: %s (id 0) is left out, the background is no class of its own", background[0])
    return found


def ids_in_files(labels: Mapping[str, int], label_ids: Any = None) -> dict[str, tuple[int, ...]]:
    """For each class the ids that stand for it in the label files: the setting `label_ids`, checked.

    Args:
        labels: name → id, see `foreground_labels`.
        label_ids: name → id in the files or a list of them, for all names of `labels`; None: the ids are those of
            `labels`.

    Raises:
        DataError: for other names, ids that are no whole numbers from 1 to 65535, or an id twice.
    """
    if label_ids is None:
        return {name: (i,) for name, i in labels.items()}
    expected = (
        f"Expected for each name of `labels` ({', '.join(labels)}) its id in the label files or a list of them, "
        f"from 1 to {MOST_FILE_ID}, none twice, as in {{'liver': 5, 'kidneys': [2, 3]}}."
    )
    if not isinstance(label_ids, Mapping):
        raise DataError(f"label_ids is {label_ids!r}, no table of names and ids. {expected}")
    names = [f"no {name!r}" for name in labels if name not in label_ids]
    if names := names + [f"{name!r}, which `labels` has not" for name in label_ids if name not in labels]:
        raise DataError(f"label_ids has {'; '.join(names)}. {expected}")
    ids = {name: tuple(i) if isinstance(i, list | tuple) else (i,) for name, i in label_ids.items()}
    kind = Whole(1, MOST_FILE_ID)
    if strange := {name: label_ids[name] for name, of in ids.items() if not of or not all(map(kind.accepts, of))}:
        raise DataError(f"label_ids has {strange}. {expected}")
    _refuse_twice("label_ids", [(name, i) for name, of in ids.items() for i in of], expected)
    return {name: ids[name] for name in labels}


def _refuse_twice(setting: str, pairs: Sequence[tuple[str, int]], expected: str) -> None:
    ids = [i for _, i in pairs]
    if twice := [i for i in ids if ids.count(i) > 1]:
        names = " and ".join(name for name, i in pairs if i == twice[0])
        raise DataError(f"{setting} has the id {twice[0]} more than once, for {names}. {expected}")
