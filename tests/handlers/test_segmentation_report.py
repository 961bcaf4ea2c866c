from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import two_ranks
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator

from shared.handlers import SegmentationReport
from shared.metrics import segmentation_scores
from shared.reports import SegmentationScoring
from shared.reports.segmentation import summarise_scores
from shared.utils import DataError

LABELS = {"liver": 2, "spleen": 1, "pancreas": 3, "aorta": 4}
ORGANS = ["spleen", "liver", "pancreas", "aorta"]
SPACING = (1.0, 2.0, 3.0)


def case(number: int) -> dict[str, Any]:
    """Spleen found, shifted; liver missed in case 1; pancreas always missed; aorta absent, but predicted."""
    label = torch.zeros((1, 10, 9, 8 + number), dtype=torch.uint8)
    label[:, 1:5, 2:6, 2:6] = 1
    label[:, 5:7, :, 2:4] = 2
    label[:, 8, 8, 2] = 3
    pred = label.roll(number, dims=1)
    pred[pred == 3] = 0
    if number == 1:
        pred[pred == 2] = 0
        pred[:, 0, 0, 0] = 4
    affine = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))
    return {
        "case": f"case{number}",
        "image": MetaTensor(pred.float(), affine=affine),
        "label": MetaTensor(label, affine=affine),
    }


class ImageIsThePrediction(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def evaluate(output_dir: Path, numbers: list[int], **kwargs: Any) -> SupervisedEvaluator:
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([case(n) for n in numbers]), batch_size=1),
        network=ImageIsThePrediction(),
        val_handlers=[SegmentationReport(output_dir, labels=LABELS, **kwargs)],
    )
    evaluator.run()
    return evaluator


def read(folder: Path) -> tuple[list[dict[str, str]], dict[str, Any]]:
    with (folder / "scores.csv").open() as file:
        return list(csv.DictReader(file)), json.loads((folder / "summary.json").read_text())


def test_rows_are_the_scores_of_each_case_and_organ(tmp_path: Path) -> None:
    evaluate(tmp_path, [2, 0, 1], tolerance=1.5)
    rows, _ = read(tmp_path)
    assert [(r["case"], r["organ"], r["id"]) for r in rows] == [
        (f"case{n}", organ, str(i)) for n in range(3) for i, organ in enumerate(ORGANS, 1)
    ]
    for n in range(3):
        pred, label = (case(n)[key][0].numpy().astype(np.uint8) for key in ("image", "label"))
        for row, score in zip(rows[4 * n : 4 * n + 4], segmentation_scores(pred, label, SPACING, 4, 1.5), strict=True):
            for column, value in (("dice", score.dice), ("nsd", score.nsd), ("hd95_mm", score.hd95)):
                assert row[column] == ("" if math.isnan(value) else str(round(value, 4)))
            assert float(row["label_ml"]) == pytest.approx(score.label_voxels * 0.006)
            assert float(row["pred_ml"]) == pytest.approx(score.pred_voxels * 0.006)
    assert [r["status"] for r in rows[4:8]] == ["scored", "missed", "missed", "absent_but_predicted"]
    assert (rows[5]["dice"], rows[5]["nsd"], rows[5]["hd95_mm"]) == ("0.0", "", "")


def test_report_is_that_of_the_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"dataset": {"name": "toy", "split": "test", "synthetic": True}, "tolerance": 1.5}
    with caplog.at_level("INFO", logger="shared"):
        engine = evaluate(tmp_path / "run", [2, 0, 1], **options)
    rows = []
    for n in range(3):
        pred, label = (case(n)[key][0].numpy().astype(np.uint8) for key in ("image", "label"))
        for i, score in enumerate(segmentation_scores(pred, label, SPACING, 4, 1.5)):
            values = {"dice": score.dice, "nsd": score.nsd, "hd95_mm": score.hd95, "status": score.status}
            volumes = {"label_ml": score.label_voxels * 0.006, "pred_ml": score.pred_voxels * 0.006}
            columns = ("case", "organ", "id", "dice", "nsd", "hd95_mm", "label_ml", "pred_ml", "status")
            row = {"case": f"case{n}", "organ": ORGANS[i], "id": i + 1, **values, **volumes}
            rows.append({column: row[column] for column in columns})
    summary = summarise_scores(rows, SegmentationScoring(labels=LABELS, **options))
    summary.write(tmp_path)
    for name in ("scores.csv", "summary.json"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / name).read_text()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["report.png", "scores.csv", "summary.json"]
    written = f"written to {tmp_path / 'run'}: scores.csv, summary.json, report.png"
    assert f"{summary.table()}\n{written}" in caplog.messages
    assert engine.state.metrics == summary.metrics()
    assert set(engine.state.metrics) == {"mean_dice", "mean_nsd", "mean_hd95_mm"}


def test_what_the_weights_and_cases_are_is_said(tmp_path: Path) -> None:
    record = {"trained_on": "phantoms", "synthetic": True, "epoch": 3}
    evaluate(tmp_path, [0], dataset={"name": "real", "synthetic": False}, record=record)
    summary = read(tmp_path)[1]
    assert summary["model"] == record
    assert summary["warnings"] == ["The weights were trained on made-up cases: not for real scans."]
    assert summary["versions"]["torch"] == torch.__version__
    evaluate(tmp_path, [0], dataset={"name": "real"}, record={"synthetic": False})
    assert read(tmp_path)[1]["warnings"] == []


def test_running_again_starts_anew(tmp_path: Path) -> None:
    evaluator = evaluate(tmp_path, [0, 1])
    first = (tmp_path / "summary.json").read_bytes()
    evaluator.run()
    assert (tmp_path / "summary.json").read_bytes() == first
    evaluator.val_data_loader = evaluator.data_loader = DataLoader(Dataset([case(2)]), batch_size=1)
    evaluator.state.epoch_length = evaluator.state.dataloader = None
    evaluator.run()
    assert read(tmp_path)[1]["cases"] == 1


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from 1 to their count"):
        SegmentationReport(tmp_path, labels={"spleen": 1, "liver": 3})
    with pytest.raises(ValueError, match="bootstrap must be at least 1, got 0"):
        SegmentationReport(tmp_path, labels=LABELS, bootstrap=0)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        SegmentationReport(tmp_path / "file" / "folder", labels=LABELS)


RANK = """
engine = toy.evaluate(toy.Path(folder) / f"rank{rank}", [[0, 2], [1, 0]][rank])
print("mean", engine.state.metrics["mean_dice"])
"""


@pytest.mark.slow
def test_two_ranks_write_the_report_of_one(tmp_path: Path) -> None:
    printed = two_ranks(__file__, RANK, tmp_path)
    alone = evaluate(tmp_path / "alone", [0, 1, 2])
    for name in ("scores.csv", "summary.json"):
        assert (tmp_path / "rank0" / name).read_text() == (tmp_path / "alone" / name).read_text()
    assert (tmp_path / "rank0" / "report.png").exists()
    assert list((tmp_path / "rank1").iterdir()) == []
    assert all(f"mean {alone.state.metrics['mean_dice']}" in text for text in printed)
