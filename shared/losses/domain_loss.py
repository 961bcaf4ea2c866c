from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import ignite.distributed as idist
import torch
from torch import Tensor, nn

from ..utils import DataError


@dataclass(frozen=True)
class DomainPart:
    """A batch's samples of one domain, n of them, 0 where it is absent; in float32, or float64 if the output is.

    Attributes:
        logits: (n,).
        target: (n,), from 0 to 1.
        losses: (n,), the binary cross-entropy of each.
        features: (n, channels), what the network's last linear layer read; (n, 0) where the loss does not ask for it.
    """

    logits: Tensor
    target: Tensor
    losses: Tensor
    features: Tensor


class DomainLoss(nn.Module, ABC):
    """What losses for domain generalisation have in common: the cross-entropy of a batch, domain by domain.

    A method says in `combine` what it makes of the domains. In a distributed run each rank has the samples of all
    ranks there, in the order in which one process would have them, and computes the whole loss; the gradients, which
    `DistributedDataParallel` averages over the ranks, are those of one process.

    Args:
        domains: names of those that are trained on.
        pos_weight: of the positive class, as in `torch.nn.BCEWithLogitsLoss`.
        network: where the method looks at features; see `KeptFeatures`.

    Attributes:
        warming_up: the penalty waits still, see `shared.handlers.WarmUp`.

    Raises:
        DataError: for fewer than two domains; when called with another domain, or, unless `takes_any_batch`, with
            samples of one domain alone.
        ValueError: when called with a shape other than (B, 1), or without the domain of each sample.
    """

    takes_domains = True  # of `shared.engines.DomainTrainer`
    takes_any_batch = False

    def __init__(self, domains: Sequence[str], pos_weight: float = 1.0, network: nn.Module | None = None) -> None:
        super().__init__()
        self.domains = several_domains(type(self).__name__, domains)
        self.register_buffer("pos_weight", torch.tensor(float(pos_weight)), persistent=False)
        self._kept = None if network is None else KeptFeatures(network)

    def forward(self, output: Tensor, target: Tensor, domains: Sequence[str]) -> Tensor:
        """
        Args:
            output: (B, 1), logits.
            target: (B, 1), from 0 to 1.
            domains: the domain of each sample.

        Returns:
            The loss, a scalar.
        """
        if output.ndim != 2 or output.shape[1] != 1 or output.shape != target.shape:
            raise ValueError(f"expected output and target (B, 1), got {tuple(output.shape)}, {tuple(target.shape)}")
        ids = domain_ids(self.domains, domains, len(output))
        with torch.autocast(output.device.type, enabled=False):
            dtype = torch.promote_types(output.dtype, torch.float32)
            features = output[:, :0] if self._kept is None else self._kept.take(len(output)).flatten(1)
            rows, ids = _of_all_ranks(torch.cat([x.to(dtype) for x in (output, target, features)], dim=1), ids)
            counts = [ids.count(i) for i in range(len(self.domains))]
            if sum(map(bool, counts)) < 2 and not self.takes_any_batch:
                raise DataError(
                    f"A batch has samples of {self.domains[ids[0]]} alone, and {type(self).__name__} compares domains "
                    "within the batch. Set --balance_domains true, and --batch_size to at least the number of domains."
                )
            order = torch.tensor(sorted(range(len(ids)), key=ids.__getitem__)).to(output.device, non_blocking=True)
            return self.combine([self._part(own) for own in rows[order].split(counts)])

    def _part(self, rows: Tensor) -> DomainPart:
        logits, target = rows[:, 0], rows[:, 1]
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits, target, reduction="none", pos_weight=self.pos_weight.to(rows.dtype)
        )
        return DomainPart(logits, target, losses, rows[:, 2:])

    @abstractmethod
    def combine(self, parts: Sequence[DomainPart]) -> Tensor:
        """The loss, a scalar, of the parts of all domains in alphabetical order, of which some may be absent."""


class KeptFeatures:
    """Keeps the features of a network from its forward pass in training to the loss.

    A hook stands on the network from then on: export a network of its own, loaded from the weights.

    Args:
        network: may be wrapped for distributed training.
        layer: name of the layer whose output is kept; None: what the last linear layer reads.

    Raises:
        ValueError: without a linear layer.
    """

    def __init__(self, network: nn.Module, layer: str | None = None) -> None:
        network = getattr(network, "module", network)
        self._features: Tensor | None = None
        if layer is None:
            linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
            if not linear:
                raise ValueError(f"{type(network).__name__} has no linear layer: name the layer with the features")
            self.channels = linear[-1].in_features
            linear[-1].register_forward_pre_hook(lambda module, inputs: self._keep(module, inputs[0]))
        else:
            module = network.get_submodule(layer)
            self.channels = [m.out_channels for m in module.modules() if isinstance(m, nn.Conv2d)][-1]
            module.register_forward_hook(lambda module, inputs, output: self._keep(module, output))

    def _keep(self, module: nn.Module, features: Tensor) -> None:
        if module.training and features.requires_grad:
            self._features = features

    def take(self, samples: int) -> Tensor:
        """Those of the last forward pass, once.

        Args:
            samples: how many there should be.

        Raises:
            ValueError: when the network has made none since, or of another batch.
        """
        features, self._features = self._features, None
        if features is None or len(features) != samples:
            raise ValueError(
                "the network that the loss was given has not just made this output in training mode; the loss needs "
                "its features"
            )
        return features


def several_domains(method: str, domains: Sequence[str]) -> list[str]:
    """The different names in alphabetical order, or a `DataError` where there are fewer than two."""
    names = [] if isinstance(domains, str) else sorted(set(domains))
    if len(names) < 2:
        raise DataError(
            f"{method} needs two or more domains to train on, found {domains!r}. Train on more of them, or by "
            "another method."
        )
    return names


def domain_ids(known: Sequence[str], domains: Sequence[str] | None, samples: int) -> list[int]:
    """The place of each sample's domain among the known ones.

    Raises:
        ValueError: where they are not as many as samples.
        DataError: for a domain that is none of the known ones.
    """
    if domains is None or len(domains) != samples:
        raise ValueError(f"the domain of each of {samples} samples is needed, got {domains}")
    unknown = sorted(set(domains) - set(known))
    if unknown:
        raise DataError(
            f"A sample is of the domain {unknown[0]}, expected one of {', '.join(known)}. Give the loss all domains of "
            "the training data, those of unlabelled images too."
        )
    return [known.index(name) for name in domains]


def mean_losses(parts: Sequence[DomainPart]) -> Tensor:
    """The mean loss of each domain that is present, (G,)."""
    return torch.stack([part.losses.mean() for part in parts if len(part.losses)])


def _of_all_ranks(rows: Tensor, ids: list[int]) -> tuple[Tensor, list[int]]:
    """The samples of all ranks, (world size × B, ...), their gradients times the number of ranks; alone, as they are.

    They come in the order of a sampler that deals them out to the ranks in turn.
    """
    ranks, batch = idist.get_world_size(), len(rows)
    if ranks == 1:
        return rows, ids
    scaled = rows * 1
    if scaled.requires_grad:
        scaled.register_hook(lambda gradient: gradient * ranks)  # of each rank's loss a rank sees its own samples alone
    gathered = list(idist.all_gather(rows.detach()).split(batch))
    gathered[idist.get_rank()] = scaled
    all_ids = idist.all_gather(torch.tensor(ids, device=rows.device)).tolist()
    order = [rank * batch + place for place in range(batch) for rank in range(ranks)]
    return torch.cat(gathered)[torch.tensor(order, device=rows.device)], [all_ids[i] for i in order]
