from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detected_regions import columns, detections, regions
from matplotlib.axes import Axes
from matplotlib.text import Text

from shared.metrics import Findings, detection_f1
from shared.reports.detection import (
    DetectionScoring,
    detection_rows,
    draw_detections,
    draw_errors,
    false_negatives,
    false_positives,
    summarise_detections,
)
from shared.reports.domains import DomainSummary

HOW = DetectionScoring(threshold=0.4, train_domains=["XR", "CS"], bootstrap=50, match_radius=10.0)


def summarise(
    data: Sequence[dict[str, Any]], how: DetectionScoring = HOW, found: Sequence[tuple[np.ndarray, ...]] | None = None
) -> tuple[Findings, DomainSummary]:
    """Of what was found in regions: by default their `detections` that a detector does not leave out."""
    if found is None:
        found = [
            tuple(part[scores >= 0.05] for part in (points, scores, classes))
            for points, scores, classes in detections(data)
        ]
    true = [np.array(r["box"]).reshape(-1, 4)[:, :2] + 25 for r in data]
    findings = Findings.matched(*zip(*found, strict=True), true, [r["label"] for r in data], how.match_radius)
    return findings, summarise_detections(findings, data, how)


def test_the_two_matchings_differ(tmp_path: Path) -> None:
    data, how = regions(tmp_path, ["XR"]), replace(HOW, match_radius=45.0)
    (_, one), (_, many) = (summarise(data, replace(how, matching=m)) for m in ("one_to_one", "many_to_one"))
    assert many.domains["XR"]["f1"]["value"] > one.domains["XR"]["f1"]["value"] + 0.02
    assert "that no other detection has found" in one.notes[0]
    assert "in the repository of the MIDOG challenge" in many.notes[0]


def test_gallery_shows_what_is_wrong(tmp_path: Path) -> None:
    data = regions(tmp_path)
    findings, summary = summarise(data)
    wrong, missed = false_positives(findings, HOW), false_negatives(findings, HOW)
    total = summary.pooled["all"]
    assert (len(wrong), len(missed)) == (total["fp"], total["fn"])
    assert min(len(wrong), len(missed)) > 12
    assert [crop.text for crop in wrong] == sorted((crop.text for crop in wrong), reverse=True)
    found = detections(data)
    for crop in wrong:
        points, scores, classes = found[crop.region]
        (i,) = np.flatnonzero((points == (crop.x, crop.y)).all(axis=1))
        assert (classes[i], f"{scores[i]:.2f}") == (1, crop.text)
        assert scores[i] >= 0.4
    for crop in missed:
        points, scores, classes = found[crop.region]
        box = data[crop.region]["box"].index([crop.x - 25, crop.y - 25, crop.x + 25, crop.y + 25])
        assert data[crop.region]["label"][box] == 1
        near = (points == (crop.x, crop.y)).all(axis=1) & (classes == 1) & (scores >= 0.05)
        assert crop.text == (f"{scores[near][0]:.2f}" if near.any() else "not seen")
        assert not near.any() or scores[near][0] < 0.4
    assert {crop.text == "not seen" for crop in missed} == {True, False}

    figure = draw_errors(findings, data, summary)
    figure.canvas.draw()
    shown = [axes for axes in figure.findobj(Axes) if axes.images]
    assert len(shown) == 24
    dark = [bool((axes.images[0].get_array()[40, 40] == (60, 20, 90)).all()) for axes in shown]
    # False positives lie on the background or on figures of the other class, false negatives on figures
    assert all(dark[12:])
    assert not all(dark[:12])
    for axes, crop in zip(shown, wrong[:12], strict=False):
        entry = data[crop.region]
        centres = (np.array(entry["box"])[:, :2] + 25).tolist()
        true = entry["label"][centres.index([crop.x, crop.y])] if [crop.x, crop.y] in centres else None
        assert crop.true == {None: "nothing", 0: "non_mitotic"}[true]
        place = f"{Path(entry['image']).name} {crop.x:.0f}, {crop.y:.0f}"
        assert axes.get_title() == f"{crop.text} {entry['domain']}: {crop.true}\n{place}"
    assert {crop.true for crop in missed} == {"mitotic"}
    domains = {axes.get_title().split(":")[0].split()[-1] for axes in shown[12:]}
    assert domains == {"XR", "CS", "S360"}  # from all over the data
    titles = [text.get_text() for text in figure.findobj(Text)]
    assert f"called mitotic, but not, highest scores: 12 of {len(wrong)}" in titles
    assert f"mitotic, but missed: 12 of {len(missed)}" in titles


def test_false_positives_say_what_is_there() -> None:
    points, scores = [[50, 50], [52, 50], [100, 100], [200, 200]], [0.9, 0.8, 0.7, 0.6]
    true = [[50, 50], [104, 100], [300, 300]]
    findings = Findings.matched([points], [scores], [[1] * 4], [true], [[1, 0, 1]], 10.0)
    found = [(crop.text, crop.true) for crop in false_positives(findings, HOW)]
    assert found == [("0.80", "found twice"), ("0.70", "non_mitotic"), ("0.60", "nothing")]


@pytest.mark.parametrize("perfect", [True, False])
def test_gallery_says_when_there_is_nothing_to_show(tmp_path: Path, perfect: bool) -> None:
    data = regions(tmp_path, ["XR"], 2)
    right = [(np.array(r["box"])[:, :2] + 25, np.full(12, 0.9), np.array(r["label"])) for r in data]
    nothing = [(np.empty((0, 2)), np.empty(0), np.empty(0, int))] * 2
    findings, summary = summarise(data, found=right if perfect else nothing)
    figure = draw_errors(findings, data, summary)
    titles = [text.get_text() for text in figure.findobj(Text)]
    assert "no false positives" in titles
    assert ("no false negatives" in titles) == perfect
    part = summary.domains["XR"]
    assert part["recall"]["value"] == (1 if perfect else 0)
    assert part["precision"]["value"] == (1 if perfect else None)
    assert len(detection_rows(findings, data, summary)) == (24 if perfect else 0)


def test_a_domain_without_figures(tmp_path: Path) -> None:
    data = [r | ({"label": [0] * 12} if r["domain"] == "CS" else {}) for r in regions(tmp_path)]
    data += [r | {"box": [], "label": [], "domain": "NZ"} for r in regions(tmp_path, ["NZ"], 2)]
    _, summary = summarise(data)
    assert summary.notes[0].startswith("CS has no mitotic figures: its recall, F1 and AP are undefined")
    assert summary.notes[1].startswith("NZ has no mitotic figures")
    assert summary.notes[0] in summary.table()
    rows = {row["domain"]: row for row in summary.rows()}
    for domain in ("CS", "NZ"):
        assert (rows[domain]["recall"], rows[domain]["f1"], rows[domain]["average_precision"]) == (None, None, None)
        assert (rows[domain]["precision"], rows[domain]["tp"]) == (0, 0)
        assert rows[domain]["fp"] > 0
    means = summary.means
    assert means["in distribution"]["f1"] == summary.domains["XR"]["f1"]["value"]
    assert means["out of distribution"]["f1"] == summary.domains["S360"]["f1"]["value"]


def test_few_slides_are_remarked(tmp_path: Path) -> None:
    data = [r | {"slide": "one"} for r in regions(tmp_path, ["XR"])]
    _, summary = summarise(data)
    assert summary.notes[0] == "XR has images from a single slide: no intervals."
    assert summary.domains["XR"]["f1"]["interval"] is None
    assert list(summary.pooled) == ["in distribution", "all"]

    data = [r | ({"label": [0] * 12} if r["slide"] == "0.tiff" else {}) for r in regions(tmp_path, ["XR"])]
    _, summary = summarise(data)
    left_out = summary.domains["XR"]["f1"]["resamples_left_out"]
    assert 5 < left_out < 20  # of 50, a quarter draw the slide without figures twice
    assert f"{left_out} of 50 resamples lack figures or detections" in summary.notes[0]


def test_without_a_record_nothing_is_in_or_out(tmp_path: Path) -> None:
    _, summary = summarise(regions(tmp_path, count=1), replace(HOW, train_domains=None))
    assert list(summary.pooled) == ["all"]
    assert {row["distribution"] for row in summary.rows()} == {""}
    assert any("is not known, so none is marked" in note for note in summary.notes)


@pytest.mark.parametrize("matching", ["one_to_one", "many_to_one"])
def test_picture_has_a_curve_and_a_mark_for_each_domain(tmp_path: Path, matching: str) -> None:
    data = [r | ({"box": [], "label": []} if r["domain"] == "CS" else {}) for r in regions(tmp_path)]
    findings, summary = summarise(data, replace(HOW, matching=matching))
    figure = draw_detections(findings, data, summary)
    figure.savefig(tmp_path / "report.png")
    left, right = figure.axes
    curves = [line for line in left.lines if line.get_label().split()[0] in summary.domains]
    assert [line.get_linestyle() for line in curves] == ["-", "-", "--"]
    assert [line.get_label() for line in curves] == [
        f"{name} ({part['distribution']}): "
        + ("no figures" if name == "CS" else f"AP {part['average_precision']['value']:.3f}")
        for name, part in summary.domains.items()
    ]
    marks = [line for line in left.lines if line.get_marker() == "o"]
    for curve, mark, name in zip([curves[1], curves[2]], marks, ["XR", "S360"], strict=True):
        scores = detection_f1(*columns(data, [name]), 10.0, 0.4)[1]
        assert mark.get_xydata().tolist() == [[pytest.approx(scores["recall"]), pytest.approx(scores["precision"])]]
        assert np.abs(curve.get_xydata() - mark.get_xydata()).sum(axis=1).min() < 1e-9
    dots = [line.get_xdata()[0] for line in right.lines if line.get_marker() == "o"]
    assert dots == [part["f1"]["value"] for part in summary.parts.values() if part["f1"]["value"] is not None]
    assert [label.get_text() for label in right.get_yticklabels()] == [
        "CS (in)", "XR (in)", "S360 (out)", "in distribution", "out of distribution", "all"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "record", "expected"),
    [
        ({}, {"slides": [["XR", "1"]]}, ""),
        ({"chosen_on": "validation"}, {"slides": [["XR", "1"]]}, ""),
        ({"chosen_on": "test"}, {"slides": [["XR", "1"]]}, " Weight and threshold were chosen on what is scored here"),
        ({}, {}, " Its record does not say which slides it was trained on"),
        (
            {"floor": 0.25},
            {"slides": [["XR", "1"]]},
            " Where the detector's is below 0.25, the classifier is not asked, and its own counts as 0.",
        ),
    ],
)
def test_what_makes_a_classifiers_scores_too_good_is_said(
    tmp_path: Path, more: dict[str, Any], record: dict[str, Any], expected: str
) -> None:
    classifier = {"file": "model.pt", "weight": 0.5, "record": record, **more}
    how = replace(HOW, classifier=classifier, dataset={"name": "a", "synthetic": False, "split": "test"})
    _, summary = summarise(regions(tmp_path, ["XR"]), how)
    (note,) = [note for note in summary.notes if "has judged each detection" in note]
    assert note.partition("of the classifier's.")[2].partition(":")[0] == expected
