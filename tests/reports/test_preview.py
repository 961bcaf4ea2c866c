from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from shared.reports import save_preview


def test_it_is_radiological(tmp_path: Path) -> None:
    """An organ on the patient's right, at the front and below, is left, above (axial), below (coronal)."""
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[25:35, 25:35, 5:15] = 1
    save_preview(tmp_path / "p.png", np.zeros(labels.shape), labels, (1, 1, 1), {"spleen": 1})
    picture = imread(tmp_path / "p.png")[..., :3]
    assert picture.shape == (600, 1500, 3)
    # the overlay: half the first colour of tab20 over black
    blue = np.argwhere(np.abs(picture - np.array([0.06, 0.235, 0.353])).max(-1) < 0.02)
    frames = [blue[(blue[:, 1] >= 500 * i) & (blue[:, 1] < 500 * (i + 1))].mean(0) for i in range(3)]
    middle = np.array([np.median([f[0] for f in frames])] * 2)
    assert all(len(f) == 2 for f in frames)
    axial, coronal, sagittal = frames
    assert axial[1] < 250
    assert coronal[1] < 750
    assert sagittal[1] < 1250
    assert axial[0] < coronal[0] - 50
    assert abs(coronal[0] - sagittal[0]) < 3
    assert middle[0] == pytest.approx(coronal[0], abs=3)


def test_without_an_organ(tmp_path: Path) -> None:
    image = np.linspace(0, 1, 8000).reshape(20, 20, 20)
    save_preview(tmp_path / "p.png", image, np.zeros(image.shape, np.uint8), (1, 1, 3), {"spleen": 1}, warning="beware")
    picture = imread(tmp_path / "p.png")
    assert picture[..., :3].std() > 0.1
    assert ((picture[..., 0] > 0.9) & (picture[..., 1] < 0.1)).sum() > 100  # the warning is red


def test_each_plane_is_that_with_most_organs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where as many organs are cut, that with most voxels; the legend names those that are there."""
    labels = np.zeros((20, 16, 12), np.uint8)
    labels[2:12, 3:9, 2] = 1  # the larger organ
    labels[5:8, 4:6, 7:9] = 2
    labels[5, 4, 8:10] = 1, 2
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    names = {"liver": 1, "left_kidney": 2, "aorta": 3}
    save_preview(tmp_path / "p.png", np.zeros(labels.shape), labels, (1, 1, 1), names)
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == ["axial, z = 8", "coronal, y = 4", "sagittal, x = 5"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["liver", "left kidney"]
