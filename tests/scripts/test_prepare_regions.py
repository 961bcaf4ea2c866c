"""The same figures in every form of annotations give the same datalist."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from PIL import Image
from region_images import write_scn

from shared.data import load_regions, region_labels
from shared.datasets.region_annotations import Annotations, by_image
from shared.utils import DataError

ROOT = Path(__file__).resolve().parents[2]
SIZE = (120, 100)
# class, box; the second figure is drawn as a point where a form knows points
FIGURES = [("Mitosis", [10, 20, 60, 70]), ("NMF", [45, 25, 95, 75])]
CLASSES = {"Mitosis": "mitotic", "NMF": "non_mitotic"}
Writer = Callable[[Path, dict[str, list]], Path]


def images(folder: Path) -> list[str]:
    """Of two scanners each three slides with figures, one without, and one that nobody has looked at."""
    names = [f"{scanner}/{scanner}_{i}.png" for scanner in ("XR", "CS") for i in range(5)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((SIZE[1], SIZE[0], 3), 220, np.uint8)).save(folder / name)
    return names


def marked(names: list[str]) -> dict[str, list]:
    return {name: [] if "_3" in name else FIGURES for name in names if "_4" not in name}


def geojson(folder: Path, found: dict[str, list]) -> Path:
    for name, figures in found.items():
        features = []
        for label, (x1, y1, x2, y2) in figures:
            ring = [[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]]
            geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [ring]}
            if label == "NMF":
                geometry = {"type": "Point", "coordinates": [(x1 + x2) / 2, (y1 + y2) / 2]}
            properties = {"objectType": "annotation", "classification": {"name": label, "color": [1, 2, 3]}}
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
        file = folder / Path(name).with_suffix(".geojson")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return folder


def coco(folder: Path, found: dict[str, list]) -> Path:
    annotations = [
        {"id": i, "image_id": image, "category_id": list(CLASSES).index(label), "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for image, figures in enumerate(found.values())
        for i, (label, (x1, y1, x2, y2)) in enumerate(figures)
    ]
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(found)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": annotations,
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


def voc(folder: Path, found: dict[str, list]) -> Path:
    for name, figures in found.items():
        things = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            "</bndbox></object>"
            for label, (x1, y1, x2, y2) in figures
        )
        (folder / f"{Path(name).stem}.xml").write_text(f"<annotation><filename>{name}</filename>{things}</annotation>")
    return folder


def yolo(folder: Path, found: dict[str, list]) -> Path:
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for name, figures in found.items():
        lines = [
            f"{list(CLASSES).index(label)} {(x1 + x2) / 2 / SIZE[0]:.8f} {(y1 + y2) / 2 / SIZE[1]:.8f} "
            f"{(x2 - x1) / SIZE[0]:.8f} {(y2 - y1) / SIZE[1]:.8f}"
            for label, (x1, y1, x2, y2) in figures
        ]
        (folder / f"{Path(name).stem}.txt").write_text("\n".join(lines))
    return folder


def boxes(folder: Path, found: dict[str, list]) -> Path:
    lines = [f"{name};{label};{';'.join(map(str, box))}" for name, figures in found.items() for label, box in figures]
    lines += [f"{name};;;;;" for name, figures in found.items() if not figures]
    (folder / "boxes.csv").write_text("\n".join(["File;Class;xmin;ymin;xmax;ymax", *lines]))
    return folder / "boxes.csv"


def points(folder: Path, found: dict[str, list]) -> Path:
    lines = [
        f"{name},{label},{(x1 + x2) / 2},{(y1 + y2) / 2}"
        for name, figures in found.items()
        for label, (x1, y1, x2, y2) in figures
    ]
    lines += [f"{name},,," for name, figures in found.items() if not figures]
    (folder / "points.csv").write_text("\n".join(["image,label,x,y", *lines]))
    return folder / "points.csv"


def sliderunner(folder: Path, found: dict[str, list]) -> Path:
    with closing(sqlite3.connect(folder / "db.sqlite")) as database:
        database.executescript(
            "CREATE TABLE Slides (uid INTEGER PRIMARY KEY, filename TEXT, width INTEGER, height INTEGER);"
            "CREATE TABLE Classes (uid INTEGER PRIMARY KEY, name TEXT);"
            "CREATE TABLE Annotations (uid INTEGER PRIMARY KEY, slide INTEGER, type INTEGER, agreedClass INTEGER, "
            "deleted INTEGER DEFAULT 0);"
            "CREATE TABLE Annotations_coordinates (uid INTEGER PRIMARY KEY, coordinateX INTEGER, coordinateY INTEGER, "
            "slide INTEGER, annoId INTEGER, orderIdx INTEGER);"
        )
        database.executemany("INSERT INTO Classes VALUES (?, ?)", enumerate(CLASSES))
        for slide, (name, figures) in enumerate(found.items()):
            database.execute("INSERT INTO Slides VALUES (?, ?, ?, ?)", (slide, Path(name).name, *SIZE))
            for label, (x1, y1, x2, y2) in [*figures, ("Mitosis", (0, 0, 9, 9))]:  # the last one was deleted
                values = (slide, 2, list(CLASSES).index(label), x2 == 9)
                row = database.execute(
                    "INSERT INTO Annotations (slide, type, agreedClass, deleted) VALUES (?, ?, ?, ?)", values
                )
                for order, (x, y) in enumerate(((x1, y1), (x2, y2))):
                    database.execute(
                        "INSERT INTO Annotations_coordinates (coordinateX, coordinateY, slide, annoId, orderIdx) "
                        "VALUES (?, ?, ?, ?, ?)",
                        (x, y, slide, row.lastrowid, order),
                    )
        database.commit()
    return folder / "db.sqlite"


def prepare(annotations: Path, image_dir: Path, output: Path, form: str, **options: Any) -> Any:
    flags = [f"--{key}={value}" for key, value in {"classes": CLASSES, **options}.items()]
    names = ["--annotations", annotations, "--image_dir", image_dir, "--output", output, "--format", form]
    return run(ROOT / "scripts" / "prepare_regions.py", *names, *flags)


def test_two_files_of_annotations_of_one_image_are_refused(tmp_path: Path) -> None:
    """Of the one read last, an older export, the figures would be those of the image."""
    images(tmp_path / "images")
    folder = geojson(tmp_path, {"XR_0.png": FIGURES})
    (folder / "XR_0.json").write_text('{"type": "FeatureCollection", "features": []}')
    done = prepare(folder, tmp_path / "images", tmp_path / "data" / "dataset.json", "geojson", mpp=0.25)
    assert done.returncode == 1
    assert "XR_0.json: XR_0 has another file of annotations, too. Keep the one that counts." in done.stderr


@pytest.mark.parametrize(
    ("form", "write"),
    [
        *(("geojson", geojson), ("coco", coco), ("voc", voc), ("yolo", yolo)),
        *(("csv", boxes), ("csv", points), ("sliderunner", sliderunner)),
    ],
)
def test_every_form_gives_the_same(tmp_path: Path, form: str, write: Writer) -> None:
    (tmp_path / "marks").mkdir()
    names = images(tmp_path / "images")
    annotations = write(tmp_path / "marks", marked(names))
    output = tmp_path / "data" / "dataset.json"
    done = prepare(annotations, tmp_path / "images", output, form, mpp=0.25)
    assert done.returncode == 0, done.stderr
    assert "Mitosis: 6 figures, taken as mitotic" in done.stdout
    assert "Unlabelled: 1 images of CS." in done.stdout
    found = [(split, r) for split in ("training", "validation", "test") for r in load_regions(output, split, mpp=0.25)]
    assert {Path(r["image"]).name for _, r in found} == {Path(name).name for name in marked(names)}
    assert {split for split, r in found if r["box"]} == {"training", "validation", "test"}
    for _, region in found:
        assert region["domain"] == Path(region["image"]).name[:2]
        expected = [] if "_3" in region["image"] else [box for _, box in FIGURES]
        assert np.allclose(region["box"], expected, atol=1e-4)
        assert region["label"] == [1, 0][: len(expected)]
    (one, other) = load_regions(output, "unlabelled", mpp=0.25)
    assert one["labelled"] is other["labelled"] is False
    assert region_labels(output) == {"non_mitotic": 0, "mitotic": 1}


def test_where_scanner_and_slide_come_from(tmp_path: Path) -> None:
    names = images(tmp_path / "images")
    (tmp_path / "images" / "XR" / "XR_0.png").rename(tmp_path / "images" / "CS" / "CS_0 b.png")
    found = marked(names)
    found["CS/CS_0 b.png"] = found.pop("XR/XR_0.png")
    (tmp_path / "table.csv").write_text("file,scanner\nCS_0 b.png,Hamamatsu XR\n")
    output = tmp_path / "data.json"
    options = {"table": tmp_path / "table.csv", "slide": r"_(\d)", "others": "empty"}
    done = prepare(coco(tmp_path, found), tmp_path / "images", output, "coco", **options)
    assert done.returncode == 0, done.stderr
    content = json.loads(output.read_text())
    entries = {Path(e["image"]).name: e for split in ("training", "validation", "test") for e in content[split]}
    assert (entries["CS_0 b.png"]["domain"], entries["CS_0 b.png"]["slide"]) == ("XR", "0")
    assert entries["CS_4.png"]["box"] == []
    assert content["unlabelled"] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": "{'Mitosis':'mitotic'}"}, None),  # NMF is known by itself
        ({"classes": "{'NMF':'ignore','Mitosis':'ignore'}"}, "There is no mitotic figure in the annotations"),
        ({"scanner": "header"}, "its header names no scanner. Set --scanner, or name it with --table."),
        ({"slide": "slide"}, "--slide slide finds no slide in its name"),
        ({"format": "voc"}, r"there is no \.xml file"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, change: dict[str, str], said: str | None) -> None:
    annotations = coco(tmp_path, marked(images(tmp_path / "images")))
    form = change.get("format", "coco")
    annotations = annotations.parent if form == "voc" else annotations
    options = {key: value for key, value in change.items() if key != "format"}
    done = prepare(annotations, tmp_path / "images", tmp_path / "data.json", form, **options)
    assert done.returncode == (1 if said else 0), done.stderr
    assert re.search(said or "", done.stderr)
    assert (tmp_path / "data.json").exists() == (not said)


def test_what_is_wrong_in_annotations_is_named_with_file_and_number(tmp_path: Path) -> None:
    names = images(tmp_path / "images")
    for figures, said in (
        (
            [("Mitosis", [300, 20, 350, 70])],
            r"boxes\.csv: line 2: lies at 325, 45, outside of its image of 120 × 100",
        ),
        ([("Mitosis", [60, 20, 10, 70])], r"boxes\.csv: line 2: \[60.0, 20.0, 10.0, 70.0\], expected x1 <= x2"),
        ([("Mitosis", ["a", 20, 10, 70])], r"boxes\.csv: not readable as annotations \(ValueError"),
        ([("Tumour", [10, 20, 60, 70])], r"boxes\.csv: the classes 'Tumour' \(1\) are not known\. Say what they are"),
    ):
        file = boxes(tmp_path, {names[0]: figures})
        done = prepare(file, tmp_path / "images", tmp_path / "data.json", "csv")
        assert done.returncode == 1
        assert re.search(said, done.stderr), done.stderr
    file = boxes(tmp_path, {"elsewhere.png": FIGURES})
    done = prepare(file, tmp_path / "images", tmp_path / "data.json", "csv")
    assert "elsewhere.png is called like none of the images (1 such: elsewhere.png)" in done.stderr


def test_yolo_s_polygons_are_boxes_around_them(tmp_path: Path) -> None:
    names = images(tmp_path / "images")
    (tmp_path / "marks").mkdir()
    file = yolo(tmp_path / "marks", marked(names)) / "XR_0.txt"
    file.write_text("0 0.25 0.5 0.5 0.5 0.5 0.7 0.25 0.7\n1 0.5 0.5 0.1 0.1 0.9\n")
    done = prepare(file.parent, tmp_path / "images", tmp_path / "data.json", "yolo")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "data.json").read_text())
    entries = [e for split in ("training", "validation", "test") for e in content[split]]
    (found,) = [e["box"] for e in entries if e["image"].endswith("XR_0.png")]
    assert np.allclose(found, [[30, 50, 60, 70], [54, 45, 66, 55]])
    file.write_text("0 0.25 0.5 0.5 0.5 0.5 0.7 0.25\n")
    assert "XR_0.txt: line 1: 0 0.25" in prepare(file.parent, tmp_path / "images", tmp_path / "d.json", "yolo").stderr


def test_the_same_name_in_another_folder_is_another_image(tmp_path: Path) -> None:
    """As far as both say where they lie."""
    for folder in "AB":
        (tmp_path / "images" / folder).mkdir(parents=True)
        Image.fromarray(np.full((9, 9, 3), 220, np.uint8)).save(tmp_path / "images" / folder / "1.png")
    found = [str(tmp_path / "images" / folder / "1.png") for folder in "AB"]
    for name, image in (("A/1", 0), ("export/B/1.png", 1), ("B\\1.png", 1)):
        assert list(by_image(Annotations({name: []}), found, tmp_path / "images", "marks")) == [found[image]]
    for name, said in (("C/1.png", "called like none"), ("1.png", "may be any of several"), ("A/2", "like none")):
        with pytest.raises(DataError, match=said):
            by_image(Annotations({name: []}), found, tmp_path / "images", "marks")
    with pytest.raises(DataError, match="A/1 and another entry are both of"):
        by_image(Annotations({"A/1.png": [], "A/1": []}), found, tmp_path / "images", "marks")


def test_qupath_counts_from_the_scanned_area(tmp_path: Path) -> None:
    """And the scanner is in the slide's header."""
    for i in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        write_scn(tmp_path / "images" / f"{i}.scn", np.full((128, 192, 3), 200, np.uint8), (30, 40))
    annotations = geojson(tmp_path, {f"{i}.scn": FIGURES for i in range(3)})
    done = prepare(
        annotations, tmp_path / "images", tmp_path / "out" / "data.json", "geojson", scanner="header", mpp=0.5
    )
    assert done.returncode == 0, done.stderr
    (region,) = load_regions(tmp_path / "out" / "data.json", "test")
    assert region["box"] == [[x1 + 30, y1 + 40, x2 + 30, y2 + 40] for _, (x1, y1, x2, y2) in FIGURES]
    assert (region["domain"], region["mpp"]) == ("M", 0.5)  # its file names the objective alone
