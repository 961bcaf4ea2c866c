from __future__ import annotations

import os

import torch

from .errors import DataError, flag


def visible_gpus() -> str:
    """What CUDA_VISIBLE_DEVICES is, where it hides or numbers GPUs, to stand behind "this machine has"."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f" and CUDA_VISIBLE_DEVICES ({visible!r}) shows"


def prepare_device(
    device: torch.device | str, amp: bool | str, cudnn_benchmark: bool | str, deterministic: bool | str
) -> None:
    """Choose between the kernels that a GPU has, for the whole process.

    Call it before the first of them runs, in the `initialize` section of a bundle.

    Args:
        device: where the network runs.
        amp: whether in mixed precision.
        cudnn_benchmark: cuDNN tries its convolutions for each new shape and takes the fastest, which may be another one
            next time.
        deterministic: the same numbers each time: torch takes deterministic kernels, some slower, and warns of what has
            none; cuBLAS gets the workspace that it needs for that.

    Raises:
        DataError: for mixed precision without a GPU.
    """
    if flag("amp", amp) and torch.device(device).type != "cuda":
        raise DataError(
            f"amp is true, and the device is {device}: mixed precision needs a GPU that this machine has"
            f"{visible_gpus()}. Leave --amp out, or give --device cuda."
        )
    same = flag("deterministic", deterministic)
    torch.backends.cudnn.benchmark = flag("cudnn_benchmark", cudnn_benchmark) and not same
    if same:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
    torch.use_deterministic_algorithms(same, warn_only=same)  # also of a process in which another run chose otherwise
