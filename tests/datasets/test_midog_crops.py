from __future__ import annotations

import csv
import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from commands import PYTHON, run
from midog_tree import BOXES, SIZE, annotations, files, nuclei, region, shade, write_tree
from PIL import Image

from shared.data import load_patches
from shared.datasets.midog import find_midog, read_midog
from shared.datasets.midog_crops import crop_midog, crop_square, dark_nuclei
from shared.datasets.midog_datalist import midog_patches
from shared.utils import DataError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prepare_midog.py"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_tree(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return importlib.import_module("prepare_midog")


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

    monkeypatch.setattr("shared.datasets.midog_crops.crop_square", crop)
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


def prepare(*arguments: object, python: str = PYTHON) -> CompletedProcess[str]:
    return run(SCRIPT, "patches", *arguments, python=python)


def test_command_line(tmp_path: Path, source: tuple[Path, Path], script: ModuleType) -> None:
    places = ["--annotations", source[0], "--image_dir", source[1], "--output_dir", tmp_path / "a"]
    options = ["--unit", "patch", "--domain", "scanner+tumor_type", "--unlabelled_per_image", 0]
    done = prepare(*places, *options, python=sys.executable)
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
    done = prepare("--annotations", tmp_path / "coco.json", "--image_dir", source[1], "--output_dir", tmp_path / "c")
    assert done.returncode == 1
    assert "They look like COCO's x, y, width, height." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "c").exists()
