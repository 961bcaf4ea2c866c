"""The detection bundle's configs at work on small made-up regions: train, resume, evaluate, infer, two ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
import torch
import workflows
from commands import run
from dicom_slide import write_slide
from matplotlib.image import imread
from monai.bundle import ConfigWorkflow
from PIL import Image
from workflows import (
    BUNDLES,
    check_histology_training,
    check_same_histology_training,
    command,
    config_files,
    message,
    rows,
    torchrun,
)

from shared.data import load_regions
from shared.networks import StainNet
from shared.utils import write_json

BUNDLE = BUNDLES / "mitosis_retinanet_fusestyle"
COLOURS = {"XR": (225, 190, 215), "S360": (235, 200, 205), "CS": (200, 150, 190)}
SPLITS = {"training": range(3), "validation": range(3, 5), "test": range(5, 7)}
SIZE = (192, 144)
MPP = 0.25


def region(rng: np.random.Generator, colour: tuple[int, ...]) -> tuple[Image.Image, list[list[int]], list[int]]:
    """A dark bar (mitotic) and a dark disc on a ground of the scanner's colour."""
    width, height = SIZE
    pixels = rng.normal(colour, 6, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    boxes, labels = [], []
    for label, left in ((1, 0), (0, 96)):
        cx, cy = left + rng.integers(25, 71), rng.integers(25, height - 25)
        shape = (abs(x - cx) < 5) & (abs(y - cy) < 20) if label else np.hypot(x - cx, y - cy) < 11
        pixels[shape] -= (110, 120, 60)
        boxes.append([int(v) for v in (cx - 25, cy - 25, cx + 25, cy + 25)])
        labels.append(label)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), boxes, labels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Regions of three annotated scanners, seven slides each, and of one that nobody annotated."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lists: dict[str, list[dict[str, Any]]] = {name: [] for name in (*SPLITS, "unlabelled")}
    for scanner, colour in COLOURS.items():
        for split, slides in SPLITS.items():
            for slide in slides:
                image, boxes, labels = region(rng, colour)
                where = {"image": f"{scanner}_{slide}.png", "domain": scanner, "slide": f"{scanner}_{slide}"}
                image.save(folder / where["image"])
                lists[split].append({**where, "box": boxes, "label": labels, "stylized": "copy.png"})
    Image.fromarray(rng.integers(0, 256, (*SIZE[::-1], 3), np.uint8)).save(folder / "copy.png")
    for slide in range(2):
        name = f"GT450_{slide}.png"
        region(rng, (210, 180, 220))[0].save(folder / name)
        lists["unlabelled"].append({"image": name, "labelled": False, "domain": "GT450", "slide": name})
    head = {"name": "bars", "synthetic": True, "labels": {"0": "non_mitotic", "1": "mitotic"}, "box_mode": "xyxy"}
    write_json(folder / "dataset.json", {**head, "mpp": MPP, **lists})
    return folder


SMALL = {"network_def#backbone": "resnet10", "network_def#channels": 32}
QUICK = {"max_epochs": 2, "learning_rate": 0.001, "batch_size": 4, "tile_size": 96, "val_tile_size": 128}
QUICK |= {"train_domains": ["XR", "CS"], "empty_tiles_per_region": 1}


def workflow(configs: list[str], folder: Path, data: Path, small: bool = True, **options: Any) -> ConfigWorkflow:
    places = {"output_dir": str(folder), "num_workers": 0, "amp": False, "device": "$torch.device('cpu')"}
    if configs[0] == "train":
        places |= {"dataset_dir": str(data), "ckpt_dir": str(folder)}
    files = config_files(BUNDLE, [*configs, *["variants/demo"] * small])
    return workflows.workflow(files, **places | (SMALL if small else {}) | options)


def train(folder: Path, data: Path, variants: tuple[str, ...] = (), stop: int = 0, **options: Any) -> dict[str, Any]:
    names = ["train", *(f"variants/{v}" for v in variants)]
    return workflows.train(workflow(names, folder, data, **QUICK | options), stop)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(folder, data, max_epochs=10)
    return folder


def test_training_leaves_what_it_promises(trained: Path) -> None:
    record = check_histology_training(trained, 10, "val_ap")
    assert (record["tile_size"], record["train_tile_size"]) == (128, 96)
    history = rows(trained / "training.csv")
    assert float(history[-1]["val_loss"]) < 0.5 * float(history[0]["val_loss"])


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical(tmp_path: Path, data: Path) -> None:
    whole = train(tmp_path / "whole", data, num_workers=1)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, data, stop=whole["trainer"]["epoch_length"] + 2)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["epoch"] == 1
    train(tmp_path, data, resume=True)
    check_same_histology_training(tmp_path, tmp_path / "whole")


def test_the_held_out_scanner_steers_nothing(tmp_path: Path, data: Path) -> None:
    """Its regions may be anything: weights, threshold and history stay the same."""
    other = tmp_path / "other"
    shutil.copytree(data, other)
    for path in other.glob("S360_*.png"):
        Image.new("RGB", SIZE, (255, 0, 0)).save(path)
    first, second = (train(tmp_path / name, source, max_epochs=1) for name, source in (("a", data), ("b", other)))
    torch.testing.assert_close(first["model"], second["model"], rtol=0, atol=0)
    assert first["report"] == second["report"]


@pytest.mark.parametrize(
    "variant",
    ["no_fusestyle", "mixstyle", "extrapolated", "dsu", "stain_jitter", "domain_adversarial", "pretrained", "strap"],
)
def test_every_variant_trains(tmp_path: Path, data: Path, trained: Path, variant: str) -> None:
    options: dict[str, Any] = {"pretrained": str(trained / "model.pt")} if variant == "pretrained" else {}
    content = train(tmp_path, data, (variant,), max_epochs=1, **options)
    assert np.isfinite(content["report"]["rows"][0]["train_loss"])
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["unlabelled_domains"] == (["GT450"] if variant == "domain_adversarial" else [])
    assert bool(content["loss"]) == (variant == "domain_adversarial")
    assert record["stylized_p"] == float(variant == "strap")
    if variant == "pretrained":
        before = torch.load(trained / "model.pt", weights_only=True)
        frozen = [key for key in before if key.startswith("backbone.body") and ("running" in key or ".bn" in key)]
        assert frozen
        for key in frozen:
            assert torch.equal(content["model"][key], before[key]), key


@pytest.mark.slow
def test_the_full_size_networks_train(tmp_path: Path, data: Path) -> None:
    options = {"batch_size": 2, "tile_size": 64, "tiles_per_epoch": 2, "max_epochs": 1}
    for variants in ((), ("group_norm",)):
        flow = workflow(
            ["train", *(f"variants/{v}" for v in variants)],
            tmp_path / "_".join(["all", *variants]),
            data,
            small=False,
            **QUICK | options,
        )
        flow.run()
        assert np.isfinite(flow.parser.get_parsed_content("report").rows[0]["val_loss"])


def test_tiles_of_a_batch_are_balanced(tmp_path: Path, data: Path) -> None:
    flow = workflow(["train"], tmp_path, data, **QUICK)
    for batch in flow.parser.get_parsed_content("train#dataloader"):
        assert sorted(batch["domain"]) == ["CS", "CS", "XR", "XR"]
        assert batch["image"].shape == (4, 3, 96, 96)


@pytest.mark.parametrize("adapted", [False, True])
def test_evaluation_knows_the_scanners(tmp_path: Path, data: Path, trained: Path, adapted: bool) -> None:
    options = {"ckpt_dir": str(trained), "adapt_batch_norm": adapted, "bootstrap": 20}
    workflow(["train", "evaluate"], tmp_path, data, **options).run()
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert {name: row["distribution"] for name, row in summary["domains"].items()} == {
        "CS": "in",
        "S360": "out",
        "XR": "in",
    }
    found = {row["domain"]: row for row in rows(tmp_path / "evaluation" / "scores.csv")}
    # two slides of each, a mitotic figure on each
    assert all(int(found[scanner]["tp"]) + int(found[scanner]["fn"]) == 2 for scanner in COLOURS)
    for name in ("report.png", "gallery.png"):
        assert imread(tmp_path / "evaluation" / name).std() > 0.02


def test_inference_says_what_evaluation_says(tmp_path: Path, data: Path, trained: Path) -> None:
    workflow(["train", "evaluate"], tmp_path, data, ckpt_dir=str(trained), bootstrap=20).run()
    weights = str(trained / "model.pt")
    workflow(["inference"], tmp_path / "out", data, input=str(data / "dataset.json"), ckpt_path=weights).run()
    evaluated = rows(tmp_path / "evaluation" / "detections.csv")
    assert evaluated
    for entry in load_regions(data / "dataset.json", "test"):
        own = [row for row in evaluated if row["image"] == entry["case"]]
        found = rows(tmp_path / "out" / f"{Path(entry['image']).stem}.csv")
        assert [row["class"] for row in found] == [row["class"] for row in own]
        for name in ("x", "y", "score"):
            np.testing.assert_allclose(*([float(r[name]) for r in part] for part in (found, own)), atol=0.02)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "synthetic" in summary["warning"]
    assert len(summary["images"]) == 6
    assert len(list((tmp_path / "out").glob("*.geojson"))) == 6


def test_figures_in_a_slide_become_annotations(tmp_path: Path, data: Path, trained: Path) -> None:
    picture = np.full((256, 256, 3), COLOURS["XR"], np.uint8)
    picture[: SIZE[1], : SIZE[0]] = Image.open(data / "XR_5.png")
    slide = write_slide(tmp_path / "in", picture, MPP, levels=1)
    options = {"input": str(slide.parent), "ckpt_path": str(trained / "model.pt"), "threshold": 0.1}
    workflow(["inference", "variants/dicom"], tmp_path / "out", data, **options).run()
    (file,) = (tmp_path / "out").glob("*_ann.dcm")
    table = rows(file.with_name(f"{file.stem.removesuffix('_ann')}.csv"))
    figures = [
        (r["class"], r["x1"], r["y1"], r["x2"], r["y2"], r["score"]) for r in table if r["above_threshold"] == "1"
    ]
    found = []
    for group in hd.ann.annread(file).get_annotation_groups():
        corners, (_, scores, _) = group.get_graphic_data("2D"), group.get_measurements()
        label = group.label.replace(" ", "_")
        found += [(label, *box[0], *box[2], score) for box, score in zip(corners, scores[:, 0], strict=True)]
    assert figures
    assert sorted(label for label, *_ in found) == sorted(label for label, *_ in figures)
    own, theirs = (sorted([float(x) for x in row[1:]] for row in part) for part in (found, figures))
    np.testing.assert_allclose(own, theirs, atol=0.006)


@pytest.mark.parametrize("method", ["reinhard", "stainnet"])
def test_stains_are_normalised_all_the_way(tmp_path: Path, data: Path, method: str) -> None:
    """Each slide here is one region: by itself it has the fit that it has in a datalist."""
    reference, stainnet = str(data / "XR_0.png"), StainNet()
    torch.save(stainnet.state_dict(), tmp_path / "stainnet.pt")
    options = {"stain_weights": str(tmp_path / "stainnet.pt"), "score_threshold": 0.0, "top_k": 10}
    variant, chosen = ("stainnet", {}) if method == "stainnet" else ("stain_norm", {"stain_norm": "reinhard"})
    train(tmp_path, data, (variant,), max_epochs=1, **options, **chosen, stain_reference=reference)
    record = json.loads((tmp_path / "model.json").read_text())
    fits = {path: json.loads((tmp_path / path).read_text()) for path in ("stain_fits.json",)}
    workflow(["train", "evaluate"], tmp_path, data, bootstrap=1, **options).run()
    fits["test"] = json.loads((tmp_path / "evaluation" / "stain_fits.json").read_text())
    for kept, domains, count in ((fits["stain_fits.json"], ["CS", "XR"], 10), (fits["test"], sorted(COLOURS), 6)):
        assert (kept["method"], kept["reference"]) == (method, record["stain_reference"])
        assert len(kept["fits"]) == (count if method == "reinhard" else 0)
        assert sorted({fit["domain"] for fit in kept["fits"]}) == (domains if method == "reinhard" else [])

    inputs, weights = tmp_path / "inputs", str(tmp_path / "model.pt")
    inputs.mkdir()
    for name in ("XR_5.png", "CS_6.png"):
        shutil.copy(data / name, inputs)
    Image.new("RGB", SIZE, (90, 90, 90)).save(inputs / "grey.png")
    flow = workflow(["inference"], tmp_path / "out", data, input=str(inputs), ckpt_path=weights, mpp=MPP, **options)
    if method == "reinhard":
        with pytest.raises(RuntimeError) as error:
            flow.run()
        assert "1 of 3 cases failed:" in message(error.value)
        assert "grey.png: 0 pixels have the colour of tissue" in message(error.value)
    else:
        flow.run()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["settings"]["stain_reference"] == record["stain_reference"]
    done = {row["case"]: row for row in summary["images"] if row["status"] == "done"}
    for name in ("XR_5", "CS_6"):
        alone = [fit for fit in fits["test"]["fits"] if fit["slide"] == name]
        found = [{"domain": name[:2], "slide": name, **done[name]["stain_fit"]}] if method == "reinhard" else []
        assert found == alone
        expected = [row for row in rows(tmp_path / "evaluation" / "detections.csv") if row["image"] == f"{name}.png"]
        detected = rows(tmp_path / "out" / f"{name}.csv")
        assert len(detected) == len(expected) > 0
        for key in ("x", "y", "score"):
            np.testing.assert_allclose(*([float(r[key]) for r in part] for part in (detected, expected)), atol=0.02)


def test_one_bad_image_does_not_stop_the_others(tmp_path: Path, data: Path, trained: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("XR_5.png", "CS_5.png"):
        shutil.copy(data / name, folder)
    (folder / "broken.png").write_bytes((data / "XR_6.png").read_bytes()[:3000])
    flow = workflow(
        ["inference"], tmp_path / "out", data, input=str(folder), ckpt_path=str(trained / "model.pt"), mpp=MPP
    )
    with pytest.raises(RuntimeError) as error:
        flow.run()
    assert "1 of 3 cases failed" in message(error.value)
    assert "broken.png" in message(error.value)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.geojson")) == ["CS_5.geojson", "XR_5.geojson"]


def test_inference_leaves_out_what_is_done(tmp_path: Path, data: Path, trained: Path) -> None:
    out, inputs = tmp_path / "out", [str(data / name) for name in ("XR_5.png", "CS_5.png")]
    options = {"ckpt_path": trained / "model.pt", "output_dir": out, "device": "cpu", "mpp": MPP, "skip_existing": True}

    def infer(**more: Any) -> str:
        done = run(*command_line("inference", **options | {"input": inputs} | more), cwd=BUNDLE)
        return done.stdout + done.stderr

    infer(input=inputs[:1])
    before = {path.name: path.read_bytes() for path in out.glob("XR_5*")}
    assert len(before) == 5
    assert "1 of 2 cases are done already" in infer()
    assert {path.name: path.read_bytes() for path in out.glob("XR_5*")} == before
    assert [row["case"] for row in rows(out / "summary.csv")] == ["XR_5", "CS_5"]
    assert "2 of 2 cases are done already" in infer()
    assert "top_k is" in infer(top_k=7)
    assert [row["case"] for row in rows(out / "summary.csv")] == ["XR_5", "CS_5"]


def test_results_do_not_go_where_the_images_are(tmp_path: Path, data: Path, trained: Path) -> None:
    shutil.copy(data / "XR_5.png", tmp_path)
    (tmp_path / "XR_5.geojson").write_text("drawn by hand")
    weights = str(trained / "model.pt")
    flow = workflow(["inference"], tmp_path, data, input=str(tmp_path / "XR_5.png"), ckpt_path=weights, mpp=MPP)
    with pytest.raises(RuntimeError) as error:
        flow.run()
    assert "lies in the output folder" in message(error.value)
    assert (tmp_path / "XR_5.geojson").read_text() == "drawn by hand"


def test_an_image_must_say_how_large_its_pixels_are(tmp_path: Path, data: Path, trained: Path) -> None:
    flow = workflow(["inference"], tmp_path, data, input=str(data / "XR_5.png"), ckpt_path=str(trained / "model.pt"))
    with pytest.raises(RuntimeError) as error:
        flow.run()
    assert "Give it with --mpp" in message(error.value)
    assert not (tmp_path / "XR_5.csv").exists()


def command_line(*configs: str, **options: Any) -> list[str]:
    return command(config_files(BUNDLE, [*configs, "variants/demo"]), **SMALL | options)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [None, "domain_adversarial"])
def test_two_ranks_train_and_evaluate(tmp_path: Path, data: Path, variant: str | None) -> None:
    """Five training slides and four validated ones a scanner pair leave uneven parts for the ranks."""
    options = {"dataset_dir": data, "output_dir": tmp_path, "ckpt_dir": tmp_path, "num_workers": 0, "amp": False}
    overlays = [f"variants/{variant}"] * bool(variant)
    result = torchrun(2, *command_line("train", "multi_gpu_train", *overlays, **options | QUICK), cwd=BUNDLE)
    assert result.returncode == 0, result.stderr[-3000:]
    history = rows(tmp_path / "training.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    options["bootstrap"] = 20
    alone = run(*command_line("train", "evaluate", **options | {"output_dir": tmp_path / "alone"}), cwd=BUNDLE)
    assert alone.returncode == 0, alone.stderr[-3000:]
    result = torchrun(2, *command_line("train", "evaluate", "multi_gpu_evaluate", **options), cwd=BUNDLE)
    assert result.returncode == 0, result.stderr[-3000:]
    tables = [(folder / "evaluation" / "scores.csv").read_text() for folder in (tmp_path, tmp_path / "alone")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"train_domains": "['Leica']"}, "Leica"),
        ({"datalist": "nowhere.json"}, "nowhere.json: no such file"),
        ({"tile_shares": "{'mitotic': -1}"}, "shares"),
    ],
)
def test_bad_input_is_one_readable_line(tmp_path: Path, data: Path, options: dict[str, Any], expected: str) -> None:
    places = {"dataset_dir": data, "output_dir": tmp_path, "ckpt_dir": tmp_path}
    result = run(*command_line("train", **places, **options), cwd=BUNDLE)
    assert result.returncode == 1
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "last.pt").exists()
