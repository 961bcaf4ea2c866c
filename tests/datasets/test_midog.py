from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from midog_tree import SIZE, annotations, write_tree
from PIL import Image

from shared.datasets.midog import find_midog, read_midog
from shared.datasets.midog_datalist import count_midog, midog_domain, midog_patches
from shared.utils import DataError

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / "../shared/data/midog"


def read_changed(folder: Path, change: Callable[[dict[str, Any]], None], **options: Any) -> None:
    content = annotations()
    change(content)
    (folder / "changed.json").write_text(json.dumps(content))
    read_midog(folder / "changed.json", **options)


def set_box(box: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][3].update(bbox=box)


def to_coco(content: dict[str, Any]) -> None:
    for a in content["annotations"]:
        a["bbox"] = [a["bbox"][0], a["bbox"][1], 50, 50]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (to_coco, r"60 of 60 boxes are not \[x1, y1, x2, y2\].*\[100, 80, 50, 50\]. They look like COCO's x, y, width"),
        (set_box([40, 40, 80, 90]), r"1 of 60 boxes .* annotation 4 is \[40, 40, 80, 90\]. Use the file as"),
        (set_box([40, 40, 90]), r"annotation 4 is \[40, 40, 90\]"),
        (set_box([260, 40, 310, 90]), r"annotation 4, \[260, 40, 310, 90\], is outside of its image of 260 × 220"),
        (lambda c: c["categories"][1].update(name="nucleus"), "the category 'nucleus' is not known"),
        (lambda c: c["annotations"][0].update(category_id=7), "annotation 1 is of the image 1 and the category 7"),
        (lambda c: c["annotations"][0].update(image_id=999), "annotation 1 is of the image 999"),
        (lambda c: c["annotations"][0].update(id=2), "more than one annotation with the id 2"),
        (lambda c: c["images"][13].update(id=2), "lists the image id 2 more than once"),
        (lambda c: c["images"][0].update(file_name="002.tif"), "lists the file name 002 more than once"),
        (lambda c: c["images"][0].update(file_name="a/001.tiff"), "a file name holds a folder"),
        (lambda c: c["images"][0].pop("width"), r"lacks a field \('width'\)"),
        (
            lambda c: c["images"][0].update(width="abc"),
            r"json: the width of image \d+ is 'abc', expected a whole number of 1 or above",
        ),
        (
            lambda c: c["images"][0].update(file_name="201.tiff"),
            "as MIDOG 2021, the scanner of 1 of its 14 ",
        ),
        (lambda c: c.pop("info"), "read as none of the known data sets, the scanner of 14 of its 14 images is not"),
        (lambda c: c["annotations"][0].update(image_id=151), "151.tiff has 1 annotations, but in MIDOG 2021 images of"),
        (lambda c: c.pop("images"), "has no list 'images'"),
    ],
)
def test_annotation_files_that_cannot_be_meant(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_changed(tmp_path, change)


def test_a_file_read_as_the_wrong_data_set_is_noticed(tmp_path: Path) -> None:
    def plus_plus(content: dict[str, Any]) -> None:
        content["images"] = [i for i in content["images"] if i["id"] < 151]
        for number, tumor in ((243, "canine lung cancer"), (247, "canine lymphosarcoma")):
            content["images"].append({**content["images"][0], "id": number, "file_name": f"{number}.tiff"})
            content["images"][-1]["tumor_type"] = tumor

    read_changed(tmp_path, plus_plus, dataset="midog++")
    with pytest.raises(DataError, match=r"the images 195 to 249 are of canine lung cancer and canine lymphosarcoma"):
        read_changed(tmp_path, plus_plus, dataset="midog22")
    with pytest.raises(DataError, match="--dataset is 'midog23', expected one of midog21, midog22, midog"):
        read_changed(tmp_path, plus_plus, dataset="midog23")


def test_an_image_without_annotations_is_unlabelled_only_in_a_part_that_nobody_annotated(tmp_path: Path) -> None:
    content = annotations((1, 100, 300, 355, 405), "MIDOG 2022")
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in (1, 300)]
    (tmp_path / "a.json").write_text(json.dumps(content))
    name, images = read_midog(tmp_path / "a.json")
    assert name == "MIDOG 2022"
    assert [image.labelled for image in images] == [True, True, True, False, False]
    assert [image.fields["tumor_type"].split()[-1] for image in images[2:]] == ["tumor", "melanoma", "melanoma"]
    assert [len(image.figures) for image in images] == [5, 0, 5, 0, 0]


@pytest.mark.parametrize(
    ("description", "last", "expected"),
    [
        ("MIDOG 2021", 200, {"XR human": 50, "S360 human": 50, "CS human": 50, "GT450 human": 50}),
        (
            "MIDOG 2022",
            405,
            {"XR human": 156, "S360 human": 50, "CS human": 50, "3DHistech canine": 99, "CS canine": 50},
        ),
        (
            "MIDOG++: A Comprehensive Multi-Domain Data Set",
            553,
            {
                **{"XR human": 154, "S360 human": 50, "CS human": 50, "GT450 human": 50},
                **{"3DHistech canine": 199, "CS canine": 50},
            },
        ),
    ],
)
def test_every_number_has_its_scanner(tmp_path: Path, description: str, last: int, expected: dict[str, int]) -> None:
    content = annotations(tuple(range(1, last + 1)), description) | {"annotations": []}
    (tmp_path / "a.json").write_text(json.dumps(content))
    _, images = read_midog(tmp_path / "a.json")
    names = [midog_domain(image, ["scanner"]).split()[0] + " " + image.fields["species"] for image in images]
    assert Counter(names) == expected
    assert {row["tumor_type"].split()[0] == row["species"] for row in count_midog(images)} == {True}


def test_domains_and_a_table_of_scanners(tmp_path: Path) -> None:
    content = annotations((1, 700), "my own")
    content["images"][1] |= {"site": "Bern", "domain": 7, "slide": 8, "image": 9}
    content["annotations"][-1]["label"] = "unsure"
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "s.csv").write_text("file_name,scanner,labelled\n001.tiff,NanoZoomer XR,\n700.tiff,GT 450,true\n")
    name, images = read_midog(tmp_path / "a.json", scanners=tmp_path / "s.csv")
    assert name == "a"
    assert [midog_domain(image, ["scanner"]) for image in images] == ["XR", "GT450"]
    assert midog_domain(images[1], ["scanner", "site"]) == "GT450 + Bern"
    last = midog_patches(images, ["scanner"])[-1]
    assert {"image": "patches/700/10.png", "domain": "GT450", "slide": "700.tiff", "label": 1}.items() <= last.items()
    with pytest.raises(DataError, match=r"001.tiff: its site is not known, .*Known: image_id, scanner, license"):
        midog_domain(images[0], ["site"])
    (tmp_path / "s.csv").write_text("file_name,scanner\n001.tiff,XR\n")
    with pytest.raises(DataError, match=r"the scanner of 1 of its 2 images is not known: 700.tiff. Set --dataset"):
        read_midog(tmp_path / "a.json", scanners=tmp_path / "s.csv")
    (tmp_path / "s.csv").write_text("file_name,scanner\n005.tiff,XR\n")
    with pytest.raises(DataError, match="the table of scanners names none of its images"):
        read_midog(tmp_path / "a.json", scanners=tmp_path / "s.csv")
    (tmp_path / "s.csv").write_text("name,scanner\n001.tiff,XR\n")
    with pytest.raises(DataError, match="has the columns name, scanner, expected file_name and any of"):
        read_midog(tmp_path / "a.json", scanners=tmp_path / "s.csv")


def test_missing_and_wrong_images(tmp_path: Path) -> None:
    annotation_file, folder = write_tree(tmp_path)
    _, images = read_midog(annotation_file)
    for name in ("151.tiff", "152.tiff"):
        (folder / name).unlink()
    assert [image.file_name for image in images[:12]] == [i.file_name for i in find_midog(images, folder)]
    (folder / "003.tiff").unlink()
    with pytest.raises(DataError, match=r"1 of 12 images are missing: 003.tiff. .*--allow_missing"):
        find_midog(images, folder)
    assert len(find_midog(images, folder, allow_missing=True)) == 11
    Image.new("RGB", (261, 220)).save(folder / "001.tiff")
    Image.new("L", SIZE).save(folder / "002.tiff")
    (folder / "004.tiff").write_bytes(b"no image")
    with pytest.raises(DataError) as error:
        find_midog(images, folder, allow_missing=True)
    assert "3 of 11 images" in str(error.value)
    assert "001.tiff (261 × 220 pixels, annotated are 260 × 220)" in str(error.value)
    assert "002.tiff (mode L, expected RGB with 8 bit)" in str(error.value)
    assert "004.tiff (no readable TIFF" in str(error.value)
    with pytest.raises(DataError, match=r"12 of 12 images are missing|14 of 14 images are missing"):
        find_midog(images, tmp_path, allow_missing=True)
    with pytest.raises(DataError, match="there is no such folder"):
        find_midog(images, tmp_path / "none")


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is not here")
def test_real_annotation_files() -> None:
    name, images = read_midog(REAL / "MIDOG.json")
    assert name == "MIDOG 2021"
    rows = {row["scanner"]: row for row in count_midog(images)}
    counts = {s: (r["images"], r["mitotic"], r["non_mitotic"], r["labelled"]) for s, r in rows.items()}
    assert counts == {
        "XR": (50, 451, 724, "yes"),
        "S360": (50, 582, 1066, "yes"),
        "CS": (50, 688, 924, "yes"),
        "GT450": (50, 0, 0, "no"),
    }
    patches = midog_patches(images, ["scanner"])
    assert sum(min(p["bbox"]) < 0 for p in patches) == 32
    assert sum(p["bbox"][2] > p["width"] or p["bbox"][3] > p["height"] for p in patches) == 16
    name, images = read_midog(REAL / "MIDOG++.json")
    assert name == "MIDOG++"
    assert len(images) == 553
    patches = midog_patches(images, ["scanner", "tumor_type"])
    assert len(patches) == 26286
    assert sum(p["label"] for p in patches) == 11937  # Aubreville et al., Sci Data 2023
    assert all(-10 < p["x"] < p["width"] + 10 and -10 < p["y"] < p["height"] + 10 for p in patches)
    assert len({p["domain"] for p in patches}) == 9
    parts = {(row["scanner"], row["tumor_type"], row["origin"]): row["images"] for row in count_midog(images)}
    assert parts["3DHistech Pannoramic Scan II", "canine soft tissue sarcoma", "AMC New York"] == 85
    assert parts["XR", "human melanoma", "UMC Utrecht"] == 49
    assert sum(not image.labelled for image in images) == 50
