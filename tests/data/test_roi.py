from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from region_images import texture, write_scn, write_tiled

from shared.data import Region, RegionTiles
from shared.data.roi import Roi, find_roi, read_roi
from shared.utils import DataError

SQUARE = [[20, 10], [120, 10], [120, 90], [20, 90], [20, 10]]
HOLE = [[40, 30], [60, 30], [60, 50], [40, 50], [40, 30]]
AREA = 100 * 80 - 20 * 20


def polygon(*rings: list[list[float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry: dict[str, Any], kind: str = "annotation") -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": kind}}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


ONE = polygon(SQUARE, HOLE)
FORMS = {
    "geometry": ONE,
    "feature": feature(ONE),
    "collection": {"type": "FeatureCollection", "features": [feature(ONE), feature(polygon(HOLE), "detection")]},
    "list": [feature(ONE), feature({"type": "Point", "coordinates": [5, 5]})],
    "geometries": {"type": "GeometryCollection", "geometries": [ONE, {"type": "LineString", "coordinates": SQUARE}]},
    "multi": {"type": "MultiPolygon", "coordinates": [ONE["coordinates"]]},
    "twice": [feature(ONE), feature(ONE)],
}


@pytest.mark.parametrize("form", FORMS)
def test_what_lies_in_it(form: str, tmp_path: Path) -> None:
    roi = read_roi(write(tmp_path / "a.geojson", FORMS[form]))
    assert roi.box == (20, 10, 100, 80)
    points = np.array([[30, 20], [50, 40], [119, 89], [121, 50], [5, 5], [30, 40], [70, 30]], float)
    assert roi.contains(points).tolist() == [True, False, True, False, False, True, True]
    assert roi.moved(7, -3).contains(points + (7, -3)).tolist() == roi.contains(points).tolist()
    assert roi.area((200, 300), 1.0) == pytest.approx(AREA)
    mask = roi.mask((100, 150), 2.0)
    assert mask[10:40, 15:18].all()
    assert not mask[:, :9].any()
    assert not mask[17:23, 22:28].any()
    assert mask.sum() * 4 == pytest.approx(AREA, rel=0.1)  # its edges included


def test_the_area_of_polygons_that_overlap_counts_once() -> None:
    square = np.array(SQUARE, float)
    assert Roi(((square,), (square + (50, 0),))).area((200, 300), 1.0) == pytest.approx(150 * 80, rel=0.02)
    assert Roi(((square,), (square + (150, 0),))).area((200, 300), 1.0) == pytest.approx(2 * 100 * 80)


def test_a_ring_thinner_than_a_pixel_of_the_mask_has_an_area() -> None:
    square = np.array(SQUARE, float)
    middle = square.mean(0)
    ring = Roi(((square, middle + (square - middle) * 0.98),))
    assert ring.area((200, 300), 1.0) == pytest.approx(100 * 80 * (1 - 0.98**2))
    assert ring.area((7, 10), 32.0) == pytest.approx(100 * 80 * (1 - 0.98**2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "is no GeoJSON"),
        ({"features": []}, "is no GeoJSON"),
        ({"type": "FeatureCollection", "features": []}, "holds no area"),
        (polygon([[-9, 50], [70, 50], [-9, 50]]), "holds no area"),
        ([feature(polygon(HOLE), "detection")], "holds no area"),
        (polygon([[1, 1], [2, 2]]), "a ring needs three points"),
        (polygon([[1, 1], [2, 2], [3, float("nan")]]), "a ring needs three points"),
        (3, "is no GeoJSON"),
    ],
)
def test_wrong_files(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"a\.geojson: {message}|a\.geojson: .*{message}"):
        read_roi(write(tmp_path / "a.geojson", content))
    with pytest.raises(DataError, match=r"b\.geojson: cannot be read"):
        read_roi(tmp_path / "b.geojson")


def test_one_file_or_a_folder_by_names(tmp_path: Path) -> None:
    for name in ("a.geojson", "b.svs.json"):
        write(tmp_path / name, ONE)
    assert find_roi(tmp_path / "a.geojson", "z", "z.svs").box == (20, 10, 100, 80)
    assert find_roi(tmp_path, "XR/a", "in/XR/a.svs").box == (20, 10, 100, 80)
    assert find_roi(tmp_path, "b", "in/b.svs").box == (20, 10, 100, 80)
    with pytest.raises(DataError, match=r"holds no region of interest for in/c\.svs\. Expected c\.geojson in it"):
        find_roi(tmp_path, "c", "in/c.svs")


def test_what_lies_around_it_is_searched(tmp_path: Path) -> None:
    image = texture()
    region = Region(write_tiled(tmp_path / "a.tif", image), mpp=0.25)
    roi = Roi(((np.array(SQUARE, float),), (np.array(SQUARE, float) + (150, 100),)))
    part = pickle.loads(pickle.dumps(region.within(roi).searched()))
    assert (part.corner, part.size, part.mpp, region.roi) == ((20, 10), (250, 180), 0.25, None)
    assert (part.read(0, 0, 250, 180) == image[10:190, 20:270]).all()
    tiles = RegionTiles([{"image": part}], tile_size=50, overlap=0)
    held = [part.roi.contains(np.array([[x + 25, y + 25]]))[0] for _, (x, y, _) in tiles.tiles]
    assert 8 <= len(tiles) < len(RegionTiles([{"image": region.window(20, 10, 250, 180)}], 50, 0)) == 20
    assert sum(held) >= 4
    with pytest.raises(DataError, match=r"a\.tif: its region of interest lies at \(1020, 10\), outside of"):
        region.within(roi.moved(1000, 0))


def test_of_a_slide_with_bounds_it_is_in_qupath_s_pixels(tmp_path: Path) -> None:
    slide = Region(write_scn(tmp_path / "a.scn", texture(), (600, 500)))
    part = slide.within(Roi(((np.array(SQUARE, float),),))).searched()
    assert (part.corner, part.size) == ((620, 510), (100, 80))
    assert (part.read(0, 0, 100, 80) == texture()[10:90, 20:120]).all()
