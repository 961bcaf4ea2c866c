"""What a training and an evaluation of the patch classifier leave behind, of made-up predictions."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from shared.data import load_patches
from shared.reports.classification import PREDICTION_COLUMNS, Patch, prediction_rows, summarise_patches
from shared.reports.domains import DomainScoring
from shared.utils import write_csv


def write_training(folder: Path, seconds: float = 7.5) -> None:
    """The event file of four epochs, each of so many seconds, but that the run stood still before the last."""
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for epoch, time in enumerate((0, seconds, 2 * seconds, 1000), 1):
            writer.add_scalar("train_loss", 1.0, 10 * epoch, walltime=time - 1)
            writer.add_scalar("val_auc", 0.5, epoch, walltime=time)


def write_evaluation(options: Mapping[str, Any], right: Callable[[str], float]) -> None:
    """The files of an evaluation with these options; `right` gives about which share of a domain's patches is."""
    rng = np.random.default_rng(zlib.crc32("/".join(Path(options["output_dir"]).parts[-3:]).encode()))
    datalist = options.get("datalist") or Path(options["dataset_dir"]) / "dataset.json"
    split = options.get("evaluate_split", "test")
    trained = options.get("train_domains", [])
    loaded = load_patches(datalist, split, options.get("test_domains"), options.get("whole_unseen", False), trained)
    shares = [right(patch["domain"]) for patch in loaded]
    chances = [
        abs(p["label"] - (rng.uniform() > share) * rng.uniform(0.6, 1)) for p, share in zip(loaded, shares, strict=True)
    ]
    patches = [
        Patch(p["case"], p["domain"], p["slide"], p["label"], float(chance))
        for p, chance in zip(loaded, chances, strict=True)
    ]
    how = DomainScoring(threshold=0.5, class_names=("non_mitotic", "mitotic"), train_domains=trained, bootstrap=1)
    folder = Path(options["output_dir"]) / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    summarise_patches(patches, how).write(folder)
    write_csv(folder / "predictions.csv", prediction_rows(patches, how), PREDICTION_COLUMNS)
