from __future__ import annotations

import csv
import importlib
import json
import math
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from commands import run
from midog_tree import files
from PIL import Image

from shared.data import load_patches, load_regions, patch_labels
from shared.datasets.midog import read_midog
from shared.datasets.midog_datalist import clipped_boxes, midog_patches, midog_regions
from shared.datasets.splits import split_patches, split_regions
from shared.utils import DataError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prepare_midog.py"
REAL = ROOT / "../shared/data/midog"
SPLITS = ("training", "validation", "test")
SIZE = (90, 80)  # width, height
BOXES = ([20, 20, 70, 70], [-27, 10, 23, 60], [30, 40.5, 80, 90.5], [60, -20, 110, 30])
CLIPPED = [[20, 20, 70, 70], [0, 10, 23, 60], [30, 40.5, 80, 80], [60, 0, 90, 30]]
NUMBERS = (*range(1, 11), *range(51, 58), *range(101, 105), 151, 152)
EMPTY = (8, 9, 10, 57)  # looked at, and nothing found


def write_tree(folder: Path) -> tuple[Path, Path]:
    """The JSON file and the folder of a made-up MIDOG. Every other TIFF states its resolution."""
    (folder / "images").mkdir(parents=True)
    images = [{"id": n, "file_name": f"{n:03d}.tiff", "width": 90, "height": 80, "license": 1} for n in NUMBERS]
    for n in NUMBERS:
        dots = {"dpi": (25400 / 0.25,) * 2} if n % 2 else {"dpi": (72, 72)}
        Image.new("RGB", SIZE, (200, 120, 170)).save(folder / "images" / f"{n:03d}.tiff", **dots)
    boxes = [(n, k, box) for n in NUMBERS if n < 151 and n not in EMPTY for k, box in enumerate(BOXES)]
    found = [
        {"id": i, "image_id": n, "category_id": 1 + k % 2, "bbox": b, "labels": [1, 1 + k % 2]}
        for i, (n, k, b) in enumerate(boxes, 1)
    ]
    categories = [{"id": 1, "name": "mitotic figure"}, {"id": 2, "name": "hard negative"}]
    content = {"info": {"description": "MIDOG 2021"}, "images": images, "categories": categories, "annotations": found}
    (folder / "MIDOG.json").write_text(json.dumps(content))
    return folder / "MIDOG.json", folder / "images"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_tree(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return importlib.import_module("prepare_midog")


def listed(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for split in SPLITS for entry in content[split]]


def test_whole_preparation(
    tmp_path: Path, source: tuple[Path, Path], script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = files(source[0].parent), tmp_path / "out"
    script.tiles(str(source[0]), str(source[1]), str(out))
    assert files(source[0].parent) == before
    assert sorted(files(out)) == ["confounding.csv", "dataset.json", "preparation.json"]
    content = json.loads((out / "dataset.json").read_text())
    assert (content["name"], content["box_mode"], content["synthetic"]) == ("MIDOG 2021", "xyxy", False)
    assert content["labels"] == {"0": "non_mitotic", "1": "mitotic"}
    first = next(entry for entry in listed(content) if entry["file_name"] == "001.tiff")
    assert (out / first["image"]).samefile(source[1] / "001.tiff")
    expected = {"box": CLIPPED, "label": [1, 0, 1, 0], "domain": "XR", "slide": "001.tiff", "labelled": True}
    expected |= {"scanner": "Hamamatsu XR", "tumor_type": "human breast cancer", "species": "human", "image_id": 1}
    expected |= {"origin": "UMC Utrecht", "width": 90, "height": 80, "license": 1}
    assert expected.items() <= first.items()
    assert first["mpp"] == pytest.approx(0.25, rel=1e-3)
    figure = {"annotation_id": 2, "category": "hard negative", "bbox": [-27, 10, 23, 60], "labels": "1 2", "label": 0}
    assert figure.items() <= first["figures"][1].items()
    assert Counter("mpp" in entry for entry in listed(content)) == {True: 11, False: 10}

    regions = {split: load_regions(out / "dataset.json", split) for split in (*SPLITS, "unlabelled")}
    assert Counter(r["domain"] for split in SPLITS for r in regions[split]) == {"XR": 10, "S360": 7, "CS": 4}
    empty = [r["slide"] for split in SPLITS for r in regions[split] if not r["box"]]
    assert sorted(empty) == [f"{n:03d}.tiff" for n in EMPTY]
    assert [(r["slide"], r["domain"]) for r in regions["unlabelled"]] == [("151.tiff", "GT450"), ("152.tiff", "GT450")]

    with (out / "confounding.csv").open() as file:
        assert [row["scanner"] for row in csv.DictReader(file)] == ["CS", "GT450", "S360", "XR"]
    printed = capsys.readouterr().out
    assert "XR      training          7      2           10       10" in printed
    assert "Unlabelled: 2 images of GT450." in printed
    assert "Cut off at the edges: 34 boxes with a negative coordinate, 17 others that overhang." in printed
    assert "11 of the 23 TIFF files do not state the size of a pixel." in printed
    assert f"68 figures: {out / 'dataset.json'}" in printed


def test_the_splits_are_those_of_the_patches(tmp_path: Path, source: tuple[Path, Path], script: ModuleType) -> None:
    for seed in (0, 5):
        options = {"annotations": str(source[0]), "image_dir": str(source[1]), "seed": seed}
        script.tiles(**options, output_dir=str(tmp_path / f"tiles{seed}"))
        script.patches(**options, output_dir=str(tmp_path / f"patches{seed}"), unlabelled_per_image=0)
        tiles, patches = (json.loads((tmp_path / f"{k}{seed}/dataset.json").read_text()) for k in ("tiles", "patches"))
        for split in SPLITS:
            filled = {entry["slide"] for entry in tiles[split] if entry["box"]}
            assert filled == {entry["slide"] for entry in patches[split]}
    assert json.loads((tmp_path / "tiles0/dataset.json").read_text())["test"] != tiles["test"]


def test_again_and_over_other_content(tmp_path: Path, source: tuple[Path, Path], script: ModuleType) -> None:
    out = tmp_path / "out"
    options = {"annotations": str(source[0]), "image_dir": str(source[1]), "output_dir": str(out)}
    script.tiles(**options, workers=1)
    before = files(out)
    script.tiles(**options, workers=3)
    assert files(out) == before
    with pytest.raises(DataError, match="holds another datalist"):
        script.tiles(**options, seed=1)
    with pytest.raises(DataError, match="was filled with other settings: size None"):
        script.patches(**options, unlabelled_per_image=0)
    assert files(out) == before
    script.tiles(**options, seed=1, overwrite=True)
    assert files(out)["dataset.json"] != before["dataset.json"]
    script.patches(**options | {"output_dir": str(tmp_path / "patches")}, unlabelled_per_image=0)
    with pytest.raises(DataError, match=r"already holds patches/001, .*expected an empty folder"):
        script.tiles(**options | {"output_dir": str(tmp_path / "patches")})
    with pytest.raises(DataError, match="is inside of --image_dir"):
        script.tiles(**options | {"output_dir": str(source[1] / "out")})


def test_images_that_are_missing_or_not_annotated(tmp_path: Path, script: ModuleType) -> None:
    annotations, folder = write_tree(tmp_path / "source")
    (folder / "003.tiff").unlink()
    options = {"annotations": str(annotations), "image_dir": str(folder), "output_dir": str(tmp_path / "out")}
    with pytest.raises(DataError, match=r"1 of 23 images are missing: 003.tiff. .*--allow_missing"):
        script.tiles(**options)
    assert not (tmp_path / "out").exists()
    script.tiles(**options, allow_missing=True)
    assert len(listed(json.loads((tmp_path / "out/dataset.json").read_text()))) == 20
    for n in range(1, 150):
        (folder / f"{n:03d}.tiff").unlink(missing_ok=True)
    with pytest.raises(DataError, match="only such without annotations are at hand"):
        script.tiles(**options | {"output_dir": str(tmp_path / "b")}, allow_missing=True)


def test_fields_of_the_source_give_way(tmp_path: Path) -> None:
    annotations, folder = write_tree(tmp_path)
    content = json.loads(annotations.read_text())
    content["images"][0] |= {"box": "glass", "figures": 3, "image": "other.png", "slide": "other", "stage": "II"}
    content["images"][-1] |= {"box": "glass", "label": 1}
    annotations.write_text(json.dumps(content))
    _, images = read_midog(annotations)
    entries = midog_regions(images, folder, tmp_path / "out")
    assert entries[0]["image"] == "../images/001.tiff"
    assert (entries[0]["box"], entries[0]["slide"], entries[0]["stage"]) == (CLIPPED, "001.tiff", "II")
    assert len(entries[0]["figures"]) == 4
    assert not {"box", "label", "figures"} & set(entries[-1])
    assert entries[-1]["labelled"] is False


def test_domains_of_several_fields(tmp_path: Path, source: tuple[Path, Path], script: ModuleType) -> None:
    script.tiles(str(source[0]), str(source[1]), str(tmp_path), domain="scanner + species")
    found = load_regions(tmp_path / "dataset.json", "test")
    assert {r["domain"] for r in found} == {f"{scanner} + human" for scanner in ("XR", "S360", "CS")}


def test_command_line_with_an_unknown_category(tmp_path: Path, source: tuple[Path, Path]) -> None:
    (tmp_path / "unknown.json").write_text(source[0].read_text().replace("hard negative", "nucleus"))
    places = ["--image_dir", source[1], "--output_dir", tmp_path / "out"]
    done = run(SCRIPT, "tiles", "--annotations", tmp_path / "unknown.json", *places)
    assert done.returncode == 1
    assert "the category 'nucleus' is not known" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is not here")
@pytest.mark.parametrize(
    ("name", "figures", "clipped"), [("MIDOG.json", 4435, (32, 16)), ("MIDOG++.json", 26286, None)]
)
def test_real_annotation_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, figures: int, clipped: tuple[int, int] | None
) -> None:
    """With a header's answer for all the TIFF files, which are not here."""

    class NoFile:
        mpp = 0.25
        in_memory = False

        def __init__(self, path: Path) -> None:
            pass

    monkeypatch.setattr("shared.datasets.midog_datalist.Region", NoFile)
    _, images = read_midog(REAL / name)
    regions = midog_regions(images, tmp_path, tmp_path / "out")
    labelled = [r for r in regions if r["labelled"]]
    splits = split_regions(labelled, seed=0)
    patches = split_patches(midog_patches(images, ["scanner"]), seed=0)
    for split in SPLITS:
        assert {r["slide"] for r in splits[split]} == {p["slide"] for p in patches[split]}
        assert sum(len(r["box"]) for r in splits[split]) == len(patches[split])
    assert sum(len(r["box"]) for r in labelled) == figures
    assert len(regions) - len(labelled) == 50
    inside = [
        0 <= x1 < x2 <= r["width"] and 0 <= y1 < y2 <= r["height"] for r in labelled for x1, y1, x2, y2 in r["box"]
    ]
    assert all(inside)
    assert min(min(x2 - x1, y2 - y1) for r in labelled for x1, y1, x2, y2 in r["box"]) >= 20
    whole = sum(math.isclose((x2 - x1) * (y2 - y1), 2500) for r in labelled for x1, y1, x2, y2 in r["box"])
    assert whole == figures - sum(clipped_boxes(images))
    assert clipped is None or clipped_boxes(images) == clipped


def name_patches(folder: Path, mixed: bool = False) -> Path:
    """Patches called after the annotations of mitotic figures, half of them in each of two classes."""
    found = json.loads((write_tree(folder)[0]).read_text())["annotations"]
    for i, annotation in enumerate(a for a in found if mixed or a["category_id"] == 1):
        path = folder / "patches" / ("Normal", "Atypical")[i // 2 % 2] / f"M21_{annotation['id']}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (200, 120, 170)).save(path)
    Image.new("RGB", (64, 64)).save(folder / "patches" / "Normal" / "T16_1.png")
    return folder / "patches"


def named(folder: Path, **options: str) -> Any:
    options = {"positive": "Atypical", "prefix": "M21_", "output": str(folder / "out" / "d.json"), **options}
    flags = [f"--{key}={value}" for key, value in options.items()]
    return run(SCRIPT, "named", "--annotations", folder / "MIDOG.json", "--patch_dir", folder / "patches", *flags)


def test_patches_that_others_have_labelled_are_known_by_their_names(tmp_path: Path) -> None:
    name_patches(tmp_path)
    done = named(tmp_path)
    assert done.returncode == 0, done.stderr
    patches = [p for split in SPLITS for p in load_patches(tmp_path / "out" / "d.json", split)]
    assert len(patches) == 34
    assert Counter(p["label"] for p in patches) == {0: 18, 1: 16}
    assert patch_labels(tmp_path / "out" / "d.json") == {"Normal": 0, "Atypical": 1}
    content = json.loads((tmp_path / "MIDOG.json").read_text())
    slides = {a["id"]: f"{a['image_id']:03d}.tiff" for a in content["annotations"]}
    for patch in patches:
        assert patch["slide"] == slides[int(Path(patch["image"]).stem.removeprefix("M21_"))]
        assert patch["domain"] == ("XR" if patch["slide"] < "051" else "S360" if patch["slide"] < "101" else "CS")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"positive": "atypical"},
            "has the folders Atypical, Normal with PNG files, expected two, one of th",
        ),
        ({"prefix": ""}, "no file is called '' and a number; one is M21_"),
        ({"prefix": "T"}, "no file is called 'T' and a number"),
        ({"prefix": "T16_", "positive": "Normal"}, None),
    ],
)
def test_patches_that_are_called_otherwise(tmp_path: Path, options: dict[str, str], said: str | None) -> None:
    name_patches(tmp_path)
    done = named(tmp_path, **options)
    assert done.returncode == 1
    assert (said or "The domain XR has 1 slide(s)") in done.stderr


def test_numbers_that_are_no_ids_are_found_out(tmp_path: Path) -> None:
    folder = name_patches(tmp_path, mixed=True)
    assert "some are mitotic figures in the annotations and some are not" in named(tmp_path).stderr
    (folder / "Normal" / "M21_99999.png").write_bytes((folder / "Normal" / "T16_1.png").read_bytes())
    for path in folder.glob("*/M21_*.png"):
        if path.stem != "M21_99999" and int(path.stem.removeprefix("M21_")) % 2 == 0:
            path.unlink()
    assert "1 files are called like no annotation: Normal/M21_99999.png" in named(tmp_path).stderr


def test_figures_and_the_darkest_other_nucleus_of_each_patch(tmp_path: Path) -> None:
    folder = name_patches(tmp_path)
    for i, path in enumerate(sorted(folder.glob("*/M21_*.png"))):
        pixels = np.full((128, 128, 3), (225, 150, 200) if i else (240, 240, 240), np.uint8)
        pixels[58:70, 58:70] = (60, 30, 110)  # the figure
        if i:
            pixels[104:116, 12:24] = (90, 50, 140)  # a nucleus, and a paler one
            pixels[12:24, 104:116] = (130, 80, 170)
        Image.fromarray(pixels).save(path)
    flags = ["--prefix", "M21_", "--output_dir", tmp_path / "out"]
    command = ["nuclei", "--annotations", tmp_path / "MIDOG.json", "--patch_dir", folder, *flags]
    done = run(SCRIPT, *command)
    assert done.returncode == 0, done.stderr
    assert "67 patches of 34 figures" in done.stdout
    patches = [p for split in SPLITS for p in load_patches(tmp_path / "out" / "dataset.json", split)]
    assert Counter(p["label"] for p in patches) == {1: 34, 0: 33}
    slides = {split: {p["slide"] for p in load_patches(tmp_path / "out" / "dataset.json", split)} for split in SPLITS}
    assert not slides["test"] & (slides["training"] | slides["validation"])
    for patch in patches:
        image = np.asarray(Image.open(patch["image"]))
        assert image.shape == (40, 40, 3)
        assert (image[20, 20] == ((90, 50, 140), (60, 30, 110))[patch["label"]]).all()
    assert "already holds" in run(SCRIPT, *command).stderr


def test_patches_side_by_side_with_all_figures_in_them(tmp_path: Path) -> None:
    folder = name_patches(tmp_path)
    paths = sorted(folder.glob("*/M21_*.png"))
    for i, path in enumerate(paths):
        Image.new("RGB", (96, 96), (50 + i, 100, 150)).save(path)
    found = {a["id"]: a for a in json.loads((tmp_path / "MIDOG.json").read_text())["annotations"]}
    flags = ["--prefix", "M21_", "--output_dir", tmp_path / "out", "--columns", 1]
    command = ["mosaics", "--annotations", tmp_path / "MIDOG.json", "--patch_dir", folder, *flags]
    done = run(SCRIPT, *command)
    assert done.returncode == 0, done.stderr
    assert "34 patches in 17 regions" in done.stdout
    regions = [r for split in SPLITS for r in load_regions(tmp_path / "out" / "dataset.json", split)]
    marked = Counter()
    for region in regions:
        own = [p for p in paths if found[int(p.stem[4:])]["image_id"] == int(region["slide"][:3])]
        pixels, expected = np.asarray(Image.open(region["image"])), []
        for row, path in enumerate(own):
            assert (pixels[96 * row : 96 * (row + 1)] == (50 + paths.index(path), 100, 150)).all()
            (x1, y1, x2, y2) = found[int(path.stem[4:])]["bbox"]
            for other in (a for a in found.values() if a["image_id"] == int(region["slide"][:3])):
                x = (other["bbox"][0] + other["bbox"][2]) / 2 - (x1 + x2) / 2 + 48
                y = (other["bbox"][1] + other["bbox"][3]) / 2 - (y1 + y2) / 2 + 48
                if 0 <= x < 96 and 0 <= y < 96:
                    box = [max(x - 25, 0), max(y - 25, 0) + 96 * row, min(x + 25, 96), min(y + 25, 96) + 96 * row]
                    expected.append((box, int(other["category_id"] == 1)))
        assert [*zip(np.array(region["box"]).tolist(), list(region["label"]), strict=True)] == expected
        assert pixels.shape == (96 * len(own), 96, 3)
        marked.update(region["label"])
    assert marked[1] == 2 * len(paths)
    assert marked[0] > 0  # figures in each other's patches, and hard negatives
    assert "already holds" in run(SCRIPT, *command).stderr
    Image.new("RGB", (96, 60)).save(paths[0])
    wrong = run(SCRIPT, *command[:-3], tmp_path / "other")
    assert "The patches have to be squares of one size" in wrong.stderr
    assert not (tmp_path / "other" / "dataset.json").exists()
