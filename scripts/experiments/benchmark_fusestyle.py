"""Measure what FuseStyle costs a training step, in time and memory, against the same network without it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from shared.layers import DSU, FuseStyle, tell_batch
from shared.networks import fusestyle_resnet
from shared.networks.resnet import NAMES
from shared.utils import write_json
from shared.utils.values import Choice

from .runs import AtLeastOne
from .timing import Device, chosen_device, in_own_process, in_turns, peak_memory, seconds_of

# FuseStyle by its options, as far as they are not the default's
LAYERS: dict[str, dict[str, Any]] = {
    **{reference: {"reference": reference} for reference in ("random", "dot", "euclidean", "kl", "style")},
    "style of the same label": {"reference": "style", "partners": "same_label"},
    "style of another domain, extrapolated": {"reference": "style", "partners": "other_domain", "extrapolation": 2.0},
    "DSU": {"layer": DSU, "floor": 0.2},
}
VARIANTS = ("plain", *LAYERS)


class Step:
    """One training step after the other of a ResNet on made-up images; its layers act in each of them (p = 1)."""

    def __init__(self, variant: str, network: str, batch: int, size: int, device: str) -> None:
        torch.manual_seed(0)
        options = {"p": 1.0, **LAYERS[variant]} if variant in LAYERS else {"places": ()}
        self.network = fusestyle_resnet(network, **options).to(device).train()
        assert any(isinstance(m, FuseStyle | DSU) for m in self.network.modules()) == (variant != "plain")
        self.optimizer = torch.optim.Adam(self.network.parameters(), 1e-4)
        self.loss = torch.nn.BCEWithLogitsLoss()
        self.image = torch.rand(batch, 3, size, size, device=device)
        self.label = (torch.rand(batch, 1, device=device) > 0.5).float()
        self.domains = [f"scanner {i % 2}" for i in range(batch)]

    def run(self) -> None:
        self.optimizer.zero_grad()
        tell_batch(self.network, self.label, self.domains)
        self.loss(self.network(self.image), self.label).backward()
        self.optimizer.step()

    def __call__(self) -> float:
        """Seconds of one step."""
        return seconds_of(self.run)


def memory_of_steps(variant: str, network: str, batch: int, size: int, device: str) -> tuple[int, int]:
    """The peak memory of three steps in bytes: of the training alone, and of the whole process.

    Of the training alone: on the GPU, or in this process beyond what it held before.
    FuseStyle's output behind layer 1 always comes on top: the next convolution keeps it for the backward pass, while
    the ReLU before keeps the input. With ResNet50, 64 images of 64x64, that is 17 of 821 MB.
    """
    before = peak_memory()
    step = Step(variant, network, batch, size, device)
    for _ in range(3):
        step()
    after = peak_memory()
    return torch.cuda.max_memory_allocated() if device == "cuda" else after - before, after


def benchmark_fusestyle(
    output: str = "",
    network: Annotated[str, Choice(NAMES)] = "resnet50",
    batch: AtLeastOne = 64,
    size: AtLeastOne = 64,
    rounds: AtLeastOne = 15,
    device: Device = "",
) -> None:
    """Time a training step with each choice of the partner, with DSU, and without, taking turns in one run.

    Args:
        output: JSON file for the result.
        network: a name of MONAI's ResNets.
        batch: images a step.
        size: side of an image in pixels.
        rounds: steps of each variant that are counted; two more are not.
        device: cpu or cuda; cuda where there is one.
    """
    device = chosen_device(device)
    settings = {"network": network, "batch": batch, "size": size, "device": device}
    memory = {variant: in_own_process(memory_of_steps, variant, *settings.values()) for variant in VARIANTS}
    times = in_turns({variant: Step(variant, **settings) for variant in VARIANTS}, rounds)
    result: dict[str, Any] = {**settings, "rounds": rounds, "seconds_plain": float(np.median(times["plain"]))}
    for variant in VARIANTS:
        low, median, high = np.quantile(times[variant] / times["plain"], [0.25, 0.5, 0.75]).tolist()
        own, process = (a / b for a, b in zip(memory[variant], memory["plain"], strict=True))
        result[variant] = {"time": median, "time_quartiles": [low, high], "memory": own, "process_memory": process}
        print(
            f"{variant:<37} time {median:.3f} ({low:.3f} to {high:.3f})   "
            f"peak memory {own:.3f}, of the whole process {process:.3f}"
        )
    result["kl_to_random"] = float(np.median(times["kl"] / times["random"]))
    print(f"kl to random: {result['kl_to_random']:.3f}")
    if output:
        write_json(Path(output), result)
