"""The detection bundle with a classifier that judges what it finds: trained, chosen, evaluated, used in inference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import workflows
from commands import run
from monai.bundle import ConfigWorkflow
from PIL import Image
from workflows import BUNDLES, command, config_files, message, rows

from shared.data import Region
from shared.data.datalist import write_datalist
from shared.datasets.candidates import cut_candidates
from shared.inferers import combine_scores, crop_classifier
from shared.transforms import LoadPatchd

DETECTOR, CLASSIFIER = BUNDLES / "mitosis_retinanet_fusestyle", BUNDLES / "mitosis_fusestyle_cls"
SIZE, MPP = (192, 144), 0.5
SPLITS = {"training": range(6), "validation": range(6, 9), "test": range(9, 12)}
COLOURS = {"XR": (225, 190, 215), "CS": (200, 150, 190)}
SMALL = {"network_def#backbone": "resnet10", "network_def#channels": 32}
QUICK = {"max_epochs": 8, "learning_rate": 0.001, "batch_size": 4, "tile_size": 96, "val_tile_size": 128}
QUICK |= {"empty_tiles_per_region": 1, "mpp": MPP}


def region(rng: np.random.Generator, colour: tuple[int, ...]) -> tuple[Image.Image, list[list[int]], list[int]]:
    """Two dark bars (mitotic), one at the border, and a dark disc."""
    width, height = SIZE
    pixels = rng.normal(colour, 6, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    boxes, labels = [], []
    for label, cx, cy in (
        (1, 40, 10),
        (0, 100, rng.integers(30, height - 30)),
        (1, 160, rng.integers(30, height - 30)),
    ):
        shape = (abs(x - cx) < 5) & (abs(y - cy) < 20) if label else np.hypot(x - cx, y - cy) < 11
        pixels[shape] -= (110, 120, 60)
        boxes.append([int(v) for v in (cx - 25, cy - 25, cx + 25, cy + 25)])
        labels.append(label)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), boxes, labels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    lists: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    for scanner, colour in COLOURS.items():
        for split, slides in SPLITS.items():
            for slide in slides:
                image, boxes, labels = region(rng, colour)
                where = {"image": f"{scanner}_{slide}.png", "domain": scanner, "slide": f"{scanner}_{slide}"}
                image.save(folder / where["image"])
                lists[split].append({**where, "box": boxes, "label": labels})
    head = {"name": "bars", "synthetic": True, "labels": {"0": "non_mitotic", "1": "mitotic"}, "box_mode": "xyxy"}
    write_datalist(folder / "dataset.json", {**head, "mpp": MPP, **lists})
    return folder


def workflow(configs: list[str], output: Path, data: Path, **options: Any) -> ConfigWorkflow:
    places = {"output_dir": str(output), "num_workers": 0, "amp": False, "device": "$torch.device('cpu')", **SMALL}
    places |= {"dataset_dir": str(data)} if configs[0] == "train" else {}
    return workflows.workflow(config_files(DETECTOR, [*configs, "variants/demo"]), **places | options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, Path]:
    """A detector, a classifier of its candidates, and the choice of both: the folders of their weights."""
    work = tmp_path_factory.mktemp("trained")
    detector, classifier = work / "detector", work / "classifier"
    workflows.train(workflow(["train"], detector, data, ckpt_dir=str(detector), train_domains=["XR"], **QUICK))
    found = {"evaluate_split": "training", "test_domains": ["XR"], "bootstrap": 1, "ckpt_dir": str(detector)}
    workflow(["train", "evaluate"], work / "found", data, **found).run()
    cut_candidates(data / "dataset.json", work / "found" / "evaluation", work / "candidates")
    files = config_files(CLASSIFIER, ["train", "variants/demo", "variants/no_fusestyle"])
    options = {"dataset_dir": str(work / "candidates"), "output_dir": str(classifier), "ckpt_dir": str(classifier)}
    options |= {"network_def#name": "resnet10", "max_epochs": 6, "learning_rate": 0.001, "batch_size": 8}
    options |= {"num_workers": 0, "amp": False, "device": "$torch.device('cpu')", "cache": "none"}
    workflows.train(workflows.workflow(files, **options))
    choice = {"classifier": str(classifier / "model.pt"), "ckpt_dir": str(detector)}
    workflow(["train", "evaluate", "cascade"], work / "choice", data, **choice).run()
    flipped = {"cascade_path": str(detector / "flipped.json"), "classifier_flips": True}
    workflow(["train", "evaluate", "cascade"], work / "choice", data, **choice, **flipped).run()
    return {"detector": detector, "classifier": classifier, "candidates": work / "candidates"}


def options_of(trained: dict[str, Path], **more: Any) -> dict[str, Any]:
    return {"classifier": str(trained["classifier"] / "model.pt"), **more}


def test_the_choice_is_kept_beside_the_detector(trained: dict[str, Path]) -> None:
    content = json.loads((trained["detector"] / "cascade.json").read_text())
    assert 0 <= content["weight"] <= 1 > content["threshold"] > 0
    assert (content["split"], content["domains"]) == ("validation", ["XR"])
    assert content["weights"].count("+") == 1
    flipped = json.loads((trained["detector"] / "flipped.json").read_text())
    assert (content["flips"], flipped["flips"]) == (False, True)
    assert content["tried"][-1] != flipped["tried"][-1]
    assert not list(trained["detector"].parent.glob("choice/evaluation*"))


def test_the_classifier_learned_of_training_slides_alone(trained: dict[str, Path], data: Path) -> None:
    record = json.loads((trained["classifier"] / "model.json").read_text())
    slides = {entry["slide"] for entry in json.loads((data / "dataset.json").read_text())["training"]}
    assert {domain for domain, _ in record["slides"]} == {"XR"}
    assert {slide for _, slide in record["slides"]} <= slides
    assert (record["mpp"], record["crop_size"], record["labels"]) == (MPP, 64, {"non_mitotic": 0, "mitotic": 1})


def expected_rows(
    trained: dict[str, Path], chosen: dict[str, Any], file: Path, alone: list[dict[str, str]], tmp_path: Path
) -> list[tuple]:
    """What the cascade makes of the detector's rows, in a loop over patches that are cut and classified one by one.

    Places are rounded in the table, to 0.01: where that may be another pixel, each is a score that is expected.
    """
    network = crop_classifier(trained["classifier"] / "model.pt").network
    record = json.loads((trained["classifier"] / "model.json").read_text())

    def opinion_of(pixels: np.ndarray) -> float:
        patch = tmp_path / "patch.png"
        Image.fromarray(pixels).save(patch)
        image = LoadPatchd("image")({"image": str(patch)})["image"] / 255
        image = (image - torch.tensor(record["image_mean"])[:, None, None]) / torch.tensor(record["image_std"])[
            :, None, None
        ]
        ways = [image, image.flip(1), image.flip(2), image.flip(1, 2)] if chosen["flips"] else [image]
        with torch.no_grad():
            return float(np.mean([network(way[None].float()).sigmoid().item() for way in ways]))

    judged = []
    for row in alone:
        if row["class"] == "mitotic":  # of the others the detector's probability of class 1 is not in the table
            x, y, score = (float(row[key]) for key in ("x", "y", "score"))
            near = [Region(file).square(x + i, y + k, 64) for i in (-0.005, 0.005) for k in (-0.005, 0.005)]
            opinions = [opinion_of(each) for each in {pixels.tobytes(): pixels for pixels in near}.values()]
            opinions = opinions if score >= chosen["floor"] else [0.0]
            judged.append((x, y, combine_scores(score, np.array(opinions), chosen["weight"]).tolist()))
    return judged


@pytest.mark.parametrize("name", ["cascade.json", "flipped.json"])
def test_inference_and_evaluation_say_the_same(tmp_path: Path, data: Path, trained: dict[str, Path], name: str) -> None:
    """Both see crops mirrored where the choice was made so, without being told."""
    place, weights = str(trained["detector"] / name), str(trained["detector"] / "model.pt")
    judge = options_of(trained, cascade_path=place)
    evaluation = {"ckpt_dir": str(trained["detector"]), "bootstrap": 10}
    workflow(["train", "evaluate"], tmp_path, data, **evaluation, **judge).run()
    inputs = {"input": str(data / "dataset.json"), "ckpt_path": weights}
    workflow(["inference"], tmp_path / "out", data, **inputs, **judge).run()
    workflow(["inference"], tmp_path / "alone", data, **inputs).run()
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    chosen = json.loads(Path(place).read_text())
    assert summary["threshold"] == {"value": chosen["threshold"], "from": place}
    assert [summary["classifier"][key] for key in ("weight", "flips")] == [chosen["weight"], name == "flipped.json"]
    assert summary["classifier"]["record"]["bundle"] == "mitosis_fusestyle_cls"
    assert (summary["weights"], summary["train_domains"]) == (chosen["weights"], ["XR"])
    assert any("A classifier (model.pt) has judged each detection" in note for note in summary["notes"])
    evaluated, changed = rows(tmp_path / "evaluation" / "detections.csv"), 0
    for image in [f"{scanner}_{slide}" for scanner in COLOURS for slide in SPLITS["test"]]:
        own = sorted((float(r["score"]), r["class"]) for r in evaluated if r["image"] == f"{image}.png")
        found = rows(tmp_path / "out" / f"{image}.csv")
        assert [c for _, c in sorted((float(r["score"]), r["class"]) for r in found)] == [c for _, c in own]
        np.testing.assert_allclose(sorted(float(r["score"]) for r in found), [s for s, _ in own], atol=1e-4)
        alone = rows(tmp_path / "alone" / f"{image}.csv")
        assert sorted((r["x"], r["y"]) for r in found) == sorted((r["x"], r["y"]) for r in alone)
        by_place = {(float(r["x"]), float(r["y"])): r for r in found}
        for x, y, scores in expected_rows(trained, chosen, data / f"{image}.png", alone, tmp_path):
            assert any(float(by_place[x, y]["score"]) == pytest.approx(score, abs=2e-3) for score in scores)
            assert by_place[x, y]["class"] == "mitotic"
            changed += 1
    assert changed > 5
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["classifier"]["record"]["crop_size"] == 64
    assert written["settings"]["classifier"]["weight"] == chosen["weight"]
    assert written["threshold"] == chosen["threshold"]
    assert "synthetic" in written["warning"]
    assert "classifier" not in json.loads((tmp_path / "alone" / "summary.json").read_text())


def test_a_region_without_a_detection_or_smaller_than_a_crop(
    tmp_path: Path, data: Path, trained: dict[str, Path]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", SIZE, (225, 190, 215)).save(folder / "empty.png")
    Image.open(data / "XR_9.png").crop((140, 0, 185, 144)).save(folder / "narrow.png")
    options = {"input": str(folder), "ckpt_path": str(trained["detector"] / "model.pt"), "mpp": MPP}
    workflow(["inference"], tmp_path / "out", data, **options, **options_of(trained)).run()
    done = {row["case"]: row for row in json.loads((tmp_path / "out" / "summary.json").read_text())["images"]}
    assert done.keys() == {"empty", "narrow"}


def test_weight_and_threshold_may_be_given(tmp_path: Path, data: Path, trained: dict[str, Path]) -> None:
    """Then the choice is not looked at, and flips may be what they like."""
    weights = tmp_path / "model.pt"
    for name in ("model.pt", "model.json"):
        shutil.copy(trained["detector"] / name, tmp_path)
    given = {"classifier_weight": 1.0, "threshold": 0.5, "classifier_flips": True}
    options = {"input": str(data / "XR_9.png"), "ckpt_path": str(weights), "mpp": MPP, **options_of(trained, **given)}
    workflow(["inference"], tmp_path / "out", data, **options).run()
    settings = json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]
    assert (settings["classifier"]["weight"], settings["classifier"]["flips"], settings["threshold"]) == (
        1.0,
        True,
        0.5,
    )
    del options["classifier_flips"]
    assert not workflow(["inference"], tmp_path / "out", data, **options).parser.get_parsed_content("classify").flips
    evaluation = workflow(
        ["train", "evaluate"],
        tmp_path,
        data,
        ckpt_path=str(weights),
        **options_of(trained, **given, classifier_floor=0.2),
    )
    judge = evaluation.parser.get_parsed_content("judge")
    assert (judge.weight, judge.threshold, judge.floor) == (1.0, 0.5, 0.2)


def test_the_floor_is_the_chosen_one(tmp_path: Path, data: Path, trained: dict[str, Path]) -> None:
    for name in ("model.pt", "model.json", "cascade.json"):
        shutil.copy(trained["detector"] / name, tmp_path)
    content = json.loads((tmp_path / "cascade.json").read_text()) | {"floor": 0.375}
    (tmp_path / "cascade.json").write_text(json.dumps(content))
    inference = {"input": str(data), "ckpt_path": str(tmp_path / "model.pt")}
    for configs, options in ((["inference"], inference), (["train", "evaluate"], {"ckpt_dir": str(tmp_path)})):
        for given, floor in ({}, 0.375), ({"classifier_floor": 0.0}, 0.0):
            flow = workflow(configs, tmp_path / "out", data, **options, **options_of(trained, **given))
            judge = flow.parser.get_parsed_content("judge")
            assert judge.floor == judge.settings["classifier"]["floor"] == floor


def test_a_threshold_of_its_own_goes_before_the_chosen_one(
    tmp_path: Path, data: Path, trained: dict[str, Path]
) -> None:
    chosen = json.loads((trained["detector"] / "cascade.json").read_text())
    own = tmp_path / "own.json"
    own.write_text('{"threshold": 0.0625}')
    judge = options_of(trained, threshold_path=str(own))
    workflow(["train", "evaluate"], tmp_path, data, ckpt_dir=str(trained["detector"]), bootstrap=1, **judge).run()
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert summary["threshold"] == {"value": 0.0625, "from": str(own)}
    assert summary["classifier"]["weight"] == chosen["weight"]
    options = {"input": str(data / "XR_9.png"), "ckpt_path": str(trained["detector"] / "model.pt"), "mpp": MPP}
    judged = workflow(["inference"], tmp_path / "out", data, **options, **judge).parser.get_parsed_content("judge")
    assert (judged.threshold, judged.weight) == (0.0625, chosen["weight"])


@pytest.mark.parametrize("step", ["evaluate", "inference"])
def test_a_weight_alone_does_not_take_the_threshold_of_another(
    tmp_path: Path, data: Path, trained: dict[str, Path], step: str
) -> None:
    chosen = json.loads((trained["detector"] / "cascade.json").read_text())
    other = {"classifier_weight": 0.55}
    options: dict[str, Any] = {"ckpt_dir": str(trained["detector"])}
    configs = ["train", "evaluate"]
    if step == "inference":
        configs, options = [step], {"input": str(data), "ckpt_path": str(trained["detector"] / "model.pt")}
    flow = workflow(configs, tmp_path, data, **options, **options_of(trained, **other))
    with pytest.raises(RuntimeError) as error:
        flow.parser.get_parsed_content("judge")
    assert f"was chosen for a weight of {chosen['weight']:g} of the classifier" in message(error.value)
    assert "--classifier_weight is 0.55. Give --threshold, too, or neither." in message(error.value)
    both = workflow(configs, tmp_path, data, **options, **options_of(trained, **other, threshold=chosen["threshold"]))
    judge = both.parser.get_parsed_content("judge")
    assert (judge.weight, judge.threshold) == (0.55, chosen["threshold"])


def test_kinds_of_mitotic_figures_are_told(tmp_path: Path, data: Path, trained: dict[str, Path]) -> None:
    """By a second classifier, here the first with other names for its classes, alone and behind the first."""
    kinds = Path(shutil.copytree(trained["classifier"], tmp_path / "kinds"))
    record = json.loads((kinds / "model.json").read_text())
    (kinds / "model.json").write_text(json.dumps({**record, "labels": {"Normal": 0, "Atypical": 1}}))
    (kinds / "threshold.json").write_text('{"threshold": 0.4}')
    subtype = {"subtype_classifier": str(kinds / "model.pt")}
    options = {"input": str(data / "dataset.json"), "ckpt_path": str(trained["detector"] / "model.pt")}
    for name, more in (("alone", {}), ("both", options_of(trained))):
        workflow(["inference"], tmp_path / name, data, **options, **subtype, **more).run()
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["subtype_classifier"]["threshold"] == 0.4
        assert summary["settings"]["subtype_classifier"]["file"] == "model.pt"
        told = 0
        for row, line in zip(summary["images"], rows(tmp_path / name / "summary.csv"), strict=True):
            table = rows(tmp_path / name / f"{row['case']}.csv")
            for found in table:
                figure = found["class"] == "mitotic" and found["above_threshold"] == "1"
                expected = ("Atypical" if float(found["subtype_probability"]) >= 0.4 else "Normal") if figure else ""
                assert found["subtype"] == expected
            counts = {kind: [found["subtype"] for found in table].count(kind) for kind in ("Normal", "Atypical")}
            assert {kind: row[f"subtype_{kind}"] for kind in counts} == counts
            assert {kind: int(line[f"subtype_{kind}"]) for kind in counts} == counts
            assert sum(counts.values()) == row["mitotic"]
            features = json.loads((tmp_path / name / f"{row['case']}.geojson").read_text())["features"]
            names = [f["properties"]["classification"]["name"] for f in features if "classification" in f["properties"]]
            assert {kind: names.count(f"mitotic: {kind}") for kind in counts} == counts
            assert "mitotic" not in names
            told += row["mitotic"]
        assert told > 3
    own = {"subtype_classifier": options_of(trained)["classifier"], "output_dir": tmp_path / "no", **SMALL}
    done = run(*command(config_files(DETECTOR, ["inference", "variants/demo"]), **options, **own), cwd=DETECTOR)
    assert done.returncode == 1
    assert "as the detector does, and no kinds of mitotic figures. Give it with --classifier" in done.stderr


def test_a_slide_of_the_classifiers_training_is_not_scored(
    tmp_path: Path, data: Path, trained: dict[str, Path]
) -> None:
    content = json.loads((data / "dataset.json").read_text())
    slide = json.loads((trained["classifier"] / "model.json").read_text())["slides"][0][1]
    moved = [entry for entry in content["training"] if entry["slide"] == slide]
    content["training"] = [entry for entry in content["training"] if entry["slide"] != slide]
    content["test"] += moved
    for name in ("training", "validation", "test"):
        for entry in content[name]:
            entry["image"] = str(data / entry["image"])
    (tmp_path / "moved.json").write_text(json.dumps(content))
    options = {"datalist": str(tmp_path / "moved.json"), "ckpt_dir": str(trained["detector"]), **options_of(trained)}
    flow = workflow(["train", "evaluate"], tmp_path / "out", data, **options)
    with pytest.raises(RuntimeError) as error:
        flow.parser.get_parsed_content("leakage")
    assert f"1 slide ({slide}) of 'test' are of those that the classifier was trained on" in message(error.value)


def spoiled(folder: Path, **record: Any) -> Path:
    folder.mkdir()
    torch.save({"weight": torch.zeros(1, 3)}, folder / "model.pt")
    (folder / "model.json").write_text(json.dumps({"bundle": CLASSIFIER.name, **record}))
    return folder / "model.pt"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("missing", "gone.pt: there is no such classifier. Give the model.pt that a training of mitosis_fusestyle_cls"),
        ("detector", "these are weights of mitosis_retinanet_fusestyle, and no classifier"),
        ("no record", "there is no model.json beside it"),
        ("classes", "this classifier tells Normal and Atypical apart, and the detector non_mitotic and mitotic"),
        ("network", "are those of no ResNet or DenseNet with one logit"),
        ("not chosen", "cascade.json: there is no such file, which has the classifier's weight and the threshold"),
        ("other weights", "was chosen for other weights of the detector or the classifier"),
    ],
)
@pytest.mark.parametrize("step", ["evaluate", "inference"])
def test_a_classifier_that_cannot_be_used(
    tmp_path: Path, data: Path, trained: dict[str, Path], step: str, kind: str, expected: str
) -> None:
    labels = {"labels": {"non_mitotic": 0, "mitotic": 1}}
    detector = Path(shutil.copytree(trained["detector"], tmp_path / "detector"))
    classifier = {
        "missing": lambda: tmp_path / "gone.pt",
        "detector": lambda: trained["detector"] / "model.pt",
        "no record": lambda: shutil.copy(trained["classifier"] / "model.pt", tmp_path / "model.pt"),
        "classes": lambda: spoiled(tmp_path / "c", labels={"Normal": 0, "Atypical": 1}),
        "network": lambda: spoiled(tmp_path / "c", **labels),
    }.get(kind, lambda: trained["classifier"] / "model.pt")()
    options: dict[str, Any] = {"classifier": classifier, "output_dir": tmp_path / "out", **SMALL}
    if kind == "network":
        options |= {"classifier_weight": 0.5, "threshold": 0.5}
    if kind == "not chosen":
        (detector / "cascade.json").unlink()
    if kind == "other weights":
        content = json.loads((detector / "cascade.json").read_text())
        (detector / "cascade.json").write_text(json.dumps({**content, "weights": "a+b"}))
    if step == "evaluate":
        options |= {"dataset_dir": data, "ckpt_dir": detector, "num_workers": 0}
    else:
        options |= {"input": data / "XR_9.png", "ckpt_path": detector / "model.pt", "mpp": MPP}
    configs = ["train", "evaluate"] if step == "evaluate" else ["inference"]
    done = run(*command(config_files(DETECTOR, [*configs, "variants/demo"]), **options), cwd=DETECTOR)
    assert done.returncode == 1, done.stderr[-2000:]
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("*.csv"))
