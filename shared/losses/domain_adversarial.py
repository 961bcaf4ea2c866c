from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import torch
from torch import Tensor, nn

from .domain_loss import KeptFeatures, domain_ids, several_domains


def labelled_loss(loss: nn.Module, output: Tensor, labelled: Sequence[bool] | None = None, **targets: Any) -> Tensor:
    """A loss over the labelled images of a batch.

    That an unlabelled image has no box does not mean that there is no figure in it.

    Args:
        loss: such as `RetinaNetLoss`; called with the output, and by name with the targets.
        output: (B, ...), of the network.
        labelled: whether each image is; None: all of them.
        targets: what the loss takes; of a list, which has an entry for each image, those of the labelled ones.

    Returns:
        The loss, a scalar; without a labelled image 0, as are its gradients.
    """
    known = [i for i in range(len(output)) if labelled is None or labelled[i]]
    if not known:
        return output[:0].float().sum()
    if len(known) < len(output):
        targets = {k: [v[i] for i in known] if isinstance(v, list) else v for k, v in targets.items()}
        output = torch.stack([output[i] for i in known])  # a list as an index would have to be copied to a GPU
    return loss(output, **targets)


class DomainAdversarialLoss(nn.Module):
    """A network's loss, and against it a classifier that tries to tell the domains apart by the network's features.

    Domain-adversarial training (Ganin et al., JMLR 2016;17(59), arXiv 1505.07818), with a detector the idea of the
    MIDOG challenge's reference method (Wilm et al., arXiv 2108.11269), with a classifier of our own: two linear layers
    learn to name the scanner from features, averaged over space where they have such, and the reversed gradient teaches
    the network features that do not tell. Images without labels, too, teach it that; they take no part in the
    network's loss.

    The features are those in training, behind FuseStyle if there is one; a hook on the network keeps them from the
    forward pass to the loss. Where no gradient is asked for, in a validation, this is the network's loss alone.

    The classifier belongs to the loss: give the optimizer `list(network.parameters()) + list(loss.parameters())`, and
    the checkpoint the loss beside the network. In a distributed run its gradients are averaged over the ranks, and its
    initial weights are the same on all of them.

    The loss is the network's plus the classifier's cross-entropy. `weight` acts on the reversed gradient alone, so
    that the classifier keeps up with the network (so did Ganin et al. in their experiments). It is constant and small:
    0.1 is what Chen et al. (CVPR 2018, arXiv 1803.03243) adapt a detector with, which is to keep what its backbone has
    learned; a ramp, as Ganin et al. have it, would need to know how long the training is.

    Args:
        loss: of the network, such as `RetinaNetLoss`, called with the output and, by name, the targets.
        network: may be wrapped for distributed training.
        domains: names of the domains, two or more.
        weight: lambda of the paper, at least 0.
        layer: name of the convolutional layer whose output the classifier sees, such as `"backbone.body.layer4"`;
            None: what the network's last linear layer reads.
        channels: of the classifier's hidden layer.
        seed: of the classifier's initial weights.

    Attributes:
        task_loss, domain_loss, domain_accuracy: of the last batch in training, scalar tensors without gradient.

    Raises:
        ValueError: for a negative weight; when called in training without a forward pass of the network, or without
            the domains.
        AttributeError: for a layer that the network does not have.
        DataError: for fewer than two domains; when called with a domain that is none of `domains`.
    """

    takes_domains = True  # of `shared.engines.DomainTrainer`

    def __init__(
        self,
        loss: nn.Module,
        network: nn.Module,
        domains: Sequence[str],
        weight: float = 0.1,
        layer: str | None = None,
        channels: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        self.domains = several_domains("Domain-adversarial training", domains)
        self.loss = loss
        self.weight = float(weight)
        self._kept = KeptFeatures(network, layer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hidden = (nn.Linear(self._kept.channels, channels), nn.ReLU(), nn.Linear(channels, len(self.domains)))
        self.classifier = nn.Sequential(*hidden)
        for parameter in self.classifier.parameters():
            parameter.register_hook(_mean_over_ranks)
        self.task_loss = self.domain_loss = self.domain_accuracy = torch.tensor(torch.nan)

    def extra_repr(self) -> str:
        return f"weight={self.weight}"

    def forward(
        self,
        output: Tensor,
        domains: Sequence[str] | None = None,
        labelled: Sequence[bool] | None = None,
        **targets: Any,
    ) -> Tensor:
        """
        Args:
            output: of the network, (B, ...).
            domains: the domain of each image; needed in training only.
            labelled, targets: see `labelled_loss`.

        Returns:
            The loss, a scalar.
        """
        task = labelled_loss(self.loss, output, labelled, **targets)
        if not output.requires_grad:
            return task
        features = self._kept.take(len(output))
        target = torch.tensor(domain_ids(self.domains, domains, len(output)))
        # Behind the network's loss: its gradients come first then, and all ranks average them before any others.
        domain = self._domain_loss(features, target.to(features.device, non_blocking=True))
        self.task_loss, self.domain_loss = task.detach(), domain.detach()
        return task + domain

    def _domain_loss(self, features: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            pooled = features.float().flatten(2).mean(dim=2) if features.ndim > 2 else features.float() * 1
            pooled.register_hook(lambda gradient: -self.weight * gradient)  # reverses what goes back to the network
            logits = self.classifier(pooled)
            self.domain_accuracy = (logits.detach().argmax(dim=1) == target).float().mean()
            return nn.functional.cross_entropy(logits, target)


def _mean_over_ranks(gradient: Tensor) -> Tensor:
    world_size = idist.get_world_size()
    return idist.all_reduce(gradient.clone()) / world_size if world_size > 1 else gradient
