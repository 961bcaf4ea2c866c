from __future__ import annotations

import copy
import inspect
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import two_ranks
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.metrics import Average, Metric
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointLoader, CheckpointSaver, ValidationHandler, from_engine
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss, GeneralizedDiceFocalLoss, GeneralizedDiceLoss
from monai.transforms import Compose
from torch import Tensor, nn

from shared.handlers import ClassBoostStrategy, PlateauClassFreezing, StaticClassWeights, ThresholdClassFreezing
from shared.losses import ClassWeightedLoss, class_weight_buffers
from shared.metrics import ClassDice, MeanClassDice
from shared.utils import DataError

RULES = [ThresholdClassFreezing, PlateauClassFreezing, ClassBoostStrategy]
NAN = math.nan


# --- the rules against a literal transcription -----------------------------------------------------------------------


def literal(
    rule: type, history: list[list[float]], trigger: str, delta: int, eps: float, zeta: float, most: float = 0
) -> tuple[list[list[float]], list[int]]:
    """Weights after every evaluation and the evaluations that fired, straight from the rules' wording.

    With a limit `most` boosts are multiplied.
    """
    n = len(history[0])
    score = {(i, j): history[j - 1][i] for j in range(1, len(history) + 1) for i in range(n)}
    w, frozen, u, weights, firings = [1.0] * n, set(), 0, [], []
    for j in range(1, len(history) + 1):
        if rule is ThresholdClassFreezing:
            before = list(w)
            for i in range(n):
                if not math.isnan(score[i, j]):
                    w[i] = 0.1 if score[i, j] > 0.9 else 1.0
            if w != before:
                firings.append(j)
            weights.append(list(w))
            continue
        best = None
        for i in range(n):
            eligible = i not in frozen and not math.isnan(score[i, j])
            if eligible and (best is None or score[i, j] > score[best, j]):
                best = i

        def values(times: Any, i: int | None = best) -> list[float]:
            return [score[i, t] for t in times if t >= 1 and not math.isnan(score[i, t])]

        fires = False
        if best is not None and trigger == "decline":
            fires = max(values(range(u, j + 1))) - max(values(range(max(j - delta, u), j + 1))) > eps
        elif best is not None:
            recent, before = values(range(max(j - delta + 1, u), j + 1)), values(range(u, j - delta + 1))
            fires = bool(before) and max(recent) - max(before) <= eps
        if fires:
            w[best] = 0.1
            frozen.add(best)
            u = j
            firings.append(j)
            for k in range(n) if rule is ClassBoostStrategy else ():
                if k not in frozen and not math.isnan(score[k, j]):
                    total = score[k, j] + zeta
                    boost = 2.0 if total == 0 else min(1 / total, 2.0)
                    w[k] = min(w[k] * boost, most) if most else boost
        weights.append(list(w))
    return weights, firings


def random_history(rng: np.random.Generator) -> list[list[float]]:
    """Scores with many ties (one decimal), with or without noise above the threshold, and absences."""
    n, length = rng.integers(1, 5), rng.integers(1, 16)
    scores = rng.random((length, n))
    if rng.random() < 0.5:
        scores = np.sort(scores, axis=0)
    if rng.random() < 0.7:
        scores = scores.round(1)
    scores[rng.random(scores.shape) < rng.choice([0, 0.1, 0.6])] = np.nan
    return scores.tolist()


@pytest.mark.parametrize("trigger", ["decline", "stagnation"])
@pytest.mark.parametrize(("rule", "most"), [*((rule, 0) for rule in RULES), (ClassBoostStrategy, 5.0)])
def test_follows_the_wording_of_the_rules(rule: type, most: float, trigger: str) -> None:
    rng = np.random.default_rng(0)
    fired, all_frozen = 0, 0
    for _ in range(1500):
        history = random_history(rng)
        delta = int(rng.integers(1 if trigger == "stagnation" else 0, 5))
        eps, zeta = float(rng.choice([0, 1e-4, 0.1, 0.3])), float(rng.choice([0, 1e-3, 0.1]))
        options: dict[str, Any] = {}
        if rule is not ThresholdClassFreezing:
            options = {"trigger": trigger, "window": delta, "tolerance": eps}
        if rule is ClassBoostStrategy:
            options["zeta"] = zeta
        if most:
            options |= {"cumulative": True, "most": most}
        handler = rule(num_classes=len(history[0]), **options)
        weights = torch.stack([handler.update(scores) for scores in history])
        expected, firings = literal(rule, history, trigger, delta, eps, zeta, most)
        torch.testing.assert_close(weights, torch.tensor(expected))
        assert handler.firings == len(firings)
        assert handler.last_firing == (firings[-1] if firings else 0)
        assert [row["fired"] for row in handler.rows()[:: len(history[0])]] == [
            j in firings for j in range(1, len(history) + 1)
        ]
        fired += handler.firings
        all_frozen += bool((weights[-1] == weights.new_tensor(0.1)).all())
    assert fired > 400  # the comparison is of rules that act
    assert all_frozen > 20


def test_threshold_freezing_thaws_and_is_strict() -> None:
    rule = ThresholdClassFreezing(num_classes=2)
    assert rule.update([0.9, 0.91]).tolist() == pytest.approx([1, 0.1])
    assert rule.update([NAN, NAN]).tolist() == pytest.approx([1, 0.1])
    assert rule.update([0.95, 0.2]).tolist() == pytest.approx([0.1, 1])
    assert rule.firings == 2


def test_decline_needs_a_fall_and_stagnation_only_a_standstill() -> None:
    curve = [0.1, 0.3, 0.5, 0.5, 0.5, 0.5, 0.5]
    decline, stagnation = (PlateauClassFreezing(num_classes=1, trigger=t) for t in ("decline", "stagnation"))
    for score in curve:
        decline.update([score])
        stagnation.update([score])
    assert decline.firings == 0
    assert stagnation.last_firing == 6  # evaluations 4, 5, 6 bring nothing beyond evaluation 3


def test_boost_by_hand() -> None:
    rule = ClassBoostStrategy(num_classes=4, window=0, zeta=0.001)
    rule.update([0.9, 0.7, 0.2, NAN])
    weights = rule.update([0.8, 0.624, 0.0, NAN])
    assert weights.tolist() == pytest.approx([0.1, 1 / 0.625, 2, 1])
    assert rule.update([0.9, 0.9, 0.9, 0.5]).tolist() == weights.tolist()  # stays between firings


def test_cumulative_boosts_by_hand(tmp_path: Path) -> None:
    """A class that stays at 0 gets ahead of one that is weak once; a resumed rule goes on multiplying."""
    options = {"num_classes": 4, "window": 0, "zeta": 0.0, "cumulative": True, "most": 5.0}
    rule = ClassBoostStrategy(**options)
    for scores in ([0.9, 0.8, 0.4, 0.0], [0.8, 0.8, 0.5, 0.0]):
        rule.update(scores)
    assert rule.weights.tolist() == pytest.approx([0.1, 1.25, 2, 2])
    torch.save(rule.state_dict(), tmp_path / "rule.pt")
    rule = ClassBoostStrategy(**options)
    rule.load_state_dict(torch.load(tmp_path / "rule.pt", weights_only=True))
    rule.update([0.9, 0.7, 0.625, 0.0])
    assert rule.weights.tolist() == pytest.approx([0.1, 0.1, 3.2, 4])
    rule.update([0.9, 0.7, 0.5, 0.0])
    assert rule.weights.tolist() == pytest.approx([0.1, 0.1, 0.1, 5])
    assert ClassBoostStrategy(num_classes=1, cumulative="false").cumulative is False  # as a command line gives it


def test_the_last_scores_are_told() -> None:
    rule = ThresholdClassFreezing(num_classes=2)
    assert rule.scores.isnan().tolist() == [True, True]
    rule.update([0.25, NAN])
    assert rule.scores.nan_to_num(-1).tolist() == [0.25, -1]
    assert rule.scores.dtype == torch.float64


@pytest.mark.parametrize("seed", range(3))
def test_invariants_of_freezing_and_boosting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    freezing = PlateauClassFreezing(num_classes=6, window=1)
    boosting = ClassBoostStrategy(num_classes=6, window=1)
    frozen = torch.zeros(6, dtype=torch.bool)
    for scores in rng.random((60, 6)):
        fired = freezing.firings
        now = freezing.update(scores) < 1
        assert (frozen & ~now).sum() == 0
        assert (now & ~frozen).sum() == freezing.firings - fired <= 1
        frozen = now
        weights = boosting.update(scores)
        assert (weights >= 0.1 - 1e-7).all()
        assert (weights <= 2).all()
        torch.testing.assert_close(weights == 0.1, frozen)  # the same freezing
    assert frozen.all()
    assert boosting.firings == 6


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.5, 0.5], r"shape \(2,\), expected one score for each of the 3 classes \(liver, spleen, aorta\)"),
        (0.5, r"shape \(\)"),
        ([0.5, 1.5, 0.1], r"score of spleen is 1.5, expected a value in \[0, 1\]"),
        ([0.5, 0.1, -0.1], "score of aorta is -0.1"),
        ([0.5, 0.1, math.inf], "score of aorta is inf"),
        ({"liver": 0.5}, "is a dict, expected 3 numbers"),
    ],
)
def test_refuses_scores(rule: type, scores: Any, message: str) -> None:
    handler = rule(class_names=["liver", "spleen", "aorta"])
    with pytest.raises(DataError, match=message):
        handler.update(scores)
    assert handler.evaluations == 0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (DiceLoss(weight=[1, 1]), "DiceLoss.class_weight holds whole numbers"),
        (DiceLoss(weight=1.0), "DiceLoss.class_weight holds a single weight for 2 foreground classes"),
        (DiceLoss(), "DiceLoss holds no class weights.*ClassWeightedLoss"),
        (GeneralizedDiceLoss(), "GeneralizedDiceLoss holds no class weights"),
        (nn.CrossEntropyLoss(torch.ones(4)), r"weights of shape \(4,\) for 2 foreground classes"),
        (DiceLoss(weight=[1.0, 0.5]), r"starts from \[1.0, 0.5\]"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(2)), "holds no class weights"),
    ],
)
@pytest.mark.parametrize("rule", RULES)
def test_refuses_losses(rule: type, loss: nn.Module, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rule(loss, num_classes=2)


def test_refuses_a_loss_that_lost_its_weights_before_attach() -> None:
    loss = DiceLoss(weight=[1.0, 1.0])
    rule = ThresholdClassFreezing(loss, num_classes=2)
    loss.class_weight = None
    with pytest.raises(DataError, match="holds no class weights"):
        rule.attach(Engine(lambda engine, batch: None))


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (ThresholdClassFreezing, {}, "Give num_classes"),
        (ThresholdClassFreezing, {"num_classes": 0}, "Give num_classes"),
        (ThresholdClassFreezing, {"num_classes": 3, "class_names": ["a", "b"]}, "2 names .a, b. for 3 foreground"),
        (ThresholdClassFreezing, {"num_classes": 2, "threshold": 90}, "threshold must be in"),
        (ThresholdClassFreezing, {"num_classes": 2, "frozen_weight": 1.0}, "frozen_weight must be in"),
        (PlateauClassFreezing, {"num_classes": 2, "trigger": "patience"}, 'got "patience"'),
        (PlateauClassFreezing, {"num_classes": 2, "window": -1}, "at least 0, got -1"),
        (PlateauClassFreezing, {"num_classes": 2, "window": 1.5}, "got 1.5"),
        (PlateauClassFreezing, {"num_classes": 2, "window": 0, "trigger": "stagnation"}, "at least 1, got 0"),
        (PlateauClassFreezing, {"num_classes": 2, "tolerance": -0.1}, "tolerance must not be negative"),
        (ClassBoostStrategy, {"num_classes": 2, "zeta": -1}, "zeta must not be negative"),
        (ClassBoostStrategy, {"num_classes": 2, "max_weight": 0.5}, "max_weight at least 1"),
        (ClassBoostStrategy, {"num_classes": 2, "most": 1.5}, "most must be at least max_weight, 2.0, got 1.5"),
        (ClassBoostStrategy, {"num_classes": 2, "cumulative": "maybe"}, "cumulative is 'maybe', expected true"),
    ],
)
def test_refuses_options(rule: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(**options)


@pytest.mark.parametrize("rule", [*RULES, StaticClassWeights])
def test_options_are_named(rule: type) -> None:
    """As the contract has them; one that is misspelt, or given by position, is refused before anything runs."""
    loss, *options = inspect.signature(rule).parameters.values()
    own = {
        ThresholdClassFreezing: {"threshold", "frozen_weight"},
        PlateauClassFreezing: {"trigger", "window", "tolerance", "frozen_weight"},
        ClassBoostStrategy: {
            "trigger",
            "window",
            "tolerance",
            "zeta",
            "frozen_weight",
            "max_weight",
            "cumulative",
            "most",
        },
        StaticClassWeights: {"weights"},
    }
    assert (loss.name, loss.default) == ("loss", None)
    assert {option.kind for option in options} == {inspect.Parameter.KEYWORD_ONLY}
    assert {option.name for option in options} == {"metric_name", "num_classes", "class_names", *own[rule]}
    with pytest.raises(TypeError, match="unexpected keyword argument 'windw'"):
        rule(num_classes=2, windw=1)
    with pytest.raises(TypeError, match="positional argument"):
        rule(None, "val_class_dice", num_classes=2)


# --- writing into losses ---------------------------------------------------------------------------------------------

# Made from the weights of background and three classes, called with logits (B, 4, ...) and label maps (B, 1, ...).
OPTIONS = {"to_onehot_y": True, "softmax": True}
LOSSES: dict[str, Callable[[Tensor], nn.Module]] = {
    "dice": lambda w: DiceLoss(include_background=False, **OPTIONS, weight=w[1:].tolist()),
    "dice with background": lambda w: DiceLoss(**OPTIONS, weight=w.tolist()),
    "dice + ce": lambda w: DiceCELoss(include_background=False, **OPTIONS, weight=w),
    "dice + ce with background": lambda w: DiceCELoss(**OPTIONS, weight=w),
    "dice + focal": lambda w: DiceFocalLoss(include_background=False, **OPTIONS, weight=w[1:]),
    "focal": lambda w: FocalLoss(include_background=False, to_onehot_y=True, weight=w[1:].tolist()),
    "focal with background": lambda w: FocalLoss(to_onehot_y=True, use_softmax=True, weight=w.tolist()),
    "generalised dice + focal": lambda w: GeneralizedDiceFocalLoss(
        include_background=False, **OPTIONS, weight=w[1:].tolist()
    ),
    "ce": lambda w: nn.CrossEntropyLoss(weight=w),
    "wrapped": lambda w: ClassWeightedLoss(
        DiceLoss(include_background=False, **OPTIONS, reduction="none"), num_classes=3, weight=w[1:].tolist()
    ),
}
BUFFERS = {
    "dice + ce": {"dice.class_weight": 3, "cross_entropy.weight": 4},
    "dice + ce with background": {"dice.class_weight": 4, "cross_entropy.weight": 4},
    "dice + focal": {"dice.class_weight": 3, "focal.class_weight": 3},
    "generalised dice + focal": {"focal.class_weight": 3},
}
MOVED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as it was": lambda loss: loss,
    "copied": copy.deepcopy,
    "double": lambda loss: loss.double(),
    "other device and back": lambda loss: loss.to("meta").to_empty(device="cpu"),
}


@pytest.mark.parametrize("moved", MOVED)
@pytest.mark.parametrize("name", LOSSES)
def test_every_buffer_is_written(name: str, moved: str) -> None:
    rule = ThresholdClassFreezing(LOSSES[name](torch.ones(4)), num_classes=3)
    rule.loss = MOVED[moved](rule.loss)
    buffers = class_weight_buffers(rule.loss)
    for buffer in buffers.values():
        buffer.fill_(1)
    rule.update([0.95, 0.5, 0.99])
    assert buffers
    if name in BUFFERS:
        assert {key: len(buffer) for key, buffer in buffers.items()} == BUFFERS[name]
    for buffer in buffers.values():
        assert buffer.tolist() == pytest.approx([1, 0.1, 1, 0.1][-len(buffer) :])


def gradient(loss: nn.Module) -> Tensor:
    """Of the loss with regard to the logits, on a batch that is always the same."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 6, 6, generator=generator).requires_grad_()
    loss(logits, label_map()[:, 0] if isinstance(loss, nn.CrossEntropyLoss) else label_map()).backward()
    return logits.grad


def label_map() -> Tensor:
    return torch.randint(0, 4, (2, 1, 6, 6, 6), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_a_loss_made_with_the_weights(name: str) -> None:
    loss = LOSSES[name](torch.ones(4))
    unweighted = gradient(loss)
    rule = ClassBoostStrategy(loss, num_classes=3, window=0)
    rule.update([0.9, 0.6, 0.3])
    rule.update([0.8, 0.6, 0.3])
    assert rule.weights.tolist() == pytest.approx([0.1, 1 / 0.601, 2])
    torch.testing.assert_close(gradient(loss), gradient(LOSSES[name](torch.cat([torch.ones(1), rule.weights]))))
    assert (gradient(loss) - unweighted).norm() > 0.1 * unweighted.norm()


@pytest.mark.parametrize("name", [name for name in LOSSES if "ce" not in name.split()])
def test_gradient_is_linear_in_the_weights(name: str) -> None:
    """Each class's own gradient (that under weights of 0 for the others) counts as its weight says.

    The generalised Dice loss takes no weights: its gradient is there whatever they are.
    """
    fixed = gradient(LOSSES[name](torch.zeros(4)))
    own = [gradient(LOSSES[name](one)) - fixed for one in torch.eye(4)]
    assert (fixed.norm() > 0) == name.startswith("generalised")
    assert all(part.norm() > 0 for part in own[1:])
    weights = torch.tensor([1.0, 0.1, 1.5, 2.0])
    expected = fixed + sum(weight * part for weight, part in zip(weights, own, strict=True))
    torch.testing.assert_close(gradient(LOSSES[name](weights)), expected, atol=1e-7, rtol=1e-4)


def test_gradient_of_cross_entropy_follows_the_ratios_alone() -> None:
    """At the voxels of class k it is proportional to `w_k`; scaling all weights changes nothing."""
    weights, label = torch.tensor([1.0, 0.1, 1.5, 2.0]), label_map()
    plain, weighted = gradient(LOSSES["ce"](torch.ones(4))), gradient(LOSSES["ce"](weights))
    torch.testing.assert_close(gradient(LOSSES["ce"](3 * weights)), weighted)
    ratio = (weighted / plain).mean(dim=1, keepdim=True)
    per_class = torch.stack([ratio[label == k].mean() for k in range(4)])
    torch.testing.assert_close(per_class / per_class[0], weights)


# --- engines ---------------------------------------------------------------------------------------------------------


class LastOutput(Metric):
    """The last output of the epoch."""

    def reset(self) -> None:
        self.value: Any = None

    def update(self, output: Any) -> None:
        self.value = output

    def compute(self) -> Any:
        return self.value


def curve(epoch: int) -> list[float]:
    """Two classes: the first rises, then falls; the second rises slowly."""
    return [0.9 - 0.1 * abs(epoch - 4), 0.05 * epoch]


def toy_engine(scores: Callable[[int], Any] = curve) -> Engine:
    return Engine(lambda engine, batch: scores(engine.state.epoch))


@pytest.mark.parametrize("rule_first", [True, False])
def test_reads_this_epochs_metric_in_whatever_order_it_was_attached(rule_first: bool) -> None:
    engine, rule = toy_engine(), PlateauClassFreezing(num_classes=2, metric_name="dice", window=1)
    seen = []
    for part in ("rule", "metric") if rule_first else ("metric", "rule"):
        if part == "rule":
            rule.attach(engine)
        else:
            LastOutput().attach(engine, "dice")
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen.append(e.state.class_weights.tolist()))
    engine.run([0, 0], max_epochs=8)
    expected = PlateauClassFreezing(num_classes=2, window=1)
    weights = [expected.update(curve(epoch)).tolist() for epoch in range(1, 9)]
    assert seen == weights  # a handler that follows sees the weights of this very epoch
    assert rule.firings == expected.firings > 0
    assert rule.evaluations == 8


def test_state_holds_weights_from_attach_on() -> None:
    engine, rule = toy_engine(), ThresholdClassFreezing(num_classes=2, metric_name="dice")
    rule.attach(engine)
    assert engine.state.class_weights.tolist() == [1, 1]
    with pytest.raises(RuntimeError, match="attached to an engine already"):
        rule.attach(engine)


def test_names_the_metrics_there_are() -> None:
    engine, rule = toy_engine(), ThresholdClassFreezing(num_classes=2, metric_name="dice")
    rule.attach(engine)
    Average(lambda output: output[0]).attach(engine, "liver_dice")
    with pytest.raises(DataError, match=r'reads the metric "dice", but the engine\'s metrics are: liver_dice'):
        engine.run([0], max_epochs=1)


def test_refuses_a_metric_that_is_one_number() -> None:
    engine, rule = toy_engine(), ThresholdClassFreezing(num_classes=2, metric_name="dice")
    rule.attach(engine)
    Average(lambda output: output[0]).attach(engine, "dice")
    with pytest.raises(DataError, match=r'The metric "dice" has the shape \(\), expected one score for each'):
        engine.run([0], max_epochs=1)


def test_log_names_class_and_weights(caplog: Any) -> None:
    rule = ClassBoostStrategy(class_names=["liver", "spleen"], window=0)
    with caplog.at_level(logging.INFO, logger="shared"):
        for scores in ([0.9, NAN], [0.8, 0.5], [0.8, 0.6]):
            rule.update(scores)
    assert [record.getMessage() for record in caplog.records] == [
        "ClassBoostStrategy fired in evaluation 2: froze liver (score 0.800). Weights: liver 0.100, spleen 1.996."
    ]
    assert rule.rows(since=3) == rule.rows()[4:]
    assert rule.rows()[1] == {"evaluation": 1, "class": "spleen", "score": None, "weight": 1.0, "fired": 0}
    assert rule.rows()[2] == {
        "evaluation": 2,
        "class": "liver",
        "score": 0.8,
        "weight": pytest.approx(0.1),
        "fired": 1,
    }


def test_a_run_without_firing_warns(caplog: Any) -> None:
    engine = toy_engine(lambda epoch: [0.1 * epoch, 0.1])
    rule = PlateauClassFreezing(num_classes=2, metric_name="dice")
    LastOutput().attach(engine, "dice")
    rule.attach(engine)
    engine.run([0], max_epochs=5)
    rule.report()  # said once
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "never fired in 5 evaluations" in warnings[0]
    assert 'trigger="decline", window=3, tolerance=0.0001' in warnings[0]


def test_a_run_with_firings_says_how_many(caplog: Any) -> None:
    rule = ThresholdClassFreezing(num_classes=1)
    rule.update([0.95])
    with caplog.at_level(logging.INFO, logger="shared"):
        rule.report()
    assert [record.getMessage() for record in caplog.records] == ["ThresholdClassFreezing fired in 1 of 1 evaluations."]


# --- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cut", [0, 1, 4, 9])
def test_a_resumed_rule_goes_on_as_if_never_interrupted(rule: type, cut: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    history = rng.random((20, 4))
    history[rng.random(history.shape) < 0.1] = np.nan

    def make() -> Any:
        return rule(DiceLoss(weight=[1.0] * 4), num_classes=4, **({} if rule is RULES[0] else {"window": 1}))

    whole, first, second = make(), make(), make()
    for scores in history:
        whole.update(scores)
    for scores in history[:cut]:
        first.update(scores)
    torch.save(first.state_dict(), tmp_path / "rule.pt")
    second.load_state_dict(torch.load(tmp_path / "rule.pt", weights_only=True))
    assert torch.equal(second.loss.class_weight, first.weights)
    for scores in history[cut:]:
        second.update(scores)
    assert whole.firings > 1
    assert second.rows() == whole.rows()
    assert (second.firings, second.last_firing) == (whole.firings, whole.last_firing)
    assert torch.equal(second.loss.class_weight, whole.loss.class_weight)


def test_state_of_another_rule_is_refused() -> None:
    state = ThresholdClassFreezing(num_classes=4).state_dict()
    with pytest.raises(DataError, match="ThresholdClassFreezing with 4 classes, expected PlateauClassFreezing with 4"):
        PlateauClassFreezing(num_classes=4).load_state_dict(state)
    with pytest.raises(DataError, match=r"with 4 classes, expected ThresholdClassFreezing with 2 \(liver, spleen\)"):
        ThresholdClassFreezing(class_names=["liver", "spleen"]).load_state_dict(state)


def test_state_is_a_copy() -> None:
    rule = ThresholdClassFreezing(num_classes=1)
    state = rule.state_dict()
    rule.weights.fill_(7)
    state["weights"].fill_(7)
    assert rule.weights.tolist() == [1]
    Checkpoint.load_objects({"rule": rule}, {"rule": rule.state_dict()})


# --- MONAI's engines -------------------------------------------------------------------------------------------------

SIZE = 8


def cases() -> list[dict[str, Tensor]]:
    """Two images of two intensities; class 1 is bright in both, class 2 is darker and only in the second."""
    items = []
    for index in range(2):
        label = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.uint8)
        label[..., :4, :4] = 1
        if index:
            label[..., 5:, 5:] = 2
        items.append({"image": label.float(), "label": label})
    return items


class Lookup(nn.Module):
    """Logits of three classes for intensities 0, 1 and 2: learns a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor([[1.0, 0, 0], [0.2, 0, 0], [1.0, 0, 0]]))

    def forward(self, image: Tensor) -> Tensor:
        return self.table[image[:, 0].long()].movedim(-1, 1)


def monai_engines(rule_on: str, rule: Any, loss: nn.Module, epochs: int, handlers: list[Any] | None = None) -> Any:
    network = Lookup()

    def metrics(prefix: str) -> dict[str, Any]:
        dice = ClassDice(num_classes=2, output_transform=from_engine(["pred", "label"]))
        key = "key_val_metric" if prefix == "val" else "key_train_metric"
        return {key: {f"{prefix}_mean_dice": MeanClassDice(dice)}, "additional_metrics": {"class_dice": dice}}

    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=cases(),
        network=network,
        postprocessing=Compose([lambda data: {**data, "pred": data["pred"].argmax(0, keepdim=True)}]),
        val_handlers=[rule] if rule_on == "evaluator" else [],
        **metrics("val"),
    )
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=cases(),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=loss,
        train_handlers=[
            ValidationHandler(interval=1, validator=evaluator),
            *([rule] if rule_on == "trainer" else []),
            *(handlers or []),
        ],
        **metrics("train"),
    )
    return trainer, evaluator, network


def make_rule() -> tuple[ThresholdClassFreezing, nn.Module]:
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, weight=torch.ones(3))
    return ThresholdClassFreezing(loss, metric_name="class_dice", class_names=["a", "b"]), loss


@pytest.mark.parametrize("rule_on", ["evaluator", "trainer"])
def test_in_monais_engines(rule_on: str, caplog: Any) -> None:
    rule, loss = make_rule()
    trainer, evaluator, _ = monai_engines(rule_on, rule, loss, epochs=12)
    with caplog.at_level(logging.INFO, logger="shared"):
        trainer.run()
    engine = evaluator if rule_on == "evaluator" else trainer
    assert rule.evaluations == 12
    assert rule.firings >= 2  # each class is frozen once learnt, one after the other
    assert rule.weights.tolist() == pytest.approx([0.1, 0.1])
    assert torch.equal(engine.state.class_weights, rule.weights)
    assert loss.dice.class_weight.tolist() == pytest.approx([0.1, 0.1])
    assert loss.cross_entropy.weight.tolist() == pytest.approx([1, 0.1, 0.1])
    last = [row["score"] for row in rule.rows()[-2:]]
    assert last == pytest.approx(engine.state.metrics["class_dice"].tolist())
    assert "froze" in caplog.text
    assert ("of 12 evaluations" in caplog.text) == (rule_on == "trainer")


def test_monai_engine_without_the_metric_is_refused_at_attach() -> None:
    rule, loss = make_rule()
    rule.metric_name = "dice_per_class"
    with pytest.raises(DataError, match=r'"dice_per_class", but the engine.s metrics are: val_mean_dice, class_dice'):
        monai_engines("evaluator", rule, loss, epochs=1)


@pytest.mark.parametrize("rule_on", ["evaluator", "trainer"])
def test_resumes_from_monais_checkpoint(rule_on: str, tmp_path: Path) -> None:
    def run(epochs: int, load: str | None = None, save: str | None = None) -> tuple[Any, nn.Module, nn.Module]:
        rule, loss = make_rule()
        trainer, _, network = monai_engines(rule_on, rule, loss, epochs)
        state = {"trainer": trainer, "model": network, "rule": rule}
        if save:
            CheckpointSaver(str(tmp_path), state, save_final=True, final_filename=save).attach(trainer)
        if load:
            CheckpointLoader(load, state).attach(trainer)
        trainer.run()
        return rule, loss, network

    whole, loss, network = run(epochs=8)
    run(epochs=2, save="half.pt")
    resumed, resumed_loss, resumed_network = run(epochs=8, load=str(tmp_path / "half.pt"))
    fired = [row["evaluation"] for row in whole.rows() if row["fired"]]
    assert min(fired) <= 2 < max(fired)  # before and after the cut
    assert resumed.rows() == whole.rows()
    assert torch.equal(resumed_network.table, network.table)
    assert torch.equal(resumed_loss.dice.class_weight, loss.dice.class_weight)


# --- two ranks -------------------------------------------------------------------------------------------------------


def update_on_a_rank(rank: int, folder: str) -> None:
    loss = DiceLoss(weight=[1.0] * 3)
    rule = ClassBoostStrategy(loss, num_classes=3, window=0)
    local = torch.Generator().manual_seed(rank)
    for _ in range(6):
        rule.update(torch.rand(3, generator=local))
    # The cases are spread over the ranks, in unequal numbers: class 1 is on rank 0 alone, class 3 nowhere.
    dice = ClassDice(num_classes=3)
    label = torch.zeros(1, 1, 4, 4)
    label[..., :2, :] = 1 if rank == 0 else 2
    for _ in range(1 + rank):
        dice.update([torch.where(label > 0, label, 2), label])
    saved = {"weights": loss.class_weight, "firings": rule.firings, "dice": dice.compute(), "rows": rule.rows()}
    torch.save(saved, Path(folder) / f"{rank}.pt")


@pytest.mark.slow
def test_two_ranks_hold_the_same_weights(tmp_path: Path) -> None:
    two_ranks(__file__, "toy.update_on_a_rank(rank, folder)", tmp_path)
    zero, one = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = ClassBoostStrategy(num_classes=3, window=0)
    local = torch.Generator().manual_seed(0)
    for _ in range(6):
        alone.update(torch.rand(3, generator=local))
    assert alone.firings > 0
    for saved in (zero, one):
        assert torch.equal(saved["weights"], alone.weights)
        assert saved["rows"] == alone.rows()
        torch.testing.assert_close(saved["dice"], torch.tensor([1, 2 * 8 / (8 + 16), NAN]), equal_nan=True)


def test_static_weights_stay() -> None:
    loss = DiceLoss(include_background=False, weight=[1.0, 1.0, 1.0])
    rule = StaticClassWeights(loss, class_names=["a", "b", "c"], weights=[0.5, 0.5, 2.0])
    assert loss.class_weight.tolist() == [0.5, 0.5, 2.0]
    for scores in ([0.9, 0.5, 0.1], [0.1, 0.2, 0.95]):
        assert rule.update(scores).tolist() == [0.5, 0.5, 2.0]
    assert rule.firings == 0
    assert [row["score"] for row in rule.rows()] == [0.9, 0.5, 0.1, 0.1, 0.2, 0.95]
    assert StaticClassWeights(num_classes=2).update([1.0, 0.0]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, 2.0, 0.0], [1.0, 2.0, math.nan]])
def test_static_weights_are_checked(weights: list[float]) -> None:
    with pytest.raises(DataError, match="expected 3 numbers above 0"):
        StaticClassWeights(num_classes=3, weights=weights)


def test_static_weights_do_not_warn_that_nothing_fired(caplog: pytest.LogCaptureFixture) -> None:
    rule = StaticClassWeights(num_classes=2)
    rule.update([0.1, 0.2])
    rule.report()
    assert not caplog.records
