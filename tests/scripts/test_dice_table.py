from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from experiments import organ_table as dice_table
from experiments.organ_table import MEAN, POOR_MEAN, Column, markdown, paired_bootstrap, picture, summarise

COLUMNS = {
    "plain": Column("UNETR", "plain", 0.777, "b", ()),
    "tcf": Column("UNETR", "tcf", 0.787, "b", ()),
    "cbs": Column("UNETR", "cbs", 0.792, "b", ()),
    "lambda_plain": Column("Lambda3D", "plain", 0.707, "b", ()),
    "lambda_cbs": Column("Lambda3D", "cbs", 0.725, "b", ()),
}
VOXELS = {"spleen": 30, "liver": 60, "pancreas": 10, "gallbladder": 0}


def run(
    column: str, seed: int, spleen: list[float | None], liver: list[float], pancreas: list[float]
) -> dict[str, Any]:
    organs = {"spleen": spleen, "liver": liver, "pancreas": pancreas, "gallbladder": [None, None]}
    dice = {organ: {"case a": a, "case b": b} for organ, (a, b) in organs.items()}
    if column == "cbs":  # no two runs need to list the cases in the same order
        dice = {organ: dict(reversed(scores.items())) for organ, scores in dice.items()}
    return {"column": column, "seed": seed, "firings": 2 * seed, "dice": dice}


def runs() -> list[dict[str, Any]]:
    return [
        run("cbs", 1, [0.9, None], [0.7, 0.9], [0.5, 0.7]),
        run("plain", 0, [0.9, None], [0.8, 0.9], [0.2, 0.4]),
        run("plain", 1, [0.8, None], [0.8, 0.9], [0.4, 0.6]),
        run("cbs", 0, [0.9, None], [0.8, 0.8], [0.3, 0.5]),
        run("tcf", 1, [0.8, None], [0.8, 0.9], [0.4, 0.6]),
    ]


def table(**more: Any) -> dict[str, Any]:
    return {"caption": "Made up.", "seeds": 2, **summarise(runs(), COLUMNS, VOXELS)} | more


def test_rows_are_means_over_cases_then_seeds() -> None:
    columns = table()["columns"]
    assert list(columns) == ["plain", "tcf", "cbs"], "a column without runs is left out"
    plain, cbs = columns["plain"]["rows"], columns["cbs"]["rows"]
    assert list(plain) == ["liver", "spleen", "pancreas", "gallbladder", MEAN, POOR_MEAN], "most voxels first"
    # seeds: 0.3 and 0.5
    expected = {"mean": 0.4, "std": 0.1414, "min": 0.3, "max": 0.5, "n": 2, "poor": True, "better_than_plain": False}
    assert plain["pancreas"] == expected
    assert plain["spleen"]["mean"] == 0.85, "the case without a spleen has no part"
    assert plain["gallbladder"] is None
    assert plain[MEAN]["mean"] == pytest.approx((0.85 + 0.85 + 0.4) / 3, abs=1e-4)
    assert plain[MEAN]["std"] == pytest.approx(
        np.std([(0.85 + 0.9 + 0.3) / 3, (0.85 + 0.8 + 0.5) / 3], ddof=1), abs=1e-4
    )
    assert columns["plain"]["poor_organs"] == columns["cbs"]["poor_organs"] == ["pancreas"]
    assert cbs[POOR_MEAN]["mean"] == cbs["pancreas"]["mean"] == 0.5
    assert [organ for organ, dice in cbs.items() if dice and dice["poor"]] == ["pancreas", MEAN, POOR_MEAN]
    assert columns["cbs"]["firings"] == {"0": 0, "1": 2}
    assert columns["cbs"]["reported_mean_dice"] == 0.792


def test_better_than_plain_is_judged_on_the_same_seeds() -> None:
    columns = table()["columns"]
    better = {
        name: [row for row, dice in c["rows"].items() if dice and dice["better_than_plain"]]
        for name, c in columns.items()
    }
    assert better["cbs"] == ["spleen", "pancreas", MEAN, POOR_MEAN]
    # TCF's only seed equals plain's, though its means (0.5 of the pancreas) are above plain's over both seeds (0.4).
    assert columns["tcf"]["rows"]["pancreas"]["mean"] == 0.5
    assert better["tcf"] == better["plain"] == []


def test_poor_organs_are_chosen_without_favour() -> None:
    """Neither column alone says which; the liver is poor in one of them, and in the mean of both it is not."""
    plain, cbs = (
        run("plain", 0, [0.9, None], [0.78, 0.78], [0.1, 0.1]),
        run("cbs", 0, [0.9, None], [0.9] * 2, [0.1] * 2),
    )
    for poor_liver, other in ((plain, cbs), (cbs | {"column": "plain"}, plain | {"column": "cbs"})):
        columns = summarise([poor_liver, other], COLUMNS, VOXELS)["columns"]
        assert columns["plain"]["poor_organs"] == columns["cbs"]["poor_organs"] == ["pancreas"]


def test_without_the_plain_column_nothing_is_better() -> None:
    found = summarise([run("lambda_cbs", 0, [0.1, None], [0.2, 0.3], [0.1, 0.1])], COLUMNS, VOXELS)
    column = found["columns"]["lambda_cbs"]
    assert column["rows"]["liver"]["better_than_plain"] is False
    assert column["minus_plain"] is None


def test_voxel_shares_stand_beside_the_papers() -> None:
    shares = table()["voxel_shares"]
    assert shares["liver"] == {"percent": 60.0, "paper": 55.2}
    assert shares["gallbladder"] == {"percent": 0.0, "paper": 0.9}


def slow_bootstrap(difference: np.ndarray, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw by draw, with lists; returns the mean of each organ and over organs, and the resampled ones."""
    seeds, cases, organs = difference.shape
    rng = np.random.default_rng(0)
    drawn = [rng.multinomial(n, [1 / n] * n, size=resamples) for n in (seeds, cases)]

    def means(picked_seeds: list[int], picked_cases: list[int]) -> list[float]:
        each = []
        for organ in range(organs):
            values = [difference[s, c, organ] for s in picked_seeds for c in picked_cases]
            values = [v for v in values if not np.isnan(v)]
            each.append(sum(values) / len(values) if values else np.nan)
        there = [v for v in each if not np.isnan(v)]
        return [*each, sum(there) / len(there) if there else np.nan]

    picks = [[[i for i, k in enumerate(counts) for _ in range(k)] for counts in each] for each in drawn]
    found = means(list(range(seeds)), list(range(cases)))
    return np.array(found), np.array([means(s, c) for s, c in zip(*picks, strict=True)])


def test_bootstrap_equals_its_literal_transcription() -> None:
    difference = np.random.default_rng(1).normal(0.1, 0.3, (3, 5, 4))
    difference[:, [0, 3], 1] = np.nan
    difference[:, :, 2] = np.nan
    difference[:, 1:, 3] = np.nan
    means, resampled = slow_bootstrap(difference, 200)
    result = paired_bootstrap(difference, resamples=200)
    assert [entry["cases"] for entry in result] == [5, 3, 0, 1, 5]
    assert result[2] == {"difference": None, "interval": None, "seeds": 3, "cases": 0}
    assert result[3]["interval"] is None, "one case says nothing about others"
    for i in (0, 1, 3, 4):
        assert result[i]["difference"] == pytest.approx(means[i], abs=5e-5)
    for i in (0, 1, 4):
        assert result[i]["interval"] == pytest.approx(np.nanpercentile(resampled[:, i], [2.5, 97.5]), abs=5e-5)


def test_interval_tells_a_steady_gain_from_one_of_a_single_seed() -> None:
    steady, lucky = np.full((3, 4, 1), 0.1), np.zeros((3, 4, 1))
    lucky[0] = 0.3
    (entry, _), (other, _) = paired_bootstrap(steady), paired_bootstrap(lucky)
    assert entry["difference"] == other["difference"] == 0.1
    assert entry["interval"] == [0.1, 0.1]
    assert other["interval"] == [0.0, 0.3]
    assert paired_bootstrap(steady[:1])[0]["interval"] is None


def test_differences_are_paired_by_seed_and_case() -> None:
    entries = table()["columns"]["cbs"]["minus_plain"]
    assert entries["liver"] == {"difference": -0.05, "interval": [-0.1, 0.0], "seeds": 2, "cases": 2}
    assert entries["pancreas"]["difference"] == entries[POOR_MEAN]["difference"] == 0.1
    assert entries["pancreas"]["interval"] == [0.1, 0.1]
    assert entries["gallbladder"]["difference"] is None
    assert entries[MEAN]["difference"] == pytest.approx((-0.05 + 0.05 + 0.1) / 3, abs=5e-5)
    assert table()["columns"]["tcf"]["minus_plain"] is None, "the paper's claim is about CBS"


def test_markdown() -> None:
    lines = markdown(table()).splitlines()
    assert lines[0] == "Made up."
    assert lines[2] == "| organ | voxels % | paper's % | UNETR | UNETR + TCF (n = 1) | UNETR + CBS |"
    rows = {line.split(" | ")[0].strip("| "): line for line in lines[4:12]}
    assert rows["pancreas"] == "| pancreas | 10.0 | 2.8 | 0.400 ± 0.141 ★ | 0.500 ★ | **0.500 ± 0.141 ★** |"
    assert rows["liver"] == "| liver | 60.0 | 55.2 | 0.850 ± 0.000 | 0.850 | 0.800 ± 0.000 |"
    assert rows["gallbladder"].endswith("| – | – | – |")
    assert "★" not in rows[MEAN]
    assert rows["firings, seed by seed"].endswith("| 0, 2 | 2 | 0, 2 |")
    assert rows["mean over organs, as reported"].endswith("| 0.777 | 0.787 | 0.792 |")
    assert "| organ | UNETR (n = 2) |" in lines
    assert "| liver | -0.050 [-0.100, +0.000] |" in lines
    assert "| gallbladder | – |" in lines


def test_picture_shows_every_cell() -> None:
    heat, dots = picture(table()).axes
    texts = {(text.get_position(), text.get_text(), text.get_weight()) for text in heat.texts}
    assert len(heat.texts) == 6 * 3
    assert ((2, 2), "0.500 ± 0.141 ★", "bold") in texts
    assert ((0, 3), "–", "normal") in texts
    assert [label.get_text() for label in dots.get_legend().get_texts()] == ["UNETR"]
    one = [r for r in runs() if (r["column"], r["seed"]) == ("plain", 0)]
    assert (
        dice_table.picture({"caption": "", "seeds": 1, **summarise(one, COLUMNS, VOXELS)}).axes[1].get_legend() is None
    )
