from __future__ import annotations

from typing import Any

import pytest

from shared.reports.provenance import (
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
def test_in_reports(dataset: dict[str, Any], record: dict[str, Any]) -> None:
    expected = [MADE_UP_CASES] * bool(dataset.get("synthetic")) + [MADE_UP_WEIGHTS] * bool(record.get("synthetic"))
    assert warnings_of_scores(dataset, record) == expected
