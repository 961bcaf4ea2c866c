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
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator

from shared.handlers import ClassificationReport, classification_report
from shared.reports.classification import Patch, summarise_patches
from shared.reports.domains import DomainScoring
from shared.utils import DataError

NAMES = ("other", "mitotic")


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


def as_patches(data: Sequence[dict[str, Any]]) -> list[Patch]:
    """As the report has them: in the order of their names, with their probabilities."""
    found = []
    for p in sorted(data, key=lambda p: p["case"]):
        probability = 1 / (1 + math.exp(-p["image"].item()))
        found.append(Patch(p["case"], p["domain"], p["slide"], int(p["label"]), probability))
    return found


def test_predictions_are_those_of_the_network(tmp_path: Path) -> None:
    data = patches()
    evaluate(tmp_path, data[::-1])
    rows = read_csv(tmp_path / "predictions.csv")
    expected = as_patches(data)
    assert [r["case"] for r in rows] == [p.case for p in expected]
    assert [float(r["probability"]) for r in rows] == pytest.approx([p.probability for p in expected], abs=1e-12)
    assert [r["label"] for r in rows] == [NAMES[p.label] for p in expected]
    assert [r["predicted"] for r in rows] == [NAMES[p.probability >= 0.4] for p in expected]
    assert [(r["domain"], r["slide"]) for r in rows] == [(p.domain, p.slide) for p in expected]
    assert {r["domain"]: r["in_distribution"] for r in rows} == {"XR": "true", "CS": "true", "S360": "false"}


def test_report_is_that_of_the_patches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {
        "dataset": {"name": "toy", "split": "test", "synthetic": True},
        "adapted": "true",
        "threshold_from": "file",
    }
    with caplog.at_level("INFO", logger="shared"):
        engine = evaluate(tmp_path / "run", patches(), **options)
    how = DomainScoring(threshold=0.4, class_names=NAMES, train_domains=["XR", "CS"], bootstrap=50, **options)
    summary = summarise_patches(as_patches(patches()), how)
    summary.write(tmp_path)
    for name in ("scores.csv", "summary.json"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / name).read_text()
    files = ["predictions.csv", "scores.csv", "summary.json", "report.png"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(files)
    assert f"{summary.table()}\nwritten to {tmp_path / 'run'}: {', '.join(files)}" in caplog.messages

    rows = {r["domain"]: r for r in read_csv(tmp_path / "scores.csv")}
    assert engine.state.metrics["auc"] == pytest.approx(float(rows["all"]["auc"]), abs=1e-4)
    assert engine.state.metrics["accuracy_S360"] == pytest.approx(float(rows["S360"]["accuracy"]), abs=1e-4)
    names = {"accuracy", "balanced_accuracy", "auc", "accuracy_XR", "accuracy_CS", "accuracy_S360"}
    assert set(engine.state.metrics) == names


def test_what_the_weights_and_patches_are_is_said(tmp_path: Path) -> None:
    evaluate(tmp_path, patches(), record={"synthetic": True})
    assert read_summary(tmp_path)["warnings"] == ["The weights were trained on made-up cases: not for real scans."]
    red = (matplotlib.image.imread(tmp_path / "report.png")[-40:, :, :3] @ [1, -1, 0] > 0.5).sum()
    evaluate(tmp_path, patches(), record={"synthetic": False})
    assert read_summary(tmp_path)["warnings"] == []
    assert red > 100 > (matplotlib.image.imread(tmp_path / "report.png")[-40:, :, :3] @ [1, -1, 0] > 0.5).sum()


def test_patches_of_all_ranks_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = patches()
    alone = evaluate(tmp_path / "alone", data)
    other = evaluate(tmp_path / "other", data[50:])  # the first rank has 70 patches, 20 of them had by both

    (other_report,) = (
        h.__self__
        for h, *_ in other._event_handlers[classification_report.Events.COMPLETED]
        if isinstance(getattr(h, "__self__", None), ClassificationReport)
    )
    monkeypatch.setattr(classification_report.idist, "all_gather", lambda own: [own, (other_report.patches, {})])
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
