"""Train the demo-size network on one labelled CT alone and score it on that CT: does the whole chain fit one's data?"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

from command_line import run_command
from experiments.runs import run_bundle

from shared.utils import DataError, write_json
from shared.utils.settings import SETTINGS
from shared.utils.values import Choice, Number, Whole

BUNDLES = ("abdominal_unetr_cbs", "abdominal_lambda3d_cbs")


def main(
    image: str,
    label: str,
    output_dir: str,
    bundle: Annotated[str, Choice(BUNDLES)] = "abdominal_unetr_cbs",
    steps: Annotated[int, Whole(1)] = 2000,
    spacing: Annotated[float, Number(above=0)] = 4.0,
    labels: Annotated[Any, SETTINGS["labels"][0]] = None,
    label_ids: Annotated[Any, SETTINGS["label_ids"][0]] = None,
    assume_orientation: Annotated[str | None, SETTINGS["assume_orientation"][0]] = None,
    resume: bool = False,
) -> None:
    """Overfit one case on purpose, and print the Dice of each organ on the label's own grid.

    A network that cannot learn one case by heart points at the data: a wrong grid, labels in another order, a window
    that shows nothing. The scores say nothing about other scans.

    Args:
        image: a CT volume.
        label: its label map, in the numbering of `labels`.
        output_dir: for checkpoints, reports and result.json.
        bundle: whose network it is.
        steps: optimiser steps, each on four crops; about 11 minutes on one core.
        spacing: of the grid to train on, in mm.
        labels: name and id, 1 to N, of each class; by default those of configs/train.json.
        label_ids: name and id or ids in the label map, where these are others.
        assume_orientation: where the axes point to if the files say nothing of sides, as RAS (right, front, head).
        resume: go on with a run that was interrupted.
    """
    folder = Path(output_dir).resolve()
    if (folder / "last.pt").is_file() and not resume:
        raise DataError(f"{folder} holds an earlier run. Go on with it (--resume), or choose another --output_dir.")
    case = {"image": str(Path(image).resolve()), "label": str(Path(label).resolve())}
    if missing := [f"--{name} {path}" for name, path in case.items() if not Path(path).exists()]:
        raise DataError(f"{' and '.join(missing)}: there is no such file.")
    splits = {split: [case] for split in ("training", "validation", "test")}
    write_json(folder / "dataset.json", {"name": "one case", **splits})
    options: dict[str, Any] = {"dataset_dir": folder, "output_dir": folder, "ckpt_dir": folder, "allow_leakage": True}
    options |= {"spacing": [spacing] * 3, "cache": "memory", "num_workers": 0, "learning_rate": 0.006}
    options |= {"max_epochs": steps, "val_interval": 100, "warmup_epochs": 50}
    options |= {"augmentation": "[]", "sw_overlap": 0.75}  # nothing but this scan, as it is
    variants = [f"variants/{name}" for name in ("demo", "class_balanced_sampling", "dice_plain_ce", "plain")]
    options |= {"assume_orientation": assume_orientation} if assume_orientation else {}
    start = time.monotonic()
    classes = {key: value for key, value in (("labels", labels), ("label_ids", label_ids)) if value is not None}
    run_bundle("1/2 Train on this case alone", bundle, ["train", *variants], **options, **classes, resume=resume)
    minutes = (time.monotonic() - start) / 60
    run_bundle("2/2 Score it on this case", bundle, ["train", "evaluate", *variants], **options)
    organs = json.loads((folder / "evaluation" / "summary.json").read_text())["organs"]
    dice = {name: row["dice"]["mean"] for name, row in organs.items()}
    present = [value for value in dice.values() if value is not None]
    if not present:
        raise DataError(
            f"{label}: none of the organs is in it. Is its numbering that of `labels`? Else give --label_ids."
        )
    write_json(folder / "result.json", {"dice": dice, "mean": sum(present) / len(present), "minutes": minutes})
    print(
        f"\nmean Dice over {len(present)} organs {sum(present) / len(present):.3f}; training took {minutes:.1f} minutes"
    )


if __name__ == "__main__":
    run_command(main)
