"""A segmentation to look at: three planes of the CT with the label map over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .organs import organ_colour

_LINE = 150  # characters that fit beside each other
# Plane, axis that it is a slice of, then of its columns and rows: the axis, and the letters at its two ends. The
# columns run against their axis (RAS): the patient's right is on the left, as radiologists look at it, and the face
# of a sagittal plane looks left.
_PLANES = (
    ("axial", 2, 0, "RL", 1, "AP"),
    ("coronal", 1, 0, "RL", 2, "SI"),
    ("sagittal", 0, 1, "AP", 2, "SI"),
)


def _slice_to_show(labels: np.ndarray, axis: int) -> int:
    """The slice that cuts most organs, among those the one with most labelled voxels; the middle one if none does."""
    present = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
    if not present.any():
        return labels.shape[axis] // 2
    organs = np.array([np.count_nonzero(np.bincount(row, minlength=256)[1:]) for row in present])
    return int(np.lexsort((np.count_nonzero(present, axis=1), organs))[-1])


def save_preview(
    path: str | Path,
    image: np.ndarray,
    labels: np.ndarray,
    spacing: tuple[float, float, float],
    names: Mapping[str, int],
    title: str = "",
    warning: str = "",
) -> None:
    """Draw three planes of a CT with its segmentation over it, and a legend, to a PNG file.

    Args:
        path: the PNG file.
        image: (x, y, z), axes to the patient's right, front and head (RAS); grey values in [0, 1].
        labels: label map on the same grid.
        spacing: mm between voxels.
        names: name → id; the legend holds those that the label map has.
        title: stands on top.
        warning: stands below the title in red.
    """
    colours = ListedColormap([organ_colour(i) for i in range(1, max(names.values()) + 1)])
    figure = Figure(figsize=(15, 6), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    for axes, (plane, axis, column, column_ends, row, row_ends) in zip(figure.subplots(1, 3), _PLANES, strict=True):
        index = _slice_to_show(labels, axis)
        # rows from below to above, columns against their axis
        grey, ids = (np.flip(np.take(a, index, axis).T, 1) for a in (image, labels))
        look = {"origin": "lower", "aspect": spacing[row] / spacing[column], "interpolation": "nearest"}
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1, **look)
        axes.imshow(
            np.ma.masked_equal(ids, 0), cmap=colours, vmin=0.5, vmax=max(names.values()) + 0.5, alpha=0.5, **look
        )
        axes.set_title(f"{plane}, {'xyz'[axis]} = {index}", color="white")
        axes.set_axis_off()
        axes.set(xticks=[], yticks=[])  # the layout would measure them all the same
        for letter, x, y in zip(column_ends + row_ends, (0.02, 0.98, 0.5, 0.5), (0.5, 0.5, 0.97, 0.03), strict=True):
            axes.text(x, y, letter, color="yellow", weight="bold", ha="center", va="center", transform=axes.transAxes)
    found = [name for name, i in sorted(names.items(), key=lambda item: item[1]) if (labels == i).any()]
    patches = [Patch(color=colours(names[name] - 1), label=name.replace("_", " ")) for name in found]
    figure.legend(
        handles=patches or [Patch(color="black", label="no organ found")],
        loc="outside lower center",
        ncols=7,
        facecolor="black",
        edgecolor="black",
        labelcolor="white",
    )
    if warning:
        lines = [part for line in warning.splitlines() for part in wrap(line, _LINE)]
        figure.suptitle("\n".join([title, *lines]), color="red", weight="bold")
    else:
        figure.suptitle(title, color="white")
    figure.savefig(path, dpi=100, pil_kwargs={"compress_level": 1})  # smaller takes longer
