"""The steps of nnU-Net, run by the Python of its own environment: `nnunet_steps.py STEP OPTIONS`, the latter JSON.

Where its data lie is in its environment variables: nnUNet_raw, nnUNet_preprocessed, nnUNet_results.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

CONFIGURATION = "3d_fullres"
CPU = torch.device("cpu")
LEFT_RIGHT = 2  # of the axes z, y and x
STARTED_BY = os.getppid()


class ShortTrainer(nnUNetTrainer):
    """nnU-Net's trainer, but that left and right are not mirrored."""

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:  # noqa: N802, nnU-Net's name
        *rest, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        kept = tuple(axis for axis in axes if self.plans_manager.transpose_forward[axis] != LEFT_RIGHT)
        self.inference_allowed_mirroring_axes = kept
        return *rest, kept

    def on_epoch_start(self) -> None:
        """End with who started it: one that was killed could not tell."""
        if os.getppid() != STARTED_BY:
            raise SystemExit("The comparison is gone; it goes on from the last checkpoint.")
        super().on_epoch_start()

    def save_checkpoint(self, filename: str) -> None:
        """As published, but a file that is whole or not there."""
        super().save_checkpoint(f"{filename}.part")
        os.replace(f"{filename}.part", filename)


def plan(spacing: Sequence[float]) -> None:
    """Let nnU-Net plan for a grid, and write what training reads.

    It would take nearest neighbours across the slices of scans whose slices are three pixels apart or more, as it does
    on a grid of such voxels; here the grid is the same in all directions.
    """
    extract_fingerprints([1], num_processes=1, check_dataset_integrity=True)
    name = plan_experiments([1], overwrite_target_spacing=tuple(spacing))
    (path,) = Path(os.environ["nnUNet_preprocessed"]).glob(f"*/{name}.json")  # noqa: SIM112, nnU-Net's name
    plans = json.loads(path.read_bytes())
    for of in ("data", "seg", "probabilities"):
        plans["configurations"][CONFIGURATION][f"resampling_fn_{of}_kwargs"]["force_separate_z"] = False
    path.write_text(json.dumps(plans, indent=4))
    preprocess([1], name, [CONFIGURATION], [1])


def seed_all(seed: int) -> None:
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(seed)


def trainer(
    planned: str, features: float, seed: int, epochs: int, iterations: int, crop: int | None = None
) -> nnUNetTrainer:
    """The trainer of a short schedule, as published but for its length.

    Args:
        planned: the folder of what was planned and preprocessed.
        features: of the planned network, the share that is kept.
        iterations: of an epoch; a fifth as many validate, as published.
        crop: side of the crops; None as planned.
    """
    plans, dataset = (json.loads((Path(planned) / f"{name}.json").read_bytes()) for name in ("nnUNetPlans", "dataset"))
    configuration = plans["configurations"][CONFIGURATION]
    network = configuration["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [round(features * number) for number in network["features_per_stage"]]
    if crop:
        configuration["patch_size"] = [crop] * 3
    seed_all(seed)
    made = ShortTrainer(plans | {"continue_training": False}, CONFIGURATION, 0, dataset, device=CPU)
    made.num_epochs, made.num_iterations_per_epoch = epochs, iterations
    made.num_val_iterations_per_epoch = max(1, iterations // 5)
    made.save_every = 5
    made.logger.plot_progress_png = lambda folder: None  # a picture of minutes, with as many epochs as here
    return made


def train(**schedule: Any) -> None:
    """Train, from the last checkpoint where there is one; not again what is finished."""
    made = trainer(**schedule)
    final, latest = (Path(made.output_folder) / f"checkpoint_{name}.pth" for name in ("final", "latest"))
    if final.is_file():
        return
    if latest.is_file():
        made.load_checkpoint(str(latest))
        seed_all(schedule["seed"] + 1000 * made.current_epoch)  # or the first draws would come again
    made.run_training()


def predict(images: Sequence[str], output: str, **schedule: Any) -> None:
    """Segment images, on their own grids."""
    made = trainer(**schedule)
    made.load_checkpoint(str(Path(made.output_folder) / "checkpoint_final.pth"))
    made.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(device=CPU, perform_everything_on_device=False, allow_tqdm=False)
    predictor.manual_initialization(
        *(made.network, made.plans_manager, made.configuration_manager, [made.network.state_dict()]),
        *(made.dataset_json, type(made).__name__, made.inference_allowed_mirroring_axes),
    )
    Path(output).mkdir(parents=True, exist_ok=True)
    targets = [str(Path(output) / Path(image).name.removesuffix("_0000.nii.gz")) for image in images]
    predictor.predict_from_files_sequential([[image] for image in images], targets)


if __name__ == "__main__":
    {"plan": plan, "train": train, "predict": predict}[sys.argv[1]](**json.loads(sys.argv[2]))
