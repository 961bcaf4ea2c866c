from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from commands import run

from shared.utils import DataError, prepare_device
from shared.utils.settings import Device

KERNELS = """
import os, sys, torch
from shared.utils import prepare_device
for flags in sys.argv[1:]:
    prepare_device("cpu", "false", *flags.split())
print(torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled())
print(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
"""


@pytest.mark.parametrize(
    ("flags", "printed"),
    [
        (["true false"], "True False\nNone\n"),
        (["false false"], "False False\nNone\n"),
        (["true true"], "False True\n:4096:8\n"),
        (["true true", "true false"], "True False\n:4096:8\n"),
    ],
)
def test_kernels_are_chosen_for_the_process(flags: list[str], printed: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "CUBLAS_WORKSPACE_CONFIG"}
    done = run("-c", KERNELS, *flags, env=environment)
    assert (done.stdout, done.stderr) == (printed, "")


@pytest.mark.parametrize(("visible", "shown"), [(None, ""), ("", " and CUDA_VISIBLE_DEVICES ('') shows")])
def test_without_a_gpu_its_settings_are_refused(
    visible: str | None, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    there = f"a GPU that this machine has{shown}"
    options: dict[str, Any] = {"cudnn_benchmark": False, "deterministic": False}
    with pytest.raises(DataError) as caught:
        prepare_device(torch.device("cpu"), "True", **options)
    assert str(caught.value).startswith(f"amp is true, and the device is cpu: mixed precision needs {there}. Leave")
    assert not Device().accepts("cuda")
    assert Device().expected.endswith(there)
