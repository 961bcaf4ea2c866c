from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from commands import two_ranks
from monai.data import CacheDataset, DataLoader, Dataset, PersistentDataset
from monai.engines import SupervisedTrainer
from monai.transforms import ClassesToIndicesd, Compose
from torch import nn

from shared.data import RuleSampler, SeededDataset
from shared.data.rule_sampler import Draw
from shared.handlers import ClassBoostStrategy, StaticClassWeights
from shared.transforms import CropAroundClassesd
from shared.utils import DataError, data_error_message

NAMES = ["liver", "spleen", "gland"]
NAN = float("nan")


class Rule(NamedTuple):
    weights: torch.Tensor
    scores: torch.Tensor


def rule(weights: list[float], scores: list[float] | None = None) -> Rule:
    return Rule(torch.tensor(weights), torch.tensor(scores or [NAN] * len(weights), dtype=torch.float64))


def cases(held: list[set[int]]) -> Dataset:
    """Of each case which classes of 0 to 3 it has a voxel of."""
    voxels = [[torch.arange(2 * (k in own)) for k in range(4)] for own in held]
    return Dataset([{"label_cls_indices": each} for each in voxels], Compose([]))


ALL = cases([{0, 1, 2, 3}] * 8)


def plan(sampler: RuleSampler, epoch: int) -> list[Draw]:
    sampler.set_epoch(epoch)
    return sampler.plan()


def shares(sampler: RuleSampler, epochs: int) -> np.ndarray:
    """Of the crops around each class."""
    drawn = Counter(k for epoch in range(epochs) for _, own in plan(sampler, epoch) for k in own)
    return np.array([drawn[k] for k in range(4)]) / drawn.total()


def test_without_a_voxel_of_background_all_crops_are_around_organs() -> None:
    np.testing.assert_allclose(shares(RuleSampler(cases([{1, 2, 3}] * 4), rule([1.0] * 3), NAMES, 30), 50)[0], 0)


@pytest.mark.parametrize("crops", [1, 4])
@pytest.mark.parametrize("num_samples", [3, 8, 21])
def test_crops_are_in_proportion_to_the_weights(crops: int, num_samples: int) -> None:
    sampler = RuleSampler(ALL, rule([0.1, 1.0, 2.0], [0.9, 0.7, 0.3]), NAMES, num_samples, crops, background=0.25)
    due = np.array([0.25, *(0.75 * np.array([0.1, 1, 2]) / 3.1)])
    np.testing.assert_allclose(shares(sampler, 2000), due, atol=0.01)
    for epoch in range(20):  # and in no epoch far from it
        counts = np.bincount([k for _, own in plan(sampler, epoch) for k in own], minlength=4)
        assert counts.sum() == crops * num_samples
        assert (abs(counts - due * crops * num_samples) < 2).all()


def test_a_class_at_0_comes_first() -> None:
    """Half of the organs' crops beside its part of the others; and one at least in the smallest epoch."""
    weights = [0.1, 2.0, 2.0]
    sampler = RuleSampler(ALL, rule(weights, [0.9, 0.3, 0.0]), NAMES, 40, background=0.5)
    due = 0.5 * (0.5 * np.array(weights) / 4.1 + 0.5 * np.array([0, 0, 1]))
    np.testing.assert_allclose(shares(sampler, 400), [0.5, *due], atol=0.01)
    small = RuleSampler(ALL, rule([2.0, 2.0, 0.1], [0.0, 0.004, 0.9]), NAMES, 2, background=0, first=0)
    assert {tuple(sorted(k for _, own in plan(small, epoch) for k in own)) for epoch in range(50)} == {(1, 2)}
    found = RuleSampler(ALL, rule([1.0] * 3, [0.9, 0.3, 0.005]), NAMES, 40)
    np.testing.assert_allclose(shares(found, 400), [0.5, *[1 / 6] * 3], atol=0.01)
    unknown = RuleSampler(ALL, rule([1.0] * 3), NAMES, 40)
    np.testing.assert_allclose(shares(unknown, 400), [0.5, *[1 / 6] * 3], atol=0.01)


def test_a_case_is_asked_for_nothing_that_it_lacks() -> None:
    held = [{0, 1}, {0, 1, 2}, {0, 1, 2}, {0, 1, 3}, {0}, {1, 2}]
    for crops in (1, 2, 4):
        sampler = RuleSampler(cases(held), rule([1.0, 1.0, 2.0], [0.5, 0.5, 0.0]), NAMES, 12, crops)
        for epoch in range(100):
            assert all(set(own) <= held[case] for case, own in plan(sampler, epoch))
            assert all(len(own) == crops for _, own in plan(sampler, epoch))
    single = RuleSampler(cases(held), rule([1.0, 1.0, 2.0], [0.5, 0.5, 0.0]), NAMES, 12, 1)
    np.testing.assert_allclose(shares(single, 1000)[3], 0.5 * (0.5 + 0.5 * 2 / 4), atol=0.01)  # though one case has it


@pytest.mark.parametrize("crops", [1, 3])
def test_no_case_comes_much_more_often_than_others(crops: int) -> None:
    held = [{0, 1, 2, 3}] * 10 + [{0, 1, 2}] * 10
    sampler = RuleSampler(cases(held), rule([1.0] * 3), NAMES, 30, crops)
    for epoch in range(30):
        times = Counter(case for case, _ in plan(sampler, epoch))
        assert set(times) == set(range(20))
        assert set(times.values()) == {1, 2}
    some = RuleSampler(cases(held), rule([1.0] * 3), NAMES, 5)
    assert {case for epoch in range(40) for case, _ in plan(some, epoch)} == set(range(20))


def test_a_plan_follows_seed_epoch_and_rule_alone() -> None:
    def make(seed: int = 0, **options: Any) -> RuleSampler:
        return RuleSampler(ALL, rule([1.0] * 3), NAMES, 16, seed=seed, **options)

    plans = {(seed, epoch): plan(make(seed), epoch) for seed in range(3) for epoch in range(3)}
    assert len({str(each) for each in plans.values()}) == 9
    sampler = make(1)
    torch.manual_seed(99)
    assert plan(sampler, 2) == plans[1, 2]
    assert plan(sampler, 0) == plans[1, 0]
    sampler.rule = rule([1.0, 1.0, 2.0], [0.5, 0.5, 0.0])
    assert plan(sampler, 0) != plans[1, 0]


@pytest.mark.parametrize("replicas", [2, 3])
def test_ranks_share_one_plan(replicas: int) -> None:
    every = {"dataset": ALL, "rule": rule([1.0] * 3), "class_names": NAMES, "num_samples": 16, "crops": 2}
    parts = [RuleSampler(**every, num_replicas=replicas, rank=rank) for rank in range(replicas)]
    for part in parts:
        part.set_epoch(3)
    drawn = [list(part) for part in parts]
    assert {len(own) for own in drawn} == {len(part) for part in parts} == {-(-16 // replicas)}
    together = [draw for row in zip(*drawn, strict=True) for draw in row]
    assert [(index % 8, own) for _, index, own in together] == parts[0].plan()
    assert len({index for _, index, _ in together}) == len(together)  # one that comes again has a number of its own
    assert {epoch for epoch, *_ in together} == {3}


# --- with engine, workers and rule -----------------------------------------------------------------------------------


def volumes() -> list[dict[str, torch.Tensor]]:
    """Six volumes of 10³ with one voxel of each of three classes, but for the last class in the first of them."""
    found = []
    for i in range(6):
        label = torch.zeros(1, 10, 10, 10, dtype=torch.uint8)
        for value in range(1, 4 if i else 3):
            label[0, 2 * value, i + 2, 5] = value
        found.append({"label": label, "number": torch.tensor([i])})
    return found


def loader(kind: type, tmp_path: Path, workers: int, rule: Any) -> DataLoader:
    crop = CropAroundClassesd("label", "label", 3, num_classes=4, num_samples=2)
    transform = Compose([ClassesToIndicesd("label", num_classes=4), crop])
    options = {"cache_dir": tmp_path} if kind is PersistentDataset else {}
    seeded = SeededDataset(kind(volumes(), transform, **options), seed=2)
    sampler = RuleSampler(seeded.dataset, rule, NAMES, 9, crops=2, seed=2)
    return DataLoader(seeded, sampler=sampler, batch_size=2, num_workers=workers, persistent_workers=workers > 0)


def middles(rule: Any, tmp_path: Path, kind: type = CacheDataset, workers: int = 0, start: int = 1) -> list[list[int]]:
    """Epoch by epoch what lies in the middle of each crop, while the rule's last score falls to 0."""
    found: list[list[int]] = []
    data = loader(kind, tmp_path, workers, rule)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=4,
        train_data_loader=data,
        network=(network := nn.Linear(1, 1)),
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
        loss_function=nn.MSELoss(),
        iteration_update=lambda engine, batch: found[-1].extend(batch["label"][:, 0, 1, 1, 1].tolist()) or {},
        decollate=False,
    )
    trainer.state.epoch = start - 1

    @trainer.on("EPOCH_STARTED")
    def begin(engine: Any) -> None:
        found.append([])

    @trainer.on("EPOCH_COMPLETED")
    def evaluate(engine: Any) -> None:
        rule.update([0.9 - 0.1 * engine.state.epoch, 0.5, 0.6 / engine.state.epoch if engine.state.epoch < 3 else 0.0])

    trainer.state.iteration = len(data) * (start - 1)
    trainer.run()
    return found


def boost() -> ClassBoostStrategy:
    return ClassBoostStrategy(class_names=NAMES, window=0)


@pytest.mark.parametrize("kind", [Dataset, PersistentDataset, CacheDataset])
def test_workers_crop_around_what_this_epoch_asks_for(kind: type, tmp_path: Path) -> None:
    """After an evaluation the next epoch, and no later one, follows it: also workers that outlive epochs."""
    alone = middles(boost(), tmp_path, kind)
    assert [len(epoch) for epoch in alone] == [18] * 4
    for epoch, number in zip(alone, (1, 2, 3, 4), strict=True):
        data = loader(kind, tmp_path, 0, at_epoch(number))
        data.sampler.set_epoch(number)
        asked = [value for *_, classes in data.sampler for value in classes]
        assert epoch == asked
    assert alone[3].count(3) > alone[0].count(3)
    assert middles(boost(), tmp_path, kind, workers=2) == alone


def at_epoch(number: int) -> ClassBoostStrategy:
    """The rule as that epoch finds it."""
    rule = boost()
    for epoch in range(1, number):
        rule.update([0.9 - 0.1 * epoch, 0.5, 0.6 / epoch if epoch < 3 else 0.0])
    return rule


def test_a_resumed_run_goes_on_with_the_plans(tmp_path: Path) -> None:
    whole = middles(boost(), tmp_path)
    torch.save(at_epoch(3).state_dict(), tmp_path / "rule.pt")
    rule = boost()
    rule.load_state_dict(torch.load(tmp_path / "rule.pt", weights_only=True))
    assert middles(rule, tmp_path, start=3) == whole[2:]


def plan_on_a_rank(folder: str, rank: int) -> None:
    rule = boost()
    for _ in range(3):  # scores of their own, of which rank 0's count
        rule.update(torch.rand(3, generator=torch.Generator().manual_seed(rank)))
    data = loader(PersistentDataset, Path(folder) / f"cache{rank}", 0, rule)
    data.sampler.set_epoch(2)
    torch.save({"plan": data.sampler.plan(), "own": list(data.sampler)}, Path(folder) / f"{rank}.pt")


@pytest.mark.slow
def test_two_ranks_have_halves_of_one_plan(tmp_path: Path) -> None:
    two_ranks(__file__, "toy.plan_on_a_rank(folder, rank)", tmp_path)
    zero, one = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert zero["plan"] == one["plan"]
    own = [(index % 6, classes) for pair in zip(zero["own"], one["own"], strict=True) for _, index, classes in pair]
    assert own == zero["plan"]


# --- what is said and refused ----------------------------------------------------------------------------------------


def test_a_class_that_no_case_has_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    dataset = cases([{0, 1, 2}] * 4)
    samplers = [
        RuleSampler(dataset, rule([1.0, 1.0, 2.0], [0.5, 0.5, 0.0]), NAMES, num_replicas=2, rank=i) for i in (0, 1)
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "No training case has a voxel of gland on the grid of the training: no crop is drawn around it."
    ]
    np.testing.assert_allclose(shares(samplers[0], 200), [0.5, 0.25, 0.25, 0], atol=0.01)


def test_what_no_plan_can_be_made_of() -> None:
    with pytest.raises(DataError, match="No training case has a voxel of any class"):
        RuleSampler(cases([{0}] * 2), rule([1.0] * 3), NAMES)
    with pytest.raises(DataError, match=r"voxels of 4 classes under 'label_cls_indices', expected background and 2"):
        RuleSampler(CacheDataset(ALL.data, ALL.transform, progress=False), rule([1.0] * 2), NAMES[:2])
    for option in ({"num_samples": 0}, {"crops": 0}, {"background": 1}, {"first": 1.1}):
        with pytest.raises(ValueError, match="expected 1 or more"):
            RuleSampler(ALL, StaticClassWeights(class_names=NAMES), NAMES, **option)


def test_without_a_rule_nothing_can_be_drawn() -> None:
    with pytest.raises(DataError, match=r"reweighting is null\..*--reweighting#loss '\$None' keeps the rule"):
        RuleSampler(Dataset([]), None, ["a"])


def test_sampler_and_crops_go_together() -> None:
    crop = CropAroundClassesd("label", "label", 3, num_classes=4)
    taking, other = (
        SeededDataset(Dataset(volumes(), Compose([ClassesToIndicesd("label", num_classes=4), *more])))
        for more in ([crop], [])
    )
    with pytest.raises(DataError, match="hands out no classes, which CropAroundClassesd needs"):
        taking[1, 0]
    with pytest.raises(DataError, match="hands out classes, which no transform takes"):
        other[1, 0, (1,)]
    for classes, said in (((1, 2), "2 classes for 1 crops of a case"), ((3,), "class 3 was asked of a case without")):
        with pytest.raises(RuntimeError) as error:
            taking[1, 0, classes]
        assert said in (data_error_message(error.value) or "")
    assert taking[1, 1, (3,)][0]["label"][0, 1, 1, 1] == 3
