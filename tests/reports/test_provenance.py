from __future__ import annotations

from typing import Any

import pytest

from shared.reports.provenance import (
    LEAKAGE,
    LEAKAGE_IN_TRAINING,
    MADE_UP_CASES,
    MADE_UP_WEIGHTS,
    SYNTHETIC_WARNING,
    UNKNOWN_WARNING,
    warning_of_results,
    warnings_of_scores,
)


@pytest.mark.parametrize(
    ("record", "warning"),
    [
        ({}, UNKNOWN_WARNING),
        ({"name": "toy", "synthetic": True}, SYNTHETIC_WARNING),
        ({"name": "MIDOG", "synthetic": False}, None),
        ({"name": "MIDOG"}, None),
    ],
)
def test_beside_results(record: dict[str, Any], warning: str | None) -> None:
    assert warning_of_results(record) == warning


@pytest.mark.parametrize("dataset", [{}, {"synthetic": False}, {"synthetic": True}])
@pytest.mark.parametrize("record", [{}, {"synthetic": False}, {"synthetic": True}])
@pytest.mark.parametrize("leakage", [None, "dataset", "record"])
def test_in_reports(dataset: dict[str, Any], record: dict[str, Any], leakage: str | None) -> None:
    expected = [MADE_UP_CASES] * bool(dataset.get("synthetic")) + [MADE_UP_WEIGHTS] * bool(record.get("synthetic"))
    expected += {None: [], "dataset": [LEAKAGE], "record": [LEAKAGE_IN_TRAINING]}[leakage]
    given = {"dataset": dataset, "record": record}
    if leakage:
        given[leakage] = given[leakage] | {"leakage": ["1 file"]}
    assert warnings_of_scores(**given) == expected


def test_a_second_network_counts_as_much() -> None:
    real, made_up = {"name": "MIDOG"}, {"name": "toy", "synthetic": True}
    assert warning_of_results(real, real) is None
    assert warning_of_results(real, made_up) == SYNTHETIC_WARNING
    assert warning_of_results(real, {}) == UNKNOWN_WARNING
    assert warnings_of_scores({}, real, made_up) == [MADE_UP_WEIGHTS]
    assert warnings_of_scores({}, real, {"leakage": ["1 file"]}) == [LEAKAGE_IN_TRAINING]
