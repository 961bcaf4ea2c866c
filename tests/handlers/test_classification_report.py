from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import sklearn.metrics
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator

from shared.handlers import ClassificationReport, classification_report
from shared.metrics import bootstrap_scores, classification_scores
from shared.reports.classification import Patch, draw_patches, summarise_patches
from shared.reports.domains import DomainScoring
from shared.utils import DataError

NAMES = ("other", "mitotic")
SCORES = ("accuracy", "balanced_accuracy", "auc", "f1", "sensitivity", "specificity")


def patches(domains: Sequence[str] = ("XR", "CS", "S360"), count: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    """Patches whose image is their logit; every scanner has slides of the same names."""
    rng = np.random.default_rng(seed)
    return [
        {
            "case": f"{domain}/{i}.png",
            "domain": domain,
            "slide": f"{i % 5}.tiff",
            "label": torch.tensor([float(label)]),
            "image": torch.tensor([rng.normal((3 - d) * (label - 0.5), 1)], dtype=torch.float32),
        }
        for d, domain in enumerate(domains)
        for i, label in enumerate(rng.permutation(count) % 2)
    ]


class ImageIsTheLogit(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def evaluate(output_dir: Path, data: list[dict[str, Any]], **kwargs: Any) -> SupervisedEvaluator:
    options = {"threshold": 0.4, "class_names": NAMES, "train_domains": ["XR", "CS"], "bootstrap": 50, **kwargs}
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=7),
        network=ImageIsTheLogit(),
        val_handlers=[ClassificationReport(output_dir, **options)],
        decollate=False,
    )
    evaluator.run()
    return evaluator


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def read_summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def columns(data: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
    """Probabilities, labels and slides."""
    prob = np.array([1 / (1 + math.exp(-p["image"].item())) for p in data])
    return prob, np.array([int(p["label"]) for p in data]), [(p["domain"], p["slide"]) for p in data]


def printed_table(caplog: pytest.LogCaptureFixture) -> str:
    """The table of the last report, as it was logged."""
    return next(m for m in reversed(caplog.messages) if "\nwritten to " in m).split("\nwritten to ")[0]


def test_predictions_are_those_of_the_network(tmp_path: Path) -> None:
    data = patches()
    evaluate(tmp_path, data[::-1])
    rows = read_csv(tmp_path / "predictions.csv")
    expected = sorted(data, key=lambda p: p["case"])
    assert [r["case"] for r in rows] == [p["case"] for p in expected]
    prob, label, _ = columns(expected)
    assert [float(r["probability"]) for r in rows] == pytest.approx(prob, abs=1e-12)
    assert [r["label"] for r in rows] == [NAMES[i] for i in label]
    assert [r["predicted"] for r in rows] == [NAMES[p >= 0.4] for p in prob.tolist()]
    assert [(r["domain"], r["slide"]) for r in rows] == [(p["domain"], p["slide"]) for p in expected]
    assert {r["domain"]: r["in_distribution"] for r in rows} == {"XR": "true", "CS": "true", "S360": "false"}


def test_scores_of_each_domain_and_group(tmp_path: Path) -> None:
    data = patches()
    engine = evaluate(tmp_path, data)
    rows = {r["domain"]: r for r in read_csv(tmp_path / "scores.csv")}
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
        row, own = rows[name], [p for p in sorted(data, key=lambda p: p["case"]) if p["domain"] in domains]
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

    assert engine.state.metrics["auc"] == pytest.approx(float(rows["all"]["auc"]), abs=1e-4)
    assert engine.state.metrics["accuracy_S360"] == pytest.approx(float(rows["S360"]["accuracy"]), abs=1e-4)
    names = {"accuracy", "balanced_accuracy", "auc", "accuracy_XR", "accuracy_CS", "accuracy_S360"}
    assert set(engine.state.metrics) == names


def test_summary_has_the_means_over_domains(tmp_path: Path) -> None:
    """Domains of different size weigh the same in the mean, and by their patches in the pool."""
    record = {"train_domains": ["XR", "CS"], "name": "MIDOG", "epoch": 3}
    data = patches(["XR"], 60) + patches(["CS", "S360"], 20)
    evaluate(
        tmp_path,
        data,
        train_domains=None,
        record=record,
        dataset={"name": "toy", "split": "test"},
        adapted=True,
        threshold_from="threshold.json",
    )
    summary = read_summary(tmp_path)
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


def test_table_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="shared"):
        evaluate(tmp_path, patches(), dataset={"name": "toy", "split": "test", "synthetic": True})
    summary = read_summary(tmp_path)
    table = printed_table(caplog)
    assert table.startswith("toy, test, 120 patches, 15 slides\n")
    assert "These cases are made up" in table
    assert "A patch is called mitotic when its probability is at least 0.4, else other." in table
    lines = {
        line.split()[0]: line.replace("[", "").replace("]", "").replace(",", "").split() for line in table.splitlines()
    }
    part = summary["domains"]["S360"]
    numbers = [f"{v:.3f}" for s in ("accuracy", "balanced_accuracy") for v in (part[s]["value"], *part[s]["interval"])]
    numbers += [f"{part[s]['value']:.3f}" for s in ("auc", "f1", "sensitivity", "specificity")]
    assert lines["S360"] == ["S360", "out", "40", *numbers]


@pytest.mark.parametrize(
    ("label", "missing", "undefined"),
    [
        (0.0, "S360 has no mitotic patches", {"balanced_accuracy", "auc", "f1", "sensitivity"}),
        (1.0, "S360 has no other patches", {"balanced_accuracy", "auc", "specificity"}),
    ],
)
def test_a_domain_of_one_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, label: float, missing: str, undefined: set[str]
) -> None:
    data = [p | ({"label": torch.tensor([label])} if p["domain"] == "S360" else {}) for p in patches()]
    with caplog.at_level("INFO", logger="shared"):
        evaluate(tmp_path, data)
    summary = read_summary(tmp_path)
    assert summary["notes"][0].startswith(missing)
    assert missing in caplog.text
    row = next(r for r in read_csv(tmp_path / "scores.csv") if r["domain"] == "S360")
    for score in SCORES:
        blank = score in undefined
        assert (summary["domains"]["S360"][score]["value"] is None) == blank
        assert (row[score] == "") == (row[f"{score}_low"] == "") == blank
    means = summary["mean_over_domains"]
    assert means["out of distribution"]["auc"] is None
    assert means["all"]["auc"] == means["in distribution"]["auc"]


def test_few_slides_are_remarked(tmp_path: Path) -> None:
    data = [p | {"slide": "one"} for p in patches(["XR"])]
    evaluate(tmp_path, data)
    summary = read_summary(tmp_path)
    assert summary["notes"][0] == "XR has patches from a single slide: no intervals."
    assert summary["domains"]["XR"]["auc"]["no_interval_because"] == "all patches are from a single slide"
    assert list(summary["pooled_patches"]) == ["in distribution", "all"]

    evaluate(tmp_path, [p | {"slide": str(int(p["label"]))} for p in patches(["XR"])])
    summary = read_summary(tmp_path)
    left_out = summary["domains"]["XR"]["auc"]["resamples_left_out"]
    assert 10 < left_out < 40  # of 50, half draw one of the two slides twice
    assert f"{left_out} of 50 resamples lack a class" in summary["notes"][0]


def test_without_a_record_nothing_is_in_or_out(tmp_path: Path) -> None:
    evaluate(tmp_path, patches(), train_domains=None)
    summary = read_summary(tmp_path)
    assert list(summary["pooled_patches"]) == ["all"]
    assert {r["distribution"] for r in read_csv(tmp_path / "scores.csv")} == {""}
    assert {r["in_distribution"] for r in read_csv(tmp_path / "predictions.csv")} == {""}
    assert any("is not known, so none is marked" in note for note in summary["notes"])


def test_what_the_weights_and_patches_are_is_said(tmp_path: Path) -> None:
    evaluate(tmp_path, patches(), record={"synthetic": True})
    assert read_summary(tmp_path)["warnings"] == ["The weights were trained on made-up cases: not for real scans."]
    red = (matplotlib.image.imread(tmp_path / "report.png")[-40:, :, :3] @ [1, -1, 0] > 0.5).sum()
    evaluate(tmp_path, patches(), record={"synthetic": False})
    assert read_summary(tmp_path)["warnings"] == []
    assert red > 100 > (matplotlib.image.imread(tmp_path / "report.png")[-40:, :, :3] @ [1, -1, 0] > 0.5).sum()


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_picture_has_a_curve_a_mark_and_a_matrix_for_each_domain(tmp_path: Path, count: int) -> None:
    data = patches([f"centre {i}" for i in range(count)], 20)
    chosen = [
        Patch(*(p[k] for k in ("case", "domain", "slide")), int(label), float(prob))
        for p, prob, label in zip(data, *columns(data)[:2], strict=True)
    ]
    how = DomainScoring(threshold=0.4, class_names=NAMES, train_domains=["centre 0"], bootstrap=10)
    summary = summarise_patches(chosen, how)
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


def test_patches_of_all_ranks_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = patches()
    alone = evaluate(tmp_path / "alone", data)
    other = evaluate(tmp_path / "other", data[50:])  # the first rank has 70 patches, 20 of them had by both

    (other_report,) = (
        h.__self__
        for h, *_ in other._event_handlers[classification_report.Events.COMPLETED]
        if isinstance(getattr(h, "__self__", None), ClassificationReport)
    )
    monkeypatch.setattr(classification_report.idist, "all_gather", lambda own: [own, other_report.patches])
    first = evaluate(tmp_path / "rank0", data[:70])
    for name in ("predictions.csv", "scores.csv", "summary.json", "report.png"):
        assert (tmp_path / "rank0" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    monkeypatch.setattr(classification_report.idist, "get_rank", lambda: 1)
    second = evaluate(tmp_path / "rank1", data[:70])
    assert list((tmp_path / "rank1").iterdir()) == []
    assert first.state.metrics == second.state.metrics == alone.state.metrics


def test_running_again_starts_anew(tmp_path: Path) -> None:
    evaluator = evaluate(tmp_path, patches())
    first = (tmp_path / "summary.json").read_bytes()
    evaluator.run()
    assert (tmp_path / "summary.json").read_bytes() == first
    evaluator.val_data_loader = evaluator.data_loader = DataLoader(Dataset(patches(["XR"])), batch_size=7)
    evaluator.state.epoch_length = evaluator.state.dataloader = None
    evaluator.run()
    assert list(read_summary(tmp_path)["domains"]) == ["XR"]


def test_confident_probabilities_stay_apart(tmp_path: Path) -> None:
    """In single precision the sigmoid of 18 and that of 20 are both 1."""
    data = [p | {"image": torch.tensor([18.0 + 2 * p["label"].item()])} for p in patches(["XR"])]
    assert evaluate(tmp_path, data).state.metrics["auc"] == 1


def test_a_network_that_gives_no_number_is_reported(tmp_path: Path) -> None:
    data = patches()
    data[3]["image"] = torch.tensor([math.nan])
    with pytest.raises(DataError, match=r"XR/3.png: the network gives no number \(1 such"):
        evaluate(tmp_path, data)
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 1.5"):
        ClassificationReport(tmp_path, threshold=1.5)
    with pytest.raises(ValueError, match="class_names must be two names"):
        ClassificationReport(tmp_path, class_names=("a", "b", "c"))
    with pytest.raises(ValueError, match="bootstrap must be at least 1, got 0"):
        ClassificationReport(tmp_path, bootstrap=0)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        ClassificationReport(tmp_path / "file" / "folder")
