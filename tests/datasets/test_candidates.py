"""Patches around what a detector finds in its training slides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from PIL import Image
from region_images import texture

from shared.data import Region, load_patches
from shared.datasets.candidates import cut_candidates, judge_places, keep_hardest
from shared.utils import DataError, write_csv, write_json

ROOT = Path(__file__).resolve().parents[2]
LABELS = {"0": "non_mitotic", "1": "mitotic"}
COLUMNS = ("image", "domain", "x", "y", "class", "score", "matched")


def box(x: float, y: float) -> list[float]:
    return [x - 25, y - 25, x + 25, y + 25]


def literal(region: dict[str, Any], found: list[tuple[float, ...]], radius: float) -> list[tuple]:
    """A detection after the other, each figure after the other."""
    places, taken = [], set()
    centres = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in region["box"]]
    for x, y, score, called in found:
        best, near = None, False
        for i, (cx, cy) in enumerate(centres):
            distance = ((x - cx) ** 2 + (y - cy) ** 2) ** 0.5
            near = near or distance <= radius
            if distance <= radius and i not in taken and (best is None or distance < best[0]):
                best = (distance, i)
        if best:
            taken.add(best[1])
            places.append((x, y, region["label"][best[1]], "figure", score, bool(called)))
        elif not near:
            places.append((x, y, 0, "false_positive", score, bool(called)))
    missed = [i for i in range(len(centres)) if i not in taken]
    return places + [(*centres[i], region["label"][i], "figure", 0.0, False) for i in missed]


@pytest.mark.parametrize("seed", range(5))
def test_places_are_those_of_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = [box(x, y) for x, y in rng.uniform(0, 200, (6, 2))]
    rows = zip(rng.uniform(0, 200, (25, 2)), rng.random(25), rng.integers(0, 2, 25), strict=True)
    found = sorted(((*xy, score, called) for xy, score, called in rows), key=lambda row: -row[2])
    region = {"box": boxes, "label": [1, 0, 1, 1, 0, 0]}
    places = [tuple(place.values()) for place in judge_places(region, np.array(found), 30.0)]
    np.testing.assert_allclose([p[:3] + p[4:] for p in places], [p[:3] + p[4:] for p in literal(region, found, 30.0)])
    assert [p[3] for p in places] == [p[3] for p in literal(region, found, 30.0)]


def test_places_without_figures_or_detections() -> None:
    nothing, empty = np.empty((0, 4)), {"box": [], "label": []}
    assert judge_places(empty, nothing, 30.0) == []
    (missed,) = judge_places({"box": [box(40, 50)], "label": [1]}, nothing, 30.0)
    assert tuple(missed.values()) == (40.0, 50.0, 1, "figure", 0.0, False)
    (false,) = judge_places(empty, np.array([[1.0, 2.0, 0.5, 1.0]]), 30.0)
    assert tuple(false.values()) == (1.0, 2.0, 0, "false_positive", 0.5, True)


def test_the_hardest_are_kept_of_each_scanner() -> None:
    def patch(domain: str, kind: str, score: float, called: bool = True) -> dict[str, Any]:
        return {"domain": domain, "kind": kind, "score": score, "called": called, "label": 0}

    patches = [patch("XR", "figure", 0.1)] * 2 + [patch("XR", "false_positive", s) for s in (0.2, 0.9, 0.4)]
    patches += [patch("XR", "false_positive", 0.99, called=False)]  # was taken for what it is, with certainty
    patches += [patch("CS", "false_positive", 0.95), patch("CS", "figure", 0.0)]
    kept = [(p["domain"], p["score"]) for p in keep_hardest(patches, 1.0) if p["kind"] == "false_positive"]
    assert kept == [("CS", 0.95), ("XR", 0.9), ("XR", 0.4)]
    assert len(keep_hardest(patches, 0.0)) == 3


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Regions of two scanners, five slides each for training, and one each for the other lists."""
    lists: dict[str, list[dict[str, Any]]] = {"training": [], "validation": [], "test": []}
    for scanner in ("XR", "CS"):
        for i, split in enumerate(["training"] * 5 + ["validation", "test"]):
            name = f"{scanner}_{i}.png"
            Image.fromarray(np.roll(texture(), 7 * i, axis=1)).save(tmp_path / name)
            figures = {"box": [box(40 + i, 50), box(4, 190), box(200, 100)], "label": [1, 0, 1]}
            lists[split].append({"image": name, "domain": scanner, "slide": f"{scanner}_{i}", **figures})
    head = {"name": "noise", "synthetic": True, "labels": LABELS, "box_mode": "xyxy", "mpp": 0.25}
    write_json(tmp_path / "tiles.json", {**head, **lists})
    return tmp_path / "tiles.json"


def evaluation(folder: Path, images: list[str], split: str = "training", **summary: Any) -> Path:
    """Of each image a figure, some pixels off, and two places where nothing is."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for image in images:
        i = int(image[3])
        for x, y, score in ((42.25 + i, 47.5, 0.9), (120.0, 20.0, 0.6), (270.0, 150.0, 0.3)):
            rows.append(dict(zip(COLUMNS, (image, image[:2], x, y, "mitotic", score, "false"), strict=True)))
    write_csv(folder / "detections.csv", rows, COLUMNS)
    content = {"dataset": {"split": split}, "match_radius": 30.0, "train_domains": ["CS", "XR"], "weights": "abc"}
    content |= {"class_names": ["non_mitotic", "mitotic"]}
    content |= {"domains": {domain: {"images": 5, "figures": 10} for domain in ("CS", "XR")}}
    write_json(folder / "summary.json", {**content, **summary})
    return folder


TRAINING = [f"{scanner}_{i}.png" for scanner in ("CS", "XR") for i in range(5)]


def test_patches_come_of_training_slides_alone(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    splits = cut_candidates(source, evaluation(tmp_path / "e", TRAINING), output, 48)
    content = json.loads((output / "dataset.json").read_text())
    assert (content["name"], content["synthetic"], content["labels"]) == ("noise, candidates", True, LABELS)
    assert (content["mpp"], content["test"], content["detector"]) == (0.25, [], "abc")
    slides = {split: {patch["slide"] for patch in splits[split]} for split in ("training", "validation")}
    assert slides["training"].isdisjoint(slides["validation"])
    assert slides["training"] | slides["validation"] == {name.removesuffix(".png") for name in TRAINING}
    assert {len([s for s in slides["validation"] if s.startswith(domain)]) for domain in ("CS", "XR")} == {1}
    for split in ("training", "validation"):
        loaded = load_patches(output / "dataset.json", split)
        assert sum(patch["label"] for patch in loaded) == 2 * len(slides[split])
        assert len(loaded) == 5 * len(slides[split])  # three figures, two false positives
        for patch, entry in zip(loaded, content[split], strict=True):
            region = Region(source.parent / entry["region"])
            np.testing.assert_array_equal(
                np.array(Image.open(patch["image"])), region.square(entry["x"], entry["y"], 48)
            )
    off = [p for p in content["training"] if p["kind"] == "figure" and p["score"] > 0]
    assert {(p["x"] - int(p["region"][3]), p["y"], p["label"]) for p in off} == {(42.25, 47.5, 1)}


def test_scanners_that_the_detector_does_not_know_stay_out(source: Path, tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "e", TRAINING, train_domains=["XR"])
    splits = cut_candidates(source, folder, tmp_path / "out")
    assert {patch["domain"] for patches in splits.values() for patch in patches} == {"XR"}


def test_the_size_of_a_pixel_is_the_detectors_or_that_of_the_regions(source: Path, tmp_path: Path) -> None:
    """Many a datalist says it of each region alone."""
    content = json.loads(source.read_text())
    del content["mpp"]
    for i, region in enumerate(content["training"]):
        region["mpp"] = 0.5 + 0.01 * (i == 0)
    source.write_text(json.dumps(content))
    for name, more, expected in (("a", {}, 0.5), ("b", {"model": {"mpp": 0.48}}, 0.48)):
        cut_candidates(source, evaluation(tmp_path / f"e{name}", TRAINING, **more), tmp_path / name)
        assert json.loads((tmp_path / name / "dataset.json").read_text())["mpp"] == expected


def test_other_lists_never_train(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is an evaluation of test, expected one of a detector on 'training'"):
        cut_candidates(source, evaluation(tmp_path / "e", ["XR_6.png"], split="test"), tmp_path / "out")
    with pytest.raises(DataError, match=r"has detections in XR_6\.png, which is not in 'training'"):
        cut_candidates(source, evaluation(tmp_path / "f", [*TRAINING, "XR_6.png"]), tmp_path / "out")
    content = json.loads(source.read_text())
    content["test"].append({**content["test"][0], "image": "XR_0.png", "slide": "XR_0"})
    source.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"1 file .* and 1 slide \(XR_0\) of 'training' are in 'test', too"):
        cut_candidates(source, evaluation(tmp_path / "g", TRAINING), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_evaluation_of_other_data_or_of_a_cascade_is_refused(source: Path, tmp_path: Path) -> None:
    """Where nothing was found, no name of a file tells."""
    counts = {"CS": {"images": 5, "figures": 10}, "XR": {"images": 5, "figures": 11}}
    other = evaluation(tmp_path / "e", [], domains=counts)
    with pytest.raises(DataError, match=r"has seen 5 images of XR with 11 mitotic figures, and 'training' of .* has 5"):
        cut_candidates(source, other, tmp_path / "out")
    judged = evaluation(tmp_path / "f", TRAINING, classifier={"file": "model.pt"})
    with pytest.raises(DataError, match="a classifier has judged these detections"):
        cut_candidates(source, judged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_evaluation_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"e: there is no summary\.json\. Evaluate the detector with --evaluate_split"):
        cut_candidates(source, tmp_path / "e", tmp_path / "out")


def test_what_is_there_is_replaced_when_told(source: Path, tmp_path: Path) -> None:
    folder, output = evaluation(tmp_path / "e", TRAINING), tmp_path / "out"
    cut_candidates(source, folder, output)
    before = (output / "dataset.json").read_bytes()
    with pytest.raises(DataError, match="already holds"):
        cut_candidates(source, folder, output)
    cut_candidates(source, folder, output, overwrite=True)
    assert (output / "dataset.json").read_bytes() == before
    shutil.rmtree(output / "patches")
    write_json(output / "dataset.json", {"name": "mine"})
    with pytest.raises(DataError, match=r"dataset\.json: holds another datalist"):
        cut_candidates(source, folder, output)
    assert not (output / "patches").exists()  # so that another try is not refused for these
    cut_candidates(source, folder, output, overwrite=True)
    (output / "patches" / "mine.png").touch()
    with pytest.raises(DataError, match=r"already holds mine\.png"):
        cut_candidates(source, folder, output, overwrite=True)


def test_the_command(source: Path, tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "e", TRAINING)
    script = ROOT / "scripts" / "prepare_candidates.py"
    options = ["--datalist", source, "--evaluation", folder, "--output_dir", tmp_path / "out", "--false_positives", 0.5]
    done = run(script, *options)
    assert done.returncode == 0, done.stderr
    # of each scanner 15 figures in five regions, and half as many of ten false positives, 7.5 to even
    assert "46 patches, 16 of them false positives" in done.stdout
    wrong = run(script, *options[:4], "--output_dir", tmp_path / "other", "--size", 0)
    assert wrong.returncode == 1
    assert "size is 0" in wrong.stderr
