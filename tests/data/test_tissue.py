from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from region_images import make_slide, write_tiled

from shared.data import Region, RegionTiles, near_tissue, tissue_mask

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / "../shared/data/histology/regions"


@pytest.mark.parametrize("glass", [(255, 255, 255), (243, 240, 236), (226, 232, 235), (200, 200, 200)])
@pytest.mark.parametrize("border", [0, 60])
def test_tissue_is_neither_glass_nor_black(glass: tuple[int, int, int], border: int, tmp_path: Path) -> None:
    region = Region(write_tiled(tmp_path / "slide.tif", make_slide(glass, border)))
    for max_size, scale in ((2048, 1.0), (200, 4.0)):
        mask, found = tissue_mask(region, max_size)
        assert found == scale
        assert mask.shape == (600 / scale, 800 / scale)
        tissue = np.zeros(mask.shape, bool)
        tissue[int(200 / scale) : int(400 / scale), int(250 / scale) : int(500 / scale)] = True
        assert mask[tissue].all()
        assert mask[~tissue].mean() < 0.05  # what it is wider


@pytest.mark.parametrize("name", ["example1.png", "example2.png"])
def test_real_tissue(name: str) -> None:
    if not (REAL / name).is_file():
        pytest.skip(f"{name} is not at hand")
    mask, scale = tissue_mask(Region(REAL / name))
    assert (mask.shape, scale) == ((1024, 1024), 1.0)
    assert 0.9 < mask.mean() < 0.99  # its lumina and clefts are none
    tiles = RegionTiles([{"image": REAL / name}], 256, 64, min_tissue=0.05)
    assert len(tiles) == 25
    assert all(item["tissue"] for item in tiles)


def test_what_is_near_tissue() -> None:
    mask = np.zeros((20, 30), bool)
    mask[5:10, 10:15] = True
    points = np.array([[42.0, 30.0], [38.0, 30.0], [30.0, 30.0], [200.0, 100.0], [-5.0, 30.0]])
    assert near_tissue(points, mask, 4.0).tolist() == [True, False, False, False, False]
    assert near_tissue(points, mask, 4.0, 4.0).tolist() == [True, True, False, False, False]
    assert near_tissue(points, mask, 4.0, 40.0).tolist() == [True, True, True, False, True]
    assert not near_tissue(points, ~mask & mask, 4.0, 1e6).any()
    assert near_tissue(points, mask | ~mask, 4.0).all()
