from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import two_ranks
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from torch import Tensor, nn

from shared.data import collate_detections
from shared.engines import DetectionEvaluator, DetectionTrainer, prepare_detection_batch
from shared.handlers import DetectionThreshold
from shared.losses import RetinaNetLoss
from shared.networks import PyramidAnchors, fusestyle_retinanet
from shared.utils import DataError

SIZE = (64, 96)
LOSS = RetinaNetLoss(PyramidAnchors())
BOXES = [[[3.0, 6, 53, 58], [40, 10, 92, 57]], [], [[70.0, 30, 120, 80]], [[-20.0, -20, 30, 30]], []]


class Tiny(nn.Module):
    """The output of one convolution, (B, 6, 96); dropout tells training from evaluation."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 6, 8, stride=8)
        self.dropout = nn.Dropout(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(2) + self.dropout(torch.ones(1))


def tiles(count: int = 5, **more: Sequence[Any]) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.rand(3, *SIZE, generator=generator),
            "box": torch.tensor(BOXES[i % 5]).reshape(-1, 4),
            "label": torch.arange(len(BOXES[i % 5])) % 2,
            "case": f"tile {i}",
            **{name: values[i] for name, values in more.items()},
        }
        for i in range(count)
    ]


def loader(items: list[dict[str, Any]], batch_size: int = 2) -> DataLoader:
    return DataLoader(Dataset(items), batch_size=batch_size, collate_fn=collate_detections)


def trainer(network: nn.Module, items: list[dict[str, Any]], batch_size: int = 2, **options: Any) -> DetectionTrainer:
    settings = {"loss_function": LOSS, "max_epochs": 1, **options}
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    return DetectionTrainer(
        torch.device("cpu"),
        train_data_loader=loader(items, batch_size),
        network=network,
        optimizer=optimizer,
        **settings,
    )


def evaluator(network: nn.Module, items: list[dict[str, Any]], batch_size: int = 2, **options: Any) -> Any:
    settings = {"loss_function": LOSS, **options}
    return DetectionEvaluator(torch.device("cpu"), loader(items, batch_size), network, **settings)


def loss_of(network: nn.Module, items: list[dict[str, Any]], keep: Sequence[int] | None = None) -> Tensor:
    batch = collate_detections(items)
    output = network(batch["image"])
    keep = range(len(items)) if keep is None else keep
    chosen = ([batch[key][i] for i in keep] for key in ("box", "label"))
    return LOSS(output[list(keep)], *chosen, SIZE)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in network.parameters()])


def gradient(network: nn.Module, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


def test_what_the_loss_is_given() -> None:
    batch = collate_detections(tiles(2, domain=["XR", "CS"], labelled=[True, False]))
    images, targets = prepare_detection_batch(batch, "cpu", dtype=torch.float64)
    assert images.dtype == torch.float64
    torch.testing.assert_close(images.float(), batch["image"])
    assert (targets.pop("image_size"), targets.pop("domains")) == (SIZE, ["XR", "CS"])
    assert (targets.pop("labelled"), targets.pop("cases")) == ([True, False], ["tile 0", "tile 1"])
    for name, key in (("boxes", "box"), ("labels", "label")):
        assert all(map(torch.equal, targets.pop(name), batch[key]))
    assert targets == {}


def test_a_step_is_that_of_the_loss() -> None:
    network, items = Tiny(), tiles(2)
    before = weights(network)
    network.train()
    wanted = loss_of(network, items)
    slope = gradient(network, wanted)
    run = trainer(network, items)
    run.run()
    torch.testing.assert_close(run.state.output["loss"], wanted)
    torch.testing.assert_close(weights(network), before - slope)


@pytest.mark.parametrize(("clip_norm", "factor"), [(0.01, None), (1e6, 1.0)])
def test_gradients_are_clipped_to_a_common_norm(clip_norm: float, factor: float | None) -> None:
    network, items = Tiny(), tiles(2)
    before = weights(network)
    slope = gradient(network, loss_of(network, items))
    run = trainer(network, items, clip_norm=clip_norm)
    run.run()
    assert slope.norm() > 0.1
    assert run.state.output["grad_norm"].item() == pytest.approx(slope.norm().item(), rel=1e-5)
    factor = clip_norm / slope.norm() if factor is None else factor
    torch.testing.assert_close(weights(network), before - factor * slope, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning")
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_clipping_knows_the_scale_of_mixed_precision(monkeypatch: pytest.MonkeyPatch, accumulation_steps: int) -> None:
    """The scaler's factor is a power of two: the steps are the same to the last bit."""
    found = []
    for scale in (1.0, 1024.0):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        monkeypatch.setattr(torch.cuda.amp, "GradScaler", lambda scaler=scaler: scaler)
        network = Tiny()
        trainer(network, tiles(5), clip_norm=0.01, amp=True, accumulation_steps=accumulation_steps).run()
        found.append(weights(network))
    network = Tiny()
    trainer(network, tiles(5), clip_norm=0.01, accumulation_steps=accumulation_steps).run()
    assert torch.equal(found[0], weights(network))
    assert torch.equal(found[1], weights(network))
    steps = -(-3 // accumulation_steps)  # the last one with what is left of the epoch
    assert 0 < (weights(network) - weights(Tiny())).norm() < 0.01 * steps + 1e-6


@pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning")
def test_a_step_that_overflows_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    monkeypatch.setattr(torch.cuda.amp, "GradScaler", lambda: scaler)
    network, items = Tiny(), tiles(1)
    items[0]["image"] *= 1e6
    before = weights(network)
    run = trainer(network, items, clip_norm=1.0, amp=True)
    run.run()
    assert not run.state.output["grad_norm"].isfinite()
    assert torch.equal(weights(network), before)
    assert scaler.get_scale() == 2.0**119


def test_unlabelled_tiles_teach_a_plain_loss_nothing() -> None:
    network, items = Tiny(), tiles(3, labelled=[True, False, True])
    items[1]["image"] += 5
    before = weights(network)
    wanted = loss_of(network, items, keep=[0, 2])
    slope = gradient(network, wanted)
    run = trainer(network, items, batch_size=3)
    run.run()
    torch.testing.assert_close(run.state.output["loss"], wanted)
    torch.testing.assert_close(weights(network), before - slope)

    network = Tiny()
    run = trainer(network, tiles(2, labelled=[False, False]))
    run.run()
    assert run.state.output["loss"].item() == 0
    assert torch.equal(weights(network), before)


def test_a_loss_that_takes_domains_gets_them() -> None:
    class Loss(nn.Module):
        takes_domains = True

        def forward(self, output: Tensor, **targets: Any) -> Tensor:
            self.targets = targets
            return output.sum()

    loss = Loss()
    trainer(Tiny(), tiles(2, domain=["XR", "CS"], labelled=[True, False]), loss_function=loss).run()
    assert set(loss.targets) == {"boxes", "labels", "image_size", "domains", "labelled"}
    assert (loss.targets["domains"], loss.targets["labelled"]) == (["XR", "CS"], [True, False])


class Half(nn.Module):
    """A network in mixed precision; on a CPU the engines do not ask for it."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=self.dtype):
            return self.network(x).to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_mixed_precision_stays_finite(dtype: torch.dtype, box_loss: str) -> None:
    """Images with no figure and with hundreds, boxes at and past the border, tiny and huge ones."""
    corner = torch.rand(300, 2, generator=torch.Generator().manual_seed(0)) * 120 - 30
    items = tiles(3)
    items[1] |= {"box": torch.cat([corner, corner + 50], dim=1), "label": torch.arange(300) % 2}
    items[2] |= {
        "box": torch.tensor([[-49.0, -49, 1, 1], [95.5, 63.5, 96, 64], [-500, -500, 900, 900], [500, 5, 550, 55]]),
        "label": torch.arange(4) % 2,
    }
    items[0] |= {"box": torch.zeros(0, 4), "label": torch.zeros(0, dtype=torch.int64)}
    torch.manual_seed(0)
    network = Half(fusestyle_retinanet("resnet10", channels=32, norm="group"), dtype)
    outputs = []
    network.network.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    loss = RetinaNetLoss(PyramidAnchors(), box_loss)
    run = trainer(network, items, batch_size=3, loss_function=loss, clip_norm=1.0, max_epochs=2)
    run.run()
    assert outputs[0].dtype == dtype
    assert run.state.output["loss"].dtype == torch.float32
    assert run.state.output["loss"].isfinite()
    assert run.state.output["grad_norm"].isfinite()
    assert all(p.grad.isfinite().all() and p.isfinite().all() for p in network.parameters())


def test_validation_loss_is_the_mean_over_images() -> None:
    network, items = Tiny().eval(), tiles(5)
    wanted = [loss_of(network, [item]).item() for item in items]
    network.train()
    seen = []
    run = evaluator(network, items, batch_size=3)
    run.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.output))
    run.run()
    assert network.training
    assert seen[0]["pred"].shape == (3, 6, 96)
    assert not seen[0]["loss"].requires_grad
    assert torch.cat([output["loss"] for output in seen]).tolist() == pytest.approx(wanted, rel=1e-5)
    assert run.state.metrics == {"val_loss": pytest.approx(sum(wanted) / 5, rel=1e-5)}
    run.run()
    assert run.state.metrics == {"val_loss": pytest.approx(sum(wanted) / 5, rel=1e-5)}


def test_repeated_and_unlabelled_images_do_not_count() -> None:
    network, items = Tiny().eval(), tiles(5, labelled=[True, False, True, True, False])
    wanted = [loss_of(network, [items[i]]).item() for i in (0, 2, 3)]
    run = evaluator(network, [*items, items[3], items[0]])
    outputs = []
    run.add_event_handler(Events.ITERATION_COMPLETED, lambda e: outputs.append(e.state.output["loss"]))
    run.run()
    assert torch.cat(outputs).isnan().tolist() == [False, True, False, False, True, False, False]
    assert run.state.metrics["val_loss"] == pytest.approx(sum(wanted) / 3, rel=1e-5)
    run = evaluator(network, tiles(2, labelled=[False, False]))
    run.run()
    assert math.isnan(run.state.metrics["val_loss"])


def test_a_bad_validation_loss_is_not_hidden() -> None:
    items = tiles(2)
    items[0]["image"][:] = torch.nan
    run = evaluator(Tiny(), items)
    run.run()
    assert math.isnan(run.state.metrics["val_loss"])


@pytest.mark.parametrize("loss_function", [LOSS, None])
def test_handlers_find_the_validation_loss(loss_function: nn.Module | None) -> None:
    class Handler:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

        def __call__(self, engine: Any) -> None:
            self.found = dict(engine.state.metrics)

    handler = Handler()
    run = evaluator(Half(Tiny(), torch.bfloat16), tiles(3), loss_function=loss_function, val_handlers=[handler])
    run.run()
    assert list(handler.found) == ([] if loss_function is None else ["val_loss"])
    assert ("loss" in run.state.output) == (loss_function is not None)
    assert run.state.output["pred"].dtype == torch.float32


@pytest.mark.parametrize("clip_norm", [0, -1.0, math.nan])
def test_bad_clip_norm(clip_norm: float) -> None:
    with pytest.raises(ValueError, match="clip_norm must be above 0, or None, got"):
        trainer(Tiny(), tiles(2), clip_norm=clip_norm)


def test_wrong_boxes_are_reported() -> None:
    items = tiles(2)
    items[1] |= {"box": torch.tensor([[5.0, 5, 5, 9]]), "label": torch.tensor([1])}
    said = r"image 1 of the batch has the box .* The labelled images of the batch: tile 0, tile 1\."
    for run in (trainer(Tiny(), items), evaluator(Tiny(), items)):
        with pytest.raises(DataError, match=said):
            run.run()
    nameless = [{key: value for key, value in item.items() if key != "case"} | {"labelled": True} for item in items]
    with pytest.raises(DataError, match=r"image 1 of the batch has the box .* of which nothing is left\.$"):
        trainer(Tiny(), nameless).run()


def test_a_loss_that_gives_no_loss_of_each_image_validates_as_one_that_does() -> None:
    class Plain(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return LOSS(*args, **kwargs)

    runs = [evaluator(Tiny(), tiles(5), loss_function=loss) for loss in (LOSS, Plain())]
    found = [run.run() or run.state.metrics["val_loss"] for run in runs]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def validate(indices: Sequence[int], batch_size: int) -> dict[str, float]:
    """Tiles of three regions, of 7 tiles in all, from a network that finds some of the figures."""
    regions = [{"box": box, "label": [1] * len(box), "domain": "XR"} for box in BOXES[:3]]
    places = {"region": [0, 0, 1, 1, 2, 2, 2], "origin": [(0.0, 0.0), (40.0, 0.0)] * 3 + [(0.0, 8.0)]}
    more = {"core": [(-math.inf, -math.inf, math.inf, math.inf)] * 7, "scale": [1.0] * 7, "size": [(4000, 4000)] * 7}
    items = tiles(7, **places, **more)
    network = Tiny()
    with torch.no_grad():
        network.conv.weight *= 5
        network.conv.weight[2:], network.conv.bias[2:] = 0, 0  # every box is its anchor
    threshold = DetectionThreshold(regions, PyramidAnchors(), match_radius=20.0, suppress_radius=8.0)
    run = evaluator(network, [items[i] for i in indices], batch_size, key_val_metric={"val_ap": threshold})
    run.run()
    return {**run.state.metrics, "threshold": threshold.threshold, "best": run.state.best_metric}


RANK = """
print(toy.json.dumps(toy.validate([[0, 2, 4, 6], [1, 3, 5, 0]][rank], 3)))
"""


@pytest.mark.slow
def test_two_ranks_validate_as_one_does(tmp_path: Path) -> None:
    """Regions are split over the ranks, and one tile is repeated to make their shares equal."""
    printed = two_ranks(__file__, RANK, tmp_path)
    alone = validate(range(7), 7)
    assert 0 < alone["val_f1"] < 1
    assert alone["best"] == alone["val_ap"] > 0
    found = [json.loads(line) for line in printed]
    assert found[0] == found[1] == {name: pytest.approx(value, rel=1e-6) for name, value in alone.items()}
