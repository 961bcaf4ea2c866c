"""Scores of detected points.

A detection is right when a figure of its class lies within a radius of it. All functions take the images one by one:
`points[i]`, `scores[i]` and `classes[i]` are the detections of image i, `true_points[i]` and `true_classes[i]` its
figures. Points and radius share a unit, pixels or µm; in mitosis detection 7.5 µm, 25 px and 30 px (at 0.25 µm/px) are
usual.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from ..utils import DataError
from .bootstrap import _blocks, _interval

MATCHINGS = ("one_to_one", "many_to_one")


class _Points(NamedTuple):
    """Points of all images, one image after the other; `score` is 1 where the points are figures."""

    xy: np.ndarray  # (n, 2)
    class_id: np.ndarray  # (n,), as are the others
    image: np.ndarray
    score: np.ndarray

    def where(self, chosen: np.ndarray) -> _Points:
        return _Points(*(field[chosen] for field in self))

    def places(self, radius: float) -> np.ndarray:
        """(n, 3): a third coordinate keeps the images apart, so that one tree does for all of them."""
        return np.column_stack([self.xy, self.image * 2.0 * radius])


def _joined(
    name: str, points: Sequence[ArrayLike], classes: Sequence[ArrayLike], scores: Sequence[ArrayLike]
) -> _Points:
    """The points of all images, checked."""
    checked = []
    for i, (xy, class_id, score) in enumerate(zip(points, classes, scores, strict=True)):
        xy, class_id, score = np.asarray(xy, dtype=np.float64), np.asarray(class_id), np.asarray(score, np.float64)
        if not xy.size:
            xy, class_id = xy.reshape(-1, 2), class_id.astype(np.int64)  # an empty list says nothing of its type
        n = len(xy)
        if xy.shape != (n, 2) or class_id.shape != (n,) or score.shape != (n,):
            raise ValueError(
                f"{name} of image {i}: points must be (n, 2), classes and scores (n,), "
                f"got {xy.shape}, {class_id.shape} and {score.shape}."
            )
        if not np.issubdtype(class_id.dtype, np.integer):
            raise ValueError(f"{name} of image {i}: classes must be whole numbers, got {class_id.dtype}.")
        if not (np.isfinite(xy).all() and np.isfinite(score).all()):
            raise ValueError(f"{name} of image {i}: points and scores must be finite, some are not.")
        checked.append(_Points(xy, class_id, np.full(n, i), score))
    empty = _Points(np.empty((0, 2)), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    return _Points(*map(np.concatenate, zip(empty, *checked, strict=True)))


def _checked(
    points: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    classes: Sequence[ArrayLike],
    true_points: Sequence[ArrayLike],
    true_classes: Sequence[ArrayLike],
    radius: float,
) -> tuple[_Points, _Points]:
    """Detections and figures."""
    lengths = [len(values) for values in (points, scores, classes, true_points, true_classes)]
    if len(set(lengths)) > 1:
        raise ValueError(
            "points, scores, classes, true_points and true_classes must have an item for each image, got "
            f"{', '.join(map(str, lengths))} items."
        )
    if not 0 < radius < np.inf:
        raise ValueError(f"radius must be a finite number above 0, got {radius}.")
    ones = [np.ones(np.shape(class_id)) for class_id in true_classes]
    return _joined("detections", points, classes, scores), _joined("figures", true_points, true_classes, ones)


def _of_class(class_id: int, *points: _Points) -> Iterator[_Points]:
    return (p.where(p.class_id == class_id) for p in points)


def _first(values: np.ndarray) -> np.ndarray:
    """Where each value occurs for the first time, in order."""
    return np.sort(np.unique(values, return_index=True)[1])


def _match(detections: _Points, figures: _Points, radius: float) -> np.ndarray:
    """The figure that each detection gets, or -1, (n,): see `match_detections`. Of one class."""
    trees = (cKDTree(points.places(radius)) for points in (detections, figures))
    pairs = next(trees).sparse_distance_matrix(next(trees), radius, output_type="ndarray")
    order = np.lexsort((pairs["j"], pairs["i"], pairs["v"], -detections.score[pairs["i"]]))
    detection, figure = pairs["i"][order], pairs["j"][order]
    # All detections choose at once. Of those that choose the same figure the first in order has it, the others lose it
    # for good and choose again. In the end each has what it would get if they chose one after the other.
    while True:
        choice = _first(detection)
        lost = np.delete(choice, _first(figure[choice]))
        if not len(lost):
            break
        detection, figure = np.delete(detection, lost), np.delete(figure, lost)
    match = np.full(len(detections.score), -1)
    match[detection[choice]] = figure[choice]
    return match


def match_detections(
    points: ArrayLike,
    scores: ArrayLike,
    classes: ArrayLike,
    true_points: ArrayLike,
    true_classes: ArrayLike,
    radius: float,
) -> np.ndarray:
    """One-to-one matching of the detections of one image with its figures.

    From the highest score to the lowest, each detection takes the nearest figure of its class that lies within the
    radius, at exactly the radius included, and that no detection before it has taken. Of detections of equal score the
    one nearer to its figure goes first, then the one of the lower index; of equally near figures the one of the lower
    index is taken. A detection's match does not depend on those of lower scores, so it holds at every threshold.

    Args:
        points: (n, 2).
        scores: (n,), of any range.
        classes: (n,), whole numbers.
        true_points: (m, 2).
        true_classes: (m,), whole numbers.
        radius: in the unit of the points, above 0.

    Returns:
        for each detection the index of its figure, or -1 where it has none, int64, (n,).

    Raises:
        ValueError: when shapes do not fit, a number is not finite or a class is no whole number.
    """
    detections, figures = _checked([points], [scores], [classes], [true_points], [true_classes], radius)
    match = np.full(len(detections.score), -1)
    for class_id in np.unique(detections.class_id):
        rows, columns = (np.flatnonzero(p.class_id == class_id) for p in (detections, figures))
        found = _match(detections.where(rows), figures.where(columns), radius)
        match[rows[found >= 0]] = columns[found[found >= 0]]
    return match


def _hits_many_to_one(detections: _Points, figures: _Points, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether each detection and each figure is a hit in the counting of the MIDOG challenge's repository."""
    places = np.concatenate([detections.places(radius), figures.places(radius)])
    one, other = cKDTree(places).query_pairs(radius, output_type="ndarray").T

    def near(flags: np.ndarray) -> np.ndarray:
        """Whether a point has the flag, or one within the radius of it."""
        found = flags.copy()
        found[one[flags[other]]] = True
        found[other[flags[one]]] = True
        return found

    is_figure = np.arange(len(places)) >= len(detections.score)
    hit = near(near(is_figure) & near(~is_figure))
    return hit[~is_figure], hit[is_figure]


def _counts_of_images(
    detections: _Points, figures: _Points, radius: float, threshold: float, matching: str, images: int
) -> np.ndarray:
    """tp, fp and fn of each image, (images, 3), int64. Of one class."""
    called = detections.where(detections.score >= threshold)
    if matching == "one_to_one":
        match = _match(called, figures, radius)
        right, found = match >= 0, np.isin(np.arange(len(figures.score)), match)
    elif matching == "many_to_one":
        right, found = _hits_many_to_one(called, figures, radius)
    else:
        raise ValueError(f"matching is {matching!r}, expected one of {', '.join(MATCHINGS)}.")
    cells = (figures.image[found], called.image[~right], figures.image[~found])
    return np.stack([np.bincount(image, minlength=images) for image in cells], axis=1)


def _scores_of_counts(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1, each (R,), from counts (R, 3)."""
    tp, fp, fn = counts.T.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return {
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            # without figures the ratio would be 0 or undefined by the number of false alarms alone
            "f1": np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan),
        }


def _row(counts: np.ndarray) -> dict[str, Any]:
    """Counts (I, 3) of some images, pooled, and their scores."""
    total = counts.sum(axis=0)
    scores = {name: float(value[0]) for name, value in _scores_of_counts(total[None]).items()}
    return dict(zip(("tp", "fp", "fn"), total.tolist(), strict=True)) | scores


def detection_f1(
    points: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    classes: Sequence[ArrayLike],
    true_points: Sequence[ArrayLike],
    true_classes: Sequence[ArrayLike],
    radius: float,
    threshold: float = 0.5,
    matching: str = "one_to_one",
    domains: Sequence[Any] | None = None,
    class_ids: Sequence[int] | None = None,
) -> dict[int, dict[str, Any]]:
    """Precision, recall and F1 of each class, from the true and false positives and negatives of all images together.

    A detection counts when its score is at least the threshold. `matching` decides what is a true positive:

    * `"one_to_one"`: each figure is found by at most one detection, see `match_detections`; a second detection of it is
      a false positive. The official container of the MIDOG challenge counts so, within 7.5 µm.
    * `"many_to_one"`: as `calculate_F1` in the repository of the MIDOG challenge counts, within 25 px. Points that have
      both a figure and a detection within the radius, themselves included, are centres; every figure and detection
      within the radius of a centre is a hit. So several detections may share a figure and none of them is a false
      positive, a detection may find several figures, and a hit may lie up to twice the radius from its counterpart,
      with another point between them. True positives are the figures that are hits. It never scores lower than
      one-to-one. (There a score must exceed the threshold; here it may equal it.)

    Two detections near one figure have F1 0.67 one-to-one and 1.0 many-to-one.

    Args:
        points: for each image (n, 2), in any unit.
        scores: for each image (n,), of any range.
        classes: for each image (n,), whole numbers.
        true_points: for each image (m, 2).
        true_classes: for each image (m,), whole numbers.
        radius: in the unit of the points, above 0.
        threshold: in the unit of the scores.
        matching: `"one_to_one"` or `"many_to_one"`.
        domains: the domain of each image, such as its scanner.
        class_ids: classes to report; by default those of any detection or figure.

    Returns:
        For each class `tp`, `fp` and `fn`, as ints, and as floats `precision` = tp / (tp + fp), NaN without detections,
        `recall` = tp / (tp + fn) and `f1` = 2 tp / (2 tp + fp + fn), both NaN without figures. Where `domains` is
        given, `domains` holds the same for each of them, in the order of their first images.

    Raises:
        ValueError: when numbers of images or shapes do not fit, a number is not finite, a class is no whole number or
            `matching` is not known.
    """
    detections, figures = _checked(points, scores, classes, true_points, true_classes, radius)
    if domains is not None and len(domains) != len(points):
        raise ValueError(f"domains must name the domain of each of {len(points)} images, got {len(domains)}.")
    if class_ids is None:
        class_ids = np.union1d(detections.class_id, figures.class_id).tolist()
    result = {}
    for class_id in class_ids:
        own = _of_class(class_id, detections, figures)
        counts = _counts_of_images(*own, radius, threshold, matching, len(points))
        result[class_id] = _row(counts)
        if domains is not None:
            result[class_id]["domains"] = {
                domain: _row(counts[[other == domain for other in domains]]) for domain in dict.fromkeys(domains)
            }
    return result


def _curve(detections: _Points, match: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many detections are right, and how many there are, (R, k), at each of k distinct scores, from high to low.

    An image counts as often as its weight in (R, images) says.
    """
    order = np.argsort(-detections.score, kind="stable")
    score = detections.score[order]
    last = np.flatnonzero(np.append(np.diff(score) != 0, True)[: len(score)])  # of each run of equal scores
    weight = weights[:, detections.image[order]]
    right = np.cumsum(weight * (match[order] >= 0), axis=1)[:, last]
    return right, np.cumsum(weight, axis=1)[:, last], score[last]


def _average_precision(detections: _Points, figures: _Points, radius: float, weights: np.ndarray) -> np.ndarray:
    """Average precision of each of R resamples, from weights (R, images). Of one class."""
    match = _match(detections, figures, radius)
    result = np.empty(len(weights))
    for block in _blocks(len(weights), len(match)):
        right, called, _ = _curve(detections, match, weights[block])
        precision = np.divide(right, called, out=np.zeros(right.shape), where=called > 0)
        highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        total = weights[block][:, figures.image].sum(axis=1)
        with np.errstate(invalid="ignore"):
            result[block] = np.einsum("rk,rk->r", np.diff(right, axis=1, prepend=0), highest) / total
    return result


def average_precision(
    points: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    classes: Sequence[ArrayLike],
    true_points: Sequence[ArrayLike],
    true_classes: Sequence[ArrayLike],
    radius: float,
    class_id: int,
) -> float:
    """Average precision of one class, over all images together, matched one-to-one.

    The area under the interpolated precision-recall curve: each step in recall times the highest precision at this or
    any higher recall (interpolated as by Everingham et al., IJCV 2010;88:303-338; at every recall that occurs and not
    at 11 fixed ones, as in PASCAL VOC since 2010, IJCV 2015;111:98-136). The curve has a point for each distinct score,
    so the order of equal scores does not matter.

    Args:
        points, scores, classes, true_points, true_classes, radius: as for `detection_f1`.
        class_id: the class.

    Returns:
        in [0, 1]; NaN without figures, 0 without detections.

    Raises:
        ValueError: as for `detection_f1`.
    """
    own = _of_class(class_id, *_checked(points, scores, classes, true_points, true_classes, radius))
    return float(_average_precision(*own, radius, np.ones((1, len(points)), dtype=np.int64))[0])


def precision_recall_curve(
    points: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    classes: Sequence[ArrayLike],
    true_points: Sequence[ArrayLike],
    true_classes: Sequence[ArrayLike],
    radius: float,
    class_id: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision and recall of one class at each distinct score as the threshold, from high to low, matched one-to-one.

    Args:
        points, scores, classes, true_points, true_classes, radius: as for `detection_f1`.
        class_id: the class.

    Returns:
        Precision (not interpolated), recall and threshold, each (k,); empty without detections, the recall NaN without
        figures.

    Raises:
        ValueError: as for `detection_f1`.
    """
    detections, figures = _of_class(class_id, *_checked(points, scores, classes, true_points, true_classes, radius))
    match = _match(detections, figures, radius)
    right, called, threshold = _curve(detections, match, np.ones((1, len(points)), dtype=np.int64))
    with np.errstate(invalid="ignore"):
        return right[0] / called[0], right[0] / len(figures.score), threshold


def best_detection_threshold(
    points: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    classes: Sequence[ArrayLike],
    true_points: Sequence[ArrayLike],
    true_classes: Sequence[ArrayLike],
    radius: float,
    class_id: int,
) -> tuple[float, float]:
    """The score threshold of the best F1 of one class, matched one-to-one, and that F1.

    It lies midway between two neighbours among the scores (and 0 and 1), so that no rounding moves a detection to its
    other side. Of equally good ones it is the highest.

    Args:
        points, scores, classes, true_points, true_classes, radius: as for `detection_f1`, of validation images; scores
            in [0, 1].
        class_id: the class.

    Returns:
        The threshold, in (0, 1), and the F1, in [0, 1].

    Raises:
        ValueError: as for `detection_f1`, or when a score is out of range.
        DataError: when the class has no figures.
    """
    detections, figures = _of_class(class_id, *_checked(points, scores, classes, true_points, true_classes, radius))
    score = detections.score
    if len(score) and (score.min() < 0 or score.max() > 1):
        raise ValueError(f"scores must be in [0, 1], got {score.min():g} to {score.max():g}.")
    if not len(figures.score):
        raise DataError(
            f"A threshold cannot be chosen: none of {len(points)} validation images has a figure of class {class_id}. "
            "Validate on more slides."
        )
    neighbours = np.unique(np.concatenate([[0.0], score, [1.0]]))
    candidates = (neighbours[:-1] + neighbours[1:]) / 2
    # between two floats that follow upon each other there is no room
    candidates = candidates[(neighbours[:-1] < candidates) & (candidates < neighbours[1:])]
    right = np.sort(score[_match(detections, figures, radius) >= 0])
    tp, called = (len(s) - np.searchsorted(s, candidates) for s in (right, np.sort(score)))
    f1 = 2 * tp / (called + len(figures.score))
    best = np.flatnonzero(f1 == f1.max())[-1]
    return float(candidates[best]), float(f1[best])


def bootstrap_detection(
    points: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    classes: Sequence[ArrayLike],
    true_points: Sequence[ArrayLike],
    true_classes: Sequence[ArrayLike],
    radius: float,
    class_id: int,
    threshold: float = 0.5,
    matching: str = "one_to_one",
    groups: Sequence[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """95 % bootstrap intervals over images of the scores of one class.

    Images are drawn with replacement, as many as there are, or whole groups of them, such as the tiles of a slide,
    which resemble each other; the interval reaches from the 2.5th to the 97.5th percentile of the resamples' scores
    (Efron and Tibshirani 1993, section 13.3). Resamples in which a score is undefined are left out.

    Args:
        points, scores, classes, true_points, true_classes, radius: as for `detection_f1`.
        class_id: the class.
        threshold: as for `detection_f1`, whose `precision`, `recall` and `f1` depend on it.
        matching: of these three, as for `detection_f1`.
        groups: the group of each image; by default each is its own.
        resamples: number of resamples.
        seed: of the draws.

    Returns:
        For `precision`, `recall`, `f1` and `average_precision` each `interval` as [low, high] or None,
        `resamples_left_out`, and `no_interval_because` where the interval is None.

    Raises:
        ValueError: as for `detection_f1`, or when `groups` has another length.
    """
    own = tuple(_of_class(class_id, *_checked(points, scores, classes, true_points, true_classes, radius)))
    groups = range(len(points)) if groups is None else groups
    if len(groups) != len(points):
        raise ValueError(f"groups must name the group of each of {len(points)} images, got {len(groups)}.")
    numbers = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    group, n = [numbers[name] for name in groups], len(numbers)
    if n < 2:
        reason = "there are not two images, or groups of them, to draw from"
        nothing = {"interval": None, "resamples_left_out": 0, "no_interval_because": reason}
        return {name: dict(nothing) for name in ("precision", "recall", "f1", "average_precision")}
    weights = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=resamples)[:, group]
    values = _scores_of_counts(weights @ _counts_of_images(*own, radius, threshold, matching, len(points)))
    values["average_precision"] = _average_precision(*own, radius, weights)
    return {name: _interval(value, n) for name, value in values.items()}


class Findings(NamedTuple):
    """What was detected in some regions, and what is there: as `shared.metrics.detection_f1` takes them, by region.

    Attributes:
        points: (n, 2), centres in pixels of the image.
        scores: (n,), from high to low.
        classes: (n,).
        true_points: (m, 2).
        true_classes: (m,).
    """

    points: list[np.ndarray]
    scores: list[np.ndarray]
    classes: list[np.ndarray]
    true_points: list[np.ndarray]
    true_classes: list[np.ndarray]

    def of(self, chosen: Sequence[int]) -> Findings:
        """Those of some regions."""
        return Findings(*([column[i] for i in chosen] for column in self))
