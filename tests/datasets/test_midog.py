from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.data import load_patches
from shared.datasets import (
    count_midog,
    crop_midog,
    crop_square,
    dark_nuclei,
    find_midog,
    midog_domain,
    midog_patches,
    read_midog,
)
from shared.utils import DataError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prepare_midog.py"
REAL = ROOT / "../shared/data/midog"
SIZE = (260, 220)  # of the made-up regions: width, height
BOXES = ([100, 80, 150, 130], [-27, 60, 23, 110], [60.5, 190.5, 110.5, 240.5], [230, -20, 280, 30], [-26, 100, 24, 150])
NUMBERS = (*range(1, 5), *range(51, 55), *range(101, 105), *range(151, 153))  # four of each scanner, two unlabelled


def region(number: int) -> np.ndarray:
    """Pink tissue with purple nuclei, another for each number."""
    rng = np.random.default_rng(number)
    pixels = np.full((SIZE[1], SIZE[0], 3), (225, 165, 205)) + rng.integers(-8, 8, (SIZE[1], SIZE[0], 3))
    rows, columns = np.ogrid[: SIZE[1], : SIZE[0]]
    for x, y in nuclei(number):
        pixels[(columns - x) ** 2 + (rows - y) ** 2 < 14**2] = (shade(x, y), 60, 140)
    return pixels.astype(np.uint8)


def shade(x: int, y: int) -> int:
    return 95 + x % 40 + y % 40 // 4


def nuclei(number: int) -> list[tuple[int, int]]:
    return [(40 + 90 * i, 44 + 88 * j) for i in range(3) for j in range(2) if (i, j) != (number % 3, 0)]


def annotations(numbers: tuple[int, ...] = NUMBERS, description: str = "(MIDOG) 2021 - Training set") -> dict[str, Any]:
    known = {"width": SIZE[0], "height": SIZE[1], "license": 1}
    images = [{"id": n, "file_name": f"{n:03d}.tiff", **known} for n in numbers]
    boxes = [(n, k, box) for n in numbers if not 151 <= n <= 200 for k, box in enumerate(BOXES)]
    found = [{"id": i, "image_id": n, "category_id": 1 + k % 2, "bbox": b} for i, (n, k, b) in enumerate(boxes, 1)]
    categories = [{"id": 1, "name": "mitotic figure"}, {"id": 2, "name": "not mitotic figure"}]
    info = {"description": description}
    return {"info": info, "images": images, "categories": categories, "annotations": found}


def write_tree(folder: Path, content: dict[str, Any] | None = None) -> tuple[Path, Path]:
    """The JSON file and the folder of a made-up MIDOG, its TIFF files compressed in several ways."""
    content = content or annotations()
    (folder / "images").mkdir(parents=True)
    for i, image in enumerate(content["images"]):
        compression = (None, "tiff_lzw", "tiff_deflate")[i % 3]
        path = folder / "images" / image["file_name"]
        Image.fromarray(region(int(path.stem))).save(path, compression=compression)
    (folder / "MIDOG.json").write_text(json.dumps(content))
    return folder / "MIDOG.json", folder / "images"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_tree(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return importlib.import_module("prepare_midog")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_changed(folder: Path, change: Callable[[dict[str, Any]], None], **options: Any) -> None:
    content = annotations()
    change(content)
    (folder / "changed.json").write_text(json.dumps(content))
    read_midog(folder / "changed.json", **options)


def test_the_crops_are_those_of_a_reflected_image(tmp_path: Path, source: tuple[Path, Path]) -> None:
    _, images = read_midog(source[0])
    for size in (64, 33, 80):
        out = tmp_path / str(size)
        crop_midog(images, source[1], out, size=size)
        entries = midog_patches(images, ["scanner"])
        assert len(entries) == 12 * len(BOXES)
        for entry in entries:
            padded = np.pad(region(entry["image_id"]), ((200, 200), (200, 200), (0, 0)), mode="reflect")
            x1, y1, x2, y2 = entry["bbox"]
            left, top = (int(np.floor((a + b) / 2 - size / 2)) + 200 for a, b in ((x1, x2), (y1, y2)))
            with Image.open(out / entry["image"]) as found:
                np.testing.assert_array_equal(np.asarray(found), padded[top : top + size, left : left + size])


def test_a_crop_in_the_middle_and_one_around_a_centre_outside() -> None:
    pixels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(crop_square(image, 10, 8, 4), pixels[6:10, 8:12])
    np.testing.assert_array_equal(crop_square(image, -1, 10, 4)[:, :, 0], pixels[8:12, [3, 2, 1, 0], 0])


def test_whole_preparation(
    tmp_path: Path, source: tuple[Path, Path], script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(source[0].parent)
    script.patches(str(source[0]), str(source[1]), str(tmp_path / "out"), unlabelled_per_image=3)
    assert files(source[0].parent) == before
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["name"] == "MIDOG 2021"
    assert content["labels"] == {"0": "non_mitotic", "1": "mitotic"}
    listed = [entry for split in ("training", "validation", "test") for entry in content[split]]
    assert Counter((e["domain"], e["label"]) for e in listed) == {
        (scanner, label): 12 if label else 8 for scanner in ("XR", "S360", "CS") for label in (0, 1)
    }
    slides = [{e["slide"] for e in content[split]} for split in ("training", "validation", "test")]
    assert [len(s) for s in slides] == [6, 3, 3]
    assert len(set.union(*slides)) == 12
    first = next(e for e in listed if e["annotation_id"] == 2)
    expected = {"image": "patches/001/2.png", "label": 0, "domain": "XR", "slide": "001.tiff", "labelled": True}
    expected |= {"scanner": "Hamamatsu XR", "tumor_type": "human breast cancer", "species": "human"}
    expected |= {"origin": "UMC Utrecht", "bbox": [-27, 60, 23, 110], "x": -2.0, "y": 85.0, "license": 1}
    assert expected.items() <= first.items()

    assert len(content["unlabelled"]) == 6
    for entry in content["unlabelled"]:
        assert entry["domain"] == "GT450"
        assert entry["labelled"] is False
        assert "label" not in entry
    every_png = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")}
    assert every_png == {e["image"] for e in [*listed, *content["unlabelled"]]}
    assert len(load_patches(tmp_path / "out/dataset.json", "test", domains=["XR"])) == 5

    with (tmp_path / "out/confounding.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["scanner"] for row in rows] == ["CS", "GT450", "S360", "XR"]
    assert rows[1] | {"images": "2", "labelled": "no", "non_mitotic": "0", "mitotic": "0"} == rows[1]
    printed = capsys.readouterr().out
    assert "GT450    human breast cancer  human    UMC Utrecht  no             2            0        0" in printed
    assert "XR      training         2         4         6" in printed
    assert "Unlabelled: 6 patches of GT450." in printed


def test_an_interrupted_run_goes_on_and_ends_the_same(
    tmp_path: Path, source: tuple[Path, Path], script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"annotations": str(source[0]), "image_dir": str(source[1])}
    script.patches(output_dir=str(tmp_path / "whole"), **options, workers=3)
    calls = []

    def crop(*arguments: Any) -> np.ndarray:
        calls.append(arguments)
        if len(calls) == 18:  # the third crop of the fourth image
            raise KeyboardInterrupt
        return crop_square(*arguments)

    monkeypatch.setattr(sys.modules["shared.datasets.midog_patches"], "crop_square", crop)
    with pytest.raises(KeyboardInterrupt):
        script.patches(output_dir=str(tmp_path / "out"), **options, workers=1)
    assert not (tmp_path / "out/dataset.json").exists()
    done = sorted((tmp_path / "out/patches").iterdir())
    assert "004" not in [folder.name for folder in done]
    assert all(len(list(folder.iterdir())) == 5 for folder in done)  # whole or absent
    written = {path: path.stat().st_mtime_ns for folder in done for path in folder.iterdir()}
    assert len(written) >= 15
    script.patches(output_dir=str(tmp_path / "out"), **options)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_other_content_is_not_mixed_with(tmp_path: Path, source: tuple[Path, Path], script: ModuleType) -> None:
    out = tmp_path / "out"
    options = {"annotations": str(source[0]), "image_dir": str(source[1]), "output_dir": str(out)}
    out.mkdir()
    (out / "notes.txt").touch()
    with pytest.raises(DataError, match=r"already holds notes.txt, expected an empty folder"):
        script.patches(**options)
    (out / "notes.txt").unlink()
    script.patches(**options)
    before = files(out)
    with pytest.raises(DataError, match="was filled with other settings: size 64"):
        script.patches(**options, size=48)
    with pytest.raises(DataError, match="holds another datalist"):
        script.patches(**options, seed=1)
    assert files(out) == before
    script.patches(**options, seed=1, overwrite=True)
    assert {k: v for k, v in files(out).items() if k != "dataset.json"} == {
        k: v for k, v in before.items() if k != "dataset.json"
    }
    (out / "patches/001/2.png").unlink()
    with pytest.raises(DataError, match=r"001: holds other files than the crops of 001.tiff. Delete it"):
        script.patches(**options, seed=1)
    (out / "patches/999").mkdir()
    with pytest.raises(DataError, match="already holds patches/999"):
        script.patches(**options)
    with pytest.raises(DataError, match="is inside of --image_dir"):
        script.patches(str(source[0]), str(source[1]), str(source[1] / "out"))
    with pytest.raises(DataError, match=r"--size is 64\.5, expected a whole number"):
        script.patches(**options | {"size": 64.5})


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


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    annotation_file, folder = write_tree(tmp_path, annotations((1, 2, 3)))
    _, images = read_midog(annotation_file)
    whole = (folder / "001.tiff").read_bytes()  # not compressed: the header stands before the pixels
    (folder / "001.tiff").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"001.tiff: cannot be decoded .*Download it again"):
        crop_midog(find_midog(images, folder), folder, tmp_path / "out")


def test_large_regions_are_no_decompression_bombs(
    tmp_path: Path, source: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10000)
    _, images = read_midog(source[0])
    found = find_midog(images[:3], source[1])
    crop_midog(found, source[1], tmp_path)
    assert len(list(tmp_path.rglob("*.png"))) == 15
    assert Image.MAX_IMAGE_PIXELS == 10000


def test_dark_nuclei_are_found_from_dark_to_bright() -> None:
    pixels = region(150)
    pixels[:, :14] = 5  # a black border
    found = dark_nuclei(Image.fromarray(pixels), 20, 64)
    expected = sorted(nuclei(150), key=lambda centre: shade(*centre))
    assert len(found) >= len(expected)
    for (x, y), (a, b) in zip(found, expected, strict=False):
        assert abs(x - a) <= 6
        assert abs(y - b) <= 6
    assert dark_nuclei(Image.fromarray(pixels), 2, 64) == found[:2]
    assert dark_nuclei(Image.new("RGB", SIZE, "white"), 5, 64) == []
    assert dark_nuclei(Image.new("RGB", (40, 40), "purple"), 5, 64) == []


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "patches", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_line(tmp_path: Path, source: tuple[Path, Path], script: ModuleType) -> None:
    done = run("--annotations", source[0], "--image_dir", source[1], "--output_dir", tmp_path / "a", "--unit", "patch",
               "--domain", "scanner+tumor_type", "--unlabelled_per_image", 0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "training has seen other patches." in done.stdout
    assert "2 of the 14 images in" in done.stdout
    assert f"60 patches: {tmp_path / 'a/dataset.json'}" in done.stdout
    content = json.loads((tmp_path / "a/dataset.json").read_text())
    assert content["unlabelled"] == []
    assert {e["domain"] for e in content["test"]} == {f"{s} + human breast cancer" for s in ("XR", "S360", "CS")}
    assert [len(content[split]) for split in ("training", "validation", "test")] == [39, 9, 12]
    options = {"unit": "patch", "domain": "scanner+tumor_type", "unlabelled_per_image": 0}
    script.patches(str(source[0]), str(source[1]), str(tmp_path / "b"), **options)
    assert files(tmp_path / "a") == files(tmp_path / "b")

    (tmp_path / "coco.json").write_text(source[0].read_text().replace("150, 130]", "50, 50]"))
    done = run("--annotations", tmp_path / "coco.json", "--image_dir", source[1], "--output_dir", tmp_path / "c")
    assert done.returncode == 1
    assert "They look like COCO's x, y, width, height." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "c").exists()


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
