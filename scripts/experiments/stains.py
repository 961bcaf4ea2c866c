"""What the methods of stains need before they are trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from make_stylized import main as make_stylized

from shared.datasets.stylized import read_datalist

from .runs import ROOT, Training, logged_run


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
    target, device = work / "data" / "stylized.json", own_device()
    processes = 1 if device == "cuda" else jobs
    make_stylized(str(datalist), str(target), lists=lists, device=device, processes=processes, overwrite=True)
    return target


def with_stainnet(training: Training) -> Training:
    """The same with a StainNet of its own, which is trained first, see `train_stainnet`."""
    places = {**training.places, "stain_weights": training.folder / "stainnet.pth"}
    return replace(training, places=places, prepare=train_stainnet)


def train_stainnet(training: Training) -> None:
    """Train a StainNet to do what Macenko's normalisation does, on what the run is trained on, and with its seed.

    So it never sees the domain that is left out. What is there already is kept.
    """
    weights = training.places["stain_weights"]
    options = {"datalist": training.places["datalist"], "output": weights, "teacher": "macenko", "overwrite": "true"}
    options |= {"domains": training.options.get("train_domains", []), "seed": training.options["seed"]}
    options["device"] = own_device()
    if not weights.is_file():
        logged_run([ROOT / "scripts" / "train_stainnet.py"], ROOT, training.folder / "stainnet.log", options)


def own_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
