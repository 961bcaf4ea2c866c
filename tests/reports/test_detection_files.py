from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from region_images import write_scn

from shared.data.regions import Region
from shared.data.roi import Roi
from shared.metrics import Detections, MitoticCount
from shared.reports import (
    DetectedImage,
    detection_files,
    write_detections_csv,
    write_gallery,
    write_geojson,
    write_midog_json,
    write_overview,
)

COUNT = MitoticCount(1, (100.0, 50.0, 900.0, 650.0), 2.0, 0.75, False, True)


def detections(*rows: tuple[float, float, float, int], side: float = 50.0) -> Detections:
    """Squares of 50 pixels, from middle x and y, score and class."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    box = np.hstack([table[:, :2] - side / 2, table[:, :2] + side / 2])
    return {"box": box.astype(np.float32), "score": table[:, 2].astype(np.float32), "label": table[:, 3].astype(int)}


FOUND = detections(
    (1000, 500, 0.875, 1), (600, 600, 0.75, 0), (6500, 2000, 0.640625, 1), (25, 4000, 0.25, 1), (9, 9, 0.1, 0)
)


@pytest.fixture
def region(tmp_path: Path) -> Region:
    """1600 × 1000 pixels; the grey value of a square of 100 tells where it is."""
    squares = (np.arange(10)[:, None] * 16 + np.arange(16)).astype(np.uint8)
    grey = squares.repeat(100, axis=0).repeat(100, axis=1)
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "a.png")
    return Region(tmp_path / "a.png", mpp=0.25)


def image(region: Region, found: Detections, threshold: float = 0.64, **more: Any) -> DetectedImage:
    return DetectedImage(region=region, detections=found, threshold=threshold, **more)


def test_midog_json_is_that_of_the_container(tmp_path: Path, region: Region) -> None:
    """To the byte. The file was typed by hand from what `process.py` of the container writes: see its `json.dump`.

    Its points, at 0.25 µm: (1000, 500), (6500, 2000) and (25, 4000) px are (250, 125), (1625, 500) and (6.25, 1000) µm.
    The threshold is 0.64, the container's own.
    """
    write_midog_json(tmp_path / "a.json", image(region, FOUND))
    golden = Path(__file__).with_name("midog_container.json")
    assert (tmp_path / "a.json").read_bytes() == golden.read_bytes()
    write_midog_json(tmp_path / "none.json", image(region, detections()))
    assert json.loads((tmp_path / "none.json").read_text()) == {
        "type": "Multiple points",
        "points": [],
        "version": {"major": 1, "minor": 0},
    }


def test_midog_millimetres_are_those_of_itk(tmp_path: Path) -> None:
    """The container asks ITK, which reads the resolution from the TIFF file."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.tiff", dpi=(25400 / 0.23, 25400 / 0.23))
    opened = itk.imread(str(tmp_path / "a.tiff"))
    place = np.asarray(itk.origin(opened)) + np.multiply(itk.spacing(opened), [1234.5, 678.25])
    region = Region(tmp_path / "a.tiff")
    assert region.mpp is not None
    write_midog_json(tmp_path / "a.json", image(region, detections((1234.5, 678.25, 0.5, 1))))
    (point,) = json.loads((tmp_path / "a.json").read_text())["points"]
    assert point["point"] == pytest.approx([*place, 0], rel=1e-5)


def test_geojson_for_qupath(tmp_path: Path, region: Region) -> None:
    write_geojson(tmp_path / "a.geojson", image(region, FOUND, count=COUNT, warning="made up"))
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    area, *figures = content["features"]
    assert [f["type"] for f in content["features"]] == ["Feature"] * 4
    assert [f["properties"]["objectType"] for f in content["features"]] == ["annotation"] + ["detection"] * 3
    assert [f["properties"]["classification"]["name"] for f in figures] == ["mitotic", "non-mitotic", "mitotic"]
    colours = {f["properties"]["classification"]["name"]: f["properties"]["classification"]["color"] for f in figures}
    assert all(len(c) == 3 and all(0 <= v <= 255 and isinstance(v, int) for v in c) for c in colours.values())
    assert colours["mitotic"] != colours["non-mitotic"]
    assert [f["properties"]["measurements"] for f in figures] == [{"score": s} for s in (0.875, 0.75, 0.640625)]
    # closed rings, GeoJSON (RFC 7946, section 3.1.6)
    ring = [[975, 475], [1025, 475], [1025, 525], [975, 525], [975, 475]]
    assert figures[0]["geometry"] == {"type": "Polygon", "coordinates": [ring]}
    assert area["geometry"]["coordinates"] == [[[100, 50], [900, 50], [900, 650], [100, 650], [100, 50]]]
    assert area["properties"]["name"] == "mitotic count: 1 mitotic figure in 2 mm² (1.5 mm² of tissue)"
    assert area["properties"]["isLocked"] is True
    measured = {"mitotic figures": 1, "area mm^2": 2.0, "share of tissue": 0.75, "tissue mm^2": 1.5}
    assert area["properties"]["measurements"] == measured
    assert area["properties"]["metadata"] == {"warning": "made up"}

    write_geojson(tmp_path / "a.geojson", image(region, detections()))
    assert json.loads((tmp_path / "a.geojson").read_text())["features"] == []
    write_geojson(tmp_path / "a.geojson", image(region, detections(), count=COUNT._replace(tissue=None)))
    (area,) = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert area["properties"]["measurements"] == {"mitotic figures": 1, "area mm^2": 2.0}
    assert "metadata" not in area["properties"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (COUNT._replace(count=12), "12 mitotic figures in 2 mm² (1.5 mm² of tissue)"),
        (COUNT._replace(tissue=None), "1 mitotic figure in 2 mm²"),
        (
            COUNT._replace(whole_image=True, area_mm2=0.065536, tissue=None),
            "1 mitotic figure in 0.0655 mm² (all that was searched)",
        ),
        (
            COUNT._replace(count=0, whole_image=True, enough_tissue=False),
            "0 mitotic figures in 2 mm² (1.5 mm² of tissue, all that was searched, little tissue)",
        ),
    ],
)
def test_count_in_words(count: MitoticCount, text: str) -> None:
    assert detection_files.count_text(count) == text


def test_csv_holds_all_detections(tmp_path: Path, region: Region) -> None:
    write_detections_csv(tmp_path / "a.csv", image(region, FOUND))
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert rows[0] == {
        **{"x": "1000.0", "y": "500.0", "x1": "975.0", "y1": "475.0", "x2": "1025.0", "y2": "525.0"},
        **{"class": "mitotic", "score": "0.875", "above_threshold": "1"},
        **{"qupath_x": "1000.0", "qupath_y": "500.0"},
    }
    assert [row["above_threshold"] for row in rows] == ["1", "1", "1", "0", "0"]
    assert [row["class"] for row in rows] == ["mitotic", "non_mitotic", "mitotic", "mitotic", "non_mitotic"]
    write_detections_csv(tmp_path / "a.csv", image(region, detections()))
    assert (tmp_path / "a.csv").read_text().splitlines() == [",".join(detection_files.COLUMNS)]


def test_of_a_slide_with_bounds_every_file_says_whose_pixels_it_has(tmp_path: Path, drawn: list[Figure]) -> None:
    """A figure at (700, 700) of the file stands at (100, 200) of what QuPath shows."""
    slide = Region(write_scn(tmp_path / "a.scn", np.full((300, 400, 3), 150, np.uint8), (600, 500)))
    count = COUNT._replace(outline=(600.0, 500.0, 1000.0, 800.0))
    found = image(slide, detections((700, 700, 0.9, 1)), count=count)
    write_geojson(tmp_path / "a.geojson", found)
    area, figure = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert figure["geometry"]["coordinates"][0][0] == [75, 175]
    assert area["geometry"]["coordinates"][0][:3] == [[0, 0], [400, 0], [400, 300]]
    write_detections_csv(tmp_path / "a.csv", found)
    with (tmp_path / "a.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert [float(row[name]) for name in ("x", "y", "x1", "qupath_x", "qupath_y")] == [700, 700, 675, 100, 200]
    write_midog_json(tmp_path / "a.json", found)
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["points"][0]["point"] == pytest.approx([0.175, 0.175, 0])
    assert "of the file's level 0; the scanned area begins at pixel (600, 500)" in content["name"]
    write_overview(tmp_path / "o.png", found)
    axes = drawn[0].axes[0]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 400), (300, 0))
    assert axes.collections[1].get_offsets().tolist() == [[100, 200]]
    assert axes.patches[0].get_bbox().extents.tolist() == [0, 0, 400, 300]
    write_gallery(tmp_path / "g.png", found)
    assert drawn[1].axes[0].get_title() == "0.900\n100, 200"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_overview(tmp_path: Path, region: Region, drawn: list[Figure]) -> None:
    found = detections((250, 250, 0.9, 1), (1550, 950, 0.7, 1), (650, 250, 0.8, 0), (850, 850, 0.2, 1))
    write_overview(tmp_path / "o.png", image(region, found, 0.5, count=COUNT, title="slide 1", warning="made up"))
    with Image.open(tmp_path / "o.png") as picture:
        assert picture.width > 1400
    axes = drawn[0].axes[0]
    rings = [c for c in axes.collections if isinstance(c, PathCollection)]
    assert rings[0].get_offsets().tolist() == [[650, 250]]  # non-mitotic
    assert rings[2].get_offsets().tolist() == [[250, 250], [1550, 950]]
    assert len(np.unique(rings[2].get_edgecolors(), axis=0)) == 2  # by score
    (outline,) = [p for p in axes.patches if isinstance(p, Rectangle)]
    assert outline.get_bbox().extents.tolist() == list(COUNT.outline)
    assert axes.images[0].get_array()[200, 200, 0] == region.read(229, 229, 1, 1)[0, 0, 0]
    texts = [t.get_text() for t in drawn[0].legends[0].get_texts()]
    assert texts == [
        "mitotic (2)",
        "non-mitotic (1)",
        "area of the count: 1 mitotic figure in 2 mm² (1.5 mm² of tissue)",
    ]
    assert drawn[0].get_suptitle() == "slide 1\nmade up"
    write_overview(tmp_path / "o.png", image(region, detections(), 1.0))
    assert drawn[1].get_suptitle() == ""


def test_overview_of_a_region_of_interest(tmp_path: Path, region: Region, drawn: list[Figure]) -> None:
    outline = np.array([[200, 100], [900, 100], [500, 700]], float)
    write_overview(tmp_path / "o.png", image(region.within(Roi(((outline,),))), detections((500, 300, 0.9, 1))))
    axes = drawn[0].axes[0]
    assert (axes.get_xlim(), axes.get_ylim()) == ((200, 900), (700, 100))
    assert axes.patches[0].get_xy()[:3].tolist() == outline.tolist()
    assert axes.collections[2].get_offsets().tolist() == [[500, 300]]
    assert drawn[0].legends[0].get_texts()[-1].get_text() == "region of interest"


@pytest.mark.parametrize(("count", "size"), [(1, 90), (100, 90), (400, 22.5), (9999, 8.1)])
def test_rings_are_smaller_where_they_are_many(
    count: int, size: float, tmp_path: Path, region: Region, drawn: list[Figure]
) -> None:
    write_overview(tmp_path / "o.png", image(region, detections(*[(i % 1600, i % 1000, 0.9, 1) for i in range(count)])))
    assert drawn[0].axes[0].collections[2].get_sizes() == pytest.approx(size)


def test_gallery_shows_the_best_first(tmp_path: Path, region: Region, drawn: list[Figure]) -> None:
    places = [(100.0 * i + 50, 450.0, 0.9 - i / 20, 1) for i in range(16)] + [(50.0, 50.0, 0.99, 0)]
    write_gallery(tmp_path / "g.png", image(region, detections(*places[::-1]), 0.5, title="slide 1", warning="made up"))
    shown = [axes for axes in drawn[0].axes if axes.images]
    assert len(shown) == 16
    for i, axes in enumerate(shown):
        picture = np.asarray(axes.images[0].get_array())
        assert picture.shape == (96, 96, 3)
        assert picture[48, 48, 0] == 4 * 16 + i
        assert axes.get_title().split("\n") == [f"{0.9 - i / 20:.3f}", f"{100 * i + 50}, 450"]
        (box,) = [p for p in axes.patches if isinstance(p, Rectangle)]
        assert box.get_bbox().extents.tolist() == [100 * i + 25, 425, 100 * i + 75, 475]
        assert [np.ptp(line.get_xdata()) for line in axes.lines] == pytest.approx([40, 40])  # 10 µm
        assert axes.get_xlim() == (100 * i - 14, 100 * i + 114)
    (caption,) = [part.get_suptitle() for part in drawn[0].subfigs]
    assert caption.startswith("16 of 16 candidates, highest scores")
    assert "green: from the threshold 0.5 on, grey: below; bar: 10 µm" in caption
    colours = [tuple(axes.patches[0].get_edgecolor()) for axes in shown]
    assert colours == [colours[0]] * 9 + [colours[-1]] * 7  # to 0.5, and below
    assert colours[0] != colours[-1]
    assert drawn[0].get_suptitle() == "slide 1\nmade up"


def test_gallery_of_many_and_of_none(tmp_path: Path, region: Region, drawn: list[Figure]) -> None:
    write_gallery(tmp_path / "g.png", image(region, detections(*[(i, i, i / 100, 1) for i in range(40)]), 0.5))
    shown = [axes for axes in drawn[0].axes if axes.images]
    assert [axes.get_title().split("\n")[0] for axes in shown] == [f"{i / 100:.3f}" for i in range(39, 15, -1)]
    write_gallery(tmp_path / "g.png", image(region, detections((5, 5, 0.9, 0)), 0.5))
    assert not [axes for axes in drawn[1].axes if axes.images]
    assert [part.get_suptitle() for part in drawn[1].subfigs] == ["none"]


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path: Path, region: Region) -> None:
    nan = detections((5, 5, np.nan, 1))
    for write in (
        lambda path: write_midog_json(path, image(region, nan)),
        lambda path: write_geojson(path, image(region, detections((np.nan, 5, 0.9, 1)))),
        lambda path: write_gallery(path, image(region, {**nan, "box": nan["box"][:0]})),
    ):
        with pytest.raises((ValueError, IndexError)):
            write(tmp_path / "out" / "a.png")
        assert list((tmp_path / "out").iterdir()) == [] if (tmp_path / "out").exists() else True
