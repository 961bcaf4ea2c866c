from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Engine, Events

from shared.handlers import WarmUp


class Loss:
    warming_up = False


def run(
    warm_up: float, loss: object, start: int = 0, seen: list[bool] | None = None, saved: int | None = None
) -> torch.optim.Adam:
    """Four epochs of five steps, from one on; `seen`: what the loss found in each. The optimizer is one of Adam."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter], lr=0.1)

    def step(engine: Engine, batch: int) -> None:
        if seen is not None:
            seen.append(loss.warming_up)
        optimizer.zero_grad()
        parameter.grad = torch.ones(2)
        optimizer.step()

    engine, handler = Engine(step), WarmUp(loss, optimizer, warm_up)
    handler.load_state_dict({"steps": saved})
    handler.attach(engine)
    engine.load_state_dict({"epoch": start, "max_epochs": 4, "epoch_length": 5})
    engine.run(range(5), max_epochs=4)
    return optimizer


@pytest.mark.parametrize(("warm_up", "steps"), [(0.1, 2), (0.11, 3), (0, 0), (7, 7), (1, 1), (0.5, 10)])
def test_a_share_or_a_number_of_steps(warm_up: float, steps: int) -> None:
    seen: list[bool] = []
    run(warm_up, Loss(), seen=seen)
    assert seen == [True] * steps + [False] * (20 - steps)


def test_moments_are_emptied_once_where_the_penalty_begins() -> None:
    emptied, plain = run(12, Loss()), run(0, Loss())
    (state,), (other,) = emptied.state.values(), plain.state.values()
    assert (state["step"], other["step"]) == (8, 20)
    torch.testing.assert_close(state["exp_avg"], torch.full((2,), 1 - 0.9**8))


def test_a_resumed_run_goes_on_behind_its_warm_up() -> None:
    seen: list[bool] = []
    optimizer = run(0.4, Loss(), start=2, seen=seen)
    assert seen == [False] * 10
    assert next(iter(optimizer.state.values()))["step"] == 10


def test_a_longer_run_does_not_warm_up_again() -> None:
    """Two epochs have been done, with a warm-up of a tenth of theirs; there are four now."""
    seen: list[bool] = []
    optimizer = run(0.6, Loss(), start=2, seen=seen, saved=1)
    assert seen == [False] * 10
    assert next(iter(optimizer.state.values()))["step"] == 10
    handler = WarmUp(Loss(), optimizer)
    assert handler.state_dict() == {"steps": None}


def test_a_run_that_never_leaves_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    run(20, Loss())
    assert "Loss: the run has 20 steps and a warm-up of 20, which it never leaves" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run(0.5, Loss())
    assert "Loss: begins behind a warm-up of 10 of 20 steps" in caplog.text


def test_what_needs_none_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = run(100, object())
    assert next(iter(optimizer.state.values()))["step"] == 20
    assert not caplog.text


def test_a_trainer_that_warms_up_keeps_its_moments() -> None:
    seen = []
    engine = Engine(lambda e, batch: seen.append(e.warming_up))
    engine.warming_up = False
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))])
    WarmUp(object(), optimizer, 3).attach(engine)
    engine.add_event_handler(Events.STARTED, lambda: None)
    engine.run(range(5), max_epochs=1)
    assert seen == [True] * 3 + [False] * 2


def test_a_negative_warm_up() -> None:
    with pytest.raises(ValueError, match="warm_up must be at least 0, got -1"):
        WarmUp(Loss(), torch.optim.Adam([torch.nn.Parameter(torch.ones(1))]), -1)
