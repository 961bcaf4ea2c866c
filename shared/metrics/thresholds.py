"""The threshold of a score: among which to choose, and the file that training keeps the chosen one in."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..utils import DataError, parse_json

logger = logging.getLogger(__name__)


def candidate_thresholds(scores: np.ndarray) -> np.ndarray:
    """Midway between two neighbours among scores in [0, 1] and 0 and 1, ascending: rounding moves none to another side.

    Raises:
        ValueError: when a score is out of range.
    """
    neighbours = np.unique(np.concatenate([[0.0], scores, [1.0]]))
    if neighbours[0] < 0 or neighbours[-1] > 1:
        raise ValueError(f"scores must be in [0, 1], got {scores.min():g} to {scores.max():g}.")
    midway = (neighbours[:-1] + neighbours[1:]) / 2
    # between two floats that follow upon each other there is no room
    return midway[(neighbours[:-1] < midway) & (midway < neighbours[1:])]


def read_threshold(path: str | os.PathLike) -> float:
    """The threshold that training chose, from `{"threshold": 0.37, ...}`; 0.5, with a warning, where there is no file.

    Raises:
        DataError: when the file holds no threshold in [0, 1].
    """
    path = Path(path)
    if not path.is_file():
        logger.warning(
            "%s: there is no such file, so 0.5 is taken for it. Training writes it; copy it "
            "beside the weights, or set the threshold yourself.",
            path,
        )
        return 0.5
    try:
        content = parse_json(path)
    except ValueError as e:
        raise DataError(
            f'{path}: not readable as JSON ({e}). Expected {{"threshold": 0.5}}, as training writes it.'
        ) from e
    value = content.get("threshold") if isinstance(content, Mapping) else content
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise DataError(
            f"{path}: its threshold is {json.dumps(value)}, expected a number in [0, 1] as in "
            '{"threshold": 0.5}. Train again, or correct the file.'
        )
    return float(value)
