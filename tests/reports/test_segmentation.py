from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from shared.reports import SegmentationScoring
from shared.reports.gallery import save_figure
from shared.reports.segmentation import OrganScore, SegmentationSummary, draw_scores, summarise_scores

LABELS = {"liver": 2, "spleen": 1, "pancreas": 3, "aorta": 4}
ORGANS = ["spleen", "liver", "pancreas", "aorta"]
HOW = SegmentationScoring(labels=LABELS, tolerance=1.5)
MISSED = {"dice": 0.0, "nsd": math.nan, "hd95_mm": math.nan, "status": "missed"}
ABSENT = {"dice": math.nan, "nsd": math.nan, "hd95_mm": math.nan, "status": "absent"}


def scored(dice: float) -> dict[str, Any]:
    return {"dice": dice, "nsd": (1 + dice) / 2, "hd95_mm": 2 - 2 * dice, "status": "scored"}


def case(number: int) -> list[OrganScore]:
    """Spleen found, less and less; liver missed in case 1; pancreas always missed; aorta absent, but predicted."""
    organs = [
        scored(1 - number / 4),
        MISSED if number == 1 else scored(1 - number / 5),
        MISSED,
        {**ABSENT, "status": "absent_but_predicted"} if number == 1 else ABSENT,
    ]
    return [
        {"case": f"case{number}", "organ": organ, "id": i, **score, "label_ml": 0.384, "pred_ml": 1 / 3}
        for i, (organ, score) in enumerate(zip(ORGANS, organs, strict=True), 1)
    ]


def summarise(*numbers: int, **options: Any) -> SegmentationSummary:
    return summarise_scores([row for n in numbers for row in case(n)], replace(HOW, **options))


def test_summary_leaves_out_the_absent_and_counts_the_missed() -> None:
    summary = summarise(0, 1, 2)
    organs, content = summary.organs, summary.content()
    assert list(organs) == ORGANS
    assert (organs["liver"]["missed"], organs["liver"]["dice"]["cases"], organs["liver"]["nsd"]["cases"]) == (1, 3, 2)
    assert (organs["pancreas"]["missed"], organs["pancreas"]["dice"]["mean"]) == (3, 0)
    assert organs["pancreas"]["nsd"] == {
        "mean": None,
        "interval": None,
        "cases": 0,
        "no_interval_because": "no case has a score",
    }
    assert (organs["aorta"]["absent"], organs["aorta"]["absent_but_predicted"]) == (2, 1)
    assert organs["aorta"]["dice"]["mean"] is None
    assert (content["never_predicted"], content["absent_everywhere"], content["missed"]) == (["pancreas"], ["aorta"], 4)

    means = {o: np.mean([r["dice"] for r in summary.scores if r["organ"] == o]) for o in ORGANS[:3]}
    for organ, mean in means.items():
        assert organs[organ]["dice"]["mean"] == pytest.approx(mean)
    overall = summary.mean["dice"]["mean"]
    assert overall == pytest.approx(np.mean(list(means.values())))
    low, high = summary.mean["dice"]["interval"]
    assert low < overall < high
    assert summary.metrics()["mean_dice"] == overall
    assert set(summary.metrics()) == {"mean_dice", "mean_nsd", "mean_hd95_mm"}


def test_where_nothing_is_scored_an_engine_gets_no_number() -> None:
    rows = [{**row, **ABSENT} for row in case(0)]
    assert all(math.isnan(mean) for mean in summarise_scores(rows, HOW).metrics().values())


def test_content() -> None:
    content = summarise(0, 1, bootstrap=20, seed=3, dataset={"name": "toy"}).content()
    assert list(content)[:9] == [
        "dataset",
        "cases",
        "mean_over_organs",
        "organs",
        "missed",
        "never_predicted",
        "absent_everywhere",
        "tolerance_mm",
        "intervals",
    ]
    method = "percentile bootstrap over cases"
    assert content["intervals"] == {"level": 0.95, "method": method, "resamples": 20, "seed": 3}
    assert (content["cases"], content["tolerance_mm"]) == (2, 1.5)
    json.dumps(content, allow_nan=False)


def test_rows_are_rounded_and_blank_where_undefined() -> None:
    rows = summarise(1).rows()
    assert [row["pred_ml"] for row in rows] == [0.3333] * 4
    assert [row["dice"] for row in rows] == [0.75, 0, 0, None]
    assert [row["nsd"] for row in rows] == [0.875, None, None, None]
    assert [(row["id"], row["status"]) for row in rows] == [
        (1, "scored"),
        (2, "missed"),
        (3, "missed"),
        (4, "absent_but_predicted"),
    ]


def test_table_explains_what_is_at_zero() -> None:
    table = summarise(0, 1, dataset={"name": "toy", "split": "test", "synthetic": True}).table()
    assert table.split("\n")[:9] == [
        "toy, test, 2 cases",
        "                   Dice   95 % interval    NSD  HD95 mm  cases  missed",
        "spleen            0.875  0.750 to 1.000  0.938      0.2      2       0",
        "liver             0.500  0.000 to 1.000  1.000      0.0      2       1",
        "pancreas          0.000  0.000 to 0.000      -        -      2       2",
        "aorta                 -        -             -        -      0       0",
        "mean over organs  0.458  0.250 to 0.667  0.969      0.1      2       3",
        "never predicted, so Dice 0: pancreas",
        "in no label of these cases, so left out: aorta",
    ]
    assert "These cases are made up" in table
    assert "NSD: share of the surface within 1.5 mm." in table


def test_an_organ_predicted_in_the_wrong_place_is_explained() -> None:
    rows = [{**row, **scored(0.0)} if row["organ"] in ("spleen", "liver") else row for row in case(0)]
    table = summarise_scores(rows, HOW).table()
    assert "predicted, but nowhere where the label has it, so Dice 0: spleen, liver\n" in table


def test_a_single_case_has_no_interval() -> None:
    dice = summarise(0).mean["dice"]
    assert dice["mean"] == pytest.approx(2 / 3)
    assert (dice["interval"], dice["no_interval_because"]) == (None, "a single case has a score")


def test_picture_shows_a_mark_for_each_score(tmp_path: Path) -> None:
    summary = summarise(0, 1, 2)
    figure = draw_scores(summary)
    save_figure(tmp_path / "report.png", figure)
    picture = matplotlib.image.imread(tmp_path / "report.png")[..., :3]
    blue = (picture[..., 2] - picture[..., 0] > 0.3).sum()
    red = (picture[..., 0] - picture[..., 1] > 0.6).sum()  # the boxes' median is orange
    assert blue > 100  # five organs found
    assert red > 50  # four missed
    (axes,) = figure.axes
    assert axes.get_title() == "evaluation, 3 cases"
    assert [text.get_text() for text in axes.texts] == ["0.750", "0.533", "0.000", "-"]
    assert sum(len(marks.get_offsets()) for marks in axes.collections) == 9


def test_labels_are_put_in_the_order_of_their_ids() -> None:
    assert list(HOW.labels) == ORGANS
    for labels in ({"spleen": 1, "liver": 3}, {}):
        with pytest.raises(ValueError, match="from 1 to their count"):
            SegmentationScoring(labels=labels)
