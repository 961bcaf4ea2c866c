"""Reproduce the papers' tables with the bundles, on the papers' data or on synthetic data; resumable."""

from __future__ import annotations

import fire
from experiments.detection_table import detection_table
from experiments.organ_table import organ_table
from experiments.patch_table import patch_table
from experiments.rule_table import compare, cost

from shared.utils import show_errors_briefly

if __name__ == "__main__":
    show_errors_briefly()
    fire.Fire(
        {
            "organ_table": organ_table,
            "detection_table": detection_table,
            "patch_table": patch_table,
            "rule_table": {"compare": compare, "cost": cost},
        }
    )
