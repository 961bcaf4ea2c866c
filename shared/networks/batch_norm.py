from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def adapt_batch_norm(network: nn.Module, images: Iterable[Tensor]) -> int:
    """Re-estimate the statistics of all batch-norm layers on images of another domain, such as a new scanner.

    AdaBN: Li et al., *Revisiting batch normalization for practical domain adaptation*, 2016 (arXiv 1603.04779). No
    label is needed and no weight changes. Mean and variance become the averages over the batches of `images`, each
    weighing as many images as it holds. A network without batch norm stays as it is.

    Batches should be alike, so draw them at random: how far apart they lie does not enter the variance.

    Args:
        network: changed in place; its modes stay as they are, and after an exception its statistics too.
        images: batches on the network's device, preprocessed as it expects; empty ones are passed over. More images
            make the statistics steadier.

    Returns:
        The number of images.

    Raises:
        ValueError: when there is no image.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    modes = [(module, module.training) for module in network.modules()]
    statistics = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    network.eval()  # nothing else that is active in training alone takes part
    count = 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        for batch in images:
            if not len(batch):
                continue
            count += len(batch)
            for norm in norms:
                norm.momentum = len(batch) / count  # 1 at first, so that nothing of the old statistics stays
            network(batch)
        if not count:
            raise ValueError("batch norm cannot be adapted: there is no image")
    except BaseException:
        for buffer, before in statistics:
            buffer.copy_(before)
        raise
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return count
