from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.utils.data import Dataset

from ..networks import adapt_batch_norm
from ..utils import DataError, flag
from .domain_images import FEW, DomainImages

logger = logging.getLogger(__name__)


class AdaptBatchNorm:
    """Adapt a network's batch norm to each domain before its images are classified, see `adapt_batch_norm`.

    Attach it to an evaluator whose batches hold one domain each, domain after domain (`DomainBatchSampler`). When the
    first batch of a domain comes, all images of that domain are passed through the network, unlabelled, in a random
    order that is always the same. Where batches name no domain, all images of the data set are taken for one. After
    the run the network has the statistics again that it had before.

    Args:
        network: changed in place while the evaluator runs.
        dataset: what the evaluator reads, a `monai.data.Dataset` over dicts with `domain`.
        enabled: False does nothing.
        batch_size: 2 or more; larger ones estimate better.
        num_workers: of the data loader.
        timeout: of the data loader, where it has workers.
        collate_fn: of the data loader; that of the evaluator's loader, where images may be unreadable.

    Raises:
        ValueError: when `batch_size` is less than 2.
        DataError: when `enabled` is neither true nor false, or the network has no batch norm to adapt; at the start
            of a batch that mixes domains.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Dataset,
        enabled: bool = True,
        batch_size: int = 256,
        num_workers: int = 0,
        timeout: float = 0,
        collate_fn: Callable | None = None,
    ) -> None:
        if batch_size < 2:
            raise ValueError(f"batch_size must be 2 or more, got {batch_size}")
        self.network = network
        self.images = DomainImages(dataset, batch_size, num_workers, timeout, collate_fn)
        self.enabled = flag("adapt_batch_norm", enabled)
        if self.enabled and not any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()
        ):
            raise DataError(
                "adapt_batch_norm is true, and this network has no batch norm to adapt: its norm is another, or "
                "frozen, or the network is TorchScript. Leave out adapt_batch_norm, or, for weights trained with "
                "pretrained.json, that overlay; or give model.pt with --ckpt_path."
            )
        self.adapted_to: str | None = None
        self.before: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:
        if self.enabled:
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_STARTED, self)
            engine.add_event_handler(Events.COMPLETED, self._restore)
            engine.add_event_handler(Events.EXCEPTION_RAISED, self._restore_and_raise)

    def _start(self, engine: Engine) -> None:
        self.adapted_to = None
        self.before = [buffer.clone() for buffer in self.network.buffers()]

    def _restore(self, engine: Engine) -> None:
        if self.before:
            for buffer, before in zip(self.network.buffers(), self.before, strict=True):
                buffer.copy_(before)
        self.before = []

    def _restore_and_raise(self, engine: Engine, error: BaseException) -> None:
        self._restore(engine)
        # ignite takes it for handled, but what raises it keeps it from those that come later
        if engine._event_handlers[Events.EXCEPTION_RAISED][-1][0] == self._restore_and_raise:
            raise error

    def __call__(self, engine: Engine) -> None:
        domain = self.images.domain(engine.state.batch)
        if domain in (None, self.adapted_to):
            return
        count = adapt_batch_norm(self.network, self.images.of(domain, engine.state.device))
        self.adapted_to = domain
        log = logger.warning if count < FEW else logger.info
        log("batch norm adapted to %s on %d images%s", domain, count, ", very few" if count < FEW else "")
