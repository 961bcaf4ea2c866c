from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from ignite.metrics.metric import EpochWise
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch import Tensor, nn

from ..utils import DataError
from .domain_trainer import DomainTrainer, apply_loss, labelled_names


def prepare_detection_batch(
    batch: Mapping[str, Any], device: str | torch.device | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, dict[str, Any]]:
    """The images of a batch for the network, and the rest of it for the loss.

    Args:
        batch: as `shared.data.collate_detections` makes it.
        device: where to bring the images. Boxes and labels stay in main memory: the loss looks at them there first.
        non_blocking: as of `torch.Tensor.to`.
        kwargs: more of its options, for the images.

    Returns:
        The images (B, channels, H, W), and `boxes` and `labels`, one tensor for each image, `image_size`, (H, W), and
        where the batch has them `domains` and `cases`, names, and `labelled`, whether each image is.
    """
    image = batch["image"].to(device=device, non_blocking=non_blocking, **kwargs)
    targets: dict[str, Any] = {
        "boxes": list(batch["box"]),
        "labels": list(batch["label"]),
        "image_size": tuple(image.shape[-2:]),
    }
    optional = {"domains": "domain", "labelled": "labelled", "cases": "case"}
    return image, targets | {name: list(batch[key]) for name, key in optional.items() if key in batch}


class DetectionTrainer(DomainTrainer):
    """A trainer of detectors whose network gives one tensor a batch, such as `RetinaNet`.

    The loss is called with the network's output and, by name, `boxes`, `labels` and `image_size` of the labelled images
    of the batch; a loss with an attribute `takes_domains` that is true, such as `DomainAdversarialLoss`, with all
    images, `domains` and `labelled`. Boxes and labels are in main memory, wherever the output is: a loss of one's own
    brings to the output's device what it computes with.

    Args:
        device: where the network is.
        max_epochs: how long to train.
        train_data_loader: gives batches as `shared.data.collate_detections` makes them.
        network: the detector.
        optimizer: of its parameters.
        loss_function: such as `RetinaNetLoss`.
        clip_norm: the gradient of all parameters of the optimizer together is scaled down to this norm where it is
            longer; in mixed precision without the factor of the gradient scaler. Its length before stands in
            `state.output["grad_norm"]`. None: as it is.
        prepare_batch: see `prepare_detection_batch`.
        decollate: as for `SupervisedTrainer`.
        kwargs: as for `SupervisedTrainer`.

    Raises:
        ValueError: when `clip_norm` is not above 0.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: nn.Module,
        clip_norm: float | None = None,
        prepare_batch: Callable = prepare_detection_batch,
        decollate: bool = False,
        **kwargs: Any,
    ) -> None:
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0, or None, got {clip_norm}")
        super().__init__(
            device,
            max_epochs,
            train_data_loader,
            network,
            optimizer,
            loss_function,
            prepare_batch=prepare_batch,
            decollate=decollate,
            **kwargs,
        )
        self.clip_norm = clip_norm
        if clip_norm is not None:
            self.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._clip)

    def _clip(self, engine: Engine) -> None:
        place = (self.state.iteration - 1) % self.state.epoch_length + 1
        if place % self.accumulation_steps and place < self.state.epoch_length:
            return  # no step is taken yet
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.state.output["grad_norm"] = nn.utils.clip_grad_norm_(parameters, self.clip_norm)


class MeanImageLoss(Metric):
    """The mean over the labelled images of an evaluation of `state.output["loss"]`, which has a value for each.

    An image counts once, by its name in `case`, whatever the batches are, on however many ranks, and also where a
    sampler repeats some so that all ranks have as many.
    """

    def reset(self) -> None:
        self.batches: list[tuple[list[str | None], Tensor]] = []

    def attach(self, engine: Engine, name: str = "val_loss", usage: Any = EpochWise.usage_name) -> None:
        super().attach(engine, name, usage)

    def iteration_completed(self, engine: Engine) -> None:
        batch = engine.state.batch
        cases, labelled = batch["case"], batch.get("labelled", [True] * len(batch["case"]))
        names = [case if known else None for case, known in zip(cases, labelled, strict=True)]
        self.update((names, engine.state.output[CommonKeys.LOSS]))

    def update(self, output: tuple[list[str | None], Tensor]) -> None:
        self.batches.append(output)  # read at the end: the host would have to wait for a GPU here

    def compute(self) -> float:
        """NaN without a labelled image."""
        names = [name for of_batch, _ in self.batches for name in of_batch]
        losses = torch.cat([losses for _, losses in self.batches]).tolist() if self.batches else []
        own = {name: loss for name, loss in zip(names, losses, strict=True) if name is not None}
        gathered: dict[str, float] = {}
        for part in idist.all_gather(own):
            gathered.update(part)
        return math.fsum(gathered[case] for case in sorted(gathered)) / len(gathered) if gathered else math.nan


class DetectionEvaluator(SupervisedEvaluator):
    """An evaluator of detectors whose network gives one tensor a batch, such as `RetinaNet`.

    `state.output["pred"]` is the network's output, (B, K + 4, A), in float32. With a loss function,
    `state.output["loss"]` is a tensor (B,), NaN for an image without labels, and `state.metrics["val_loss"]` the mean
    over the images, see `MeanImageLoss`; it is there before the handlers run at the end of the epoch.

    Args:
        device: where the network is.
        val_data_loader: gives batches as `shared.data.collate_detections` makes them, of items with a `case`.
        network: the detector.
        loss_function: as for `DetectionTrainer`, or None. Where it has a method `image_losses`, as `RetinaNetLoss`
            has, that gives the losses of a whole batch at once.
        prepare_batch: see `prepare_detection_batch`.
        decollate: as for `SupervisedEvaluator`.
        val_handlers: as for `SupervisedEvaluator`.
        kwargs: as for `SupervisedEvaluator`.
    """

    def __init__(
        self,
        device: str | torch.device,
        val_data_loader: Iterable,
        network: nn.Module,
        loss_function: nn.Module | None = None,
        prepare_batch: Callable = prepare_detection_batch,
        decollate: bool = False,
        val_handlers: Sequence | None = None,
        **kwargs: Any,
    ) -> None:
        mean_loss = [] if loss_function is None else [MeanImageLoss()]
        super().__init__(
            device,
            val_data_loader,
            network,
            prepare_batch=prepare_batch,
            decollate=decollate,
            val_handlers=[*mean_loss, *(val_handlers or [])],
            **kwargs,
        )
        self.loss_function = loss_function

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> dict[str, Any]:
        output = super()._iteration(engine, batchdata)
        output[CommonKeys.PRED] = output[CommonKeys.PRED].float()
        if self.loss_function is not None:
            with torch.no_grad():
                output[CommonKeys.LOSS] = self._image_losses(output[CommonKeys.PRED], output[CommonKeys.LABEL])
        return output

    def _image_losses(self, output: Tensor, targets: Mapping[str, Any]) -> Tensor:
        """From the loss's `image_losses` where it has such, or from the loss for each image by itself."""
        labelled = targets.get("labelled", [True] * len(output))
        if hasattr(self.loss_function, "image_losses") and all(labelled):
            try:
                return self.loss_function.image_losses(output, *(targets[k] for k in ("boxes", "labels", "image_size")))
            except DataError as error:
                raise DataError(f"{error}{labelled_names(targets)}") from error
        losses = output.new_full((len(output),), torch.nan)
        for i, known in enumerate(labelled):
            if known:
                own = {k: v if k == "image_size" else v[i : i + 1] for k, v in targets.items()}
                losses[i] = apply_loss(self.loss_function, output[i : i + 1], own)
        return losses
