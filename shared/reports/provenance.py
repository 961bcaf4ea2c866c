"""The words on made-up data, and on weights whose origin nobody knows: in reports, beside results, under tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..networks import ModelRecord

MADE_UP_CASES = "These cases are made up: the scores say nothing about real scans."
MADE_UP_SLIDES = "Made-up data: the scores say nothing about real slides."
MADE_UP_WEIGHTS = "The weights were trained on made-up cases: not for real scans."
LEAKAGE = "Training has seen some of what is scored: see `leakage` in summary.json."
LEAKAGE_IN_TRAINING = "The training saw some of what it was validated or tested by: see model.json."
SYNTHETIC_WARNING = "The network was trained on synthetic data: not for real scans."
UNKNOWN_WARNING = "Nobody knows what the network was trained on (no record beside its weights): not for clinical use."


def warnings_of_scores(dataset: Mapping[str, Any], record: ModelRecord, *others: ModelRecord) -> list[str]:
    """What a report must say in red: the data set, or what one of the networks was trained on, is made up, or leaks."""
    records = (record, *others)
    found = {MADE_UP_CASES: dataset.get("synthetic"), MADE_UP_WEIGHTS: any(r.get("synthetic") for r in records)}
    found |= {LEAKAGE: dataset.get("leakage"), LEAKAGE_IN_TRAINING: any(r.get("leakage") for r in records)}
    return [text for text, applies in found.items() if applies]


def warning_of_results(*records: ModelRecord) -> str | None:
    """What must stand beside results on real images, where a network of theirs is not known to be trained on such."""
    if not all(records):
        return UNKNOWN_WARNING
    return SYNTHETIC_WARNING if any(record.get("synthetic") for record in records) else None
