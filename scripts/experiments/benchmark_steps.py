"""What a training step costs with FuseStyle, or with a method over several domains, beside plain training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from monai.bundle import ConfigParser

from shared.layers import DSU, FuseStyle, tell_batch
from shared.networks import fusestyle_resnet
from shared.networks.resnet import NAMES
from shared.utils import write_json
from shared.utils.values import Choice

from .runs import BUNDLES, AtLeastOne
from .timing import Device, chosen_device, in_own_process, in_turns, peak_memory, seconds_of, show_quartiles

# FuseStyle by its options, as far as they are not the default's
LAYERS: dict[str, dict[str, Any]] = {
    **{reference: {"reference": reference} for reference in ("random", "dot", "euclidean", "kl", "style")},
    "style of the same label": {"reference": "style", "partners": "same_label"},
    "style of another domain, extrapolated": {"reference": "style", "partners": "other_domain", "extrapolation": 2.0},
    "DSU": {"layer": DSU, "floor": 0.2},
}
METHODS = (
    *("coral", "domain_adversarial", "domain_mix", "dsu", "extrapolated", "fish", "group_dro", "ib_irm", "lisa"),
    *("mixstyle", "style", "vrex"),
)
DOMAINS = ("XR", "S360")


class LayerStep:
    """One training step after the other of a ResNet on made-up images; its layers act in each of them (p = 1)."""

    def __init__(self, variant: str, network: str, batch: int, size: int, device: str) -> None:
        torch.manual_seed(0)
        options = {"p": 1.0, **LAYERS[variant]} if variant in LAYERS else {"places": ()}
        self.network = fusestyle_resnet(network, **options).to(device).train()
        assert any(isinstance(m, FuseStyle | DSU) for m in self.network.modules()) == (variant in LAYERS)
        self.optimizer = torch.optim.Adam(self.network.parameters(), 1e-4)
        self.loss = torch.nn.BCEWithLogitsLoss()
        self.image = torch.rand(batch, 3, size, size, device=device)
        self.label = (torch.rand(batch, 1, device=device) > 0.5).float()
        self.domains = [DOMAINS[i % 2] for i in range(batch)]

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        tell_batch(self.network, self.label, self.domains)
        self.loss(self.network(self.image), self.label).backward()
        self.optimizer.step()


class MethodStep:
    """One training step after the other of the bundle's trainer, with a variant laid over, on one made-up batch."""

    def __init__(self, variant: str, network: str, batch: int, size: int, device: str) -> None:
        parser = ConfigParser()
        configs = BUNDLES / "mitosis_fusestyle_cls" / "configs"
        parser.read_config([str(configs / f"{name}.json") for name in ("train", f"variants/{variant}")])
        patches = [{"domain": DOMAINS[i % 2], "label": i // 2 % 2} for i in range(batch)]
        parser.update({"device": device, "network_def#name": network, "train_patches": patches, "pos_weight": 1.0})
        parser.update({"train#dataloader": "$[]", "train#trainer#train_handlers": [], "fusestyle_p": 1.0})
        torch.manual_seed(0)
        self.trainer = parser.get_parsed_content("train#trainer")
        self.batch = {
            "image": torch.rand(batch, 3, size, size, device=device),
            "label": torch.tensor([[float(patch["label"])] for patch in patches]),
            "domain": [patch["domain"] for patch in patches],
        }

    def __call__(self) -> None:
        self.trainer._iteration(self.trainer, self.batch)


class Subject(NamedTuple):
    step: type[LayerStep | MethodStep]
    plain: str
    variants: Sequence[str]


SUBJECTS = {
    "fusestyle": Subject(LayerStep, "plain", tuple(LAYERS)),
    "methods": Subject(MethodStep, "no_fusestyle", METHODS),
}


def memory_of_steps(of: str, variant: str, network: str, batch: int, size: int, device: str) -> tuple[int, int]:
    """The peak memory of three steps in bytes: of the training alone, and of the whole process.

    Of the training alone: on the GPU, or in this process beyond what it held before.
    FuseStyle's output behind layer 1 always comes on top: the next convolution keeps it for the backward pass, while
    the ReLU before keeps the input. With ResNet50, 64 images of 64x64, that is 17 of 821 MB.
    """
    before = peak_memory()
    step = SUBJECTS[of].step(variant, network, batch, size, device)
    for _ in range(3):
        step()
    after = peak_memory()
    return torch.cuda.max_memory_allocated() if device == "cuda" else after - before, after


def benchmark_steps(
    of: Annotated[str, Choice(tuple(SUBJECTS))],
    output: str = "",
    network: Annotated[str, Choice(NAMES)] = "resnet50",
    batch: AtLeastOne = 64,
    size: AtLeastOne = 64,
    rounds: AtLeastOne = 15,
    device: Device = "",
) -> None:
    """Time a training step of each variant beside plain training, taking turns in one run; batches of two domains.

    Args:
        of: fusestyle, with each choice of the partner, and DSU; or methods, those over several domains.
        output: JSON file for the result.
        network: a name of MONAI's ResNets.
        batch: images a step.
        size: side of an image in pixels.
        rounds: steps of each variant that are counted; two more are not.
        device: cpu or cuda; cuda where there is one.
    """
    device = chosen_device(device)
    make, plain, variants = SUBJECTS[of]
    settings = {"network": network, "batch": batch, "size": size, "device": device}
    memory = {name: in_own_process(memory_of_steps, of, name, *settings.values()) for name in (plain, *variants)}
    steps = {name: make(name, **settings) for name in (plain, *variants)}
    times = in_turns({name: partial(seconds_of, step) for name, step in steps.items()}, rounds)
    found = {}
    for name in variants:
        time = show_quartiles(f"{name}: time beside {plain}", times[name] / times[plain])
        own, process = (ours / base for ours, base in zip(memory[name], memory[plain], strict=True))
        found[name] = {"time": time, "memory": own, "process_memory": process}
        print(f"{name}: peak memory of the training {own:.3f}, of the whole process {process:.3f}")
    if of == "fusestyle":
        found["kl"]["time_to_random"] = show_quartiles("kl: time beside random", times["kl"] / times["random"])
    if output:
        write_json(Path(output), {**settings, "rounds": rounds, "variants": found})
