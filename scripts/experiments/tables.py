"""Tables over seeds: means and spreads, as Markdown, and as files of one name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from shared.utils import atomic_path, write_csv, write_json

Described = Mapping[str, Any]  # see `describe`


def describe(values: Sequence[float]) -> dict[str, float | int | None] | None:
    """Mean, standard deviation (None of one value), least, greatest and number of values; None where there are none."""
    if not len(values):
        return None
    return {
        "mean": round(float(np.mean(values)), 4),
        "std": round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None,
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "n": len(values),
    }


def mean_and_std(entry: Described | None, sign: str = "", nothing: str = "") -> str:
    """Such as "0.712 ± 0.013"; `nothing` where there is none."""
    if entry is None:
        return nothing
    return f"{entry['mean']:{sign}.3f}" + (f" ± {entry['std']:.3f}" if entry["std"] is not None else "")


def markdown_grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def write_table(
    stem: Path, text: str, figure: Figure, content: Any, rows: Sequence[Mapping[str, Any]], fields: Sequence[str]
) -> None:
    """Write a table as STEM.md, its picture as .png, its content as .json, and the `fields` of its rows as .csv."""
    write_json(stem.with_suffix(".json"), content)
    write_csv(stem.with_suffix(".csv"), [{key: row.get(key) for key in fields} for row in rows], fields)
    with atomic_path(stem.with_suffix(".md")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic_path(stem.with_suffix(".png")) as temporary:
        figure.savefig(temporary, dpi=120)
