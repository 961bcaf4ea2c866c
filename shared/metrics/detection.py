"""Scores of detected points.

A detection is right when a figure of its class lies within a radius of it. Points and radius share a unit, pixels or
µm; in mitosis detection 7.5 µm, 25 px and 30 px (at 0.25 µm/px) are usual.

`Findings` are the detections and figures of all images, matched; what scores them reads the match. `detection_f1` makes
them by itself, of lists with an item for each image.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from ..utils import DataError
from .bootstrap import Interval, bootstrap_intervals, number_groups
from .thresholds import candidate_thresholds

MATCHINGS = ("one_to_one", "many_to_one")
MITOTIC = 1  # of the classes of a detector of mitotic figures; 0 is what looks like one


class Detections(TypedDict):
    """What a detector finds in an image.

    Attributes:
        box: (n, 4) float32, x1, y1, x2, y2 in pixels of the image.
        score: (n,) float32, in [0, 1].
        label: (n,) int64; of the mitosis bundle 1 for mitotic, 0 for non-mitotic.
        mitotic: (n,) float32, in [0, 1], where a classifier is to judge them: the detector's probability of class 1,
            whatever the likelier class is.
        subtype: (n,) float32, in [0, 1], where there is a classifier of subtypes: the probability of its class 1; NaN
            of what is no mitotic figure.
    """

    box: np.ndarray
    score: np.ndarray
    label: np.ndarray
    mitotic: NotRequired[np.ndarray]
    subtype: NotRequired[np.ndarray]


def box_centres(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) to (n, 2)."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


@dataclass(frozen=True, eq=False)
class Findings:
    """The n detections and the m figures of some images, matched one-to-one; made by `Findings.matched`.

    From the highest score to the lowest, each detection takes the nearest figure of its class in its image that lies
    within the radius, at exactly the radius included, and that no detection before it has taken. Of detections of equal
    score the one nearer to its figure goes first, then the one of the lower index; of equally near figures the one of
    the lower index is taken. A detection's match does not depend on those of lower scores, so it holds at every
    threshold.

    Attributes:
        points: of the detections, (n, 2), image after image.
        scores: (n,), of any range.
        classes: (n,), whole numbers.
        images: the image of each, (n,), from 0 to `count` - 1.
        match: the figure that each has found, or -1, (n,).
        true_points: of the figures, (m, 2).
        true_classes: (m,).
        true_images: (m,).
        count: how many images there are.
        radius: how far from a figure a detection of it may lie.

    Example:
        >>> findings = Findings.matched([[[10, 10]]], [[0.9]], [[1]], [[[12, 10], [50, 50]]], [[1, 1]], radius=30)
        >>> average_precision(findings, class_id=1)
        0.5
    """

    points: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    images: np.ndarray
    match: np.ndarray
    true_points: np.ndarray
    true_classes: np.ndarray
    true_images: np.ndarray
    count: int
    radius: float

    @classmethod
    def matched(
        cls,
        points: Sequence[ArrayLike],
        scores: Sequence[ArrayLike],
        classes: Sequence[ArrayLike],
        true_points: Sequence[ArrayLike],
        true_classes: Sequence[ArrayLike],
        radius: float,
    ) -> Findings:
        """Of lists with an item for each image, as for `detection_f1`.

        Raises:
            ValueError: when numbers of images or shapes do not fit, a number is not finite, a class is no whole number
                or the radius is not positive.
        """
        lengths = [len(values) for values in (points, scores, classes, true_points, true_classes)]
        if len(set(lengths)) > 1:
            raise ValueError(
                "points, scores, classes, true_points and true_classes must have an item for each image, got "
                f"{', '.join(map(str, lengths))} items."
            )
        if not 0 < radius < np.inf:
            raise ValueError(f"radius must be a finite number above 0, got {radius}.")
        found = _joined("detections", points, classes, scores)
        true = _joined("figures", true_points, true_classes, [np.ones(np.shape(own)) for own in true_classes])
        (xy, class_id, image, score), (true_xy, true_class, true_image, _) = found, true
        names, number = np.unique(np.concatenate([class_id, true_class]), return_inverse=True)
        group = np.concatenate([image, true_image]) * len(names) + number
        places = _places(np.concatenate([xy, true_xy]), group, radius)
        match = _match(score, places[: len(xy)], places[len(xy) :], radius)
        return cls(xy, score, class_id, image, match, true_xy, true_class, true_image, lengths[0], radius)

    @property
    def found_at(self) -> np.ndarray:
        """The score of the detection that has found each figure, NaN where none has, (m,)."""
        scores = np.full(len(self.true_classes), np.nan)
        scores[self.match[self.match >= 0]] = self.scores[self.match >= 0]
        return scores

    def of(self, images: Sequence[int]) -> Findings:
        """Those of some images, which are numbered anew, in their order."""
        number = np.full(self.count, -1)
        number[images] = np.arange(len(images))
        own = self._where(number[self.images] >= 0, number[self.true_images] >= 0)
        return replace(own, images=number[own.images], true_images=number[own.true_images], count=len(images))

    def of_class(self, class_id: int) -> Findings:
        return self._where(self.classes == class_id, self.true_classes == class_id)

    def _where(self, chosen: np.ndarray, true_chosen: np.ndarray) -> Findings:
        """Some detections and, of what they have found and the rest, some figures."""
        number = np.append(np.where(true_chosen, np.cumsum(true_chosen) - 1, -1), -1)  # at last that of no figure
        detections = {name: getattr(self, name)[chosen] for name in ("points", "scores", "classes", "images")}
        figures = {name: getattr(self, name)[true_chosen] for name in ("true_points", "true_classes", "true_images")}
        return replace(self, **detections, **figures, match=number[self.match[chosen]])


def _joined(
    name: str, points: Sequence[ArrayLike], classes: Sequence[ArrayLike], scores: Sequence[ArrayLike]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The points (n, 2), classes, images and scores (n,) of all images, checked."""
    checked = [(np.empty((0, 2)), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
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
        checked.append((xy, class_id, np.full(n, i), score))
    return tuple(map(np.concatenate, zip(*checked, strict=True)))


def _places(points: np.ndarray, group: np.ndarray, radius: float) -> np.ndarray:
    """(n, 3): a third coordinate keeps groups of points apart, so that one tree does for all of them."""
    return np.column_stack([points, group * 2.0 * radius])


def _match(scores: np.ndarray, places: np.ndarray, true_places: np.ndarray, radius: float) -> np.ndarray:
    """The figure that each detection gets, or -1, (n,): see `Findings`."""
    pairs = cKDTree(places).sparse_distance_matrix(cKDTree(true_places), radius, output_type="ndarray")
    order = np.lexsort((pairs["j"], pairs["i"], pairs["v"], -scores[pairs["i"]]))
    match, taken = np.full(len(scores), -1), np.zeros(len(true_places), bool)
    for detection, figure in pairs[["i", "j"]][order].tolist():
        if match[detection] < 0 and not taken[figure]:
            match[detection], taken[figure] = figure, True
    return match


def _hits_many_to_one(own: Findings, called: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each detection and each figure is a hit as the MIDOG challenge's repository counts. Of one class."""
    points, images = (own.points[called], own.true_points), (own.images[called], own.true_images)
    places = _places(np.concatenate(points), np.concatenate(images), own.radius)
    one, other = cKDTree(places).query_pairs(own.radius, output_type="ndarray").T

    def near(flags: np.ndarray) -> np.ndarray:
        """Whether a point has the flag, or one within the radius of it."""
        found = flags.copy()
        found[one[flags[other]]] = True
        found[other[flags[one]]] = True
        return found

    is_figure = np.arange(len(places)) >= np.count_nonzero(called)
    hit = near(near(is_figure) & near(~is_figure))
    right = np.zeros(len(called), bool)
    right[called] = hit[~is_figure]
    return right, hit[is_figure]


def _counts(own: Findings, threshold: float, matching: str) -> np.ndarray:
    """tp, fp and fn of each image, (images, 3), int64. Of one class."""
    called = own.scores >= threshold
    if matching == "one_to_one":
        right, found = own.match >= 0, own.found_at >= threshold
    elif matching == "many_to_one":
        right, found = _hits_many_to_one(own, called)
    else:
        raise ValueError(f"matching is {matching!r}, expected one of {', '.join(MATCHINGS)}.")
    cells = (own.true_images[found], own.images[called & ~right], own.true_images[~found])
    return np.stack([np.bincount(image, minlength=own.count) for image in cells], axis=1)


def scores_of_counts(counts: np.ndarray) -> dict[str, np.ndarray]:
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
    scores = {name: float(value[0]) for name, value in scores_of_counts(total[None]).items()}
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
    domains: Sequence[Hashable] | None = None,
    class_ids: Sequence[int] | None = None,
) -> dict[int, dict[str, Any]]:
    """Precision, recall and F1 of each class, from the true and false positives and negatives of all images together.

    A detection counts when its score is at least the threshold. `matching` decides what is a true positive:

    * `"one_to_one"`: each figure is found by at most one detection, see `Findings`; a second detection of it is a
      false positive. The official container of the MIDOG challenge counts so, within 7.5 µm.
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
    findings = Findings.matched(points, scores, classes, true_points, true_classes, radius)
    if domains is not None and len(domains) != len(points):
        raise ValueError(f"domains must name the domain of each of {len(points)} images, got {len(domains)}.")
    if class_ids is None:
        class_ids = np.union1d(findings.classes, findings.true_classes).tolist()
    result = {}
    for class_id in class_ids:
        counts = _counts(findings.of_class(class_id), threshold, matching)
        result[class_id] = _row(counts)
        if domains is not None:
            result[class_id]["domains"] = {
                domain: _row(counts[[other == domain for other in domains]]) for domain in dict.fromkeys(domains)
            }
    return result


def detection_scores(
    findings: Findings, class_id: int, threshold: float = 0.5, matching: str = "one_to_one"
) -> dict[str, Any]:
    """What `detection_f1` says of one class, and its `average_precision`."""
    counts = _counts(findings.of_class(class_id), threshold, matching)
    return _row(counts) | {"average_precision": average_precision(findings, class_id)}


def _curve(own: Findings, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many detections are right, and how many there are, (R, k), at each of k distinct scores, from high to low.

    An image counts as often as its weight in (R, images) says. Of one class.
    """
    order = np.argsort(-own.scores, kind="stable")
    score = own.scores[order]
    last = np.flatnonzero(np.append(np.diff(score) != 0, True)[: len(score)])  # of each run of equal scores
    weight = weights[:, own.images[order]]
    right = np.cumsum(weight * (own.match[order] >= 0), axis=1)[:, last]
    return right, np.cumsum(weight, axis=1)[:, last], score[last]


def _average_precision(own: Findings, weights: np.ndarray) -> np.ndarray:
    """Average precision of each of R resamples, from weights (R, images). Of one class."""
    right, called, _ = _curve(own, weights)
    precision = np.divide(right, called, out=np.zeros(right.shape), where=called > 0)
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    with np.errstate(invalid="ignore"):
        total = weights[:, own.true_images].sum(axis=1)
        return np.einsum("rk,rk->r", np.diff(right, axis=1, prepend=0), highest) / total


def average_precision(findings: Findings, class_id: int) -> float:
    """Average precision of one class, over all images together.

    The area under the interpolated precision-recall curve: each step in recall times the highest precision at this or
    any higher recall (interpolated as by Everingham et al., IJCV 2010;88:303-338; at every recall that occurs and not
    at 11 fixed ones, as in PASCAL VOC since 2010, IJCV 2015;111:98-136). The curve has a point for each distinct score,
    so the order of equal scores does not matter.

    Returns:
        in [0, 1]; NaN without figures, 0 without detections.
    """
    return float(_average_precision(findings.of_class(class_id), np.ones((1, findings.count), dtype=np.int64))[0])


def precision_recall_curve(findings: Findings, class_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision and recall of one class at each distinct score as the threshold, from high to low.

    Returns:
        Precision (not interpolated), recall and threshold, each (k,); empty without detections, the recall NaN without
        figures.
    """
    own = findings.of_class(class_id)
    (right,), (called,), threshold = _curve(own, np.ones((1, own.count), dtype=np.int64))
    with np.errstate(invalid="ignore"):
        return right / called, right / len(own.true_classes), threshold


def best_detection_threshold(findings: Findings, class_id: int) -> tuple[float, float]:
    """The score threshold of the best F1 of one class, and that F1.

    It is one of the `candidate_thresholds` of the class's scores, of equally good ones the highest.

    Args:
        findings: of validation images; scores in [0, 1].
        class_id: the class.

    Returns:
        The threshold, in (0, 1), and the F1, in [0, 1].

    Raises:
        ValueError: when a score is out of range.
        DataError: when the class has no figures.
    """
    own = findings.of_class(class_id)
    candidates, figures = candidate_thresholds(own.scores), len(own.true_classes)
    if not figures:
        raise DataError(
            f"A threshold cannot be chosen: none of {own.count} validation images has a figure of class {class_id}. "
            "Validate on more slides."
        )
    right = np.sort(own.scores[own.match >= 0])
    tp, called = (len(s) - np.searchsorted(s, candidates) for s in (right, np.sort(own.scores)))
    f1 = 2 * tp / (called + figures)
    best = np.flatnonzero(f1 == f1.max())[-1]
    return float(candidates[best]), float(f1[best])


def detection_scores_of_draws(
    findings: Findings, class_id: int, threshold: float, matching: str, group: np.ndarray
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """What gives the scores of one class in resamples, (R,) each, from how often each group of images is drawn, (R, n).

    Args:
        findings, class_id, threshold, matching: see `bootstrap_detection`.
        group: the number of the group of each image, from 0 to n - 1.
    """
    own = findings.of_class(class_id)
    counts = _counts(own, threshold, matching)

    def score(draws: np.ndarray) -> dict[str, np.ndarray]:
        weights = draws[:, group]
        return scores_of_counts(weights @ counts) | {"average_precision": _average_precision(own, weights)}

    return score


def bootstrap_detection(
    findings: Findings,
    class_id: int,
    threshold: float = 0.5,
    matching: str = "one_to_one",
    groups: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """95 % bootstrap intervals over images of the scores of one class.

    Images are drawn with replacement, as many as there are, or whole groups of them, such as the tiles of a slide,
    which resemble each other. Resamples in which a score is undefined are left out.

    Args:
        findings: of the images.
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
        ValueError: when `groups` has another length or `matching` is not known.
    """
    own = findings.of_class(class_id)
    groups = range(own.count) if groups is None else groups
    if len(groups) != own.count:
        raise ValueError(f"groups must name the group of each of {own.count} images, got {len(groups)}.")
    group, n = number_groups(groups)
    score = detection_scores_of_draws(findings, class_id, threshold, matching, group)
    too_few = "there are not two images, or groups of them, to draw from"
    return bootstrap_intervals(score, n, len(own.scores), resamples, seed, too_few)
