from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_stainnet
from matplotlib.image import imread
from PIL import Image
from train_stainnet import check_output, main

from shared.data import source_digest
from shared.datasets import stain_pairs
from shared.networks import StainNet
from shared.transforms import NormalizeStain
from shared.utils import DataError, write_json

STAINS = np.array([[0.65, 0.70, 0.29], [0.27, 0.92, 0.28]])
ENDINGS = (".json", ".png", ".pth")


def save(path: Path, seed: int, strength: float = 1.0, turn: float = 0.0) -> Path:
    """H&E of two stains in varying amounts, which go by the seed alone."""
    amounts = strength * np.random.default_rng(seed).gamma(2.0, (0.35, 0.25), (30, 30, 2))
    pixels = 240 * np.exp(-amounts @ (STAINS + turn * np.array([[0.0, -0.1, 0.2], [0.2, -0.2, 0.1]])))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.round().astype(np.uint8)).save(path)
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, str]:
    for i in range(12):
        save(tmp_path / "source" / f"{i}.png", i, 0.5)
        save(tmp_path / "teacher" / f"{i}.png", i, 1.2, turn=0.6)
    return {"source_dir": str(tmp_path / "source"), "teacher_dir": str(tmp_path / "teacher")}


@pytest.fixture
def patches(tmp_path: Path) -> dict[str, str]:
    """Of two scanners, on each two slides with two patches to train on and one held out."""
    lists: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
    for i, (domain, slide) in enumerate((domain, slide) for domain in ("XR", "CS") for slide in "abc"):
        for k in range(2):
            image = save(tmp_path / "data" / f"{domain}_{slide}{k}.png", 2 * i + k, 0.5 + 0.1 * i, 0.1 * i)
            entry = {"image": image.name, "label": k, "domain": domain, "slide": slide}
            lists["validation" if slide == "c" else "training"].append(entry)
    names = {"0": "non_mitotic", "1": "mitotic"}
    write_json(tmp_path / "data" / "dataset.json", {"name": "made up", "synthetic": True, "labels": names, **lists})
    return {"datalist": str(tmp_path / "data" / "dataset.json")}


@pytest.fixture
def no_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty file in place of the contact sheet, which takes longer than the rest."""
    monkeypatch.setattr(train_stainnet, "draw_gallery", lambda *_: None)
    monkeypatch.setattr(train_stainnet, "save_figure", lambda path, _: path.touch())


def made(folder: Path, **options: Any) -> tuple[bytes, dict[str, Any]]:
    """The weights' file, and what stands in the JSON file beside it."""
    main(str(folder / "stainnet.pth"), **options)
    assert sorted(path.name for path in folder.iterdir()) == [f"stainnet{ending}" for ending in ENDINGS]
    content = json.loads((folder / "stainnet.json").read_text())
    assert content["weights"] == source_digest(folder / "stainnet.pth")
    return (folder / "stainnet.pth").read_bytes(), content


def test_it_learns_from_pairs(
    tmp_path: Path, pairs: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stain_pairs, "PIXELS", 64)
    _, content = made(tmp_path / "out", **pairs, epochs=1000, held_out=0.25)
    (row,) = content["error"]["held_out"]
    assert (row["domain"], row["trained_on"], row["images"]) == ("pairs", True, 3)
    assert row["untouched"] > 40
    assert row["stainnet"] < 0.4 * row["untouched"]
    assert content["teacher"] == {"pictures": "teacher"}
    assert content["settings"].items() >= {"epochs": 1000, "learning_rate": 0.01, "batch_size": 10}.items()
    assert capsys.readouterr().out.splitlines()[2].split() == ["pairs", "True", "3", *map(str, list(row.values())[-2:])]
    state = torch.load(tmp_path / "out" / "stainnet.pth")
    assert list(state) == [f"rgb_trans.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")]
    assert imread(tmp_path / "out" / "stainnet.png").std() > 0.05


@pytest.mark.usefixtures("no_sheet")
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, pairs: dict[str, str]) -> None:
    first, content = made(tmp_path / "1", **pairs, epochs=2)
    torch.rand(5)
    assert made(tmp_path / "2", **pairs, epochs=2) == (first, content)
    assert made(tmp_path / "3", **pairs, epochs=2, seed=1)[0] != first


@pytest.mark.usefixtures("no_sheet")
@pytest.mark.parametrize("teacher", ["macenko", "reinhard"])
def test_a_scanner_left_out_is_measured_alone(tmp_path: Path, patches: dict[str, str], teacher: str) -> None:
    """Its training images cannot even be read; errors are those of each slide's own fit."""
    data = tmp_path / "data"
    for image in data.glob("CS_[ab]*.png"):
        image.write_text("not to be read")
    reference = save(tmp_path / "reference.png", 99)
    given = {"teacher": teacher, "reference": str(reference), "domains": ["XR"], "epochs": 3}
    _, content = made(tmp_path / "out", **patches, **given)
    assert content["data"].items() >= {"synthetic": True, "train_domains": ["XR"], "images": 4}.items()
    assert content["teacher"]["reference"]["file"] == "reference.png"
    normalizer, network = NormalizeStain(teacher, reference), StainNet(pretrained=tmp_path / "out" / "stainnet.pth")
    for row, domain in zip(content["error"]["held_out"], ("CS", "XR"), strict=True):
        files = [data / f"{domain}_c{k}.png" for k in range(2)]
        change = normalizer.change(normalizer.fit(files))
        images = [torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files]
        wanted = np.stack([change(image) for image in images]).astype(float)
        found = np.stack([network.normalize(image) for image in images])
        assert (row["domain"], row["trained_on"]) == (domain, domain == "XR")
        assert row["untouched"] == pytest.approx(np.abs(np.stack(images) - wanted).mean(), abs=1e-3)
        assert row["stainnet"] == pytest.approx(np.abs(found - wanted).mean(), abs=1e-3)


@pytest.mark.usefixtures("no_sheet")
def test_what_its_error_does_not_say_is_told_of(
    tmp_path: Path, patches: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data" / "dataset.json"
    content = json.loads(path.read_text())
    content["validation"].append(content["training"].pop())
    write_json(path, content)
    _, found = made(tmp_path / "out", **patches, epochs=1)
    assert found["data"]["shared_slides"] == 1
    assert [row["domain"] for row in found["error"]["held_out"]] == ["CS", "XR", "all trained on"]
    assert "1 of the 3 slides in 'validation' are in 'training', too" in caplog.text
    assert "It is no closer to the teacher than the images themselves: CS (" in caplog.text


def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, pairs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_stainnet, "save_figure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(str(tmp_path / "out" / "stainnet.pth"), **pairs, epochs=1)
    assert list((tmp_path / "out").iterdir()) == []


def grey(data: Path) -> None:
    for k in range(2):
        Image.new("RGB", (30, 30), (120, 120, 120)).save(data / f"CS_a{k}.png")


def of_cts(data: Path) -> None:
    write_json(data / "dataset.json", {"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}]})


@pytest.mark.parametrize(
    ("given", "change", "message"),
    [
        ({"domains": ["XR", "Leica"]}, None, r"dataset\.json: there is no domain Leica\. Known: CS, XR"),
        ({"split": "test"}, None, r"dataset\.json: the list 'test' is missing"),
        ({"val_split": "training"}, None, "--split and --val_split are both training: nothing would be held out"),
        ({}, of_cts, r"dataset\.json: entry 0 of 'training', a\.nii\.gz: .*expected an image, a label of 0 or 1"),
        ({}, grey, r"CS_a0\.png and 1 more of its slide: 0 pixels have the colour of tissue"),
        ({}, lambda data: (data / "XR_b1.png").write_text("x"), r"XR_b1\.png: cannot be read as an image"),
        ({"output": "data/dataset.pth"}, None, r"dataset\.json, .* would be written over or into .*dataset\.json"),
        ({"output": "s.json"}, None, r"s\.json: expected a \.pth file"),
        ({"source_dir": "data"}, None, "Give either --datalist, .*or both --source_dir and --teacher_dir"),
        ({"datalist": "", "source_dir": "data"}, None, "Give either --datalist"),
        ({"datalist": "", "source_dir": "data", "teacher_dir": "data"}, None, "data: is both --source_dir and"),
        ({"datalist": "", "source_dir": "data", "teacher_dir": "b", "teacher": "reinhard"}, None, "Give either"),
    ],
)
def test_what_is_refused(
    tmp_path: Path,
    patches: dict[str, str],
    given: dict[str, Any],
    change: Callable[[Path], object] | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if change:
        change(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=message):
        main(**{"output": "s.pth", "epochs": 1, **patches, **given})
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("ending", ENDINGS)
def test_earlier_results_are_kept_unless_told(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"stainnet{ending}").touch()
    with pytest.raises(DataError, match=rf"stainnet\{ending}: is there already"):
        check_output(tmp_path / "stainnet.pth", [], overwrite=False)
    check_output(tmp_path / "stainnet.pth", [], overwrite=True)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"would be written over or into .*/a, which is read"):
        check_output(tmp_path / "a" / "stainnet.pth", [tmp_path / "a"], overwrite=True)
