"""What the methods of stains need before they are trained."""

from __future__ import annotations

from pathlib import Path

import torch
from make_stylized import main as make_stylized

from shared.datasets.stylized import read_datalist


def with_copies(datalist: Path, work: Path, lists: str, jobs: int) -> Path:
    """A datalist whose images have copies in other styles: the one that is given, if they all have, or a new one.

    The new one is what scripts/make_stylized.py makes of it without weights and pictures, in `work`. Again it goes on.

    Args:
        datalist: of patches or regions.
        work: a folder.
        lists: "training", or "all" for all that are labelled.
        jobs: images at a time; one on a GPU.
    """
    found = read_datalist(datalist)
    names = ["training"] if lists == "training" else [name for name in found.image_lists() if name != "unlabelled"]
    if all("stylized" in entry for name in names for entry in found.entries(name)):
        return datalist
    target, on_gpu = work / "data" / "stylized.json", torch.cuda.is_available()
    device, processes = ("cuda", 1) if on_gpu else ("cpu", jobs)
    make_stylized(str(datalist), str(target), lists=lists, device=device, processes=processes, overwrite=True)
    return target
