from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import default_prepare_batch
from torch import Tensor, nn

from ..layers import tell_batch
from ..losses import labelled_loss
from ..utils import DataError
from .batch_mixing import BatchMixing


def prepare_domain_batch(
    batch: Mapping[str, Any],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    mixing: BatchMixing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, dict[str, Any]]:
    """The images of a batch for the network, and the rest of it for the loss.

    Args:
        batch: `image` (B, channels, ...), `label` (B, 1), and `domain`, a name for each image.
        device: where to bring images and labels.
        non_blocking: as of `torch.Tensor.to`.
        mixing: mixes images and labels of the batch, on the device.
        kwargs: more of the options of `torch.Tensor.to`.

    Returns:
        The images, and `target`, the labels, and `domains`.
    """
    image, target = default_prepare_batch(batch, device, non_blocking, **kwargs)
    if mixing is not None:
        image, target = mixing(image, target, batch["label"], batch["domain"])
    return image, {"target": target, "domains": list(batch["domain"])}


def prepare_and_tell(
    network: nn.Module, prepare_batch: Callable, *args: Any, **kwargs: Any
) -> tuple[Tensor, dict[str, Any]]:
    """What `prepare_batch` gives, and the network's FuseStyle layers are told of it, see `tell_batch`.

    Args:
        network: that the batch goes through next.
        prepare_batch: such as `prepare_domain_batch`.
        args, kwargs: its arguments.
    """
    image, targets = prepare_batch(*args, **kwargs)
    tell_batch(network, targets.get("target"), targets.get("domains"))
    return image, targets


def apply_loss(loss_function: nn.Module, output: Tensor, targets: Mapping[str, Any]) -> Tensor:
    """The loss of the labelled images, or of all of them where the loss takes domains.

    Args:
        loss_function: called with the output and, by name, the targets but `cases`; with `domains` and `labelled` only
            if it has an attribute `takes_domains` that is true.
        output: of the network.
        targets: as `prepare_domain_batch` or `prepare_detection_batch` gives them.

    Raises:
        DataError: of the loss, with the names of the labelled images where it knows their numbers alone.
    """
    takes_domains = getattr(loss_function, "takes_domains", False)
    given = {k: v for k, v in targets.items() if k != "cases" and (takes_domains or k != "domains")}
    try:
        return loss_function(output, **given) if takes_domains else labelled_loss(loss_function, output, **given)
    except DataError as error:
        raise DataError(f"{error}{labelled_names(targets)}") from error


def labelled_names(targets: Mapping[str, Any]) -> str:
    """What an error of a loss, which knows its images by their numbers from 0, has to add: their names, if known."""
    if not (names := targets.get("cases")):
        return ""
    labelled = [name for name, known in zip(names, targets.get("labelled", [True] * len(names)), strict=True) if known]
    return f" The labelled images of the batch: {', '.join(labelled)}." if labelled else ""


class DomainTrainer(SupervisedTrainer):
    """A trainer whose loss may know the domain of each sample, such as the scanner, and which may mix a batch.

    The network's FuseStyle layers are told labels and domains of each batch, as they are once it is mixed.

    A loss with an attribute `takes_domains` that is true is called with the network's output and, by name, `target` and
    `domains`; any other as `loss(output, target=...)`.

    Args:
        device: where the network is.
        max_epochs: how long to train.
        train_data_loader: gives batches for `prepare_batch`.
        network: what is trained.
        optimizer: of its parameters, and of the loss's.
        loss_function: such as `GroupDROLoss`, or one of torch.
        prepare_batch: see `prepare_domain_batch`.
        mixing: such as `LISA`; None: batches stay as they are.
        decollate: as for `SupervisedTrainer`.
        kwargs: as for `SupervisedTrainer`.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: nn.Module,
        prepare_batch: Callable = prepare_domain_batch,
        mixing: BatchMixing | None = None,
        decollate: bool = False,
        **kwargs: Any,
    ) -> None:
        prepare_batch = prepare_batch if mixing is None else partial(prepare_batch, mixing=mixing)
        super().__init__(
            device,
            max_epochs,
            train_data_loader,
            network,
            optimizer,
            partial(apply_loss, loss_function),
            prepare_batch=partial(prepare_and_tell, network, prepare_batch),
            decollate=decollate,
            **kwargs,
        )
