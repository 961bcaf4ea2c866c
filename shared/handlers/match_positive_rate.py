from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.networks.utils import eval_mode
from scipy.special import logit
from torch import nn
from torch.utils.data import Dataset

from ..metrics import matched_threshold
from ..utils import DataError
from ..utils.errors import NO_NUMBER
from .domain_images import FEW, DomainImages

logger = logging.getLogger(__name__)

SURE = 1e-6  # a threshold of 0 or 1 has no logit


class MatchPositiveRate:
    """Shift the logits of each domain to where a threshold that was chosen on other domains is right for it.

    A scanner that was not trained on shifts the logits of all images. Where the share of its positive images is about
    known, how far is told by the images alone, see `shared.metrics.matched_threshold`.

    Attach it to an evaluator of a binary classifier, logits (B, 1), whose batches hold one domain each, domain after
    domain (`DomainBatchSampler`), behind `AdaptBatchNorm`. When the first batch of a domain comes, all images of that
    domain are passed through the network; where batches name no domain, all images of the data set are taken for one.
    What was added to a logit is put into the batch, as `logit_shift`, for reports.

    Args:
        network: the evaluator's.
        dataset: what the evaluator reads, a `monai.data.Dataset` over dicts with `domain`.
        rate: the share of positives among the images of each domain, above 0 and below 1; None does nothing.
        threshold: the chosen one, a probability. The shift moves the matched one to it.
        batch_size, num_workers, timeout, collate_fn: see `DomainImages`.

    Attributes:
        shifts: what was added to the logits, by domain.

    Raises:
        ValueError: when `rate` is out of range.
        DataError: at the start of a batch that mixes domains; when a logit is not a number, or so few
            images are there that not one of a class is to be expected.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Dataset,
        rate: float | None = None,
        threshold: float = 0.5,
        batch_size: int = 256,
        num_workers: int = 0,
        timeout: float = 0,
        collate_fn: Callable | None = None,
    ) -> None:
        if rate is not None and not 0 < rate < 1:
            raise ValueError(f"rate must be above 0 and below 1, got {rate}")
        self.network = network
        self.images = DomainImages(dataset, batch_size, num_workers, timeout, collate_fn)
        self.rate = rate
        self.threshold = threshold
        self.shifts: dict[str, float] = {}

    def attach(self, engine: SupervisedEvaluator) -> None:
        if self.rate is not None:
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self.shifts = {}

    def __call__(self, engine: SupervisedEvaluator) -> None:
        domain = self.images.domain(engine.state.batch)
        if domain is None:
            return
        if domain not in self.shifts:
            self.shifts[domain] = self._shift(engine, domain)
        logits = engine.state.output["pred"].float()
        engine.state.output["pred"] = logits + self.shifts[domain]
        engine.state.batch["logit_shift"] = [self.shifts[domain]] * len(logits)

    def _shift(self, engine: SupervisedEvaluator, domain: str) -> float:
        device = engine.state.device
        amp = torch.autocast(torch.device(device).type, enabled=engine.amp, **engine.amp_kwargs)
        with torch.no_grad(), eval_mode(self.network), amp:
            outputs = [engine.inferer(images, self.network) for images in self.images.of(domain, device)]
        prob = torch.cat(outputs).double().sigmoid().flatten().cpu().numpy()
        if not np.isfinite(prob).all():
            raise DataError(f"{domain}: the network gives no number for some images. {NO_NUMBER}")
        if (least := math.ceil(1 / min(self.rate, 1 - self.rate))) > len(prob):
            raise DataError(
                f"{domain}: {len(prob)} image{'s' * (len(prob) > 1)}, and with a share of {self.rate:g} positive ones "
                f"fewer than {least} say nothing of where the threshold belongs. Give more of this scanner, a hundred "
                "better, or leave out --positive_rate."
            )
        matched = matched_threshold(prob, self.rate)
        chosen = min(max(self.threshold, SURE), 1 - SURE)
        shift = float(logit(chosen) - logit(matched))
        log = logger.warning if len(prob) < FEW else logger.info
        few = ", very few" if len(prob) < FEW else ""
        log(
            "%s: by %d images%s, with a share of %.3g positive ones as stated, the threshold of %.3g is %.3g there",
            *(domain, len(prob), few, self.rate, self.threshold, matched),
        )
        return shift
