from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from torch import Tensor, nn

from ..layers import FuseStyle

NAMES = ("partners_most_chosen", "partners_same_label", "partners_other_domain")


class PartnerCounts:
    """Tell, once an epoch, whom FuseStyle has taken for partners, in the trainer's `state.metrics`.

    * `partners_most_chosen`: the share of a batch that has the sample that was chosen most often for its partner; the
      mean over all forward passes of the layers that have mixed. Near 1 a single outlier is everybody's partner.
    * `partners_same_label`: the share of partners of the same label, where the output has a label of each sample,
      `target`, as `prepare_domain_batch` gives it.
    * `partners_other_domain`: the share of partners of another domain, where it has `domains`.

    Those that cannot be told are not there; a sample that had no partner is not counted. It attaches itself only where
    there is such a layer. A GPU is waited for at the end of an epoch alone; in a distributed run each rank tells of its
    own batches. Attach it before what writes `state.metrics`.

    Args:
        network: may be wrapped for distributed training.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers = [layer for layer in network.modules() if isinstance(layer, FuseStyle)]
        self.sums: dict[str, tuple[Tensor | int, Tensor | int]] = {}  # and of how many

    def attach(self, engine: Engine) -> None:
        if self.layers:
            engine.add_event_handler(Events.EPOCH_STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._tell)

    def _start(self, engine: Engine) -> None:
        self.sums = dict.fromkeys(NAMES, (0, 0))

    def _count(self, engine: Engine) -> None:
        mixed = [layer.last_partners for layer in self.layers if layer.last_partners is not None]
        targets = engine.state.output[CommonKeys.LABEL]
        for partners in mixed:
            samples = torch.arange(len(partners), device=partners.device)
            others = partners != samples
            chosen = (partners[:, None] == samples) & others[:, None]
            self._add("partners_most_chosen", chosen.sum(dim=0).max() / len(partners), 1)
            if (target := targets.get("target")) is not None:
                labels = target.flatten() > 0.5
                self._add("partners_same_label", ((labels[partners] == labels) & others).sum(), others.sum())
            if (domains := targets.get("domains")) is not None:
                number = {name: i for i, name in enumerate(dict.fromkeys(domains))}
                ids = torch.tensor([number[name] for name in domains]).to(partners.device, non_blocking=True)
                self._add("partners_other_domain", ((ids[partners] != ids) & others).sum(), others.sum())

    def _add(self, name: str, part: Tensor, of: Tensor | int) -> None:
        parts, ofs = self.sums[name]
        self.sums[name] = parts + part, ofs + of

    def _tell(self, engine: Engine) -> None:
        for name, (parts, ofs) in self.sums.items():
            engine.state.metrics.pop(name, None)
            if ofs:
                engine.state.metrics[name] = float(parts) / float(ofs)
