from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from torch import Tensor, nn

from shared.data import DomainBatchSampler
from shared.handlers import ClassificationReport, MatchPositiveRate
from shared.utils import DataError, read_json_object

SHIFTS = {"CS": 2.5, "XR": -4.0}  # of a scanner's logits


class Mean(nn.Module):
    """The mean of an image for its logit; half of it in training, which nothing here is to be."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))[:, None] / (2 if self.training else 1)


def items(count: int = 80, rate: float = 0.25) -> list[dict[str, Any]]:
    rng, found = np.random.default_rng(0), []
    for domain, shift in SHIFTS.items():
        for i in range(count):
            label = float(i < rate * count)
            logit = rng.normal(6 * label - 3, 0.8) + shift
            image = torch.full((1, 2, 2), logit, dtype=torch.float32)
            named = {"domain": domain, "slide": str(i % 5), "case": f"{domain}{i}"}
            found.append({"image": image, "label": torch.tensor([label]), **named})
    return found


def make(data: list[dict[str, Any]], handlers: list[Any], network: nn.Module, **options: Any) -> SupervisedEvaluator:
    images = Dataset(data)
    loader = DataLoader(images, batch_sampler=DomainBatchSampler([item["domain"] for item in data], 16))
    match = MatchPositiveRate(network, images, **options)
    handlers = [match, *handlers]
    return SupervisedEvaluator(torch.device("cpu"), loader, network, decollate=False, val_handlers=handlers)


def test_the_chosen_threshold_fits_each_scanner(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    report = ClassificationReport(tmp_path, threshold=0.4, train_domains=["GT450"], bootstrap=1, positive_rate=0.25)
    evaluator = make(items(), [report], Mean().train(), rate=0.25, threshold=0.4, batch_size=32)
    evaluator.run()
    summary = read_json_object(tmp_path / "summary.json", "a summary", "")
    assert summary["positive_rate"] == 0.25
    for domain, shift in SHIFTS.items():
        assert summary["domains"][domain]["balanced_accuracy"]["value"] == 1
        assert summary["logit_shifts"][domain] == pytest.approx(-shift, abs=1.0)
    assert any("share of positives that was stated, 0.25." in note for note in summary["notes"])
    assert "CS: by 80 images, with a share of 0.25 positive ones as stated, the threshold of 0.4 is 0." in caplog.text
    without = make(items(), [ClassificationReport(tmp_path, threshold=0.4, bootstrap=1)], Mean())
    without.run()
    summary = read_json_object(tmp_path / "summary.json", "a summary", "")
    assert not summary.keys() & {"positive_rate", "logit_shifts"}
    assert min(summary["domains"][domain]["balanced_accuracy"]["value"] for domain in SHIFTS) < 0.9


def test_the_same_network_gives_the_same_shift_again_and_few_images_are_told(caplog: pytest.LogCaptureFixture) -> None:
    data = items(8)
    evaluator = make(data, [], network := Mean().train(), rate=0.25, threshold=1.0)
    shifts = []
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: shifts.append(engine.state.batch["logit_shift"])
    )
    evaluator.run()
    evaluator.run()
    assert shifts[:2] == shifts[2:]
    assert [len(each) for each in shifts] == [8] * 4
    assert np.isfinite(shifts).all()
    assert network.training  # as before
    assert "XR: by 8 images, very few," in caplog.text


def test_too_few_images_say_nothing() -> None:
    with pytest.raises(
        DataError, match=r"CS: 3 images, and with a share of 0\.25 positive ones fewer than 4 say nothing"
    ):
        make(items(3), [], Mean(), rate=0.25).run()
    with pytest.raises(DataError, match=r"CS: 1 image, and .* fewer than 4"):
        make(items(1), [], Mean(), rate=0.75).run()


def test_what_is_no_number_is_told() -> None:
    data = items(8)
    data[3]["image"] *= torch.nan
    with pytest.raises(DataError, match="CS: the network gives no number for some images"):
        make(data, [], Mean(), rate=0.25).run()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="rate must be above 0 and below 1, got 1"):
        MatchPositiveRate(Mean(), Dataset([]), rate=1)
    data, network = items(4), Mean()
    loader = DataLoader(Dataset(data), batch_size=8)
    handlers = [MatchPositiveRate(network, Dataset(data), rate=0.5)]
    mixed = SupervisedEvaluator(torch.device("cpu"), loader, network, decollate=False, val_handlers=handlers)
    with pytest.raises(DataError, match=r"mixes the domains CS, XR.*DomainBatchSampler"):
        mixed.run()
