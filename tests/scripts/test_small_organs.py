from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from experiments import small_organs as module
from experiments.organ_table import SIZES
from experiments.runs import BUNDLES, count_firings
from experiments.small_organs import ARMS, KEY, NETWORKS, ORGANS, compare, small_organs, summarise, verdict
from matplotlib.image import imread
from monai.bundle import ConfigParser
from small_runs import ct_data

from shared.datasets.ct_cases import BTCV_LABELS
from shared.losses import DicePlainCELoss, LogDiceCELoss
from shared.utils import DataError, write_csv, write_json

CASES = ("a", "b", "c")
VOXELS = dict.fromkeys(BTCV_LABELS, 0.3)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A datalist of files that nobody opens."""
    folder = tmp_path / "data"
    cases = [{"image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz"} for name in "xyabc"]
    for case in cases:
        for name in case.values():
            folder.mkdir(exist_ok=True)
            (folder / name).touch()
    splits = {"training": cases[:1], "validation": cases[1:2], "test": cases[2:]}
    write_json(folder / "dataset.json", {"name": "none", "synthetic": True, **splits})
    return folder


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Mapping[str, Any], list[str]]]:
    """A bundle that trains at once: small organs come to 0.2, with a sampling by the rule to 0.5, the liver to 0.9."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(module, "voxel_classifier", lambda data, file: write_json(file, {"dice": VOXELS}))
    calls = []

    def bundle_run(bundle: Path, configs: list[str], log: Path, options: Mapping[str, Any], ranks: int = 1) -> None:
        folder: Path = options["output_dir"]
        calls.append((folder.name, log.stem, options, configs))
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "class_weights.csv", [{"evaluation": 1, "fired": 1}], ["evaluation", "fired"])
        small = 0.5 if "sampl" in folder.name else 0.2
        rows = [
            {"case": case, "organ": organ, "dice": 0.9 if organ == "liver" else small if organ in ORGANS else None}
            for case in reversed(CASES)
            for organ in BTCV_LABELS
        ]
        write_csv(folder / "evaluation" / "scores.csv", rows, ["case", "organ", "dice"])

    monkeypatch.setattr("experiments.runs.bundle_run", bundle_run)
    return calls


def test_a_screen_is_carried_on_from_its_results(tmp_path: Path, data: Path, started: list) -> None:
    results = tmp_path / "results.jsonl"
    options = {"results": str(results), "arms": ("plain", "cbs", "cbs_sampling")}
    small_organs(str(data), str(tmp_path / "out"), **options, seeds=1)
    assert [(run, step) for run, step, *_ in started] == [
        (f"{arm}_seed0", step) for arm in options["arms"] for step in ("train", "evaluate")
    ]
    started.clear()
    small_organs(str(data), str(tmp_path / "elsewhere"), **options, seeds=2)
    assert {run for run, *_ in started} == {f"{arm}_seed1" for arm in options["arms"]}
    started.clear()
    small_organs(str(data), str(tmp_path / "out"), **options, seeds=2, network="lambda3d")
    assert len(started) == 3 * 2 * 2
    head, *runs = (json.loads(line) for line in results.read_text().splitlines())
    assert head["cases"] == [*CASES]
    assert len(runs) == 1 + 12
    assert all({*KEY} <= run.keys() for run in runs)
    text = (tmp_path / "elsewhere" / "small_organs_unetr.md").read_text()
    assert "unetr on 3 test cases of none, 6 of 6 runs. cbs_sampling do what the protocol asks for" in text
    assert "| cbs_sampling | 2 | 0.500 (0.500 to 0.500) | 0.500 | 0.500 | 0.500 | 0.500 | 0 of 8 | 0.900" in text
    assert "| cbs_sampling | +0.300 [+0.300, +0.300] | +0.000 [+0.000, +0.000] | +0.300" in text
    assert "| voxel classifier |  | 0.300 | 0.300 |" in text
    assert imread(tmp_path / "elsewhere" / "small_organs_unetr.png").std() > 0.02
    with (tmp_path / "elsewhere" / "small_organs_unetr.csv").open() as file:
        rows = {(row["arm"], row["row"]): row for row in csv.DictReader(file)}
    assert rows["cbs_sampling", "small organs"]["minus_plain"] == "0.3"
    assert rows["cbs_sampling", "gallbladder"]["mean"] == "0.5"
    with pytest.raises(DataError, match=r"results\.jsonl: its runs differ from these in epochs"):
        small_organs(str(data), str(tmp_path / "out"), **options, epochs=3)


def test_each_finished_run_is_kept_at_once_and_an_incomplete_screen_has_no_verdict(
    tmp_path: Path, data: Path, started: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(path: Path) -> int:
        if len(started) >= 6:
            raise KeyboardInterrupt
        return count_firings(path)

    monkeypatch.setattr(module, "count_firings", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small_organs(str(data), str(tmp_path / "out"), seeds=1)
    kept = (tmp_path / "out" / "small_organs.jsonl").read_text().splitlines()
    assert [json.loads(line)["arm"] for line in kept[1:]] == ["cbs", "plain", ""]
    small_organs(str(data), str(tmp_path / "out"), seeds=1, budget_minutes=1e-9)
    said = capsys.readouterr().out
    assert "2 of 10 runs. **Incomplete: no verdict follows from it.**" in said
    assert "do what the protocol" not in said


def run(arm: str, seed: int, small: float, liver: float = 0.9) -> dict[str, Any]:
    dice = {organ: [small, small + 0.1] if organ in ORGANS else [liver, liver] for organ in BTCV_LABELS}
    return {"network": "unetr", "arm": arm, "seed": seed, "firings": 1, "minutes": 1.0, "resumed": False, "dice": dice}


def screen(arm: str, small: float, liver: float = 0.9) -> dict[str, dict[str, Any]]:
    runs = [run(base, seed, 0.2) for base in ("plain", "cbs") for seed in (0, 1)]
    return summarise([*runs, *(run(arm, seed, small, liver) for seed in (0, 1))], ("plain", "cbs", arm))


def test_minutes_are_those_of_trainings_that_were_not_interrupted() -> None:
    runs = [run("plain", seed, 0.2) | {"minutes": 9.0 - 8 * seed, "resumed": seed == 1} for seed in (0, 1)]
    assert summarise(runs, ("plain",))["plain"]["minutes"] == 9.0
    assert summarise(runs[1:], ("plain",))["plain"]["minutes"] is None


def test_the_voxel_classifier_of_other_data_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = []

    def fit(data: str, output: str) -> None:
        fitted.append(Path(data).name)
        Path(output).write_text(json.dumps({"dice": {"liver": len(fitted)}}))

    monkeypatch.setattr(module, "voxel_classifier", fit)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset.json").write_text(name)
    found = [module.voxel_scores(tmp_path / name, tmp_path, []) for name in ("a", "b", "a")]
    assert fitted == ["a", "b"]
    assert [dice["liver"] for dice in found] == [1, 2, 1]


def test_what_an_arm_has_to_do() -> None:
    assert verdict(screen("score_found", 0.3), VOXELS, True).endswith("the winner is score_found.")
    assert "no verdict" in verdict(screen("score_found", 0.3), VOXELS, False)
    assert verdict(screen("score_found", 0.1), VOXELS, True) == "No arm does what the protocol asks for."
    assert "winner" in verdict(screen("score_found", 0.3, liver=0.891), VOXELS, True)
    assert "No arm" in verdict(screen("score_found", 0.3, liver=0.88), VOXELS, True)
    lost = screen("score_found", 0.3)
    lost["score_found"]["dice"]["gallbladder"]["mean"] = 0.004
    assert "No arm" in verdict(lost, VOXELS, True)
    assert "winner" in verdict(lost, VOXELS | {"gallbladder": 0.05}, True)
    assert "nothing is compared" in verdict(summarise([run("plain", 0, 0.2)], ("plain",)), VOXELS, True)


def test_differences_are_of_the_same_seeds_and_cases() -> None:
    own = [run("cbs", seed, small) for seed, small in ((0, 0.4), (1, 0.6), (2, 0.9))]
    base = [run("plain", 0, 0.1), run("plain", 1, 0.2)]
    own[0]["dice"]["gallbladder"][0] = None  # not in the label
    base[0]["dice"]["gallbladder"][0] = None
    found = compare(own, base, ORGANS)
    assert found["difference"] == pytest.approx((0.3 + 0.4) / 2)
    assert found["interval"][0] == pytest.approx(0.3)
    assert found["interval"][1] == pytest.approx(0.4)
    assert compare(own[2:], base, ORGANS) is None


def test_organs_at_0_are_counted() -> None:
    runs = [run("plain", 0, 0.2), run("plain", 1, 0.2)]
    runs[1]["dice"]["gallbladder"] = [0.0, 0.009]
    assert summarise(runs, ("plain",))["plain"]["at_zero"] == 1


@pytest.mark.parametrize("network", NETWORKS)
def test_every_arm_names_overlays_that_exist(tmp_path: Path, data: Path, network: str) -> None:
    trainings = module.plan_trainings(network, tuple(ARMS), 1, data, tmp_path, "demo", 0)
    assert [training.facts["arm"] for training in trainings] == [*ARMS]
    for training in trainings:
        folder = BUNDLES / training.bundle
        assert all((folder / name).is_file() for name in training.training_configs)
        assert training.variants[:3] == SIZES["demo"]
        assert module.NETWORKS[network].small.items() <= training.options.items()
    full = module.plan_trainings(network, ("plain",), 1, data, tmp_path, "full", 0)
    assert {*full[0].options} == {"seed"}


@pytest.mark.parametrize(("arm", "kind"), [("cbs", DicePlainCELoss), ("log_dice", LogDiceCELoss)])
@pytest.mark.parametrize("network", NETWORKS)
def test_an_arm_has_the_loss_that_it_names(tmp_path: Path, data: Path, network: str, arm: str, kind: type) -> None:
    (training,) = module.plan_trainings(network, (arm,), 1, data, tmp_path, "demo", 0)
    parser = ConfigParser()
    parser.read_config([str(BUNDLES / training.bundle / name) for name in training.training_configs])
    parser.update(training.options)
    loss = parser.get_parsed_content("loss")
    assert type(loss) is kind
    assert loss.lambda_ce == 0.6


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
def test_arms_are_trained_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one without weights in the loss, and the one with most that is its own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(module, "voxel_classifier", lambda data, file: write_json(file, {"dice": VOXELS}))
    (tmp_path / "data").mkdir()
    ct_data(tmp_path / "data")  # with ids 1 and 2
    small_organs(
        str(tmp_path / "data"), str(tmp_path / "out"), arms=("sampling_alone", "score_surface"), seeds=1, epochs=2
    )
    _, *runs = (json.loads(line) for line in (tmp_path / "out" / "small_organs.jsonl").read_text().splitlines())
    trained = {run["arm"]: run for run in runs if run["arm"]}
    assert [*trained] == ["sampling_alone", "score_surface"]
    for run in trained.values():
        assert all(0 <= value <= 1 for organ in ("spleen", "right_kidney") for value in run["dice"][organ])
        assert run["dice"]["liver"] == [None, None]
    records = {
        arm: json.loads((tmp_path / "out" / "unetr" / f"{arm}_seed0" / "model.json").read_text()) for arm in trained
    }
    assert records["sampling_alone"]["sampling"] == "CropAroundClassesd"
    assert records["score_surface"]["reweighting_metric"] == "val_class_surface"
