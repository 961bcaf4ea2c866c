from __future__ import annotations

import errno
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import monai.transforms as mt
import pytest
import torch
from commands import run
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer

from shared.data import collate_readable, collate_regions
from shared.engines import CaseEvaluator, FaultTolerantDataset, prepare_region
from shared.networks import fusestyle_resnet
from shared.utils import DataError, is_disk_full
from shared.utils.errors import LESS_MEMORY

CASES = ["a", "b", "c", "d"]


def load(d: dict[str, Any]) -> dict[str, Any]:
    if d["how"] == "unreadable":
        raise DataError(f"{d['case']}.nii: cannot be read.")
    return {**d, "image": torch.full((1, 4, 4, 4), float(d["how"] == "too dark"))}


class Network(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.max() > 0:
            raise RuntimeError("out of memory")
        return x


def make_evaluator(
    hows: list[str], done: list[str], num_workers: int = 0, keep_going: bool = True, **kwargs: Any
) -> CaseEvaluator:
    def write(d: dict[str, Any]) -> dict[str, Any]:
        if d["how"] == "unwritable":
            raise OSError("not permitted")
        if d["how"] == "too large":
            raise OSError(errno.ENOSPC, "No space left on device")
        if d["how"] == "interrupted":
            raise KeyboardInterrupt
        done.append(d["case"])
        return d

    cases = [{"case": case, "how": how} for case, how in zip(CASES, hows, strict=False)]
    loader = DataLoader(FaultTolerantDataset(cases, mt.Lambda(load)), batch_size=1, num_workers=num_workers)
    return CaseEvaluator(
        torch.device("cpu"),
        loader,
        Network(),
        postprocessing=mt.Lambda(write),
        progress=False,
        keep_going=keep_going,
        **kwargs,
    )


@pytest.mark.parametrize(("num_workers", "overlap_cases"), [(0, False), (1, False), (0, True), (1, True)])
def test_goes_on_and_lists_the_failures_at_the_end(
    num_workers: int, overlap_cases: bool, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []
    hows = ["unreadable", "fine", "too dark", "unwritable"]
    evaluator = make_evaluator(hows, done, num_workers, overlap_cases=overlap_cases)
    sizes: list[int] = []
    completed: list[bool] = []
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: sizes.append(len(list(zip(e.state.batch, e.state.output, strict=True))))
    )
    evaluator.add_event_handler(Events.COMPLETED, lambda e: completed.append(True))
    with pytest.raises(DataError) as caught:
        evaluator.run()
    assert str(caught.value).splitlines() == [
        "3 of 4 cases failed:",
        "  a: a.nii: cannot be read.",
        "  c: memory is not enough (RuntimeError: out of memory). " + LESS_MEMORY,
        "  d: OSError: not permitted",
    ]
    assert evaluator.failures[0] == ("a", "a.nii: cannot be read.")
    assert done == ["b"]
    assert sizes == [0, 0 if overlap_cases else 1, 0, 0]
    assert completed == [True]
    assert "a failed: a.nii: cannot be read." in [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]


def test_cases_overlap() -> None:
    """The third is read, and the first saved, while the network has the second; failures come in the order of cases."""
    now: list[str] = []
    at_once = threading.Barrier(3, timeout=30)

    def meet(step: str, case: str) -> None:
        now.append(f"{step} {case}")
        if f"{step} {case}" in ("read c", "network b", "save a"):
            at_once.wait()  # one after the other would never get here

    class Slow(Network):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            meet("network", CASES[int(x[0, 0, 0, 0, 1])])
            return super().forward(x[..., :1])

    def read(d: dict[str, Any]) -> dict[str, Any]:
        meet("read", d["case"])
        image = load(d)["image"]
        image[..., 1] = CASES.index(d["case"])
        return {**d, "image": image}

    def save(d: dict[str, Any]) -> dict[str, Any]:
        meet("save", d["case"])
        if d["case"] == "c":
            raise OSError("not permitted")
        return d

    hows = ["fine", "fine", "fine", "too dark"]
    dataset = FaultTolerantDataset([{"case": c, "how": h} for c, h in zip(CASES, hows, strict=True)], mt.Lambda(read))
    options = {"postprocessing": mt.Lambda(save), "progress": False, "overlap_cases": True}
    evaluator = CaseEvaluator(torch.device("cpu"), DataLoader(dataset, batch_size=1), Slow(), **options)
    with pytest.raises(DataError):
        evaluator.run()
    assert [case for case, _ in evaluator.failures] == ["c", "d"]
    assert [step for step in now if step.startswith("save")] == ["save a", "save b", "save c"]


def test_an_error_of_the_loader_comes_through() -> None:
    evaluator = make_evaluator(["fine"] * 3, done := [], overlap_cases=True)
    evaluator.data_loader.loader.collate_fn = lambda items: items[0] if items[0]["case"] == "a" else 1 / 0
    with pytest.raises(ZeroDivisionError):
        evaluator.run()
    assert done == ["a"]
    evaluator = make_evaluator(["unwritable", "fine"], [], overlap_cases=True)
    evaluator.data_loader.loader.collate_fn = lambda items: items[0] if items[0]["case"] == "a" else 1 / 0
    with pytest.raises(ZeroDivisionError):
        evaluator.run()
    assert evaluator.failures == [("a", "OSError: not permitted")]


def test_what_is_saved_is_let_go() -> None:
    """While the network has the next case."""
    images: list[weakref.ref[torch.Tensor]] = []
    held: list[bool] = []

    class Waiting(Network):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            until = time.monotonic() + 10
            while len(images) < len(held) or any(image() is not None for image in images):
                if time.monotonic() > until:
                    break
                time.sleep(0.01)
            held.append(any(image() is not None for image in images))
            return super().forward(x)

    def keep(d: dict[str, Any]) -> dict[str, Any]:
        images.append(weakref.ref(d["image"]))
        return d

    dataset = FaultTolerantDataset([{"case": case, "how": "fine"} for case in "abc"], mt.Lambda(load))
    options = {"postprocessing": mt.Lambda(keep), "progress": False, "overlap_cases": True}
    CaseEvaluator(torch.device("cpu"), DataLoader(dataset, batch_size=1), Waiting(), **options).run()
    assert held == [False] * 3
    assert len(images) == 3


HANGING = """
import time, torch
from monai.data import DataLoader
from shared.engines import CaseEvaluator
from shared.utils import show_errors_briefly

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, i):
        time.sleep(300 * i)
        return {"image": torch.zeros(1, 2, 2, 2), "case": str(i)}

class Interrupted(torch.nn.Module):
    def forward(self, x):
        raise KeyboardInterrupt("SIGTERM")

show_errors_briefly()
loader = DataLoader(Slow(), batch_size=1, num_workers=1, timeout=300)
CaseEvaluator(torch.device("cpu"), loader, Interrupted(), overlap_cases=True, progress=False).run()
"""


def test_an_interrupt_does_not_wait_for_a_worker_that_hangs() -> None:
    done = run("-c", HANGING, timeout=150)
    assert done.returncode != 0
    assert "interrupted SIGTERM" in done.stderr


@pytest.mark.parametrize("overlap_cases", [False, True])
def test_no_failure(overlap_cases: bool) -> None:
    done: list[str] = []
    evaluator = make_evaluator(["fine"] * 4, done, overlap_cases=overlap_cases)
    evaluator.run()
    assert done == CASES
    assert evaluator.failures == []


def test_a_batch_of_what_could_be_read() -> None:
    hows = ["fine", "unreadable", "too dark", "unreadable"]
    dataset = FaultTolerantDataset([{"case": c, "how": h} for c, h in zip(CASES, hows, strict=True)], mt.Lambda(load))
    batch = collate_readable([dataset[i] for i in range(4)])
    assert batch["case"] == ["a", "c"]
    assert batch["how"] == ["fine", "too dark"]
    assert torch.equal(batch["image"], torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1).expand(2, 1, 4, 4, 4))
    assert batch["failures"] == [("b", "b.nii: cannot be read."), ("d", "d.nii: cannot be read.")]
    assert collate_readable([dataset[0]])["failures"] == []
    nothing = collate_readable([dataset[1], dataset[3]])
    assert nothing["case"] == []
    assert torch.equal(nothing["image"], torch.zeros(1, 3, 64, 64))
    assert nothing["failures"] == batch["failures"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_without_anything_readable_passes_through(num_workers: int) -> None:
    """MONAI's own evaluator and a ResNet take it, and go on with the next one."""

    def patch(d: dict[str, Any]) -> dict[str, Any]:
        if d["case"] in ("c", "d", "e"):
            raise DataError(f"{d['case']}: cannot be read.")
        return {**d, "image": torch.full((3, 32, 32), float(ord(d["case"]) - ord("a")))}

    torch.manual_seed(0)
    network = fusestyle_resnet("resnet10", places=(1, 4), p=1.0).eval()
    dataset = FaultTolerantDataset([{"case": case} for case in "abcdef"], mt.Lambda(patch))
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=2, collate_fn=collate_readable, num_workers=num_workers),
        network=network,
        postprocessing=mt.Activationsd("pred", sigmoid=True),
        decollate=False,
    )
    cases: list[list[str]] = []
    failures: list[tuple[str, str]] = []
    outputs: list[torch.Tensor] = []

    def keep(engine: Any) -> None:
        cases.append(engine.state.batch["case"])
        failures.extend(engine.state.batch["failures"])
        outputs.append(engine.state.output["pred"])

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
    evaluator.run()
    assert cases == [["a", "b"], [], ["f"]]
    assert [case for case, _ in failures] == ["c", "d", "e"]
    assert [tuple(output.shape) for output in outputs] == [(2, 1), (1, 1), (1, 1)]
    with torch.no_grad():
        alone = network(torch.stack([torch.full((3, 32, 32), value) for value in (0.0, 1.0, 5.0)])).sigmoid()
    torch.testing.assert_close(torch.cat([outputs[0], outputs[2]]), alone)


def test_one_case_gives_its_own_message() -> None:
    with pytest.raises(DataError, match=r"^a\.nii: cannot be read\.$"):
        make_evaluator(["unreadable"], []).run()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The cases that are said to have failed."""
    return [r.getMessage().split(" failed: ")[0] for r in caplog.records if " failed: " in r.getMessage()]


@pytest.mark.parametrize("overlap_cases", [False, True])
@pytest.mark.parametrize("how", ["unreadable", "too dark", "unwritable"])
def test_stops_at_the_first_on_demand(how: str, overlap_cases: bool, caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    with pytest.raises((DataError, RuntimeError, OSError)):
        make_evaluator(["fine", how, "fine"], done, keep_going=False, overlap_cases=overlap_cases).run()
    assert done == ["a"]
    assert told(caplog) == ["b"]


@pytest.mark.parametrize("overlap_cases", [False, True])
def test_a_full_disk_ends_the_run(overlap_cases: bool, caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    evaluator = make_evaluator(["unreadable", "too large", "fine", "fine"], done, overlap_cases=overlap_cases)
    with pytest.raises(RuntimeError) as caught:
        evaluator.run()
    assert is_disk_full(caught.value)
    assert done == []
    assert told(caplog) == ["a", "b"]


def test_interrupt_passes() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        make_evaluator(["fine", "interrupted", "fine"], done).run()
    assert done == ["a"]


def raising(error: Exception) -> Callable[[Any], None]:
    def handler(engine: Any) -> None:
        raise error

    return handler


def test_report_that_has_nothing_to_report_does_not_hide_the_reason() -> None:
    evaluator = make_evaluator(["unreadable", "too dark"], [])
    evaluator.add_event_handler(Events.COMPLETED, raising(ValueError("no scores")))
    with pytest.raises(DataError, match="2 of 2 cases failed"):
        evaluator.run()
    evaluator = make_evaluator(["unreadable", "fine"], [])
    evaluator.add_event_handler(Events.COMPLETED, raising(ValueError("no scores")))
    with pytest.raises(ValueError, match="no scores"):
        evaluator.run()


def test_volume_smaller_than_the_window_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        make_evaluator(["fine"], [], inferer=SlidingWindowInferer((4, 8, 4))).run()
    assert "a: 4 × 4 × 4 voxels after preprocessing, smaller than the window of 4 × 8 × 4: padded" in caplog.text


def test_what_is_no_tensor_reaches_the_inferer() -> None:
    class Region:  # neither stacked nor moved to a device
        def __init__(self, name: str) -> None:
            self.name = name

    def open_region(d: dict[str, Any]) -> dict[str, Any]:
        if d["case"] == "b":
            raise DataError("b: cannot be read.")
        return {**d, "image": Region(d["case"])}

    seen: list[tuple[str, Any]] = []

    def inferer(region: Region, network: torch.nn.Module) -> str:
        return region.name * 2

    dataset = FaultTolerantDataset([{"case": case} for case in "abc"], mt.Lambda(open_region))
    evaluator = CaseEvaluator(
        torch.device("cpu"),
        DataLoader(dataset, batch_size=1, collate_fn=collate_regions),
        Network(),
        prepare_batch=prepare_region,
        inferer=inferer,
        decollate=False,
        progress=False,
    )

    def keep(engine: Any) -> None:
        if engine.state.batch:
            seen.append((engine.state.batch["case"][0], engine.state.output["pred"]))

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
    with pytest.raises(DataError, match=r"^1 of 3 cases failed:\n  b: b: cannot be read\.$"):
        evaluator.run()
    assert seen == [("a", "aa"), ("c", "cc")]


def test_a_rank_without_a_case_takes_part_in_the_start_and_the_end() -> None:
    evaluator = make_evaluator([], [])
    seen: list[tuple[str, int]] = []
    for event in (Events.STARTED, Events.ITERATION_STARTED, Events.COMPLETED):
        evaluator.add_event_handler(event, lambda e, name: seen.append((name, len(e.state.dataloader))), event.value)
    evaluator.run()
    assert seen == [("started", 0), ("completed", 0)]
    assert evaluator.failures == []
