"""Measure what a step of each method over several domains costs, in time and memory, beside plain training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from monai.bundle import ConfigParser

from shared.networks.resnet import NAMES
from shared.utils import write_json
from shared.utils.values import Choice

from .runs import BUNDLES, AtLeastOne
from .timing import Device, chosen_device, in_own_process, in_turns, peak_memory, seconds_of, show_quartiles

PLAIN = "no_fusestyle"
METHODS = (
    *("coral", "domain_adversarial", "domain_mix", "dsu", "extrapolated", "fish", "group_dro", "ib_irm", "lisa"),
    *("mixstyle", "style", "vrex"),
)
DOMAINS = ("XR", "S360")


class Step:
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

    def run(self) -> None:
        self.trainer._iteration(self.trainer, self.batch)

    def __call__(self) -> float:
        """Seconds of one step."""
        return seconds_of(self.run)


def memory_of_steps(variant: str, network: str, batch: int, size: int, device: str) -> int:
    """The peak memory of three steps in bytes: on the GPU, or of this process beyond what it held before."""
    before = peak_memory()
    step = Step(variant, network, batch, size, device)
    for _ in range(3):
        step.run()
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory() - before


def benchmark_methods(
    output: str = "",
    network: Annotated[str, Choice(NAMES)] = "resnet50",
    batch: AtLeastOne = 64,
    size: AtLeastOne = 64,
    rounds: AtLeastOne = 15,
    device: Device = "",
) -> None:
    """Time a step of each method's training beside plain training, taking turns in one run; batches of two domains.

    Args:
        output: JSON file for the result.
        network: a name of MONAI's ResNets.
        batch: images a step.
        size: side of an image in pixels.
        rounds: steps of each method that are counted; two more are not.
        device: cpu or cuda; cuda where there is one.
    """
    device = chosen_device(device)
    settings = {"network": network, "batch": batch, "size": size, "device": device}
    memory = {name: in_own_process(memory_of_steps, name, *settings.values()) for name in (PLAIN, *METHODS)}
    times = in_turns({name: Step(name, **settings) for name in (PLAIN, *METHODS)}, rounds)
    result: dict[str, Any] = {**settings, "rounds": rounds, "methods": {}}
    for name in METHODS:
        time = show_quartiles(f"{name}: time beside plain training", times[name] / times[PLAIN])
        result["methods"][name] = {"time": time, "memory": memory[name] / memory[PLAIN]}
        print(f"{name}: peak memory of the training {result['methods'][name]['memory']:.3f}")
    if output:
        write_json(Path(output), result)
