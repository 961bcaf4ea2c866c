from __future__ import annotations

from collections.abc import Sequence

import ignite.distributed as idist
import torch
from torch import Tensor, nn

from ..utils import DataError


def labelled_loss(
    loss: nn.Module,
    output: Tensor,
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    image_size: Sequence[int],
    labelled: Sequence[bool] | None = None,
) -> Tensor:
    """A detector's loss over the labelled images of a batch.

    That an unlabelled image has no box does not mean that there is no figure in it.

    Args:
        loss: such as `RetinaNetLoss`; called with the output, boxes, labels and the image size.
        output: (B, K + 4, A), of the network.
        boxes: (N, 4) for each image.
        labels: (N,) for each image.
        image_size: height and width of the images.
        labelled: whether each image is; None: all of them.

    Returns:
        The loss, a scalar; without a labelled image 0, as are its gradients.
    """
    known = [i for i in range(len(output)) if labelled is None or labelled[i]]
    if not known:
        return output[:0].float().sum()
    if len(known) < len(output):
        boxes, labels = [boxes[i] for i in known], [labels[i] for i in known]
        output = torch.stack([output[i] for i in known])  # a list as an index would have to be copied to a GPU
    return loss(output, boxes, labels, image_size)


class DomainAdversarialLoss(nn.Module):
    """A detector's loss, and against it a classifier that tries to tell the domains apart by the backbone's features.

    Domain-adversarial training (Ganin et al., JMLR 2016;17(59), arXiv 1505.07818), the idea of the MIDOG challenge's
    reference method (Wilm et al., arXiv 2108.11269), with a classifier of our own: two linear layers learn to name the
    scanner from the average of a stage's features over space, and the reversed gradient teaches the backbone features
    that do not tell. Images without labels, too, teach it that; they take no part in the detector's loss.

    The features are those that leave the stage in training, behind FuseStyle if there is one; a hook on the network
    keeps them from the forward pass to the loss. Where no gradient is asked for, in a validation, this is the
    detector's loss alone.

    The classifier belongs to the loss: give the optimizer `list(network.parameters()) + list(loss.parameters())`, and
    the checkpoint the loss beside the network. In a distributed run its gradients are averaged over the ranks, and its
    initial weights are the same on all of them.

    The loss is the detector's plus the classifier's cross-entropy. `weight` acts on the reversed gradient alone, so
    that the classifier keeps up with the network (so did Ganin et al. in their experiments). It is constant and small:
    0.1 is what Chen et al. (CVPR 2018, arXiv 1803.03243) adapt a detector with, which is to keep what its backbone has
    learned; a ramp, as Ganin et al. have it, would need to know how long the training is.

    Args:
        loss: of the detector, such as `RetinaNetLoss`.
        network: the detector, with a `backbone.body` of stages `layer1` to `layer4`; it may be wrapped for distributed
            training.
        domains: names of the domains, two or more.
        weight: lambda of the paper, at least 0.
        stage: whose features are looked at, 1 to 4.
        channels: of the classifier's hidden layer.
        seed: of the classifier's initial weights.

    Attributes:
        detection_loss, domain_loss, domain_accuracy: of the last batch in training, scalar tensors without gradient.

    Raises:
        ValueError: for a negative weight or another stage; when called in training without a forward pass of the
            network, or without the domains.
        DataError: for fewer than two domains; when called with a domain that is none of `domains`.
    """

    takes_domains = True  # of `shared.engines.DetectionTrainer`

    def __init__(
        self,
        loss: nn.Module,
        network: nn.Module,
        domains: Sequence[str],
        weight: float = 0.1,
        stage: int = 4,
        channels: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(domains, str) or len(set(domains)) < 2:
            raise DataError(
                f"Domain-adversarial training needs two or more domains to tell apart, found {domains!r}. Train on "
                "more scanners, add images of another without labels, or train without it."
            )
        if not weight >= 0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        if stage not in (1, 2, 3, 4):
            raise ValueError(f"stage must be from 1 to 4, got {stage}")
        self.loss = loss
        self.domains = sorted(set(domains))
        self.weight = float(weight)
        layer = getattr(network, "module", network).backbone.body.get_submodule(f"layer{stage}")
        in_channels = [m.out_channels for m in layer.modules() if isinstance(m, nn.Conv2d)][-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hidden = (nn.Linear(in_channels, channels), nn.ReLU(), nn.Linear(channels, len(self.domains)))
        self.classifier = nn.Sequential(*hidden)
        for parameter in self.classifier.parameters():
            parameter.register_hook(_mean_over_ranks)
        layer.register_forward_hook(self._keep)
        self._features: Tensor | None = None
        self.detection_loss = self.domain_loss = self.domain_accuracy = torch.tensor(torch.nan)

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...], features: Tensor) -> None:
        if layer.training and features.requires_grad:
            self._features = features

    def forward(
        self,
        output: Tensor,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        image_size: Sequence[int],
        domains: Sequence[str] | None = None,
        labelled: Sequence[bool] | None = None,
    ) -> Tensor:
        """
        Args:
            output, boxes, labels, image_size, labelled: see `labelled_loss`.
            domains: the domain of each image; needed in training only.

        Returns:
            The loss, a scalar.
        """
        detection = labelled_loss(self.loss, output, boxes, labels, image_size, labelled)
        if not output.requires_grad:
            return detection
        features, self._features = self._features, None
        if features is None or len(features) != len(output):
            raise ValueError(
                "the network that the loss was given has not just made this output in training mode; the loss needs "
                "its features"
            )
        if domains is None or len(domains) != len(output):
            raise ValueError(f"the domain of each of {len(output)} images is needed, got {domains}")
        # Behind the detector's loss: its gradients come first then, and all ranks average them before any others.
        domain = self._domain_loss(features, domains)
        self.detection_loss, self.domain_loss = detection.detach(), domain.detach()
        return detection + domain

    def _domain_loss(self, features: Tensor, domains: Sequence[str]) -> Tensor:
        unknown = sorted(set(domains) - set(self.domains))
        if unknown:
            raise DataError(
                f"an image is of the domain {unknown[0]}, expected one of {', '.join(self.domains)}. Name all domains "
                "of the training data, those of unlabelled images too."
            )
        target = torch.tensor([self.domains.index(domain) for domain in domains])
        target = target.to(features.device, non_blocking=True)
        with torch.autocast(features.device.type, enabled=False):
            pooled = features.float().mean(dim=(2, 3))
            pooled.register_hook(lambda gradient: -self.weight * gradient)  # reverses what goes back to the network
            logits = self.classifier(pooled)
            self.domain_accuracy = (logits.detach().argmax(dim=1) == target).float().mean()
            return nn.functional.cross_entropy(logits, target)


def _mean_over_ranks(gradient: Tensor) -> Tensor:
    world_size = idist.get_world_size()
    return idist.all_reduce(gradient.clone()) / world_size if world_size > 1 else gradient
