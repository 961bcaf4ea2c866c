from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image

from shared.metrics import bootstrap_scores, classification_scores
from shared.reports.classification import (
    Patch,
    Prediction,
    checked_probabilities,
    draw_patches,
    draw_predictions,
    prediction_rows,
    summarise_patches,
)
from shared.reports.domains import DomainScoring
from shared.utils import DataError

NAMES = ("other", "mitotic")
SCORES = ("accuracy", "balanced_accuracy", "auc", "f1", "sensitivity", "specificity")
HOW = DomainScoring(threshold=0.4, class_names=NAMES, train_domains=["XR", "CS"], bootstrap=50)


def patches(domains: Sequence[str] = ("XR", "CS", "S360"), count: int = 40, seed: int = 0) -> list[Patch]:
    """Patches of unlike difficulty; every scanner has slides of the same names."""
    rng = np.random.default_rng(seed)
    return [
        Patch(
            case=f"{domain}/{i}.png",
            domain=domain,
            slide=f"{i % 5}.tiff",
            label=int(label),
            probability=1 / (1 + math.exp(-rng.normal((3 - d) * (label - 0.5), 1))),
        )
        for d, domain in enumerate(domains)
        for i, label in enumerate(rng.permutation(count) % 2)
    ]


def columns(data: Sequence[Patch]) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
    """Probabilities, labels and slides."""
    return (
        np.array([p.probability for p in data]),
        np.array([p.label for p in data]),
        [(p.domain, p.slide) for p in data],
    )


def test_scores_of_each_domain_and_group(tmp_path: Path) -> None:
    data = patches()
    summarise_patches(data, HOW).write(tmp_path)
    with (tmp_path / "scores.csv").open() as file:
        rows = {r["domain"]: r for r in csv.DictReader(file)}
    groups = {
        "CS": ("in", ["CS"], 5),
        "XR": ("in", ["XR"], 5),
        "S360": ("out", ["S360"], 5),
        "in distribution": ("in", ["XR", "CS"], 10),
        "out of distribution": ("out", ["S360"], 5),
        "all": ("", ["XR", "CS", "S360"], 15),  # slides of two scanners are two, though they share a name
    }
    assert list(rows) == list(groups)
    for name, (distribution, domains, slides) in groups.items():
        row, own = rows[name], [p for p in data if p.domain in domains]
        prob, label, slide_names = columns(own)
        called = prob >= 0.4
        assert (row["distribution"], row["slides"], row["threshold"]) == (distribution, str(slides), "0.4")
        assert (row["patches"], row["positive"]) == (str(len(own)), str(label.sum()))
        tn, fp, fn, tp = sklearn.metrics.confusion_matrix(label, called).ravel()
        assert [int(row[c]) for c in ("tp", "fp", "tn", "fn")] == [tp, fp, tn, fn]
        assert float(row["accuracy"]) == round((label == called).mean(), 4)
        assert float(row["auc"]) == round(sklearn.metrics.roc_auc_score(label, prob), 4)
        scores, intervals = classification_scores(prob, label, 0.4), bootstrap_scores(prob, label, slide_names, 0.4, 50)
        for score in SCORES:
            assert float(row[score]) == round(scores[score], 4)
            found = [float(row[f"{score}_low"]), float(row[f"{score}_high"])]
            assert found == pytest.approx(intervals[score]["interval"], abs=5.1e-5)


def test_summary_has_the_means_over_domains(tmp_path: Path) -> None:
    """Domains of different size weigh the same in the mean, and by their patches in the pool."""
    record = {"train_domains": ["XR", "CS"], "name": "MIDOG", "epoch": 3}
    how = DomainScoring(
        threshold=0.4,
        class_names=NAMES,
        bootstrap=50,
        record=record,
        dataset={"name": "toy", "split": "test"},
        adapted=True,
        threshold_from="threshold.json",
    )
    summarise_patches(patches(["XR"], 60) + patches(["CS", "S360"], 20), how).write(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    domains = summary["domains"]
    for score in SCORES:
        mean = (domains["XR"][score]["value"] + domains["CS"][score]["value"]) / 2
        assert summary["mean_over_domains"]["in distribution"][score] == pytest.approx(mean)
        outside = domains["S360"][score]["value"]
        assert summary["mean_over_domains"]["out of distribution"][score] == outside
        assert summary["mean_over_domains"]["all"][score] == pytest.approx((2 * mean + outside) / 3)
    pooled = sum(domains[d]["tp"] + domains[d]["tn"] for d in ("XR", "CS")) / 80
    assert summary["pooled_patches"]["in distribution"]["accuracy"]["value"] == pytest.approx(pooled)
    assert (summary["model"], summary["train_domains"]) == (record, ["XR", "CS"])
    assert (summary["dataset"], summary["adapted_batch_norm"]) == ({"name": "toy", "split": "test"}, True)
    assert summary["threshold"] == {"value": 0.4, "from": "threshold.json"}
    assert summary["versions"]["torch"] == torch.__version__
    assert any("Batch norm was adapted" in note for note in summary["notes"])


def test_table() -> None:
    summary = summarise_patches(patches(), replace(HOW, dataset={"name": "toy", "split": "test", "synthetic": True}))
    table = summary.table()
    assert table.startswith("toy, test, 120 patches, 15 slides\n")
    assert "These cases are made up" in table
    assert "A patch is called mitotic when its probability is at least 0.4, else other." in table
    lines = {
        line.split()[0]: line.replace("[", "").replace("]", "").replace(",", "").split() for line in table.splitlines()
    }
    part = summary.domains["S360"]
    numbers = [f"{v:.3f}" for s in ("accuracy", "balanced_accuracy") for v in (part[s]["value"], *part[s]["interval"])]
    numbers += [f"{part[s]['value']:.3f}" for s in ("auc", "f1", "sensitivity", "specificity")]
    assert lines["S360"] == ["S360", "out", "40", *numbers]


@pytest.mark.parametrize(
    ("label", "missing", "undefined"),
    [
        (0, "S360 has no mitotic patches", {"balanced_accuracy", "auc", "f1", "sensitivity"}),
        (1, "S360 has no other patches", {"balanced_accuracy", "auc", "specificity"}),
    ],
)
def test_a_domain_of_one_class(label: int, missing: str, undefined: set[str]) -> None:
    data = [p._replace(label=label) if p.domain == "S360" else p for p in patches()]
    summary = summarise_patches(data, HOW)
    assert summary.notes[0].startswith(missing)
    assert missing in summary.table()
    row = next(r for r in summary.rows() if r["domain"] == "S360")
    for score in SCORES:
        blank = score in undefined
        assert (summary.domains["S360"][score]["value"] is None) == blank
        assert (row[score] is None) == (row[f"{score}_low"] is None) == blank
    assert summary.means["out of distribution"]["auc"] is None
    assert summary.means["all"]["auc"] == summary.means["in distribution"]["auc"]


def test_few_slides_are_remarked() -> None:
    summary = summarise_patches([p._replace(slide="one") for p in patches(["XR"])], HOW)
    assert summary.notes[0] == "XR has patches from a single slide: no intervals."
    assert summary.domains["XR"]["auc"]["no_interval_because"] == "all patches are from a single slide"
    assert list(summary.pooled) == ["in distribution", "all"]

    summary = summarise_patches([p._replace(slide=str(p.label)) for p in patches(["XR"])], HOW)
    left_out = summary.domains["XR"]["auc"]["resamples_left_out"]
    assert 10 < left_out < 40  # of 50, half draw one of the two slides twice
    assert f"{left_out} of 50 resamples lack a class" in summary.notes[0]


def test_without_a_record_nothing_is_in_or_out() -> None:
    how = replace(HOW, train_domains=None)
    summary = summarise_patches(patches(), how)
    assert list(summary.pooled) == ["all"]
    assert {row["distribution"] for row in summary.rows()} == {""}
    assert {row["in_distribution"] for row in prediction_rows(patches(), how)} == {None}
    assert any("is not known, so none is marked" in note for note in summary.notes)


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_picture_has_a_curve_a_mark_and_a_matrix_for_each_domain(tmp_path: Path, count: int) -> None:
    chosen = patches([f"centre {i}" for i in range(count)], 20)
    summary = summarise_patches(chosen, replace(HOW, train_domains=["centre 0"], bootstrap=10))
    figure = draw_patches(chosen, summary)
    figure.savefig(tmp_path / "report.png")
    roc, *matrices = (axes for axes in figure.axes if axes.axison)
    assert len(matrices) == count
    curves = [line for line in roc.lines if "AUC" in line.get_label()]
    assert [line.get_linestyle() for line in curves] == ["-"] + ["--"] * (count - 1)
    marks = [line for line in roc.lines if line.get_marker() == "o"]
    for curve, mark, matrix, (name, part) in zip(curves, marks, matrices, summary.domains.items(), strict=True):
        assert f"AUC {part['auc']['value']:.3f}" in curve.get_label()
        distances = np.abs(curve.get_xydata() - mark.get_xydata()).sum(axis=1)
        assert distances.min() < 1e-9  # the operating point lies on the curve
        assert matrix.get_title() == f"{name} ({part['distribution']})"
        texts = [text.get_text().split("\n") for text in matrix.texts]
        assert [int(count) for count, _ in texts] == [part[c] for c in ("tn", "fp", "fn", "tp")]
        assert texts[3][1] == f"{part['sensitivity']['value']:.0%}"
    boxes = [axes.get_tightbbox() for axes in (roc, *matrices)]
    size = figure.bbox
    assert all(b.x0 > -1 and b.y0 > -1 and b.x1 < size.x1 + 1 and b.y1 < size.y1 + 1 for b in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_what_is_no_number_is_refused() -> None:
    assert checked_probabilities(torch.tensor([[0.25], [1.0]]), ["a", "b"]) == [0.25, 1.0]
    with pytest.raises(DataError, match=r"b: the network gives no number \(2 such patches in this batch\)"):
        checked_probabilities(torch.tensor([[0.25], [math.nan], [math.nan]]), ["a", "b", "c"])


def predictions(folder: Path, count: int) -> list[Prediction]:
    """Of grey squares, the darkest first."""
    found = []
    for i in range(count):
        path = folder / f"{i}.png"
        Image.fromarray(np.full((8, 8, 3), round(255 * i / count), np.uint8)).save(path)
        called = NAMES[i / count >= 0.3]
        found.append({"case": path.name, "file": str(path), "probability": i / count, "class": called})
    return found


def test_preview_shows_the_most_probable_and_the_least_certain(tmp_path: Path) -> None:
    figure = draw_predictions(predictions(tmp_path, 40), 0.3, NAMES)
    figure.savefig(tmp_path / "preview.png")
    shown = [(axes.get_title().split("\n"), axes.images[0].get_array()) for axes in figure.axes if axes.images]
    numbers = [int(title[1].removesuffix(".png")) for title, _ in shown]
    assert numbers[:12] == list(range(39, 27, -1))
    assert numbers[12] == 12  # a probability of 0.3
    assert sorted(numbers[12:]) in (list(range(6, 18)), list(range(7, 19)))
    for i, (title, image) in zip(numbers, shown, strict=True):
        assert title[0] == f"{i / 40:.3f}"
        assert (np.asarray(image) == round(255 * i / 40)).all()
    titles = [part.get_suptitle() for part in figure.subfigs]
    first, second = "most probably mitotic: 12 of 40 patches", "least certain of the others (threshold 0.3): 12 of 28"
    assert titles == [first, second]
    assert figure.get_suptitle() == ""


def test_large_images_are_shown_small_and_in_proportion(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((300, 600, 3), np.uint8)).save(tmp_path / "large.png")
    prediction = {"case": "a/" + 40 * "long" + ".png", "file": str(tmp_path / "large.png"), "probability": 1.0}
    figure = draw_predictions([prediction], 0.3, NAMES, crop_size=100)
    assert figure.get_suptitle() == "yellow: what the network saw"
    axes = figure.axes[0]
    assert axes.images[0].get_extent() == [0, 600, 300, 0]
    assert axes.patches[0].get_bbox().extents.tolist() == [250, 100, 350, 200]
    assert axes.images[0].get_array().shape == (64, 128, 3)
    assert axes.get_title() == "1.000\n…" + (40 * "long" + ".png")[-19:]
