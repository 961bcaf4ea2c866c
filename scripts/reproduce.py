"""Reproduce the papers' tables with the bundles, on the papers' data or on synthetic data; resumable."""

from __future__ import annotations

from command_line import run_command
from experiments.detection_table import detection_table
from experiments.organ_table import organ_table
from experiments.patch_table import patch_table
from experiments.rule_table import compare, cost

if __name__ == "__main__":
    run_command(
        {
            "organ_table": organ_table,
            "detection_table": detection_table,
            "patch_table": patch_table,
            "rule_table": {"compare": compare, "cost": cost},
        }
    )
