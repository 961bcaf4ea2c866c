"""Measure what the parts cost beside their alternatives, and how hard a data set is."""

from __future__ import annotations

import fire
from experiments import benchmark_detection, benchmark_fusestyle, benchmark_lambda3d
from experiments.voxel_classifier import voxel_classifier

from shared.utils import show_errors_briefly

if __name__ == "__main__":
    show_errors_briefly()
    fire.Fire(
        {
            "detection": benchmark_detection.main,
            "fusestyle": benchmark_fusestyle.main,
            "lambda3d": benchmark_lambda3d.main,
            "voxel_classifier": voxel_classifier,
        }
    )
