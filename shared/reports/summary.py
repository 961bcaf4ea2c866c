"""What every report has: how it was scored, a title, a table, notes, warnings, `scores.csv` and `summary.json`."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import torch

from ..networks import ModelRecord
from ..utils import write_csv, write_json
from .provenance import warnings_of_scores


@dataclass(kw_only=True, eq=False)
class Scoring:
    """What is known of an evaluation before it has scores; a handler that reports on one is such a thing.

    Args:
        dataset: what `shared.data.dataset_info` says.
        record: what the weights were trained on, as `shared.networks.read_model_record` returns it.
        weights: their digest, see `shared.data.weights_digest`.
        bootstrap: number of resamples.
        seed: of the resamples.

    Raises:
        ValueError: when `bootstrap` is not positive.
    """

    dataset: Mapping[str, Any] | None = None
    record: ModelRecord | None = None
    weights: str | None = None
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bootstrap < 1:
            raise ValueError(f"bootstrap must be at least 1, got {self.bootstrap}.")
        self.dataset, self.record = dict(self.dataset or {}), dict(self.record or {})

    @property
    def records(self) -> list[ModelRecord]:
        """Of all networks that take part."""
        return [self.record]


@dataclass(kw_only=True)
class Summary(ABC):
    """What an evaluation found.

    Attributes:
        how: it was scored.
        notes: what the scores mean, and what a reader must know about them.
    """

    how: Scoring
    notes: list[str]

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """How many there are of what the title names, in the plural."""

    @abstractmethod
    def results(self) -> dict[str, Any]:
        """What `summary.json` holds of this kind of evaluation."""

    @abstractmethod
    def score_table(self) -> str:
        """The scores as a table to print."""

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """Of `scores.csv`, all with the same keys."""

    @property
    def warnings(self) -> list[str]:
        return warnings_of_scores(self.how.dataset, *self.how.records)

    @property
    def title(self) -> str:
        """Such as "MIDOG, test, 12 images, 1 slide"."""
        data = self.how.dataset
        fold = f"fold {data['fold']} of {data['folds']}" if data.get("folds") else None
        ends = {name: "es" if name.endswith("ches") else "s" for name in self.counts()}
        counted = (f"{count} {name.removesuffix(ends[name] * (count == 1))}" for name, count in self.counts().items())
        parts = (str(data.get("name") or "evaluation"), data.get("split"), fold, *counted)
        return ", ".join(part for part in parts if part)

    def table(self) -> str:
        """What is printed: the title, the scores, the notes and the warnings."""
        return "\n".join([self.title, self.score_table(), *self.notes, *self.warnings])

    def intervals(self, drawn: str) -> dict[str, Any]:
        """How the intervals come about, for `summary.json`."""
        method = f"percentile bootstrap over {drawn}"
        return {"level": 0.95, "method": method, "resamples": self.how.bootstrap, "seed": self.how.seed}

    def content(self) -> dict[str, Any]:
        """What `summary.json` holds."""
        return {
            "dataset": self.how.dataset,
            **self.results(),
            "model": self.how.record,
            "weights": self.how.weights,
            "warnings": self.warnings,
            "notes": self.notes,
            "versions": {"monai": monai.__version__, "torch": torch.__version__},
        }

    def write(self, folder: str | os.PathLike) -> None:
        """Write `scores.csv` and `summary.json`, each whole or not at all."""
        rows = self.rows()
        write_csv(Path(folder) / "scores.csv", rows, list(rows[0]))
        write_json(Path(folder) / "summary.json", self.content())


def format_number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def round_score(value: float | None) -> float | None:
    """As CSV files hold it; None, which leaves it blank, where it is undefined."""
    return None if value is None or math.isnan(value) else round(value, 4)
