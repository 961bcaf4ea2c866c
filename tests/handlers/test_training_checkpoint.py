from __future__ import annotations

import copy
import itertools
import json
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, TensorBoardStatsHandler, ValidationHandler, from_engine
from monai.losses import DiceLoss
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import RandGaussianNoised
from torch import nn
from workflows import scalars

from shared.data import SeededDataset, ShuffledSampler
from shared.handlers import (
    ClassBoostStrategy,
    EventLog,
    SeedEpochs,
    TrainingCheckpoint,
    TrainingReport,
    training_checkpoint,
)
from shared.handlers.training_checkpoint import load_optimizer
from shared.metrics import ClassDice, MeanClassDice
from shared.utils import DataError, DiskFullError

NAMES = ["left", "right"]


class StopAfter:
    """Ends a run as a signal does, in the middle of an epoch, or with an error."""

    def __init__(self, iteration: int, error: BaseException) -> None:
        self.iteration, self.error = iteration, error

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.iteration), self)

    def __call__(self, engine: Engine) -> None:
        raise copy.copy(self.error)  # with its traceback one that is kept would keep the loader's workers, too


def data(n: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(n)
    labels = [torch.randint(0, 3, (1, 6, 6), generator=generator) for _ in range(n)]
    return [{"image": label + 0.8 * torch.randn(1, 6, 6, generator=generator), "label": label} for label in labels]


def loader(dataset: SeededDataset, num_workers: int) -> DataLoader:
    options = {"num_workers": num_workers, "persistent_workers": num_workers > 0, "generator": torch.Generator()}
    return DataLoader(dataset, batch_size=2, sampler=ShuffledSampler(dataset, seed=5), **options)


SIGNAL = KeyboardInterrupt("SIGTERM")


def run(
    folder: Path,
    epochs: int = 8,
    interrupt: int = 0,
    num_workers: int = 0,
    val_interval: int = 1,
    error: BaseException = SIGNAL,
    more: Sequence[Any] = (),
    **options: Any,
) -> dict[str, Any]:
    """A small training with everything a bundle's has; returns what must not depend on an interruption."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Dropout(0.2), nn.Conv2d(4, 3, 1))
    loss = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, weight=[1.0, 1.0])
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.3)
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=epochs, warmup_multiplier=0.1)
    reweighting = ClassBoostStrategy(loss, class_names=NAMES, window=0)
    metric = ClassDice(2, output_transform=from_engine(["pred", "label"]))
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(data(3)), batch_size=1),
        network=network,
        key_val_metric={"val_mean_dice": MeanClassDice(metric)},
        additional_metrics={"val_class_dice": metric},
        val_handlers=[reweighting],
    )
    log = EventLog(folder / "tensorboard")
    report = TrainingReport(folder, evaluator, NAMES, rule=reweighting, summary_writer=log)
    dataset = SeededDataset(Dataset(data(6), RandGaussianNoised("image", prob=1.0, std=0.3)), 5)
    state = {"model": network, "optimizer": optimizer, "lr_scheduler": schedule, "reweighting": reweighting}
    handlers = [
        SeedEpochs(5),
        ValidationHandler(interval=val_interval, validator=evaluator),
        LrScheduleHandler(schedule, print_lr=False),
        TensorBoardStatsHandler(log, tag_name="train_loss", output_transform=from_engine("loss", first=True)),
        report,
        TrainingCheckpoint(
            folder,
            {**state, "report": report},
            evaluator,
            **{"record": {"labels": {"left": 1}}, "events": log, **options},
        ),
    ]
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=loader(dataset, num_workers),
        network=network,
        optimizer=optimizer,
        loss_function=loss,
        train_handlers=[*handlers, *more, *([StopAfter(interrupt, error)] if interrupt else [])],
    )
    try:
        trainer.run()
    finally:
        log.close()
    return {
        "weights": network.state_dict(),
        "moments": optimizer.state_dict()["state"],
        "lr": optimizer.param_groups[0]["lr"],
        "class_weights": loss.class_weight,
        "rule": reweighting.state_dict(),
        "firings": reweighting.firings,
        "best": (evaluator.state.best_metric, evaluator.state.best_metric_epoch),
        "files": {
            name: (folder / name).read_text() for name in ("class_weights.csv", "dice_per_class.csv", "model.json")
        },
        "epoch": trainer.state.epoch,
        "events": scalars(folder / "tensorboard"),
    }


def assert_same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 13])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path: Path, num_workers: int, stop: int) -> None:
    whole = run(tmp_path / "whole", num_workers=num_workers)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", num_workers=num_workers, interrupt=stop)
    resumed = run(tmp_path / "parts", num_workers=num_workers, resume=True)
    files, other = whole.pop("files"), resumed.pop("files")
    events = whole.pop("events")
    assert repr(resumed.pop("events")) == repr(events)  # a score may be NaN
    assert [step for step, _ in events["train_loss"]] == list(range(1, 25))
    assert [step for step, _ in events["class_weight/left"]] == list(range(1, 9))
    rule, other_rule = whole.pop("rule"), resumed.pop("rule")
    assert rule.pop("rule") == other_rule.pop("rule")
    assert_same(rule, other_rule)
    assert_same(resumed, whole)
    assert files == other
    assert whole["firings"] >= 1
    assert set(whole["class_weights"].tolist()) != {1.0}


def test_resuming_a_complete_run_changes_nothing(tmp_path: Path) -> None:
    whole = run(tmp_path)
    again = run(tmp_path, resume=True)
    assert again["epoch"] == 8
    assert_same(again["weights"], whole["weights"])


@pytest.mark.parametrize(("stop", "val_interval"), [(2, 1), (7, 1), (17, 4)])
def test_an_interruption_says_what_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stop: int, val_interval: int
) -> None:
    """There are three iterations in an epoch. That alone is lost which the interruption falls in."""

    def said(name: str, stop: int, saved: int) -> str:
        """How the program ends, where that is logged with what is lost."""
        assert torch.load(tmp_path / name, weights_only=True)["trainer"]["epoch"] == saved
        epoch = -(-stop // 3)
        kept = f"{tmp_path / name} holds epoch {saved}, the {stop - 3 * saved} iterations since then are lost"
        how = f"in epoch {epoch}; go on with --resume {'best' if name == 'best.pt' else 'true'}"
        assert f"interrupted {how}: {kept}" in caplog.text
        return how

    with pytest.raises(KeyboardInterrupt) as error:
        run(tmp_path, interrupt=stop, val_interval=val_interval)
    assert str(error.value) == "SIGTERM " + said("last.pt", stop, (stop - 1) // 3)
    if stop < 3:
        return
    best = torch.load(tmp_path / "best.pt", weights_only=True)["trainer"]["epoch"]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupt=3 * best + 1, val_interval=val_interval, resume="best")
    said("best.pt", 3 * best + 1, best)


def test_the_best_epoch_is_kept_with_its_record(tmp_path: Path) -> None:
    result = run(tmp_path)
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["epoch"] == best["trainer"]["epoch"] == result["best"][1]
    assert record["val_mean_dice"] == result["best"][0]
    assert record["labels"] == {"left": 1}
    assert set(record["versions"]) == {"monai", "torch"}
    assert_same(torch.load(tmp_path / "model.pt", weights_only=True), best["model"])
    assert not list(tmp_path.glob(".writing*"))


def test_companions_go_with_the_best_weights(tmp_path: Path) -> None:
    calls: list[int] = []

    def threshold() -> dict[str, int]:
        calls.append(len(calls) + 1)
        last = torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["epoch"]
        return {"call": calls[-1], "after_epoch": last}

    result = run(tmp_path, companions={"threshold.json": threshold})
    content = json.loads((tmp_path / "threshold.json").read_text())
    assert content == {"call": len(calls), "after_epoch": result["best"][1] - 1}
    assert 1 <= len(calls) < 8  # not in an epoch that was no better
    run(tmp_path, resume=True, companions={"threshold.json": threshold})
    assert json.loads((tmp_path / "threshold.json").read_text()) == content
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupt=1, overwrite=True, companions={"threshold.json": threshold})
    assert sorted(path.name for path in tmp_path.glob("*.json")) == []


def test_an_earlier_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(DataError, match=r"last\.pt: an earlier run is kept here.*--resume true.*--overwrite true"):
        run(tmp_path, epochs=1)
    assert (tmp_path / "last.pt").read_bytes() == before
    run(tmp_path, epochs=1, overwrite=True)


def test_resuming_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"last\.pt: there is no run to resume"):
        run(tmp_path, resume=True)


def test_resuming_with_other_settings(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, epochs=2, interrupt=4)
    for epochs in (1, 3):
        with pytest.raises(DataError, match=f"planned with max_epochs = 2, now it is {epochs}"):
            run(tmp_path, epochs=epochs, resume=True)


def test_a_run_that_has_come_to_its_end_may_go_on_for_longer(tmp_path: Path) -> None:
    run(tmp_path, epochs=2)
    longer = run(tmp_path, epochs=4, resume=True)
    assert longer["epoch"] == 4
    # the schedule is that of four epochs, where it stands in epoch 5
    assert longer["lr"] == pytest.approx(run(tmp_path / "whole", epochs=4)["lr"])
    with pytest.raises(DataError, match="planned with max_epochs = 4, now it is 3"):
        run(tmp_path, epochs=3, resume=True)


def test_resuming_from_the_best_epoch(tmp_path: Path) -> None:
    whole = run(tmp_path)
    best = whole["best"][1]
    assert best < 8
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:-1000])
    with pytest.raises(
        DataError, match=r"last\.pt: is cut short or damaged .* Go on from the best epoch with --resume best"
    ):
        run(tmp_path, resume=True)
    again = run(tmp_path, resume="best")  # the epochs since, once more
    assert again["files"] == whole["files"]
    assert_same([again["weights"], again["moments"]], [whole["weights"], whole["moments"]])
    with pytest.raises(DataError, match="resume is 'worst'"):
        run(tmp_path, resume="worst")


def encrypt(path: Path) -> None:
    """Set the bit of an archive's first member that says so."""
    content = bytearray(path.read_bytes())
    for start in (b"PK\x01\x02", b"PK\x03\x04"):
        content[content.index(start) + (8 if start == b"PK\x01\x02" else 6)] |= 1
    path.write_bytes(content)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(b""), "is cut short or damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "is cut short or damaged"),
        (flip_bit, "is damaged: .* has changed since it was written"),
        (encrypt, "is cut short or damaged"),
        (lambda path: path.write_text("not this"), "cannot be read as a checkpoint"),
        (lambda path: torch.save([1, 2], path), "is no checkpoint of a training"),
        (lambda path: torch.save({"weight": torch.zeros(2)}, path), "is no checkpoint of a training"),
    ],
)
def test_a_checkpoint_that_is_none_is_named(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    run(tmp_path, epochs=1)
    damage(tmp_path / "last.pt")
    with pytest.raises(DataError, match=rf"last\.pt: {said}.*--resume best"):
        run(tmp_path, epochs=1, resume=True)


def test_the_learning_rate_of_a_resumed_run_may_be_another(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupt=13, record={"learning_rate": 0.3})
    rates = torch.load(tmp_path / "last.pt", weights_only=True)["optimizer"]["param_groups"][0]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupt=20, record={"learning_rate": 0.03}, resume=True)
    changed = run(tmp_path, record={"learning_rate": 0.03}, resume=True)
    same = run(tmp_path / "whole", record={"learning_rate": 0.3})
    assert rates["lr"] > 0
    assert changed["lr"] == pytest.approx(0.1 * same["lr"])
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["record"]["learning_rate"] == 0.03
    assert last["optimizer"]["param_groups"][0]["initial_lr"] == pytest.approx(0.1 * rates["initial_lr"])


def test_what_an_older_checkpoint_does_not_say_is_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, epochs=1, record={"name": "a", "seed": 1})
    assert "learning rate" not in caplog.text
    now = {"name": "b", "seed": 1, "spacing": [1, 1, 1], "learning_rate": 0.1}
    run(tmp_path, epochs=1, record=now, resume=True)
    assert "last.pt does not say its learning rate: it is kept, --learning_rate has no effect" in caplog.text
    with pytest.raises(DataError, match="other settings: seed was 1, now it is 2"):
        run(tmp_path, epochs=1, record={"seed": 2}, resume=True)


def test_a_checkpoint_of_another_network(tmp_path: Path) -> None:
    run(tmp_path, epochs=2)
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    content["model"].pop("0.weight")
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(DataError, match=r"the state of model does not fit: .*0\.weight"):
        run(tmp_path, epochs=2, resume=True)


def test_flags_as_a_command_line_writes_them(tmp_path: Path) -> None:
    run(tmp_path, epochs=1, resume="false")
    with pytest.raises(DataError, match="an earlier run is kept"):
        run(tmp_path, epochs=1, overwrite="false")
    assert run(tmp_path, epochs=1, resume="true")["epoch"] == 1
    with pytest.raises(DataError, match="resume is 'maybe', expected true or false"):
        run(tmp_path, epochs=1, resume="maybe")


def test_weights_alone_are_not_overwritten_either(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights from elsewhere")
    with pytest.raises(DataError, match=r"model\.pt: an earlier run is kept here\. Keep it by choosing another"):
        run(tmp_path, epochs=1)
    assert (tmp_path / "model.pt").read_bytes() == b"weights from elsewhere"


def test_an_overwritten_run_leaves_no_weights_behind(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, epochs=2, interrupt=1, overwrite=True)
    assert [path.name for path in tmp_path.glob("*.pt")] == ["last.pt"]


def test_a_save_that_is_cut_short_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    best = whole["best"][1]

    def full_disk(self: TrainingCheckpoint, checkpoint: Path, saved: dict[str, Any], metric: float) -> None:
        if saved["trainer"]["epoch"] == best:
            raise OSError(28, "No space left on device")
        save_best(self, checkpoint, saved, metric)

    save_best = TrainingCheckpoint._save_best
    with monkeypatch.context() as patch:
        patch.setattr(TrainingCheckpoint, "_save_best", full_disk)
        with pytest.raises(DiskFullError, match=r"last.pt: could not be written, the disk is full"):
            run(tmp_path / "parts")
    assert torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["trainer"]["epoch"] == best - 1
    run(tmp_path / "parts", resume=True)
    assert json.loads((tmp_path / "parts" / "model.json").read_text())["epoch"] == best


class CopyAt:
    """Keeps what a kill in the middle of an epoch would leave."""

    def __init__(self, iteration: int, folder: Path, copy: Path) -> None:
        self.iteration, self.folder, self.copy = iteration, folder, copy

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.iteration), self)

    def __call__(self, engine: Engine) -> None:
        shutil.copytree(self.folder, self.copy)


# after the fifth of eight epochs; a second passes from one look at the clock to the next
@pytest.mark.parametrize(("seconds", "saved"), [(0, 5), (60, 3), (2, 5), (3, 3)])
def test_saved_is_by_time_and_after_each_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, saved: int
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(training_checkpoint, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    folder, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"val_interval": 3, "save_seconds": seconds}
    whole = run(folder, more=[CopyAt(16, folder, killed)], **options)
    assert torch.load(killed / "last.pt", weights_only=True)["trainer"]["epoch"] == saved
    assert torch.load(folder / "last.pt", weights_only=True)["trainer"]["epoch"] == 8
    resumed = run(killed, resume=True, **options)
    assert resumed["files"] == whole["files"]
    for name in ("weights", "moments", "events"):
        assert_same(resumed[name], whole[name])


def test_an_error_leaves_the_last_whole_epoch_too(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", val_interval=4)
    with pytest.raises(ValueError, match="this"):
        run(tmp_path / "parts", interrupt=20, error=ValueError("this"), val_interval=4)
    assert torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["trainer"]["epoch"] == 6
    resumed = run(tmp_path / "parts", resume=True, val_interval=4)
    assert repr(resumed["events"]) == repr(whole["events"])
    assert_same([resumed["weights"], resumed["moments"]], [whole["weights"], whole["moments"]])


def test_one_copy_of_the_state_is_kept_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[weakref.ref] = []

    def counted(content: dict[str, Any]) -> dict[str, Any]:
        assert not copies or copies[-1]() is None
        made = copy.deepcopy(content)
        copies.append(weakref.ref(made["model"]["0.weight"]))
        return made

    monkeypatch.setattr(training_checkpoint, "copy", SimpleNamespace(copy=copy.copy, deepcopy=counted))
    run(tmp_path, val_interval=4)
    assert len(copies) == 6


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), KeyboardInterrupt("SIGTERM")])
def test_an_epoch_that_cannot_be_copied_is_saved_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def fail(content: dict[str, Any]) -> dict[str, Any]:
        calls.append(content["trainer"]["epoch"])
        if calls[-1] == 2:
            raise error
        return copy.deepcopy(content)

    calls: list[int] = []
    whole = run(tmp_path / "whole", val_interval=4)
    monkeypatch.setattr(training_checkpoint, "copy", SimpleNamespace(copy=copy.copy, deepcopy=fail))
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        run(tmp_path / "parts", interrupt=11, val_interval=4)
    goes_on = isinstance(error, torch.OutOfMemoryError)
    assert calls == [1, 2]
    last = torch.load(tmp_path / "parts" / "last.pt", weights_only=True)
    assert last["trainer"]["epoch"] == (3 if goes_on else 2)
    assert ("no room for a copy of the state" in caplog.text) == goes_on
    monkeypatch.undo()
    resumed = run(tmp_path / "parts", resume=True, val_interval=4)
    assert_same([resumed["weights"], resumed["moments"]], [whole["weights"], whole["moments"]])


def test_a_scale_of_the_gradients_is_spoken_of_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def told(enabled: bool, epochs: int) -> bool:
        caplog.clear()
        scaler = torch.amp.GradScaler("cpu", enabled=enabled)
        monkeypatch.setattr(TrainingCheckpoint, "_objects", lambda *args: objects(*args) | {"scaler": scaler})
        run(tmp_path, epochs, resume=epochs > 1)
        return "now scaled anew" in caplog.text

    caplog.set_level("INFO")
    objects = TrainingCheckpoint._objects
    enabled = (False, False, True, True)
    assert [told(now, i) for i, now in enumerate(enabled, start=1)] == [False, False, True, False]


def test_a_state_that_cannot_be_saved_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(self: TrainingCheckpoint, content: dict[str, Any]) -> None:
        if content["trainer"]["epoch"]:
            raise RuntimeError("the device is gone")
        write(self, content)

    write = TrainingCheckpoint._write
    monkeypatch.setattr(TrainingCheckpoint, "_write", lost)
    with pytest.raises(ValueError, match="this"):
        run(tmp_path, interrupt=5, error=ValueError("this"), val_interval=4)
    assert f"{tmp_path / 'last.pt'}: the last whole epoch could not be saved (the device is gone)" in caplog.text


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("layouts", [(0, 1), (1, 0), (1, 1)])
def test_the_optimizer_goes_on_in_another_memory_layout(
    fused: bool | None, layouts: tuple[int, int], tmp_path: Path
) -> None:
    """A run that began elsewhere: with other kernels, and with its weights laid out otherwise."""
    formats = [(torch.contiguous_format, torch.channels_last)[i] for i in layouts]
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def make(layout: torch.memory_format, kernel: bool | None) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).to(memory_format=layout)
        return network, torch.optim.AdamW(network.parameters(), 0.01, fused=kernel)

    def steps(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()

    first, old = make(formats[0], None)
    steps(first, old)
    torch.save({"model": first.state_dict(), "optimizer": old.state_dict()}, tmp_path / "last.pt")
    steps(first, old)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    second, new = make(formats[1], fused)
    second.load_state_dict(saved["model"])
    load_optimizer(new, saved["optimizer"])
    steps(second, new)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b)
        assert new.state[b]["exp_avg"].stride() == b.stride()
    assert new.param_groups[0]["fused"] is fused


def test_a_metric_that_is_a_numpy_scalar_can_be_loaded_again(tmp_path: Path) -> None:
    """As MONAI's AUC where two predictions tie."""
    network, evaluator, trainer = nn.Linear(1, 1), Engine(lambda *_: None), Engine(lambda *_: None)
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = np.float32(0.75), 1
    evaluator.state.key_metric_name = "val_auc"
    TrainingCheckpoint(tmp_path, {"model": network}, evaluator).attach(trainer)
    trainer.run([0], max_epochs=1)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["evaluator"]["best_metric"] == 0.75


def test_a_run_that_replaces_another_takes_its_name_off_the_results(tmp_path: Path) -> None:
    """Else one that is killed in its first epoch could neither be resumed nor started again."""
    output = tmp_path / "out"
    output.mkdir()
    run(tmp_path, epochs=1, output_dir=output)
    assert (output / "run.json").is_file()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, epochs=2, interrupt=1, overwrite=True, output_dir=output)
    assert not (output / "run.json").exists()


def test_results_are_signed_before_a_kill_can_leave_them_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first checkpoint of an epoch, and when a run goes on with another folder of results."""
    saved: list[int] = []

    def sign(self: TrainingCheckpoint) -> None:
        saved.append(torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["epoch"])
        sign_results(self)

    sign_results = TrainingCheckpoint._sign_results
    monkeypatch.setattr(TrainingCheckpoint, "_sign_results", sign)
    run(tmp_path, epochs=2, output_dir=tmp_path / "out")
    assert saved[0] == 0
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, epochs=3, interrupt=7, resume=True, output_dir=tmp_path / "other")
    assert (tmp_path / "other" / "run.json").read_text() == (tmp_path / "out" / "run.json").read_text()
