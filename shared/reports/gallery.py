"""What the pictures of all reports share: the warnings at their foot, and how they are saved."""

from __future__ import annotations

import os
from collections.abc import Sequence

from matplotlib.figure import Figure

from ..utils import atomic_path


def add_warnings(figure: Figure, warnings: Sequence[str]) -> None:
    """In red at the foot of a figure whose layout is constrained."""
    if warnings:
        figure.text(0.01, 0.01, " ".join(warnings), color="tab:red", fontsize=9)
        figure.get_layout_engine().set(rect=(0, 0.05, 1, 0.95))


def save_figure(path: str | os.PathLike, figure: Figure, dpi: int = 120) -> None:
    """Write a picture, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
