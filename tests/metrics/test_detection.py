from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics

from shared.metrics import (
    Findings,
    average_precision,
    best_detection_threshold,
    bootstrap,
    bootstrap_detection,
    box_centres,
    detection_f1,
    detection_scores,
    precision_recall_curve,
)
from shared.utils import DataError

RADIUS = 25.0
SCORES = ("precision", "recall", "f1", "average_precision")


def images(count: int = 8, seed: int = 0, side: float = 250, steps: int = 0) -> list[list[np.ndarray]]:
    """Points, scores and classes of detections, points and classes of figures, crowded; `steps` rounds for ties."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        figures = rng.random((rng.integers(0, 30), 2)) * side
        near = figures[rng.integers(0, len(figures), 2 * len(figures))] if len(figures) else figures
        points = np.concatenate([near + rng.normal(0, 15, near.shape), rng.random((12, 2)) * side])
        scores = rng.random(len(points)) * 0.7 + 0.3 * (np.arange(len(points)) < len(near))
        if steps:
            points, figures, scores = (
                np.round(points / 5) * 5,
                np.round(figures / 5) * 5,
                np.round(scores * steps) / steps,
            )
        classes = rng.integers(0, 2, len(points))
        rows.append([points, scores, classes, figures, rng.integers(0, 2, len(figures))])
    return [list(column) for column in zip(*rows, strict=True)]


def one_by_one(points: Any, scores: Any, classes: Any, true_points: Any, true_classes: Any) -> list[int]:
    """The matching of one image, pair by pair."""
    match = [-1] * len(points)
    pairs = [
        (-scores[i], math.dist(points[i], true_points[j]), i, j)
        for i in range(len(points))
        for j in range(len(true_points))
        if classes[i] == true_classes[j]
    ]
    for _, distance, i, j in sorted(pairs):
        if distance <= RADIUS and match[i] < 0 and j not in match:
            match[i] = j
    return match


def each_in_turn(points: Any, scores: Any, classes: Any, true_points: Any, true_classes: Any) -> list[int]:
    """The same for distinct scores, detection by detection."""
    match = [-1] * len(points)
    for i in np.argsort(-np.asarray(scores)):
        free = [j for j in range(len(true_points)) if j not in match and classes[i] == true_classes[j]]
        nearest = min(free, key=lambda j: math.dist(points[i], true_points[j]), default=None)
        if nearest is not None and math.dist(points[i], true_points[nearest]) <= RADIUS:
            match[i] = nearest
    return match


def match_of(*image: Any) -> list[int]:
    """The figures that the detections of one image get."""
    return Findings.matched(*([part] for part in image), RADIUS).match.tolist()


def f1(*counts: int) -> float:
    tp, fp, fn = counts
    return 2 * tp / (2 * tp + fp + fn)


def single(points: list, true_points: list, scores: list | None = None) -> tuple[Any, ...]:
    """One image, one class."""
    scores = [0.9] * len(points) if scores is None else scores
    return [points], [scores], [[1] * len(points)], [true_points], [[1] * len(true_points)]


def counts(points: list, true_points: list, matching: str, **options: Any) -> list[int]:
    row = detection_f1(*single(points, true_points), RADIUS, matching=matching, **options)[1]
    return [row["tp"], row["fp"], row["fn"]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("steps", [0, 3])
def test_matching_is_its_definition(seed: int, steps: int) -> None:
    matched = 0
    for image in zip(*images(seed=seed, side=120, steps=steps), strict=True):
        match = match_of(*image)
        assert match == one_by_one(*image)
        if not steps:
            assert match == each_in_turn(*image)
        matched += sum(j >= 0 for j in match)
    assert matched > 30


@pytest.mark.parametrize("steps", [0, 3])
def test_a_part_of_the_findings_is_what_the_part_alone_would_be(steps: int) -> None:
    data = images(steps=steps)
    findings = Findings.matched(*data, RADIUS)
    for chosen in ([0, 2, 3], [7], [], range(8), [5, 1]):
        own, alone = findings.of(chosen), Findings.matched(*([part[i] for i in chosen] for part in data), RADIUS)
        assert own.count == len(chosen)
        for i in range(len(chosen)):  # of a part in another order, the images are in the old one
            one, same = own.of([i]), alone.of([i])
            for name in ("points", "scores", "classes", "images", "match", "true_points", "true_classes", "found_at"):
                np.testing.assert_array_equal(getattr(one, name), getattr(same, name), name)
        assert detection_scores(own, 1, 0.4) == pytest.approx(detection_scores(alone, 1, 0.4), nan_ok=True)
    own, kept = findings.of_class(1), [(c == 1, t == 1) for c, t in zip(data[2], data[4], strict=True)]
    alone = [[part[i][keep[k]] for i, keep in enumerate(kept)] for part, k in zip(data, (0, 0, 0, 1, 1), strict=True)]
    assert own.match.tolist() == Findings.matched(*alone, RADIUS).match.tolist()
    assert max(own.match) > 30 > -1 == min(own.match)


def test_where_and_at_which_score_a_figure_is_found() -> None:
    points, figures = [[[0, 0]], [[50, 0], [1, 0], [2, 0]]], [[[500, 0]], [[0, 0], [50, 10]]]
    findings = Findings.matched(points, [[0.3], [0.2, 0.6, 0.9]], [[1], [1, 1, 1]], figures, [[1], [1, 1]], RADIUS)
    assert (findings.count, findings.images.tolist(), findings.true_images.tolist()) == (2, [0, 1, 1, 1], [0, 1, 1])
    assert findings.match.tolist() == [-1, 2, -1, 1]
    assert findings.found_at.tolist() == pytest.approx([math.nan, 0.9, 0.2], nan_ok=True)


def test_scores_of_a_class_are_f1_and_average_precision() -> None:
    data = images()
    findings = Findings.matched(*data, RADIUS)
    for matching in ("one_to_one", "many_to_one"):
        for class_id, row in detection_f1(*data, RADIUS, 0.4, matching).items():
            found = detection_scores(findings, class_id, 0.4, matching)
            assert found == {**row, "average_precision": average_precision(findings, class_id)}


def test_centres_of_boxes() -> None:
    assert box_centres(np.array([[0, 10, 4, 11], [1.5, 2, 2.5, 2]])).tolist() == [[2, 10.5], [2, 2]]


def test_two_detections_of_one_figure() -> None:
    near = single([[0, 10], [10, 0]], [[0, 0]])
    assert detection_f1(*near, RADIUS)[1]["f1"] == pytest.approx(2 / 3)
    assert detection_f1(*near, RADIUS, matching="many_to_one")[1]["f1"] == 1
    assert counts([[0, 10], [10, 0]], [[0, 0]], "one_to_one") == [1, 1, 0]
    assert counts([[0, 10], [10, 0]], [[0, 0]], "many_to_one") == [1, 0, 0]


@pytest.mark.parametrize(
    ("points", "true_points", "one", "many"),
    [
        ([[15, 20]], [[0, 0]], [1, 0, 0], [1, 0, 0]),  # at exactly 25
        ([[15, 20.001]], [[0, 0]], [0, 1, 1], [0, 1, 1]),
        ([[0, 0]], [[0, 0]], [1, 0, 0], [1, 0, 0]),
        ([[10, 0]], [[0, 0], [20, 0]], [1, 0, 1], [2, 0, 0]),  # one detection between two figures
        ([[20, 0], [40, 0]], [[0, 0]], [1, 1, 0], [1, 0, 0]),  # the second through the first
        ([[20, 0], [40, 0], [60, 0]], [[0, 0]], [1, 2, 0], [1, 1, 0]),  # no farther than that
        ([[-20, 0]], [[0, 0], [20, 0], [40, 0]], [1, 0, 2], [2, 0, 1]),
        ([], [[0, 0]], [0, 0, 1], [0, 0, 1]),
        ([[0, 0]], [], [0, 1, 0], [0, 1, 0]),
        ([], [], [0, 0, 0], [0, 0, 0]),
    ],
)
def test_both_ways_of_counting_by_hand(points: list, true_points: list, one: list[int], many: list[int]) -> None:
    options = {"class_ids": [1]}
    assert counts(points, true_points, "one_to_one", **options) == one
    assert counts(points, true_points, "many_to_one", **options) == many


def test_the_higher_score_chooses_first_and_takes_the_nearest() -> None:
    figures, points = [[0, 0], [20, 0]], [[8, 0], [9, 0], [30, 0]]
    match = [
        match_of(points, scores, [1, 1, 1], figures, [1, 1])
        for scores in ([0.9, 0.8, 0.7], [0.8, 0.9, 0.7], [0.7, 0.8, 0.9], [0.5, 0.5, 0.5])
    ]
    assert match == [[0, 1, -1], [1, 0, -1], [-1, 0, 1], [0, -1, 1]]
    assert match_of(points, [0.9, 0.8, 0.7], [1, 1, 1], figures, [1, 0]) == [0, -1, -1]
    assert match_of([[1, 0], [1, 0]], [0.5, 0.5], [1, 1], [[0, 0], [2, 0]], [1, 1]) == [0, 1]


def challenge_counts(points: np.ndarray, true_points: np.ndarray) -> list[int]:
    """The challenge repository's counting: around every point, a neighbourhood of both kinds makes all of it hits."""
    everything = [("d", tuple(p)) for p in points] + [("f", tuple(p)) for p in true_points]
    hits = set()
    for _, centre in everything:
        around = {k for k, (_, place) in enumerate(everything) if math.dist(centre, place) <= RADIUS}
        if {everything[k][0] for k in around} == {"d", "f"}:
            hits |= around
    found = [k in hits for k in range(len(everything))]
    figures = found[len(points) :]
    return [sum(figures), len(points) - sum(found[: len(points)]), len(figures) - sum(figures)]


@pytest.mark.parametrize("matching", ["one_to_one", "many_to_one"])
@pytest.mark.parametrize("steps", [0, 3])
def test_scores_of_images_are_pooled(matching: str, steps: int) -> None:
    data = images(steps=steps)
    domains = ["XR", "CS", "XR", "S360", "CS", "CS", "XR", "CS"]
    threshold = 2 / 3 if steps else 0.4
    found = detection_f1(*data, RADIUS, threshold, matching, domains)
    assert list(found) == [0, 1]
    assert any(threshold in scores for scores in data[1]) == bool(steps)  # a score at the threshold counts
    for class_id, row in found.items():
        sums = {domain: np.zeros(3, int) for domain in ("XR", "CS", "S360")}
        for domain, points, scores, classes, true_points, true_classes in zip(domains, *data, strict=True):
            called, own = (classes == class_id) & (scores >= threshold), true_classes == class_id
            if matching == "many_to_one":
                sums[domain] += challenge_counts(points[called], true_points[own])
            else:
                ones = (scores[called], [1] * called.sum(), true_points[own], [1] * own.sum())
                tp = sum(j >= 0 for j in one_by_one(points[called], *ones))
                sums[domain] += [tp, called.sum() - tp, own.sum() - tp]
        for part, (tp, fp, fn) in ((row, sum(sums.values())), *((row["domains"][d], s) for d, s in sums.items())):
            expected = {"tp": tp, "fp": fp, "fn": fn, "precision": tp / (tp + fp), "recall": tp / (tp + fn)}
            assert {k: v for k, v in part.items() if k != "domains"} == pytest.approx(expected | {"f1": f1(tp, fp, fn)})
        assert list(row["domains"]) == ["XR", "CS", "S360"]
        assert row["tp"] > 10 < row["fp"]


def test_many_to_one_never_scores_lower() -> None:
    for seed in range(5):
        data = images(seed=seed, count=3)
        one, many = (detection_f1(*data, RADIUS, 0.4, matching) for matching in ("one_to_one", "many_to_one"))
        assert all(many[c]["f1"] > one[c]["f1"] for c in (0, 1))


@pytest.mark.parametrize("matching", ["one_to_one", "many_to_one"])
def test_scores_do_not_depend_on_order_place_or_unit(matching: str) -> None:
    data = images()
    rng = np.random.default_rng(3)
    changed = []
    for points, scores, classes, true_points, true_classes in zip(*data, strict=True):
        i, j = rng.permutation(len(points)), rng.permutation(len(true_points))
        shift = rng.integers(-500, 500, 2)
        moved, true_moved = (np.round(p * 1024 + 1024 * shift)[:, ::-1] for p in (points[i], true_points[j]))
        changed.append([moved, scores[i], classes[i], true_moved, true_classes[j]])
    changed = [list(column) for column in zip(*changed[::-1], strict=True)]
    expected = detection_f1(*data, RADIUS, 0.4, matching)
    assert detection_f1(*changed, RADIUS * 1024, 0.4, matching) == expected
    scaled = [data[0], [s**3 for s in data[1]], *data[2:]]
    assert detection_f1(*scaled, RADIUS, 0.4**3, matching) == expected
    assert average_precision(Findings.matched(*scaled, RADIUS), 1) == average_precision(
        Findings.matched(*data, RADIUS), 1
    )
    assert average_precision(Findings.matched(*changed, RADIUS * 1024), 1) == pytest.approx(
        average_precision(Findings.matched(*data, RADIUS), 1)
    )


def test_a_point_of_another_image_is_no_neighbour() -> None:
    """Not even where one image has the figure and another one the detection, at the same place."""
    points, true_points = [[[5, 5]], [], [[5, 5]]], [[], [[5, 5]], [[5, 5]]]
    lists = (points, [[0.9], [], [0.9]], [[1], [], [1]], true_points, [[], [1], [1]])
    for matching in ("one_to_one", "many_to_one"):
        row = detection_f1(*lists, RADIUS, matching=matching)[1]
        assert [row["tp"], row["fp"], row["fn"]] == [1, 1, 1]


def test_what_is_undefined() -> None:
    nothing = detection_f1(*single([], []), RADIUS, class_ids=[1])[1]
    no_figure = detection_f1(*single([[0, 0]], []), RADIUS)[1]
    no_detection = detection_f1(*single([], [[0, 0]]), RADIUS)[1]
    names = ("precision", "recall", "f1")
    assert [nothing[name] for name in names] == pytest.approx([math.nan] * 3, nan_ok=True)
    assert [no_figure[name] for name in names] == pytest.approx([0, math.nan, math.nan], nan_ok=True)
    assert [no_detection[name] for name in names] == pytest.approx([math.nan, 0, 0], nan_ok=True)
    assert math.isnan(average_precision(Findings.matched(*single([[0, 0]], []), RADIUS), 1))
    assert math.isnan(average_precision(Findings.matched(*single([], []), RADIUS), 1))
    assert average_precision(Findings.matched(*single([], [[0, 0]]), RADIUS), 1) == 0
    assert [len(x) for x in precision_recall_curve(Findings.matched(*single([], [[0, 0]]), RADIUS), 1)] == [0, 0, 0]
    assert np.isnan(precision_recall_curve(Findings.matched(*single([[0, 0]], []), RADIUS), 1)[1]).all()
    assert detection_f1([], [], [], [], [], RADIUS) == {}


def hits(data: list[list[np.ndarray]], class_id: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores and hits of the detections of a class in all images, and the number of its figures."""
    matches = np.concatenate([one_by_one(*image) for image in zip(*data, strict=True)])
    own = np.concatenate(data[2]) == class_id
    return np.concatenate(data[1])[own], matches[own] >= 0, int((np.concatenate(data[4]) == class_id).sum())


def step_by_step(scores: np.ndarray, hit: np.ndarray, figures: int) -> float:
    """Average precision, recall level by recall level."""
    curve = [
        (hit[scores >= t].sum() / figures, hit[scores >= t].sum() / (scores >= t).sum()) for t in sorted(set(scores))
    ]
    area, before = 0.0, 0.0
    for recall in sorted({r for r, _ in curve}):
        area += (recall - before) * max(p for r, p in curve if r >= recall)
        before = recall
    return area


@pytest.mark.parametrize("steps", [0, 4])
def test_average_precision_is_its_definition(steps: int) -> None:
    data = images(steps=steps)
    for class_id in (0, 1):
        assert average_precision(Findings.matched(*data, RADIUS), class_id) == pytest.approx(
            step_by_step(*hits(data, class_id))
        )


def test_average_precision_by_hand() -> None:
    figures = [[0, 0], [100, 0], [200, 0], [300, 0]]
    points = [[0, 5], [500, 0], [100, 5], [200, 5], [200, 6]]
    data = single(points, figures, [0.9, 0.8, 0.7, 0.6, 0.5])
    # recall 1/4 at precision 1, then 2/4 and 3/4 at 2/3 and 3/4, of which the higher counts for both
    assert average_precision(Findings.matched(*data, RADIUS), 1) == pytest.approx(0.25 + 0.5 * 0.75)
    precision, recall, threshold = precision_recall_curve(Findings.matched(*data, RADIUS), 1)
    assert precision == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4, 3 / 5])
    assert recall == pytest.approx([0.25, 0.25, 0.5, 0.75, 0.75])
    assert threshold.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert average_precision(Findings.matched(*single(figures, figures), RADIUS), 1) == 1


@pytest.mark.parametrize("steps", [0, 4])
def test_curve_is_scikit_learns_of_the_hits(steps: int) -> None:
    """Which knows of no figures but those that are found, so its recall is another by a factor."""
    data = images(steps=steps)
    scores, hit, figures = hits(data, 1)
    precision, recall, threshold = precision_recall_curve(Findings.matched(*data, RADIUS), 1)
    expected = sklearn.metrics.precision_recall_curve(hit, scores)
    assert precision == pytest.approx(expected[0][-2::-1])
    assert recall == pytest.approx(expected[1][-2::-1] * hit.sum() / figures)
    assert threshold == pytest.approx(expected[2][::-1])


def test_average_precision_is_scikit_learns_where_no_interpolation_acts() -> None:
    """On a curve that never rises, and with every figure found."""
    figures = [[100 * i, 0] for i in range(6)]
    points = [*figures, *([100 * i, 500] for i in range(4))]
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.4, 0.4, 0.3, 0.2]
    expected = sklearn.metrics.average_precision_score([1] * 6 + [0] * 4, scores)
    assert average_precision(Findings.matched(*single(points, figures, scores), RADIUS), 1) == pytest.approx(expected)
    assert expected < 1


@pytest.mark.parametrize("steps", [0, 5])
def test_no_threshold_is_better_than_the_best(steps: int) -> None:
    data = images(steps=steps)
    threshold, best = best_detection_threshold(Findings.matched(*data, RADIUS), 1)
    scores = np.unique(np.concatenate([[0.0], hits(data, 1)[0], [1.0]]))
    f1s = {t: detection_f1(*data, RADIUS, t)[1]["f1"] for t in (scores[:-1] + scores[1:]) / 2}
    assert detection_f1(*data, RADIUS, threshold)[1]["f1"] == pytest.approx(best)
    assert best == pytest.approx(max(f1s.values()))
    assert all(value < best for t, value in f1s.items() if t > threshold)


def test_best_threshold_by_hand() -> None:
    figures = [[0, 0], [100, 0]]
    # F1: one of two found, 2/3; then a false one, 1/2; then both found, 4/5
    steady = single([[0, 0], [500, 0], [100, 0]], figures, [0.9, 0.6, 0.5])
    assert best_detection_threshold(Findings.matched(*steady, RADIUS), 1) == pytest.approx((0.25, 0.8))
    # one of two found, 2/3, and again with both found among two false ones: the higher one
    tied = single([[0, 0], [500, 0], [600, 0], [100, 0]], figures, [0.9, 0.6, 0.5, 0.4])
    assert best_detection_threshold(Findings.matched(*tied, RADIUS), 1) == pytest.approx((0.75, 2 / 3))
    assert best_detection_threshold(Findings.matched(*single([[500, 0]], figures, [0.6]), RADIUS), 1) == pytest.approx(
        (0.8, 0)
    )
    assert best_detection_threshold(Findings.matched(*single([], figures), RADIUS), 1) == (0.5, 0)
    with pytest.raises(DataError, match="none of 1 validation images has a figure of class 1"):
        best_detection_threshold(Findings.matched(*single([[0, 0]], []), RADIUS), 1)
    with pytest.raises(ValueError, match=r"got 0\.5 to 1\.5"):
        best_detection_threshold(Findings.matched(*single([[0, 0], [1, 1]], figures, [0.5, 1.5]), RADIUS), 1)


@pytest.mark.parametrize("matching", ["one_to_one", "many_to_one"])
def test_bootstrap_is_its_definition(matching: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the drawn images themselves; some have no figure, and the groups differ in size."""
    monkeypatch.setattr(bootstrap, "BLOCK", 500)  # a few resamples at a time
    data = images(6, steps=8)
    groups = np.array(list("abbbcc"))
    for i in (4, 5):
        data[3][i], data[4][i] = data[3][i][:0], data[4][i][:0]
    found = bootstrap_detection(
        Findings.matched(*data, RADIUS), 1, 0.45, matching, groups.tolist(), resamples=60, seed=4
    )
    resampled: dict[str, list[float]] = {name: [] for name in SCORES}
    for draw in np.random.default_rng(4).multinomial(3, [1 / 3] * 3, size=60):
        drawn = [
            i for g, times in zip("abc", draw, strict=True) for _ in range(times) for i in np.flatnonzero(groups == g)
        ]
        lists = [[column[i] for i in drawn] for column in data]
        row = detection_f1(*lists, RADIUS, 0.45, matching, class_ids=[1])[1]
        row["average_precision"] = average_precision(Findings.matched(*lists, RADIUS), 1)
        for name in SCORES:
            resampled[name].append(row[name])
    for name in SCORES:
        assert found[name]["interval"] == pytest.approx(np.nanpercentile(resampled[name], [2.5, 97.5])), name
        assert found[name]["resamples_left_out"] == np.isnan(resampled[name]).sum()
    assert found["f1"]["resamples_left_out"] > 0 == found["precision"]["resamples_left_out"]


def test_bootstrap_of_too_little() -> None:
    one = bootstrap_detection(Findings.matched(*single([[0, 0]], [[0, 0]]), RADIUS), 1)
    grouped = bootstrap_detection(Findings.matched(*images(3), RADIUS), 1, groups=["a", "a", "a"])
    for found in (one, grouped, bootstrap_detection(Findings.matched([], [], [], [], [], RADIUS), 1)):
        assert list(found) == list(SCORES)
        assert all(row["interval"] is None and "two images" in row["no_interval_because"] for row in found.values())
    empty = bootstrap_detection(Findings.matched(*[[[], []]] * 5, RADIUS), 1, resamples=10)
    assert empty["f1"] == {
        "interval": None,
        "resamples_left_out": 10,
        "no_interval_because": "undefined in every resample",
    }


def test_bootstrap_by_image_is_the_default_and_a_seed_repeats_it() -> None:
    data = images()
    first = bootstrap_detection(Findings.matched(*data, RADIUS), 1, 0.4, resamples=50, seed=1)
    assert first == bootstrap_detection(
        Findings.matched(*data, RADIUS), 1, 0.4, groups=list("abcdefgh"), resamples=50, seed=1
    )
    assert first != bootstrap_detection(Findings.matched(*data, RADIUS), 1, 0.4, resamples=50, seed=2)
    for name, value in (("f1", detection_f1(*data, RADIUS, 0.4)[1]["f1"]),):
        assert first[name]["interval"][0] < value < first[name]["interval"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: [[[0, 0]], [[1, 1]]]}, "an item for each image, got 2, 1, 1, 1, 1 items"),
        ({0: [[0, 0]]}, r"detections of image 0: points must be \(n, 2\).* got \(2,\)"),
        ({1: [[0.5, 0.6]]}, r"detections of image 0: .* got \(1, 2\), \(1,\) and \(2,\)"),
        ({4: [[1, 0]]}, r"figures of image 0: .* got \(1, 2\), \(2,\)"),
        ({2: [[0.5]]}, "classes must be whole numbers, got float64"),
        ({0: [[[0, math.inf]]]}, "points and scores must be finite"),
        ({1: [[math.nan]]}, "points and scores must be finite"),
    ],
)
def test_bad_input(change: dict[int, list], message: str) -> None:
    lists = [change.get(i, value) for i, value in enumerate(single([[0, 0]], [[0, 0]]))]
    with pytest.raises(ValueError, match=message):
        detection_f1(*lists, RADIUS)


def test_bad_settings() -> None:
    data = images(2)
    with pytest.raises(ValueError, match="radius must be a finite number above 0, got 0"):
        detection_f1(*data, 0)
    with pytest.raises(ValueError, match="'greedy', expected one of one_to_one, many_to_one"):
        detection_f1(*data, RADIUS, matching="greedy")
    with pytest.raises(ValueError, match="each of 2 images, got 1"):
        detection_f1(*data, RADIUS, domains=["XR"])
    with pytest.raises(ValueError, match="each of 2 images, got 1"):
        bootstrap_detection(Findings.matched(*data, RADIUS), 1, groups=["a"])
