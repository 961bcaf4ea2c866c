from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from shared.reports.gallery import add_warnings, draw_gallery, save_figure


def draw(axes: Axes, grey: int) -> None:
    axes.imshow(np.full((8, 8, 3), grey, np.uint8))
    axes.set_title(f"{grey}\nof 255", fontsize=7)


def red(path: Path) -> int:
    """Red pixels at the foot of a picture."""
    return int((imread(path)[-40:, :, :3] @ [1, -1, 0] > 0.5).sum())


@pytest.mark.parametrize(("first", "second"), [(8, 1), (6, 0), (12, 13)])
def test_crops_lie_in_rows_under_their_titles(tmp_path: Path, first: int, second: int) -> None:
    shown = list(range(first + second))
    figure = draw_gallery({"some": shown[:first], "others": shown[first:]}, draw, title="all")
    save_figure(tmp_path / "gallery.png", figure)
    crops = [axes for axes in figure.axes if axes.images]
    assert [int(axes.get_title().split("\n")[0]) for axes in crops] == shown
    assert [np.asarray(axes.images[0].get_array()).flat[0] for axes in crops] == shown
    assert not any(axes.axison for axes in figure.axes)
    assert (figure.get_suptitle(), [part.get_suptitle() for part in figure.subfigs]) == ("all", ["some", "others"])

    boxes = [axes.get_tightbbox() for axes in crops]
    parts = (boxes[:first], boxes[first:])
    rows = [[box.y0 for box in part[i : i + 6]] for part in parts for i in range(0, len(part), 6)]
    assert all(max(row) - min(row) < 2 for row in rows)
    assert all(above[0] > below[0] + 50 for above, below in pairwise(rows))
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= figure.bbox.x1 and b.y1 <= figure.bbox.y1 for b in boxes)


def test_warnings_stand_at_the_foot(tmp_path: Path) -> None:
    for name, warnings in (("warned.png", ["beware", "and beware"]), ("plain.png", [])):
        save_figure(tmp_path / name, draw_gallery({"some": [250]}, draw, warnings=warnings))
    assert red(tmp_path / "warned.png") > 100 > 0 == red(tmp_path / "plain.png")
    figure = Figure(layout="constrained")
    add_warnings(figure, ["beware", "and beware"])
    assert [text.get_text() for text in figure.texts] == ["beware and beware"]


def test_a_picture_is_whole_or_absent(tmp_path: Path) -> None:
    save_figure(tmp_path / "picture.png", Figure(figsize=(2, 1)), dpi=50)
    assert imread(tmp_path / "picture.png").shape == (50, 100, 4)
    with pytest.raises(ValueError, match="Format 'unknown' is not supported"):
        save_figure(tmp_path / "picture.unknown", Figure())
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
