"""Measure what the parts cost beside their alternatives, and how hard a data set is."""

from __future__ import annotations

from command_line import run_command
from experiments.benchmark_ct_inference import benchmark_ct_inference
from experiments.benchmark_detection import benchmark_detection
from experiments.benchmark_lambda3d import benchmark_lambda3d
from experiments.benchmark_loader import benchmark_loader
from experiments.benchmark_nnunet import benchmark_nnunet
from experiments.benchmark_steps import benchmark_steps
from experiments.voxel_classifier import voxel_classifier

if __name__ == "__main__":
    run_command(
        {
            "ct_inference": benchmark_ct_inference,
            "detection": benchmark_detection,
            "lambda3d": benchmark_lambda3d,
            "loader": benchmark_loader,
            "nnunet": benchmark_nnunet,
            "steps": benchmark_steps,
            "voxel_classifier": voxel_classifier,
        }
    )
