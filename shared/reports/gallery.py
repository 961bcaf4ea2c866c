"""What the pictures of all reports share: crops on a grid, the warnings at the foot, and how they are saved."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..utils import atomic_path

PER_ROW = 6
BAR = 10.0  # µm

T = TypeVar("T")


def draw_gallery(
    sections: Mapping[str, Sequence[T]],
    draw: Callable[[Axes, T], None],
    title: str = "",
    warnings: Sequence[str] = (),
) -> Figure:
    """Lay out crops in rows of six, section under section.

    Args:
        sections: title → what is shown under it, which may be nothing.
        draw: puts one of them, with its own title of up to two lines, into axes that show neither frame nor ticks.
        title: of all.
        warnings: stand at the foot, in red.
    """
    heights = [max(1, math.ceil(len(shown) / PER_ROW)) for shown in sections.values()]
    height = 1.9 * sum(heights) + 0.4 * len(heights) + 0.5
    figure = Figure(figsize=(1.6 * PER_ROW, height), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).ravel()
    for part, rows, (name, shown) in zip(parts, heights, sections.items(), strict=True):
        part.suptitle(name, fontsize=11)
        grid = part.subplots(rows, PER_ROW, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, crop in zip(grid, shown, strict=False):
            draw(axes, crop)
    if title:
        figure.suptitle(title, fontsize=11)
    add_warnings(figure, warnings)
    return figure


def add_scale_bar(axes: Axes, mpp: float) -> None:
    """Draw `BAR` µm at the foot of a crop, whose units measure so many µm."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x, y = left + 0.06 * (right - left), bottom + 0.06 * (top - bottom)
    for colour, width in (("white", 4), ("black", 2)):
        ends = ([x, x + BAR / mpp], [y, y])
        axes.plot(*ends, color=colour, linewidth=width, scalex=False, scaley=False, solid_capstyle="butt")


def add_warnings(figure: Figure, warnings: Sequence[str]) -> None:
    """In red at the foot of a figure whose layout is constrained."""
    if warnings:
        lines = [" ".join(warnings[i : i + 2]) for i in range(0, len(warnings), 2)]
        figure.text(0.01, 0.01, "\n".join(lines), color="tab:red", fontsize=9)
        foot = 0.05 * len(lines)
        figure.get_layout_engine().set(rect=(0, foot, 1, 1 - foot))


def save_figure(path: str | os.PathLike, figure: Figure, dpi: int = 120) -> None:
    """Write a picture, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
