"""What has to be said of made-up data, and of weights whose origin nobody knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def synthetic_warnings(dataset: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """What a report must say in red where the data set, or what the weights were trained on, is made up."""
    return [
        text
        for text, applies in (
            ("These cases are made up: the scores say nothing about real scans.", dataset.get("synthetic")),
            ("The weights were trained on made-up cases: not for real scans.", record.get("synthetic")),
        )
        if applies
    ]


SYNTHETIC_WARNING = "The network was trained on synthetic data: not for real scans."
UNKNOWN_WARNING = "Nobody knows what the network was trained on (no record beside its weights): not for clinical use."
