from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import matplotlib.image
import numpy as np
import pytest
import torch
from detected_regions import SIZE, columns, detections, regions
from monai.data import DataLoader, Dataset
from torch import Tensor, nn

from shared.data import collate_detections
from shared.engines import DetectionEvaluator
from shared.handlers import DetectionReport
from shared.inferers import TilePlace
from shared.metrics import Findings, bootstrap_detection, detection_scores
from shared.networks import PyramidAnchors
from shared.utils import DataError

SCORES = ("precision", "recall", "f1", "average_precision")
FILES = ("detections.csv", "gallery.png", "report.png", "scores.csv", "summary.json")
EVERYWHERE = (-math.inf, -math.inf, math.inf, math.inf)


class ImageIsTheOutput(nn.Module):
    """Six channels of an image, at the places of the anchors."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::8, ::8].flatten(2)


def tiles(data: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    items = []
    for i, (points, scores, classes) in enumerate(detections(data)):
        image = torch.zeros(6, SIZE, SIZE)
        image[:2] = -20
        for (x, y), score, label in zip(points, scores, classes, strict=True):
            image[label, y - 4, x - 4] = torch.tensor(float(score), dtype=torch.float64).logit().float()
        place = {"region": i, "origin": (0.0, 0.0), "core": EVERYWHERE, "scale": 1.0, "size": (4000, 4000)}
        nothing = {"box": torch.zeros(0, 4), "label": torch.zeros(0, dtype=torch.int64)}
        items.append({"image": image, "case": f"{i} 0,0", **place, **nothing})
    return items


def evaluate(
    output_dir: Path, data: Sequence[dict[str, Any]], items: list[dict[str, Any]] | None = None, **kwargs: Any
) -> tuple[DetectionEvaluator, DetectionReport]:
    options = {"threshold": 0.4, "train_domains": ["XR", "CS"], "bootstrap": 50, "match_radius": 10.0, **kwargs}
    report = DetectionReport(output_dir, data, PyramidAnchors(), **options)
    evaluator = DetectionEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(tiles(data) if items is None else items), batch_size=5, collate_fn=collate_detections),
        ImageIsTheOutput(),
        val_handlers=[report],
    )
    evaluator.run()
    return evaluator, report


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def read_summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def nothing_found(data: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item | {"image": torch.full((6, SIZE, SIZE), -20.0)} for item in tiles(data)]


def red(path: Path) -> int:
    """Red pixels at the foot of a picture."""
    return int((matplotlib.image.imread(path)[-40:, :, :3] @ [1, -1, 0] > 0.5).sum())


def printed_table(caplog: pytest.LogCaptureFixture) -> str:
    """The table of the last report, as it was logged."""
    return next(m for m in reversed(caplog.messages) if "\nwritten to " in m).split("\nwritten to ")[0]


@pytest.mark.parametrize("matching", ["one_to_one", "many_to_one"])
def test_scores_of_each_domain_and_group(tmp_path: Path, matching: str) -> None:
    data = regions(tmp_path)
    radius = 10.0 if matching == "one_to_one" else 45.0  # as far as the next place, so that figures are shared
    engine, _ = evaluate(tmp_path / "out", data, matching=matching, match_radius=radius)
    rows = {r["domain"]: r for r in read_csv(tmp_path / "out" / "scores.csv")}
    summary = read_summary(tmp_path / "out")
    groups = {
        "CS": ("in", ["CS"], 2),
        "XR": ("in", ["XR"], 2),
        "S360": ("out", ["S360"], 2),
        "in distribution": ("in", ["XR", "CS"], 4),
        "out of distribution": ("out", ["S360"], 2),
        "all": ("", ["XR", "CS", "S360"], 6),  # slides of two scanners are two, though they share a name
    }
    assert list(rows) == list(groups)
    for name, (distribution, domains, slides) in groups.items():
        row, scored = rows[name], columns(data, domains)
        slide_names = [(r["domain"], r["slide"]) for r in data if r["domain"] in domains]
        assert (row["distribution"], row["slides"], row["threshold"]) == (distribution, str(slides), "0.4")
        assert (row["images"], row["figures"]) == (str(4 * len(domains)), str(32 * len(domains)))
        findings = Findings.matched(*scored, radius)
        other, values = (detection_scores(findings, i, 0.4, matching) for i in (0, 1))
        assert [int(row[c]) for c in ("tp", "fp", "fn")] == [values[c] for c in ("tp", "fp", "fn")]
        intervals = bootstrap_detection(findings, 1, 0.4, matching, slide_names, 50)
        for score in SCORES:
            assert float(row[score]) == round(values[score], 4)
            found = [float(row[f"{score}_low"]), float(row[f"{score}_high"])]
            assert found == pytest.approx(intervals[score]["interval"], abs=5.1e-5)
        part = {**summary["domains"], **summary["pooled_images"]}[name]
        assert part["non_mitotic"] == pytest.approx(other)

    assert (summary["matching"], summary["match_radius"], summary["class"]) == (matching, radius, "mitotic")
    assert engine.state.metrics["f1"] == pytest.approx(float(rows["all"]["f1"]), abs=1e-4)
    assert engine.state.metrics["f1_S360"] == pytest.approx(float(rows["S360"]["f1"]), abs=1e-4)
    assert set(engine.state.metrics) == {*SCORES, "f1_XR", "f1_CS", "f1_S360"}


def test_what_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, record = regions(tmp_path), {"name": "toy", "train_domains": ["XR", "CS"]}
    dataset = {"name": "toy", "split": "test", "synthetic": True}
    options = {"train_domains": None, "record": record, "dataset": dataset, "threshold_from": "threshold.json"}
    with caplog.at_level("INFO", logger="shared"):
        evaluate(tmp_path / "out", data, adapted="true", **options)
    summary = read_summary(tmp_path / "out")
    assert (summary["model"], summary["train_domains"], summary["dataset"]) == (record, ["XR", "CS"], dataset)
    assert summary["threshold"] == {"value": 0.4, "from": "threshold.json"}
    assert summary["adapted_batch_norm"] is True
    assert any("Batch norm was adapted" in note for note in summary["notes"])
    domains = summary["domains"]
    for score in SCORES:
        mean = (domains["XR"][score]["value"] + domains["CS"][score]["value"]) / 2
        assert summary["mean_over_domains"]["in distribution"][score] == pytest.approx(mean)
    table = printed_table(caplog)
    assert table.startswith("toy, test, 12 images, 6 slides, 96 figures\n")
    assert "These cases are made up" in table
    assert "within 10 px of its centre" in table
    lines = {
        line.split()[0]: line.replace("[", "").replace("]", "").replace(",", "").split() for line in table.splitlines()
    }
    part = domains["S360"]
    numbers = [f"{v:.3f}" for s in ("f1", "average_precision") for v in (part[s]["value"], *part[s]["interval"])]
    numbers += [f"{part[s]['value']:.3f}" for s in ("precision", "recall")]
    assert lines["S360"] == ["S360", "out", "4", "32", *numbers]
    assert red(tmp_path / "out" / "report.png") > 100 < red(tmp_path / "out" / "gallery.png")
    evaluate(tmp_path / "real", data)
    assert read_summary(tmp_path / "real")["warnings"] == []
    assert red(tmp_path / "real" / "report.png") == 0 == red(tmp_path / "real" / "gallery.png")


def test_detections_are_those_of_the_network(tmp_path: Path) -> None:
    data = regions(tmp_path)
    evaluate(tmp_path / "out", data)
    rows = read_csv(tmp_path / "out" / "detections.csv")
    assert len({r["image"] for r in rows}) == len(data)
    for region, (points, scores, classes) in zip(data, detections(data), strict=True):
        own = [r for r in rows if r["image"] == region["case"]]
        order = [i for i in np.argsort(-scores, kind="stable") if scores[i] >= 0.05]
        assert {r["domain"] for r in own} == {region["domain"]}
        assert [(float(r["x"]), float(r["y"])) for r in own] == [tuple(points[i].astype(float)) for i in order]
        assert [float(r["score"]) for r in own] == pytest.approx(scores[order], abs=1e-6)
        assert [r["class"] for r in own] == [("non_mitotic", "mitotic")[classes[i]] for i in order]
        true = np.array(region["box"])[:, :2] + 25
        image = (points[order], scores[order], classes[order], true, region["label"])
        match = Findings.matched(*([part] for part in image), 10.0).match
        assert [r["matched"] for r in own] == ["true" if m >= 0 else "false" for m in match]


def test_tiles_of_all_ranks_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = regions(tmp_path)
    items = tiles(data)
    alone, _ = evaluate(tmp_path / "alone", data)
    _, other = evaluate(tmp_path / "other", data, items[5:])  # the first rank has 7 tiles, 2 of them had by both

    parts = dict(other.detections.merger.parts)
    monkeypatch.setattr(idist, "all_gather", lambda own: [own, parts])
    first, _ = evaluate(tmp_path / "rank0", data, items[:7])
    for name in FILES:
        assert (tmp_path / "rank0" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    second, _ = evaluate(tmp_path / "rank1", data, items[:7])
    assert list((tmp_path / "rank1").iterdir()) == []
    assert first.state.metrics == second.state.metrics == alone.state.metrics


def test_running_again_starts_anew(tmp_path: Path) -> None:
    evaluator, report = evaluate(tmp_path / "out", regions(tmp_path, count=1))
    first = (tmp_path / "out" / "summary.json").read_bytes()
    report.detections.merger.add(torch.full((1, 6, 784), 1.0), [SIZE, SIZE], [TilePlace(0)])
    evaluator.run()
    assert (tmp_path / "out" / "summary.json").read_bytes() == first
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(FILES)


def test_bad_arguments(tmp_path: Path) -> None:
    def make(folder: Path = tmp_path, **options: Any) -> DetectionReport:
        return DetectionReport(folder, [], PyramidAnchors(), **options)

    for options, message in (
        ({"threshold": 1.5}, r"threshold must be in \[0, 1\], got 1.5"),
        ({"class_names": ("a", "b", "c")}, "class_names must be two names"),
        ({"class_id": 2}, "class_id must be 0 or 1, got 2"),
        ({"matching": "some"}, "matching is 'some', expected one of one_to_one, many_to_one"),
        ({"bootstrap": 0}, "bootstrap must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        make(tmp_path / "file" / "folder")
