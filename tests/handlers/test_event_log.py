from __future__ import annotations

from pathlib import Path

import pytest
from workflows import scalars

from shared.handlers import EventLog


def log_to(folder: Path, *steps: int) -> EventLog:
    log = EventLog(folder)
    for step in steps:
        log.add_scalar("loss", step / 4, step)
    return log


def test_a_run_that_goes_on_cuts_off_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    first = log_to(tmp_path, 1, 2)
    state = first.state_dict()
    assert list(state.values()) == [path.stat().st_size for path in tmp_path.iterdir()]
    log_to(tmp_path, 5).close()  # files of one process and second have a number
    first.add_scalar("loss", 9, 3)
    first.close()
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [1, 2, 3, 5]
    second = EventLog(tmp_path)
    second.load_state_dict(state)
    assert scalars(tmp_path)["loss"] == [(1, 0.25), (2, 0.5)]
    second.add_scalar("loss", 0.75, 3)
    assert second.state_dict().keys() > state.keys()
    assert scalars(tmp_path)["loss"] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    second.close()
    EventLog(tmp_path).load_state_dict({})
    assert list(tmp_path.iterdir()) == []


def test_the_first_rank_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    log = log_to(tmp_path / "log", 1)
    log.flush()
    log.close()
    assert log.state_dict() == {}
    assert not (tmp_path / "log").exists()
