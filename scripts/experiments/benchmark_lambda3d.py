"""Measure what Lambda3D costs a training step, in time and memory, against UNETR and against flash attention."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from monai.networks.blocks import SABlock, TransformerBlock
from monai.networks.nets import UNETR
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from shared.layers import LambdaLayer
from shared.networks import Lambda3D, prepare_network
from shared.utils import write_json
from shared.utils.values import Number, Several, Whole

from .runs import AtLeastOne
from .timing import Device, chosen_device, in_own_process, in_turns, peak_memory, seconds_of, show_quartiles

HEADS, CLASSES = 12, 14
NETWORKS = ("unetr", "lambda3d", "lambda3d_mlp", "flash")
AIMS = {
    "time lambda3d / unetr": 1.0,
    "time lambda3d / flash": 0.45,
    "time lambda_layer_12 / sa_block_12": 0.3,
    "time a token lambda_layer_24 / lambda_layer_12": 1.3,
    "memory lambda3d / unetr": 1.3,
}


class FlashBlock(TransformerBlock):
    """MONAI's transformer block with flash attention, called as a `LambdaBlock` is."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 4 * hidden_size, HEADS, use_flash_attention=True)

    def forward(self, x_BNC: Tensor, grid: tuple[int, int, int]) -> Tensor:
        return super().forward(x_BNC)


def network_of(name: str, size: int, feature_size: int, hidden_size: int, device: str) -> nn.Module:
    """As the abdominal bundles train it: UNETR on patches of 16 voxels, the others on patches of 8."""
    torch.manual_seed(0)
    if name == "unetr":
        network = UNETR(1, CLASSES, (size,) * 3, feature_size, hidden_size, 4 * hidden_size, HEADS, proj_type="conv")
    else:
        mlp_dim = 4 * hidden_size if name == "lambda3d_mlp" else 0
        network = Lambda3D(1, CLASSES, 8, feature_size, hidden_size, HEADS, mlp_dim)
    if name == "flash":
        network.blocks = nn.ModuleList(FlashBlock(hidden_size) for _ in network.blocks)
    return prepare_network(network, device, freeze="norm_cross_attn").train()


class Traffic(TorchDispatchMode):
    """Counts bytes as if every operator read its inputs and wrote its outputs once, and a view cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.bytes += sum(t.nbytes for t in tree_leaves((args, kwargs, outputs)) if isinstance(t, Tensor))
        return outputs


class Step:
    """Forward and backward pass, without optimizer and loss: the gradient of the output is made up."""

    def __init__(self, module: nn.Module, image: Tensor, precision: str, *others: Any) -> None:
        self.module, self.inputs, self.device = module, (image, *others), image.device
        self.autocast = torch.autocast(
            image.device.type,
            dtype=torch.float16 if precision == "float16" else torch.bfloat16,
            enabled=precision != "float32",
        )
        with torch.no_grad(), self.autocast:
            self.gradient = torch.randn_like(module(*self.inputs))

    def run(self) -> None:
        self.module.zero_grad()
        self.inputs[0].grad = None
        with self.autocast:
            output = self.module(*self.inputs)
        output.backward(self.gradient)

    def __call__(self) -> float:
        """Seconds of one step."""
        return seconds_of(self.run)

    def floor(self, tflops: float, gigabytes: float) -> float:
        """Seconds that matrix products and convolutions, or the memory traffic, take at least, whichever is longer.

        Torch does not count the operations of attention on a CPU.
        """
        with FlopCounterMode(display=False) as arithmetic, Traffic() as traffic:
            self.run()
        return max(arithmetic.get_total_flops() / (tflops * 1e12), traffic.bytes / (gigabytes * 1e9))


def network_step(
    name: str,
    size: int,
    batch: int,
    feature_size: int,
    hidden_size: int,
    device: str,
    precision: str,
    channels_last: bool,
) -> Step:
    network = network_of(name, size, feature_size, hidden_size, device)
    image = torch.rand(batch, 1, size, size, size, device=device)
    if channels_last:
        network, image = (x.to(memory_format=torch.channels_last_3d) for x in (network, image))
    return Step(network, image, precision)


def layer_steps(grid: int, hidden_size: int, device: str, precision: str) -> dict[str, Step]:
    """The lambda layer and attention on grid³ tokens."""
    tokens = torch.randn(1, grid**3, hidden_size, device=device, requires_grad=True)
    layer = LambdaLayer(hidden_size, HEADS).to(device)
    attention = SABlock(hidden_size, HEADS, use_flash_attention=True).to(device)
    return {
        f"lambda_layer_{grid}": Step(layer, tokens, precision, (grid,) * 3),
        f"sa_block_{grid}": Step(attention, tokens, precision),
    }


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def memory_of_steps(*settings: Any) -> int:
    """The peak memory of two training steps in bytes: on the GPU, or in this process beyond the start."""
    before, on_gpu = peak_memory(), "cuda" in settings
    if on_gpu:
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    step = network_step(*settings)
    step()
    step()
    return (torch.cuda.max_memory_allocated() if on_gpu else peak_memory()) - before


def ratios(times: Mapping[str, np.ndarray], memory: Mapping[str, int], grids: Sequence[int]) -> dict[str, Any]:
    """Times of networks and layers, the cost of a token on each grid, peak memory: each of two alternatives."""
    pairs = [(name, "unetr") for name in NETWORKS[1:]] + [(name, "flash") for name in NETWORKS[1:-1]]
    pairs += [(f"lambda_layer_{grid}", f"sa_block_{grid}") for grid in grids]
    found: dict[str, Any] = {f"time {a} / {b}": times[a] / times[b] for a, b in pairs}
    first = 12 if 12 in grids else grids[0]
    for grid in grids:
        a, b = f"lambda_layer_{grid}", f"lambda_layer_{first}"
        found[f"time a token {a} / {b}"] = times[a] / times[b] * (first / grid) ** 3
    return found | {f"memory {name} / unetr": memory[name] / memory["unetr"] for name in NETWORKS[1:]}


def benchmark_lambda3d(
    output: str = "",
    size: AtLeastOne = 96,
    batch: AtLeastOne = 1,
    feature_size: AtLeastOne = 16,
    hidden_size: AtLeastOne = 768,
    grids: Annotated[Sequence[int], Several(Whole(1))] = (6, 12, 16, 24),
    rounds: AtLeastOne = 7,
    device: Device = "",
    tflops: Annotated[float, Number(0)] = 0.0,
    tflops_half: Annotated[float, Number(0)] = 0.0,
    gigabytes: Annotated[float, Number(0)] = 0.0,
) -> None:
    """Time training steps of the networks and of single layers, taking turns in one run; then their peak memory.

    On a GPU, without and with mixed precision and `channels_last_3d`. The aims that are printed hold for the
    default sizes on a CPU.

    Args:
        output: JSON file for the result.
        size: side of the image in voxels, a multiple of 16.
        batch: images a step; a single one of 96 voxels leaves a GPU waiting for the host.
        feature_size: channels of the decoder at full resolution.
        hidden_size: C, a multiple of 12. The MLPs have four times as many features.
        grids: token grids for single layers, sides; the cost a token is compared with 12's, or else the first's.
        rounds: steps of each that are counted; two more are not.
        device: cpu or cuda; cuda where there is one.
        tflops: peak of the device in float32 (with TF32 if that is on) in 10¹² operations a second. With the two
            below, the share of the floor that is reached is reported too.
        tflops_half: the same in half precision.
        gigabytes: bandwidth of its memory in GB/s.
    """
    device = chosen_device(device)
    modes, measured = [("float32", False)], in_own_process
    if device == "cuda":
        measured = call  # a GPU's memory is counted by what is there, not by the process
        modes = list(itertools.product(("float32", "bfloat16", "float16"), (False, True)))
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "size": size,
        "batch": batch,
        "feature_size": feature_size,
        "hidden_size": hidden_size,
        "rounds": rounds,
    }
    for precision, channels_last in modes:
        mode = precision + "_channels_last_3d" * channels_last
        print(mode)
        settings = (size, batch, feature_size, hidden_size, device, precision, channels_last)
        memory = {name: measured(memory_of_steps, name, *settings) for name in NETWORKS}
        steps = {name: network_step(name, *settings) for name in NETWORKS}
        for grid in grids:
            steps |= layer_steps(grid, hidden_size, device, precision)
        times = in_turns(steps, rounds)
        shown = ratios(times, memory, grids)
        peak = tflops if precision == "float32" else tflops_half
        if peak and gigabytes:
            shown |= {f"share of the floor {n}": step.floor(peak, gigabytes) / times[n] for n, step in steps.items()}
        seconds = {name: float(np.median(values)) for name, values in times.items()}
        quartiles = {name: show_quartiles(name, values, AIMS.get(name)) for name, values in shown.items()}
        result[mode] = {"seconds": seconds, **quartiles}
    if output:
        write_json(Path(output), result)
