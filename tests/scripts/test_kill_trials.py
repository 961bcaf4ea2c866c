from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from commands import PYTHON
from experiments.faults import PATCHES, Trial
from experiments.kill_trials import KINDS, Kill, count_kills, draw_kills, outcome, run_kills

from shared.utils import write_csv, write_json


def test_kinds_come_in_turn_at_moments_of_their_own() -> None:
    kills = draw_kills(3 * len(KINDS), seed=1)
    assert Counter(kill.trial.kind for kill in kills) == Counter(kind for kind, *_ in KINDS * 3)
    assert len({kill.moments for kill in kills if not kill.in_a_save}) == sum(not kill.in_a_save for kill in kills)
    assert draw_kills(40, seed=1) == kills[:40] != draw_kills(40, seed=2)
    assert all(0 < moment < 1 for kill in kills if not kill.in_a_save for moment in kill.moments)


def leave(folder: Path, weight: float = 1.0, run: str = "a", score: float = 0.5) -> dict[str, str]:
    torch.save({"model": {"w": torch.tensor([weight])}, "run": run, "trainer": {"epoch": 2}}, folder / "last.pt")
    write_csv(folder / "scores.csv", [{"score": score}], ["score"])
    write_json(folder / "organs.json", {"image": str(folder / "a.nii.gz")})
    return outcome(folder)


def test_the_outcome_is_what_was_learnt_and_not_where_or_by_which_run(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    whole = leave(tmp_path / "here")
    assert set(whole) == {"last.pt", "scores.csv", "organs.json"}
    assert leave(tmp_path / "there", run="b") == whole
    assert leave(tmp_path / "there", weight=1.0000001)["last.pt"] != whole["last.pt"]
    assert leave(tmp_path / "there", score=0.6)["scores.csv"] != whole["scores.csv"]


def test_a_training_that_is_killed_comes_to_the_same(tmp_path: Path) -> None:
    """At a moment, and in the saves of its first epochs."""
    trial = Trial("training", f"train {PATCHES}", "--max_epochs 2", "", refused=False)
    kills = [Kill(trial, (0.6,), False), Kill(trial, (9,), True), Kill(trial, (-7,), True)]
    results = run_kills(kills, tmp_path, 1, PYTHON)
    assert [result["fault"] for result in results] == ["", "", ""]
    assert [result["killed"] for result in results][1:] == [1, 1]
    row = {"kind": "training", "tried": 3, "killed": sum(r["killed"] for r in results), "clear": 3, "identical": 3}
    assert count_kills(results) == [row, row | {"kind": "all"}]


@pytest.mark.parametrize(
    ("result", "clear", "identical"),
    [
        ({"clear": True, "fault": ""}, 1, 1),
        ({"clear": True, "fault": "not identical: last.pt"}, 1, 0),
        ({"clear": False, "fault": "status 1: KeyError"}, 0, 0),
    ],
)
def test_counts(result: dict[str, object], clear: int, identical: int) -> None:
    counted = count_kills([{"kind": "cache", "killed": 1, **result}])
    assert counted[0] == {"kind": "cache", "tried": 1, "killed": 1, "clear": clear, "identical": identical}
