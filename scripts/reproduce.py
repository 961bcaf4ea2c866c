"""Reproduce the papers' tables with the bundles, on the papers' data or on synthetic data; resumable."""

from __future__ import annotations

from command_line import run_command
from experiments.camelyon_table import camelyon_table
from experiments.cascade_table import cascade
from experiments.detection_table import detection_table
from experiments.frozen_features import frozen_features
from experiments.generalisation_table import generalisation_table
from experiments.midog_tables import midog_table
from experiments.new_scanner import new_scanner
from experiments.operating_point import operating_point
from experiments.organ_table import organ_table
from experiments.rule_table import compare, cost
from experiments.runs import forking
from experiments.small_organs import small_organs

if __name__ == "__main__":
    with forking():  # what a table starts
        run_command(
            {
                "organ_table": organ_table,
                "camelyon_table": camelyon_table,
                "cascade": cascade,
                "detection_table": detection_table,
                "frozen_features": frozen_features,
                "generalisation_table": generalisation_table,
                "midog_table": midog_table,
                "new_scanner": new_scanner,
                "operating_point": operating_point,
                "small_organs": small_organs,
                "rule_table": {"compare": compare, "cost": cost},
            }
        )
