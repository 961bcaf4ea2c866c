from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.utils import CommonKeys as Keys
from torch import Tensor

from ..losses.domain_loss import several_domains
from ..utils import DataError
from .domain_trainer import DomainTrainer

BATCH_NORM = ("copied", "interpolated")


class FishTrainer(DomainTrainer):
    """Fish: gradients of different domains are to point the same way (Shi et al., arXiv 2104.09937, algorithm 1).

    A batch is taken apart by domain; the optimizer makes a step on each part, in random order, as it would on a batch,
    and then the weights go only a part of the way that it has led them:

        θ ← θ + ε (θ̃ − θ)

    Args:
        domains: names of those that are trained on, of which every batch has samples; in a distributed run every
            rank's.
        step_size: ε, above 0 and at most 1.
        batch_norm: what becomes of the running statistics: `"copied"`, they stay as the steps left them, or
            `"interpolated"`, as published: they go the same part of the way, and so hardly leave their start where a
            run is short and ε small.
        seed: of the order.
        kwargs: as for `DomainTrainer`.

    Attributes:
        warming_up: batches are not taken apart yet, see `shared.handlers.WarmUp`.

    Raises:
        ValueError: for another step size or `batch_norm`.
        DataError: for fewer than two domains, and for a loss, or mixing, that looks across them, or steps that take
            several batches: it takes each part of a batch by itself; in training, for a batch in which one is missing.
    """

    def __init__(
        self, domains: list[str], step_size: float = 0.5, batch_norm: str = "copied", seed: int = 0, **kwargs: Any
    ) -> None:
        if not 0 < step_size <= 1:
            raise ValueError(f"step_size must be above 0 and at most 1, got {step_size}")
        if batch_norm not in BATCH_NORM:
            raise ValueError(f"batch_norm must be one of {', '.join(BATCH_NORM)}, got {batch_norm!r}")
        loss, mixing = kwargs["loss_function"], kwargs.get("mixing")
        if mixing is not None or getattr(loss, "takes_domains", False):
            across = type(loss if mixing is None else mixing).__name__
            raise DataError(
                f"Fish takes each domain of a batch by itself, and {across} looks across domains. Leave one of the two "
                "overlays out."
            )
        if kwargs.get("accumulation_steps", 1) > 1:
            raise DataError("Fish makes a step for each domain of a batch: accumulation_steps must be 1.")
        super().__init__(**kwargs)
        self.domains, self.step_size = several_domains("Fish", domains), step_size
        self.batch_norm, self.seed, self.warming_up = batch_norm, seed, False

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, Any]) -> dict[str, Any]:
        self._check(batchdata["domain"])
        if self.warming_up:
            return super()._iteration(engine, batchdata)
        moved = list(self.network.parameters())
        if self.batch_norm == "interpolated":
            moved += [buffer for buffer in self.network.buffers() if buffer.is_floating_point()]
        start = [value.detach().clone() for value in moved]
        device, outputs = self.state.device, []
        batchdata = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batchdata.items()}
        for domain in self._order():
            outputs.append(super()._iteration(engine, self._part(batchdata, domain)))
        with torch.no_grad():
            for value, before in zip(moved, start, strict=True):
                value.copy_(before.lerp(value, self.step_size))
        output = self.state.output
        output[Keys.LOSS] = torch.stack([part[Keys.LOSS].detach() for part in outputs]).mean()
        if "loss_value" in output:  # of `shared.handlers.StopOnBadLoss`
            output["loss_value"] = sum(part["loss_value"] for part in outputs) / len(outputs)
        return output

    def _check(self, domains: Sequence[str]) -> None:
        if missing := sorted(set(self.domains).difference(domains)):
            raise DataError(
                f"A batch has no sample of the domain {missing[0]}, and Fish takes a step on each domain of a batch. "
                "Set --balance_domains true, and --batch_size to at least the number of domains, or twice that for "
                "batch norm."
            )

    def _order(self) -> list[str]:
        """The same on all ranks."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.state.iteration)
        return [self.domains[i] for i in torch.randperm(len(self.domains), generator=generator).tolist()]

    def _part(self, batch: Mapping[str, Any], domain: str) -> dict[str, Any]:
        own = [i for i, name in enumerate(batch["domain"]) if name == domain]
        index = torch.tensor(own).to(self.state.device, non_blocking=True)
        lists = {key: [value[i] for i in own] for key, value in batch.items() if isinstance(value, list)}
        return {**lists, **{key: value[index] for key, value in batch.items() if isinstance(value, Tensor)}}
