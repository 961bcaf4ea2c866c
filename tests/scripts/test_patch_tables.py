from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import prepare_camelyon17
import prepare_midog
import pytest
from camelyon17_tree import make_tree
from experiments import new_scanner as new_scanner_module
from experiments import patch_runs
from experiments.camelyon_table import camelyon_table
from experiments.generalisation_table import generalisation_table
from experiments.kept_runs import labels_by_slide, packed, unpacked
from experiments.midog_tables import midog_table
from experiments.new_scanner import ARMS, new_scanner
from experiments.operating_point import draw_images, operating_point
from experiments.patch_runs import Predictions, deal_out, read_scores, resample
from experiments.runs import Training
from matplotlib.image import imread
from midog_tree import write_tree
from patch_evaluations import write_evaluation, write_training
from PIL import Image

from shared.data import load_patches
from shared.metrics import classification_scores
from shared.metrics.bootstrap import draw
from shared.utils import DataError, write_json

SCANNERS = ("CS", "S360", "XR")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six slides with two patches each of three scanners, and one that nobody looked at."""
    folder = tmp_path / "data"
    folder.mkdir()
    patches = []
    for scanner in SCANNERS:
        for i in range(12):
            name = f"{scanner}_{i}.png"
            Image.new("RGB", (8, 8)).save(folder / name)
            patches.append({"image": name, "label": i % 2, "domain": scanner, "slide": f"{scanner}_{i // 2}"})
    unlabelled = [{"image": "CS_0.png", "domain": "GT450", "slide": "g", "labelled": False}]
    head = {"name": "dots", "synthetic": True, "labels": {"0": "non_mitotic", "1": "mitotic"}, "split_unit": "patch"}
    lists = {"training": patches[::3], "validation": patches[1::3], "test": patches[2::3], "unlabelled": unlabelled}
    write_json(folder / "dataset.json", head | lists)
    return folder


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Mapping[str, Any], list[str]]]:
    """A bundle that trains at once: with FuseStyle, what it says of a scanner left out is right more often."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    calls = []

    def bundle_run(bundle: Path, configs: list[str], log: Path, options: Mapping[str, Any], ranks: int = 1) -> None:
        run: Path = options["ckpt_dir"]
        calls.append((f"{run.parent.name} {run.name}", log.stem, options, configs))
        if log.stem == "train":
            write_training(run)
        else:
            better = 0.2 if run.parent.name == "fusestyle" else 0.0
            write_evaluation(options, lambda name: 0.5 + better * (name in run.name or name == "centre 2"))

    monkeypatch.setattr("experiments.runs.bundle_run", bundle_run)
    return calls


def rows_of(folder: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    rows = json.loads((folder / "generalisation_table.json").read_text())["rows"]
    return {tuple(row[key] for key in ("method", "left_out", "domain", "batch_norm", "score")): row for row in rows}


def test_each_scanner_is_left_out_by_all_methods_of_a_seed(tmp_path: Path, data: Path, started: list) -> None:
    own = tmp_path / "mine.json"
    write_json(own, {"fusestyle_p": 0.9})
    options = {"methods": ("erm", "fusestyle"), "overlays": (str(own),), "size": "demo", "crop_size": 40}
    generalisation_table(str(data), str(tmp_path / "out"), seeds=2, **options)
    assert [run for run, step, *_ in started if step == "train"] == [
        f"{name} {scanner}_seed{seed}"
        for seed in (0, 1)
        for scanner in SCANNERS
        for name in ("erm", "fusestyle", "mine")
    ]
    _, _, chosen, configs = next(call for call in started if call[0] == "mine S360_seed1")
    assert (chosen["train_domains"], chosen["seed"], chosen["crop_size"]) == (["CS", "XR"], 1, 40)
    assert configs[1:] == ["configs/variants/demo.json", "configs/variants/demo_schedule.json", str(own)]
    evaluations = [call[2] for call in started if call[:2] == ("erm CS_seed0", "evaluate")]
    assert [(o["adapt_batch_norm"], o["whole_unseen"], o["test_domains"]) for o in evaluations] == [
        (adapted, True, ["S360", "XR", "CS"]) for adapted in (False, True)
    ]
    text = (tmp_path / "out" / "generalisation_table.md").read_text()
    assert "18 of 18 runs" in text
    assert "Made-up data" in text
    assert "| mine | fusestyle_p 0.9 | an overlay of --overlays |" in text
    assert imread(tmp_path / "out" / "generalisation_table.png").std() > 0.02
    folder = tmp_path / "out" / "mine" / "CS_seed0"
    assert "mine.json" in json.loads((folder / "settings.json").read_text())
    assert json.loads((folder / "result.json").read_text())["seconds_an_epoch"] == 7.5


def test_of_a_few_seeds_the_values_are_told_and_of_five_intervals(tmp_path: Path, data: Path, started: list) -> None:
    options = {"methods": ("erm", "fusestyle"), "size": "demo"}
    generalisation_table(str(data), str(tmp_path / "out"), seeds=2, **options)
    row = rows_of(tmp_path / "out")["fusestyle", "XR", "XR", "plain", "accuracy"]
    assert (row["n"], row["interval"], list(row["values"])) == (2, None, ["0", "1"])
    assert row["mean"] == pytest.approx(np.mean(list(row["values"].values())), abs=1e-4)
    generalisation_table(str(data), str(tmp_path / "out"), seeds=5, **options)
    rows = rows_of(tmp_path / "out")
    row = rows["fusestyle", "XR", "XR", "plain", "accuracy"]
    low, high = row["interval"]
    assert low < row["mean"] < high
    assert row["gain"]["n"] == 5
    outs = [rows["fusestyle", s, s, "plain", "accuracy"]["values"]["3"] for s in SCANNERS]
    mean = rows["fusestyle", "all in turn", "left out", "plain", "accuracy"]
    assert mean["values"]["3"] == pytest.approx(np.mean(outs), abs=1e-4)
    with (tmp_path / "out" / "generalisation_table.csv").open() as file:
        lines = {tuple(line.values())[:5]: line for line in csv.DictReader(file)}
    assert float(lines["fusestyle", "XR", "XR", "plain", "accuracy"]["low"]) == low


def test_the_paper_stands_beside_each_partner(tmp_path: Path, data: Path, started: list) -> None:
    generalisation_table(str(data), str(tmp_path / "out"), seeds=1, methods=("erm", "kl"), scanners=("XR",))
    started.clear()
    midog_table("partner", str(data), str(tmp_path / "out"), seeds=1, scanners=("XR",))
    assert [run for run, step, *_ in started if step == "train"] == [
        f"{method} XR_seed0" for method in ("fusestyle", "mixstyle", "euclidean")
    ]
    content = json.loads((tmp_path / "out" / "partner_table.json").read_text())
    rows = {(row["method"], row["domain"]): row for row in content["rows"]}
    assert (rows["kl", "S360"]["reported MIDOG'21"], rows["kl", "S360"]["reported MIDOG'22"]) == (0.8718, 0.8328)
    assert rows["erm", "XR"]["reported MIDOG'21"] is None
    assert content["seconds_an_epoch"]["XR"]["kl"]["mean"] == 7.5
    text = (tmp_path / "out" / "partner_table.md").read_text()
    values = " | ".join(f"{rows['kl', name]['mean']:.3f}" for name in SCANNERS)
    assert f"| XR | M3, largest KL divergence | 1, 1, 1 | {values} | 7.5 (7.5 to 7.5) |" in text
    assert "|  | as reported, MIDOG'22 |  | 0.812 | 0.833 | 0.787 | 331 |" in text
    assert imread(tmp_path / "out" / "partner_table.png").std() > 0.02


def test_strap_is_trained_on_copies_that_are_made_once(tmp_path: Path, data: Path, started: list) -> None:
    midog_table("strap", str(data), str(tmp_path / "out"), seeds=2, scanners=("XR",))
    lists = {run: Path(options["datalist"]) for run, step, options, _ in started if step == "train"}
    assert [*lists] == [f"{method} XR_seed{seed}" for seed in (0, 1) for method in ("erm", "fusestyle", "strap")]
    for seed in (0, 1):
        copied = load_patches(lists[f"strap XR_seed{seed}"], "training", stylized=True)
        assert all((tmp_path / "out/data/stylized") in Path(patch["stylized"]).resolve().parents for patch in copied)
        plain = load_patches(lists[f"erm XR_seed{seed}"], "training")
        assert [Path(patch["image"]) for patch in plain] == [Path(patch["image"]) for patch in copied]
        assert "stylized" not in lists[f"erm XR_seed{seed}"].read_text()
    rows = json.loads((tmp_path / "out" / "strap_table.json").read_text())["rows"]
    reported = {(row["method"], row["domain"]): row["reported MIDOG'21"] for row in rows}
    assert reported["strap", "S360"] == 0.8528
    assert reported["fusestyle", "S360"] == pytest.approx(0.8528 + 0.0579)
    text = (tmp_path / "out" / "strap_table.md").read_text()
    assert "|  | as reported, MIDOG'21 |  | 0.874 | 0.853 | 0.673 |  |" in text
    assert "| strap | fusestyle_places []; stylized_p 1.0; stylized [LoadPatchd(keys stylized), RandStyl" in text


def test_copies_that_the_datalist_has_are_taken(tmp_path: Path, data: Path, started: list) -> None:
    content = json.loads((data / "dataset.json").read_text())
    for patch in [*content["training"], *content["validation"], *content["test"]]:
        patch["stylized"] = f"copies/{patch['image']}"
    write_json(data / "dataset.json", content)
    (data / "copies").symlink_to(data)
    generalisation_table(str(data), str(tmp_path / "out"), seeds=1, scanners=("XR",), methods=("strap",))
    (copy, *_) = load_patches(started[0][2]["datalist"], "training", stylized=True)
    assert Path(copy["stylized"]).parent.samefile(data / "copies")
    assert not (tmp_path / "out" / "data" / "stylized.json").exists()


def test_a_run_by_stainnet_learns_it_first_without_the_scanner_left_out(
    tmp_path: Path, data: Path, started: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def logged_run(command: list[Path], folder: Path, log: Path, options: Mapping[str, Any]) -> None:
        trained.append((command[0].name, options, [run for run, step, *_ in started if step == "train"]))
        write_json(options["output"], {})

    monkeypatch.setattr("experiments.stains.logged_run", logged_run)
    methods = {"seeds": 1, "scanners": ("XR",), "methods": ("reinhard", "stainnet")}
    generalisation_table(str(data), str(tmp_path / "out"), **methods)
    runs = {(run, step): options for run, step, options, _ in started}
    assert "stain_weights" not in runs["reinhard XR_seed0", "train"]
    assert all(runs["reinhard XR_seed0", step]["stain_norm"] == "reinhard" for step in ("train", "evaluate"))
    ((script, options, before),) = trained
    assert (script, before) == ("train_stainnet.py", ["reinhard XR_seed0"])
    assert (options["domains"], options["seed"]) == (["CS", "S360"], 0)
    own = runs["stainnet XR_seed0", "train"]
    assert (options["datalist"], options["output"]) == (own["datalist"], own["stain_weights"])
    assert runs["stainnet XR_seed0", "evaluate"]["stain_weights"] == own["stain_weights"]
    (tmp_path / "out" / "stainnet" / "XR_seed0" / "result.json").unlink()  # as when it was interrupted
    generalisation_table(str(data), str(tmp_path / "out"), **methods)
    assert len(trained) == 1


def test_slides_are_dealt_out_anew_and_stay_whole(tmp_path: Path, data: Path) -> None:
    tests = []
    for seed in (0, 1):
        deal_out(data / "dataset.json", seed, tmp_path / "work" / f"{seed}.json")
        content = json.loads((tmp_path / "work" / f"{seed}.json").read_text())
        slides = [{p["slide"] for p in content[split]} for split in ("training", "validation", "test")]
        assert sum(map(len, slides)) == len(set.union(*slides)) == 18
        assert sum(len(content[split]) for split in ("training", "validation", "test")) == 36
        assert (tmp_path / "work" / content["test"][0]["image"]).is_file()
        assert (content["split_unit"], "unlabelled" in content) == ("slide", False)
        tests.append(slides[2])
    assert tests[0] != tests[1]


def test_slides_are_drawn_alike_for_all_runs() -> None:
    """Against patches that are repeated as often as their slide is drawn."""
    rng = np.random.default_rng(0)

    def made_up(slides: str) -> Predictions:
        return Predictions([*slides], np.arange(len(slides)) % 2, rng.uniform(size=len(slides)), 0.4)

    predictions = {"one": made_up("aabbccc"), "other": made_up("ccbb")}
    found, draws = resample(predictions), draw(3, patch_runs.RESAMPLES, 0)
    for name, (slides, labels, probabilities, threshold) in predictions.items():
        for i in range(20):
            times = draws[i][["abc".index(slide) for slide in slides]]
            if len({*np.repeat(labels, times)}) == 2:
                wanted = classification_scores(np.repeat(probabilities, times), np.repeat(labels, times), threshold)
                for score in patch_runs.SCORES:
                    assert found[name][score][i] == pytest.approx(wanted[score])
    assert resample({"single": made_up("aaaa")}) == {}


def test_what_cannot_be_left_out(tmp_path: Path, data: Path) -> None:
    for scanners, said in ((("GT450",), "no patch of GT450 is labelled"), (("Leica",), "there is no domain Leica")):
        with pytest.raises(DataError, match=said):
            generalisation_table(str(data), str(tmp_path / "out"), methods=("erm",), scanners=scanners)


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
def test_a_run_on_midog_is_trained_scored_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    annotated, images = write_tree(tmp_path / "midog")
    prepare_midog.patches(str(annotated), str(images), str(tmp_path / "data"), workers=1)
    options = {"methods": ("erm",), "scanners": ("CS",), "seeds": 1, "size": "demo", "crop_size": 40}
    generalisation_table(str(tmp_path / "data"), str(tmp_path / "out"), epochs=2, **options)
    folder = tmp_path / "out" / "erm" / "CS_seed0"
    result = json.loads((folder / "result.json").read_text())
    assert set(result["scores"]["plain"]) == {"CS", "S360", "XR"}
    assert result["scores"]["plain"] != result["scores"]["adapted"]
    assert result["seconds_an_epoch"] > 0
    assert not list(folder.glob("*.pt"))
    with (folder / "plain" / "evaluation" / "predictions.csv").open() as file:
        domains = [row["domain"] for row in csv.DictReader(file)]
    assert (domains.count("CS"), domains.count("XR")) == (20, 5)  # all slides of the one left out
    with pytest.raises(DataError, match="differs from this one in max_epochs"):
        generalisation_table(str(tmp_path / "data"), str(tmp_path / "out"), epochs=1, **options)


def test_the_screen_of_new_scanners_is_carried_on_from_its_results(tmp_path: Path, data: Path, started: list) -> None:
    results, weights = tmp_path / "kept.jsonl", tmp_path / "weights.pt"
    weights.write_bytes(b"weights")
    options = {"seeds": 1, "results": str(results)}
    new_scanner(str(data), str(tmp_path / "out"), **options)
    trained = [run for run, step, *_ in started if step == "train"]
    assert trained == [f"{arm} {scanner}_seed0" for scanner in SCANNERS for arm in ARMS]
    started.clear()
    new_scanner(str(data), str(tmp_path / "elsewhere"), **options | {"seeds": 2})
    assert [run for run, step, *_ in started if step == "train"] == [run.replace("d0", "d1") for run in trained]
    started.clear()
    start = {"start": "tiles", "pretrained": str(weights), "scanners": ("XR",)}
    new_scanner(str(data), str(tmp_path / "out"), **options, **start)
    assert [(run, step) for run, step, *_ in started[:2]] == [("erm XR_seed0", "train"), ("erm XR_seed0", "evaluate")]
    assert all(options["pretrained"] == str(weights) for _, _, options, _ in started)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(lines) == 1 + 24 + 24 + 8
    text = (tmp_path / "elsewhere" / "new_scanner_scratch.md").read_text()
    assert text.startswith("scratch: dots, 48 of 48 runs. Trained on")
    assert "| dsu_jitter | 2, 2, 2 |" in text
    assert imread(tmp_path / "out" / "new_scanner_tiles.png").std() > 0.02
    with pytest.raises(DataError, match=r"kept\.jsonl: its runs differ from these in crop_size"):
        new_scanner(str(data), str(tmp_path / "out"), **options, crop_size=40)
    weights.write_bytes(b"others")
    with pytest.raises(DataError, match="--start tiles: --results holds runs of it that started from other files"):
        new_scanner(str(data), str(tmp_path / "third"), **options, **start)
    for text in ("once", "[1, 2]"):
        results.write_text(f"{text}\n")
        with pytest.raises(DataError, match=r"kept\.jsonl: expected the results that this command keeps"):
            new_scanner(str(data), str(tmp_path / "out"), **options)


def test_a_screen_keeps_each_run_and_what_another_command_adds_meanwhile(
    tmp_path: Path, data: Path, started: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, first = tmp_path / "kept.jsonl", new_scanner_module.train_and_pack

    def interrupted(training: Training) -> dict[str, Any]:
        if training.facts["start"] == "scratch" and training.facts["method"] == "jitter":
            new_scanner(str(data), str(tmp_path / "out"), **options, start="other")
            raise KeyboardInterrupt
        return first(training)

    options = {"seeds": 1, "results": str(results), "scanners": ("XR",)}
    monkeypatch.setattr(new_scanner_module, "train_and_pack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new_scanner(str(data), str(tmp_path / "out"), **options)
    kept = [json.loads(line) for line in results.read_text().splitlines()[1:]]
    assert sorted({run["method"] for run in kept if run["start"] == "other"}) == sorted(ARMS)
    own = {run["method"] for run in kept if run["start"] == "scratch"}
    assert own >= {"erm", "fusestyle"}
    assert "jitter" not in own


def test_a_threshold_from_unlabelled_images_beside_the_chosen_one(tmp_path: Path, data: Path, started: list) -> None:
    new_scanner(str(data), str(tmp_path / "out"), finalists=("fusestyle",), seeds=2)
    results = tmp_path / "out" / "new_scanner.jsonl"
    options = {"methods": ("erm", "fusestyle"), "positives": (0.5,), "stated": (0.5, 0.25), "images": (4, 0)}
    operating_point(str(results), str(tmp_path), **options, draws=3)
    rows = json.loads((tmp_path / "operating_point.json").read_text())["rows"]
    assert len(rows) == 3 * 2 * 2 * 2 * 2  # points, methods, batch norm, stated, images
    by_key = {(r["point"], r["method"], r["batch_norm"], r["images"]): r for r in rows if r["stated"] == "0.5"}
    kept = json.loads((tmp_path / "out" / "new_scanner_scratch.json").read_text())["rows"]
    chosen = by_key["as chosen", "erm", "plain", "all"]
    own = [r for r in kept if (r["method"], r["batch_norm"], r["score"]) == ("erm", "plain", "balanced_accuracy")]
    (mean,) = (r["mean"] for r in own if r["domain"] == "left out")
    assert chosen["n"] == 2 * len(SCANNERS)
    assert chosen["mean"] == pytest.approx(mean)
    gain = by_key["quantile", "erm", "plain", "all"]
    assert gain["gain"]["mean"] == pytest.approx(gain["mean"] - chosen["mean"], abs=2e-4)
    assert "| scratch | erm | plain | 0.5 | 0.25 | all |" in (tmp_path / "operating_point.md").read_text()


def test_a_threshold_is_looked_for_in_runs_that_are_there(tmp_path: Path, data: Path, started: list) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: holds no run of erm, jitter\. Give"):
        operating_point(str(tmp_path / "none.jsonl"), str(tmp_path))
    assert not list(tmp_path.glob("operating_point*"))


def test_unlabelled_images_have_the_stated_share_of_positives() -> None:
    labels, rng = np.array([0] * 60 + [1] * 40), np.random.default_rng(0)
    for rate, images, count in ((0.1, 0, 66), (0.5, 0, 80), (0.5, 20, 20), (0.1, 500, 66)):
        found = draw_images(labels, rate, images, rng)
        assert len(set(found)) == len(found) == count
        assert labels[found].sum() == round(rate * count)


def test_what_is_kept_of_a_run_gives_what_the_run_gives(tmp_path: Path, data: Path, started: list) -> None:
    """Scores, gains and intervals of `generalisation_table`, whose reports lie in the runs' folders."""
    new_scanner(str(data), str(tmp_path / "out"), finalists=("fusestyle",), seeds=5, first_seed=2)
    seeds = {call[2]["seed"] for call in started}
    assert seeds == {2, 3, 4, 5, 6}
    kept = {
        (row["method"], row["domain"], row["batch_norm"], row["score"]): row
        for row in json.loads((tmp_path / "out" / "new_scanner_scratch.json").read_text())["rows"]
    }
    reports = tmp_path / "out" / "scratch" / "fusestyle" / "XR_seed3" / "plain" / "evaluation"
    row = kept["fusestyle", "XR", "plain", "auc"]
    assert row["values"]["3"] == pytest.approx(read_scores(reports, ["XR"])["XR"]["auc"], abs=1e-4)
    assert row["interval"][0] < row["mean"] < row["interval"][1]
    assert kept["fusestyle", "left out", "plain", "auc"]["gain"]["interval"]
    assert kept["fusestyle", "left out", "plain", "calibration"]["interval"] is None
    text = (tmp_path / "out" / "new_scanner_scratch.md").read_text()
    assert "over jitter | greater | p |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| fusestyle |")][:1]
    assert 0 < float(line.rpartition("|")[0].rpartition("|")[2]) <= 1
    domain, content = "XR", json.loads((data / "dataset.json").read_text())
    labels = labels_by_slide(
        p for name in ("training", "validation", "test") for p in content[name] if p["domain"] == domain
    )
    with (reports / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["domain"] == domain]
    found = unpacked(packed((r["slide"], r["case"], float(r["probability"])) for r in rows), labels, 0.5)
    rows.sort(key=lambda row: (row["slide"], row["case"]))
    assert found.slides == [row["slide"] for row in rows]
    assert found.labels.tolist() == [int(row["label"] == "mitotic") for row in rows]
    np.testing.assert_allclose(found.probabilities, [float(row["probability"]) for row in rows], atol=1e-3)


def test_what_no_screen_can_be_made_of(tmp_path: Path, data: Path) -> None:
    for options, said in (
        ({"finalists": ("jitter", "dsu")}, "3 methods at most beside erm and jitter"),
        ({"finalists": ("dsu", "kl", "style", "vrex")}, "3 methods at most"),
        ({"start": "a/b"}, "--start is 'a/b', expected a name"),
        ({"pretrained": str(tmp_path / "gone.pt")}, r"gone\.pt: --pretrained is not there"),
        ({"network": str(tmp_path / "gone.json")}, r"gone\.json: --network is not there"),
    ):
        with pytest.raises(DataError, match=said):
            new_scanner(str(data), str(tmp_path / "out"), **options)


@pytest.fixture
def hospitals(tmp_path: Path) -> Path:
    tree, folder = make_tree(tmp_path / "camelyon17_v1.0", slides=2, per_slide=6), tmp_path / "data"
    prepare_camelyon17.main(str(tree), str(folder / "dataset.json"))
    return folder


def test_camelyon_is_scored_by_the_protocol_of_wilds(tmp_path: Path, hospitals: Path, started: list) -> None:
    camelyon_table(str(hospitals), str(tmp_path / "out"), seeds=5, methods=("erm", "fusestyle", "lisa"))
    runs = [(run, options) for run, step, options, _ in started if step == "train"]
    assert [run for run, _ in runs[:3]] == ["erm seed0", "fusestyle seed0", "lisa seed0"]
    assert [options.get("mixing#p_sel") for _, options in runs[:3]] == [None, None, 1.0]
    assert [call[2]["evaluate_split"] for call in started[1:3]] == ["ood_validation", "test"]
    rows = {
        (row["method"], row["domain"]): row
        for row in json.loads((tmp_path / "out" / "camelyon_table.json").read_text())["rows"]
        if row["score"] == "accuracy"
    }
    test = rows["fusestyle", "centre 2"]
    low, high = test["interval"]
    assert low < test["mean"] < high
    assert (test["reported"], rows["fusestyle", "centre 1"]["list"]) == (0.9049, "ood_validation")
    text = (tmp_path / "out" / "camelyon_table.md").read_text()
    assert f"| fusestyle | 5 | {test['mean']:.3f} [{low:.3f}, {high:.3f}] |" in text
    assert "| strap |  |  |  |  | 0.937 |" in text
    assert "mixing LISA(p_sel 1.0, alpha 2.0)" in text
    assert "threshold of 0.5" in text
    assert "test hospital (centre 2)" in text
    assert imread(tmp_path / "out" / "camelyon_table.png").std() > 0.02


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
def test_a_run_on_camelyon_is_trained_and_scored(
    tmp_path: Path, hospitals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    own = tmp_path / "mine.json"
    write_json(own, {"fusestyle_p": 0.9})
    options = {"seeds": 1, "size": "demo", "methods": ("lisa",), "overlays": (str(own),), "epochs": 1}
    camelyon_table(str(hospitals), str(tmp_path / "out"), **options)
    for method in ("lisa", "mine"):
        folder = tmp_path / "out" / method / "seed0"
        record = json.loads((folder / "model.json").read_text())
        assert (record["val_domains"], record["key_metric"]) == (["centre 1"], "val_accuracy")
        scores = json.loads((folder / "result.json").read_text())["scores"]
        assert {name: [*domains] for name, domains in scores.items()} == {
            "ood_validation": ["centre 1"],
            "test": ["centre 2"],
        }
        assert scores["ood_validation"]["centre 1"]["accuracy"] == pytest.approx(record["val_accuracy"], abs=1e-4)
