"""The threshold of a score: among which to choose, and the files that a chosen one is kept in."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from ..utils import DataError, flag, parse_json, read_json_object

logger = logging.getLogger(__name__)

POINTS = ("intercept", "quantile")  # how `matched_threshold` finds one


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


def matched_threshold(prob: np.ndarray, rate: float, point: str = POINTS[0]) -> float:
    """A threshold from unlabelled images, a share of which is known to be positive.

    A scanner that was not trained on shifts the logits of all images, by which a threshold chosen on others is at the
    wrong place. `intercept` shifts them back, so that the mean of the probabilities is the rate, and then takes for
    positive what is likelier than the rate: of balanced accuracy the best where probabilities are right (Saerens et
    al., Neural Computation 14, 2002, for the share of classes). `quantile` takes the share for positive that the rate
    says.

    Args:
        prob: probabilities of the positive class, (n,).
        rate: the share of positives, above 0 and below 1.
        point: see above.

    Returns:
        In [0, 1]; from it on an image is positive.

    Raises:
        ValueError: when there are no images, or the rate or the point is none of these.
    """
    if not len(prob) or not 0 < rate < 1 or point not in POINTS:
        raise ValueError(
            f"expected images, a rate above 0 and below 1, and {' or '.join(POINTS)}: {len(prob)}, {rate:g}, {point}"
        )
    if point == "quantile":
        return float(np.quantile(prob, 1 - rate))
    logits, aim = logit(np.clip(prob, 1e-12, 1 - 1e-12).astype(float)), float(logit(rate))
    # all probabilities are below the rate at the one end, and above it at the other
    ends = aim - logits.max() - 1, aim - logits.min() + 1
    shift = brentq(lambda b: expit(logits + b).mean() - rate, *ends)
    return float(expit(aim - shift))


def read_threshold(
    path: str | os.PathLike, cascade: Mapping[str, Any] | None = None, weight: float | None = None
) -> float:
    """The threshold that training chose, from `{"threshold": 0.37, ...}`; 0.5, with a warning, where there is no file.

    Args:
        path: of the file.
        cascade: of a detector with a classifier, see `read_cascade`: its threshold goes with its weight alone.
        weight: of that classifier.

    Raises:
        DataError: when the file holds no threshold in [0, 1], or the cascade's, chosen for another weight.
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
    value = _share(
        path,
        content if isinstance(content, Mapping) else {"threshold": content},
        "threshold",
        ' as in {"threshold": 0.5}. Train again, or correct the file.',
    )
    if cascade and weight != cascade["weight"] and value == cascade["threshold"]:
        raise DataError(
            f"{path}: its threshold was chosen for a weight of {cascade['weight']:g} of the classifier, and "
            f"--classifier_weight is {weight:g}. Give --threshold, too, or neither."
        )
    return value


def read_cascade(
    path: str | os.PathLike,
    weights: str | None,
    classifier: str | os.PathLike = "",
    flips: bool | None = None,
) -> dict[str, Any]:
    """The weight of a classifier beside a detector, and the threshold of both together, as they were chosen.

    Args:
        path: of the file that `shared.handlers.CascadeChoice` writes.
        weights: digests of both, see `shared.inferers.cascade_digest`.
        classifier: its path; "": there is none, and nothing to read.
        flips: whether the classifier sees each crop mirrored, too; None: as it was chosen.

    Returns:
        What the file holds; {} without a classifier.

    Raises:
        DataError: when there is no such file, it holds no weight and threshold in [0, 1], or it was written for other
            weights, or for the other kind of crops.
    """
    if not classifier:
        return {}
    path = Path(path)
    remedy = (
        "Choose them on the validation regions: --config_file \"['configs/train.json','configs/evaluate.json',"
        f"'configs/cascade.json']\" --classifier {classifier}; or give --classifier_weight and --threshold."
    )
    if not path.is_file():
        raise DataError(f"{path}: there is no such file, which has the classifier's weight and the threshold. {remedy}")
    content = read_json_object(path, "a weight and a threshold in [0, 1]", remedy)
    for key in ("weight", "threshold"):
        _share(path, content, key, f". {remedy}")
    if weights and content.get("weights") != weights:
        raise DataError(f"{path}: was chosen for other weights of the detector or the classifier. {remedy}")
    chosen = flag(f"{path}: flips", content.get("flips", False))
    if flips not in (None, chosen):
        raise DataError(
            f"{path}: was chosen with --classifier_flips {str(chosen).lower()}. Leave that option out, or choose "
            f"again: {remedy}"
        )
    return content


def kept_cascade(path: str | os.PathLike, weights: str | None, classifier: str | os.PathLike = "") -> dict[str, Any]:
    """What was chosen for these weights, `floor` and `flips` among it; {} where nothing was.

    A weight and a threshold that are given need no choice, so a missing one is no error here. Arguments are those of
    `read_cascade`.

    Raises:
        DataError: when the file is damaged.
    """
    path = Path(path)
    if not classifier or not path.is_file():
        return {}
    remedy = "Choose again, or give --classifier_flips and --classifier_floor."
    content = read_json_object(path, "a weight and a threshold in [0, 1]", remedy)
    if weights and content.get("weights") != weights:
        return {}
    flips = flag(f"{path}: flips", content.get("flips", False))
    return {**content, "flips": flips, "floor": _share(path, {"floor": 0.0, **content}, "floor", f". {remedy}")}


def _share(path: Path, content: Mapping[str, Any], key: str, remedy: str) -> float:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise DataError(f"{path}: its {key} is {json.dumps(value)}, expected a number in [0, 1]{remedy}")
    return float(value)
