"""The classification bundle's configs at work on small made-up patches: train, resume, evaluate, infer, two ranks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import workflows
from commands import run
from matplotlib.image import imread
from monai.bundle import ConfigWorkflow
from PIL import Image
from safetensors.torch import save_file
from scipy.special import logit
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

from shared.data import source_digest
from shared.networks import StainNet, fusestyle_resnet
from shared.transforms import NormalizeStain
from shared.utils import write_json

BUNDLE = BUNDLES / "mitosis_fusestyle_cls"
COLOURS = {"XR": (225, 190, 215), "S360": (235, 200, 205), "CS": (200, 150, 190)}
SPLITS = {"training": range(3), "validation": range(3, 5), "test": range(5, 7)}
SIZE = 32
CHANNELS = "monai.networks.nets.resnet.get_inplanes"


@pytest.fixture(scope="module", autouse=True)
def narrow_network() -> Iterator[None]:
    """In this process a ResNet18 with an eighth of its channels: to write and read all is most of a training here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CHANNELS, lambda: [8, 16, 32, 64])
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of three scanners, seven slides each: a dark bar (mitotic) or a dark disc."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for scanner, colour in COLOURS.items():
        for split, slides in SPLITS.items():
            for slide in slides:
                for i in range(4):
                    image = rng.normal(colour, 6, (SIZE, SIZE, 3))
                    label = i % 2
                    dx, dy = rng.uniform(-2, 2, 2)
                    shape = (abs(x - dx) < 3) & (abs(y - dy) < 11) if label else np.hypot(x - dx, y - dy) < 6.5
                    image[shape] -= (110, 120, 60)
                    name = f"{scanner}/{slide}_{i}.png"
                    (folder / scanner).mkdir(exist_ok=True)
                    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name)
                    entry = {"image": name, "label": label, "domain": scanner, "slide": f"{scanner}_{slide}"}
                    splits[split].append(entry | ({"stylized": "copy.png"} if split == "training" else {}))
    Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(folder / "copy.png")
    labels = {"0": "non_mitotic", "1": "mitotic"}
    splits["ood_validation"] = [entry for entry in splits["validation"] if entry["domain"] == "S360"]
    write_json(folder / "dataset.json", {"name": "bars", "synthetic": True, "labels": labels, **splits})
    return folder


def workflow(configs: list[str], folder: Path, data: Path, **options: Any) -> ConfigWorkflow:
    options = {"dataset_dir": str(data), "output_dir": str(folder), "ckpt_dir": str(folder)} | options
    options = {"num_workers": 0} | options | {"amp": False, "device": "$torch.device('cpu')"}
    return workflows.workflow(config_files(BUNDLE, [*configs, "variants/demo"]), **options)


QUICK = {"max_epochs": 3, "learning_rate": 0.001, "batch_size": 12, "crop_size": SIZE, "patch_size": 40}
QUICK |= {"train_domains": ["XR", "CS"]}
PLAIN = ("BCEWithLogitsLoss", "None", "DomainTrainer")
EXPECTED = {  # loss, mixing and trainer of a method, as the record has them
    "coral": ("CORALLoss", *PLAIN[1:]),
    "domain_adversarial": ("DomainAdversarialLoss", *PLAIN[1:]),
    "domain_mix": (PLAIN[0], "DomainMix(alpha=2.0)", PLAIN[2]),
    "fish": (*PLAIN[:2], "FishTrainer"),
    "group_dro": ("GroupDROLoss", *PLAIN[1:]),
    "ib_irm": ("IBIRMLoss", *PLAIN[1:]),
    "lisa": (PLAIN[0], "LISA(alpha=2.0, p_sel=0.5)", PLAIN[2]),
    "vrex": ("VRExLoss", *PLAIN[1:]),
}


def train(folder: Path, data: Path, variants: tuple[str, ...] = (), stop: int = 0, **options: Any) -> dict[str, Any]:
    names = ["train", *(f"variants/{v}" for v in variants)]
    return workflows.train(workflow(names, folder, data, **QUICK | options), stop)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(folder, data, max_epochs=6, learning_rate=0.005)
    return folder


def test_training_leaves_what_it_promises(trained: Path) -> None:
    assert check_histology_training(trained, 6, "val_auc")["crop_size"] == SIZE


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical(tmp_path: Path, data: Path) -> None:
    train(tmp_path / "whole", data, num_workers=2)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, data, stop=3)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["epoch"] == 1
    train(tmp_path, data, resume=True)
    check_same_histology_training(tmp_path, tmp_path / "whole")


def test_another_set_up_does_not_resume_a_run(tmp_path: Path, data: Path) -> None:
    """A scanner that was trained on would count as held out."""
    train(tmp_path, data, max_epochs=1)
    with pytest.raises(RuntimeError) as error:
        train(tmp_path, data, max_epochs=1, resume=True, train_domains=["XR", "S360"], crop_size=30)
    assert "crop_size was 32, now it is 30; " in message(error.value)
    assert "train_domains was ['CS', 'XR'], now it is ['S360', 'XR']" in message(error.value)


@pytest.mark.slow
def test_the_held_out_scanner_steers_nothing(tmp_path: Path, data: Path) -> None:
    """Without its images, and with its labels turned round, the very same weights and threshold come out."""
    changed = tmp_path / "data"
    shutil.copytree(data, changed, ignore=shutil.ignore_patterns("S360"))
    content = json.loads((data / "dataset.json").read_text())
    for split in SPLITS:
        content[split] = [e | {"label": 1 - e["label"]} if e["domain"] == "S360" else e for e in content[split]]
    write_json(changed / "dataset.json", content)
    states = [train(tmp_path / name, source) for name, source in (("with", data), ("without", changed))]
    torch.testing.assert_close(states[0]["model"], states[1]["model"], rtol=0, atol=0)
    files = [[(tmp_path / name / file).read_bytes() for file in ("threshold.json", "model.json", "training.csv")]
             for name in ("with", "without")]  # fmt: skip
    assert files[0] == files[1]


VARIANTS = sorted({p.stem for p in (BUNDLE / "configs" / "variants").glob("*.json")}.difference(EXPECTED))


@pytest.mark.parametrize("method", EXPECTED)
def test_a_method_trains_and_resumes(tmp_path: Path, data: Path, method: str) -> None:
    """In steps of 6 a run has 12, of which 2 are its warm-up; the domains of each differ in colour alone."""
    variants, options = (method, "stain_jitter"), {"batch_size": 6, "max_epochs": 2}
    whole = train(tmp_path / "whole", data, variants, **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", data, variants, stop=6, **options)
    resumed = train(tmp_path / "parts", data, variants, resume=True, **options)
    for key in ("model", "loss", "optimizer", "report"):
        torch.testing.assert_close(resumed[key], whole[key], rtol=0, atol=0, msg=key)
    record = json.loads((tmp_path / "whole" / "model.json").read_text())
    assert record["fusestyle_places"] == []
    assert (record["loss"], record["mixing"], record["trainer"]) == EXPECTED[method]
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path / "parts", data, ("no_fusestyle",), balance_domains=True, resume=True, **options)
    assert re.search("other settings: .*(loss|mixing|trainer) was", workflows.message(caught.value))


@pytest.mark.parametrize("method", EXPECTED)
def test_a_method_says_that_it_needs_several_domains(tmp_path: Path, data: Path, method: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path, data, (method,), train_domains=["XR"])
    assert re.search(r"needs two or more domains to train on, found \['XR'\]", workflows.message(caught.value))
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains(tmp_path: Path, data: Path, trained: Path, variant: str) -> None:
    options: dict[str, Any] = {"max_epochs": 1}
    if variant == "pretrained":
        weights = torch.load(trained / "model.pt", weights_only=True)
        save_file({f"backbone.{k}": v for k, v in weights.items()}, tmp_path / "pretrained.safetensors")
        options |= {"pretrained": str(tmp_path / "pretrained.safetensors"), "learning_rate": 0.0}
    if variant == "stainnet":
        torch.save(StainNet().state_dict(), tmp_path / "stainnet.pt")
        options |= {"stain_weights": str(tmp_path / "stainnet.pt")}
    state = train(tmp_path, data, variants=(variant,) if variant != "demo" else (), **options)
    assert state["trainer"]["epoch"] == 1
    if variant == "pretrained":
        torch.testing.assert_close(state["model"]["layer3.0.conv1.weight"], weights["layer3.0.conv1.weight"])
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["stain_jitter"] == (variant == "stain_jitter")
    assert record["stain_norm"] == {"stain_norm": "macenko", "stainnet": "stainnet"}.get(variant)
    assert (record["pretrained"] is not None) == (variant == "pretrained")
    assert record["network_overlay"] == "configs/variants/demo.json"
    ours = ("ood_validation", ["S360"], "val_accuracy", "SGD")
    chosen = ours if variant == "wilds" else ("validation", ["CS", "XR"], "val_auc", "Adam")
    assert tuple(record[key] for key in ("val_split", "val_domains", "key_metric", "optimizer")) == chosen
    assert chosen[2] in record
    shallow = {key: [1, 2] for key in ("shallow", "style", "extrapolated", "dsu")}
    places = {**shallow, "no_fusestyle": [], "strap": []}.get(variant, [1, 4])
    assert record["fusestyle_places"] == places
    assert record["style_layer"].startswith("DSU(p=0.5, floor=0.2)" if variant == "dsu" else "FuseStyle(p=0.5, alpha=")


def test_copies_in_other_styles_are_drawn_alike_in_a_run_that_is_resumed(tmp_path: Path, data: Path) -> None:
    options = {"max_epochs": 2, "stylized_p": 0.5}
    whole = train(tmp_path / "whole", data, ("strap",), **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", data, ("strap",), stop=3, **options)
    resumed = train(tmp_path / "parts", data, ("strap",), resume=True, **options)
    torch.testing.assert_close(resumed["model"], whole["model"], rtol=0, atol=0)
    assert json.loads((tmp_path / "whole" / "model.json").read_text())["stylized_p"] == 0.5
    never = train(tmp_path / "never", data, ("strap",), **options | {"stylized_p": 0.0})
    assert never["report"]["rows"] != whole["report"]["rows"]
    with pytest.raises(RuntimeError) as error:
        train(tmp_path / "parts", data, ("strap",), resume=True, **options | {"stylized_p": 1.0})
    assert "stylized_p was 0.5, now it is 1.0" in message(error.value)


def test_an_image_without_a_copy_is_told_before_the_run(tmp_path: Path, data: Path) -> None:
    content = json.loads((data / "dataset.json").read_text())
    del content["training"][5]["stylized"]
    write_json(data / "lacking.json", content)
    with pytest.raises(RuntimeError) as error:
        train(tmp_path, data, ("strap",), datalist=str(data / "lacking.json"))
    assert "1 of the 24 patches of 'training' name no copy in another style" in message(error.value)
    assert not (tmp_path / "model.pt").exists()


def test_balanced_batches(tmp_path: Path, data: Path) -> None:
    flow = workflow(["train"], tmp_path, data, **QUICK | {"balance_domains": True})
    batches = list(flow.parser.get_parsed_content("train#dataloader"))
    assert len(batches) == 2
    for batch in batches:
        assert sorted(batch["domain"]) == ["CS"] * 6 + ["XR"] * 6
        assert (batch["image"].shape, batch["image"].dtype) == ((12, 3, 40, 40), torch.float32)
        assert [type(batch[key]) for key in ("image", "label")] == [torch.Tensor] * 2


@pytest.mark.parametrize(("adapted", "rate"), [(False, None), (True, 0.5)])
def test_evaluation_knows_the_scanners(
    tmp_path: Path, data: Path, trained: Path, adapted: bool, rate: float | None
) -> None:
    options = {"ckpt_path": str(trained / "model.pt"), "bootstrap": 20, "adapt_batch_norm": adapted}
    options["positive_rate"] = rate
    flow = workflow(["train", "evaluate"], tmp_path, data, **options)
    flow.run()
    scores = {row["domain"]: row for row in rows(tmp_path / "evaluation" / "scores.csv")}
    assert {name: scores[name]["distribution"] for name in COLOURS} == {"XR": "in", "CS": "in", "S360": "out"}
    assert {scores[name]["patches"] for name in COLOURS} == {"8"}
    assert min(float(scores[name]["auc"]) for name in ("XR", "CS")) > 0.9  # bars and discs can be told apart
    assert imread(tmp_path / "evaluation" / "report.png").std() > 0.05
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert summary["warnings"]
    predictions = {row["case"]: row for row in rows(tmp_path / "evaluation" / "predictions.csv")}
    assert len(predictions) == 24
    assert set(summary.get("logit_shifts", ())) == (set() if rate is None else set(COLOURS))
    assert summary.get("positive_rate") == rate


def test_inference_says_what_evaluation_says(tmp_path: Path, data: Path, trained: Path) -> None:
    options = {"ckpt_path": str(trained / "model.pt"), "bootstrap": 1}
    workflow(["train", "evaluate"], tmp_path, data, **options).run()
    evaluated = {row["case"]: row["probability"] for row in rows(tmp_path / "evaluation" / "predictions.csv")}
    inputs = tmp_path / "inputs"
    shutil.copytree(data / "XR", inputs / "XR")
    Image.new("L", (SIZE, SIZE)).save(inputs / "grey.png")
    flow = workflow(["inference"], tmp_path / "out", data, ckpt_path=options["ckpt_path"], input=str(inputs))
    with pytest.raises(RuntimeError) as error:
        flow.run()
    assert message(error.value).startswith("1 of 29 images failed:")
    assert "grey.png: found a grey image" in message(error.value)
    predicted = {row["case"]: row for row in rows(tmp_path / "out" / "predictions.csv")}
    assert len(predicted) == 28
    for case, probability in evaluated.items():
        if case.startswith("XR"):
            assert float(predicted[case]["probability"]) == pytest.approx(float(probability), abs=1e-5)
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert "not for real" in content["warning"]
    assert content["failed"][0]["case"] == "grey.png"


def test_stains_are_normalised_all_the_way(tmp_path: Path, data: Path) -> None:
    """By the slide where it is known, else by the image; evaluation and inference go by the record of the weights."""
    reference = str(data / "XR" / "0_0.png")
    train(tmp_path, data, ("stain_norm",), max_epochs=1, stain_norm="reinhard", stain_reference=reference)
    record = json.loads((tmp_path / "model.json").read_text())
    kept = json.loads((tmp_path / "stain_fits.json").read_text())
    assert (kept["method"], kept["reference"]) == (record["stain_norm"], record["stain_reference"])
    slides = sorted((domain, f"{domain}_{slide}") for domain in ("CS", "XR") for slide in range(5))
    assert sorted((fit["domain"], fit["slide"]) for fit in kept["fits"]) == slides
    own = next(fit for fit in kept["fits"] if fit["slide"] == "CS_1")
    slide = [data / "CS" / f"1_{i}.png" for i in range(4)]
    fit = NormalizeStain("reinhard", reference).fit(slide)
    assert (tuple(own["mean"]), tuple(own["std"])) == (fit.mean, fit.std)
    weights = {"ckpt_path": str(tmp_path / "model.pt")}

    workflow(["train", "evaluate"], tmp_path, data, bootstrap=1, **weights).run()
    kept = json.loads((tmp_path / "evaluation" / "stain_fits.json").read_text())
    assert kept["reference"] == record["stain_reference"]
    assert sorted({fit["domain"] for fit in kept["fits"]}) == sorted(COLOURS)
    assert sorted({fit["slide"][-1] for fit in kept["fits"]}) == ["5", "6"]

    inputs = tmp_path / "inputs"
    shutil.copytree(data / "XR", inputs)
    Image.new("RGB", (SIZE, SIZE), (90, 90, 90)).save(inputs / "grey.png")
    with pytest.raises(RuntimeError) as error:
        workflow(["inference"], tmp_path / "out", data, input=str(inputs), **weights).run()
    assert message(error.value).startswith("1 of 29 images failed:")
    assert "grey.png: 0 pixels have the colour of tissue" in message(error.value)
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    row = next(row for row in content["predictions"] if row["case"] == "1_2.png")
    alone = NormalizeStain("reinhard").fit([inputs / "1_2.png"])
    assert (tuple(row["stain_fit"]["mean"]), tuple(row["stain_fit"]["std"])) == (alone.mean, alone.std)
    assert content["settings"]["stain_norm"] == "reinhard"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"stain_norm": "macenko"}, "stain_norm is macenko, these weights were trained with None"),
        ({"stain_norm": "stainnet", "stain_weights": "none.pt"}, "none.pt: .*--stain_weights"),
        ({"stain_norm": "reinhard", "stain_reference": {"mean": [1, 2]}}, "is no fit of reinhard"),
    ],
)
def test_stains_other_than_those_of_the_training_are_refused(
    tmp_path: Path, data: Path, trained: Path, options: dict[str, Any], expected: str
) -> None:
    flow = workflow(["inference"], tmp_path, data, ckpt_path=str(trained / "model.pt"), input=str(data), **options)
    with pytest.raises(RuntimeError) as error:
        flow.run()
    assert re.search(expected, message(error.value))


def test_other_weights_of_stainnet_are_refused(tmp_path: Path, data: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.pt", "b.pt")]
    for path in paths:
        torch.save(StainNet().state_dict(), path)
    train(tmp_path, data, ("stainnet",), max_epochs=1, stain_weights=paths[0])
    options = {"ckpt_path": str(tmp_path / "model.pt"), "input": str(data / "XR")}
    workflow(["inference"], tmp_path / "out", data, stain_weights=paths[0], **options).run()
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert content["settings"]["stain_reference"] == {"weights": source_digest(paths[0])}
    with pytest.raises(RuntimeError) as error:
        workflow(["inference"], tmp_path / "other", data, stain_weights=paths[1], **options).run()
    assert "b.pt: these are other weights of StainNet" in message(error.value)


def test_inference_leaves_out_what_is_done(
    tmp_path: Path, data: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CHANNELS, lambda: [64, 128, 256, 512])  # as the command makes it
    for record in ("model.json", "threshold.json"):
        shutil.copy(trained / record, tmp_path)
    torch.save(fusestyle_resnet("resnet18").state_dict(), tmp_path / "model.pt")
    options = {
        "ckpt_path": tmp_path / "model.pt",
        "output_dir": tmp_path / "out",
        "device": "cpu",
        "skip_existing": True,
    }

    def infer(**more: Any) -> str:
        done = run(*command_line("inference", input=tmp_path / "in", **options | more), cwd=BUNDLE)
        return done.stdout + done.stderr

    shutil.copytree(data / "XR", tmp_path / "in" / "XR")
    shutil.copytree(data / "CS", tmp_path / "in" / "CS")
    infer()
    before = rows(tmp_path / "out" / "predictions.csv")
    assert len(before) == 56
    shutil.copytree(data / "S360", tmp_path / "in" / "S360")
    assert "56 of 84 cases are done already" in infer()
    after = rows(tmp_path / "out" / "predictions.csv")
    assert after[:56] == before
    assert len({row["case"] for row in after}) == 84
    assert "threshold is" in infer(threshold=0.123)
    for used in ({"adapt_batch_norm": True}, {"positive_rate": 0.3}):
        assert f"{next(iter(used))} takes its statistics from all images" in infer(**used)
    assert rows(tmp_path / "out" / "predictions.csv") == after


def test_inference_adapts_to_the_images_at_hand(tmp_path: Path, data: Path, trained: Path) -> None:
    options = {"ckpt_path": str(trained / "model.pt"), "input": str(data / "S360")}
    found = []
    for i, more in enumerate(({}, {"adapt_batch_norm": True}, {"positive_rate": 0.25})):
        workflow(["inference"], tmp_path / str(i), data, **options, **more).run()
        found.append([float(row["probability"]) for row in rows(tmp_path / str(i) / "predictions.csv")])
    assert len(found[0]) == 28
    assert found[0] != pytest.approx(found[1], abs=1e-3)
    told = json.loads((tmp_path / "2" / "predictions.json").read_text())
    assert told["settings"]["positive_rate"] == 0.25
    shift = {row["logit_shift"] for row in told["predictions"]}
    assert [logit(p) - logit(q) for p, q in zip(found[2], found[0], strict=True)] == pytest.approx(
        [*shift] * 28, abs=1e-3
    )


def test_a_missing_threshold_is_one_half_with_a_warning(
    tmp_path: Path, data: Path, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("model.pt", "model.json"):
        shutil.copy(trained / name, tmp_path / name)
    options = {"ckpt_path": str(tmp_path / "model.pt"), "input": str(data / "XR")}
    workflow(["inference"], tmp_path / "out", data, **options).run()
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["threshold"] == 0.5
    assert "threshold.json" in caplog.text


def test_weights_of_other_classes_are_refused(tmp_path: Path, data: Path, trained: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    content = json.loads((data / "dataset.json").read_text())
    write_json(tmp_path / "data" / "dataset.json", content | {"labels": {"0": "normal", "1": "atypical"}})
    flow = workflow(["train", "evaluate"], tmp_path, tmp_path / "data", ckpt_path=str(trained / "model.pt"))
    with pytest.raises(RuntimeError) as error:
        flow.run()
    assert "labels is {'normal': 0, 'atypical': 1}, these weights were trained with" in message(error.value)


def command_line(*configs: str, **options: Any) -> list[str]:
    return command(config_files(BUNDLE, [*configs, "variants/demo"]), **options)


@pytest.mark.slow
@pytest.mark.parametrize("balance", [False, True])
def test_two_ranks_train_and_evaluate(tmp_path: Path, data: Path, balance: bool) -> None:
    places = {"dataset_dir": data, "output_dir": tmp_path, "ckpt_dir": tmp_path, "num_workers": 0}
    # a rank's share of the 24 patches is less than a batch
    options = {**places, **QUICK, "max_epochs": 2, "balance_domains": balance, "batch_size": 16}
    result = torchrun(2, *command_line("train", "multi_gpu_train", **options), cwd=BUNDLE)
    assert result.returncode == 0, result.stderr[-3000:]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["epoch"] == 2
    result = torchrun(2, *command_line("train", "evaluate", "multi_gpu_evaluate", **places, bootstrap=1), cwd=BUNDLE)
    assert result.returncode == 0, result.stderr[-3000:]
    both = rows(tmp_path / "evaluation" / "predictions.csv")
    run(*command_line("train", "evaluate", **places, bootstrap=1), cwd=BUNDLE).check_returncode()
    alone = rows(tmp_path / "evaluation" / "predictions.csv")
    assert [row["case"] for row in both] == [row["case"] for row in alone]
    for ours, theirs in zip(both, alone, strict=True):
        assert float(ours["probability"]) == pytest.approx(float(theirs["probability"]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"train_domains": "['XR','GT450']"}, "there is no domain GT450. Known: CS, S360, XR"),
        ({"crop_size": 64}, "smaller than the patch of 64 × 64"),
    ],
)
def test_bad_input_is_one_readable_line(tmp_path: Path, data: Path, options: dict[str, Any], expected: str) -> None:
    places = {"dataset_dir": data, "output_dir": tmp_path / "out", "ckpt_dir": tmp_path / "models", "num_workers": 0}
    result = run(*command_line("train", **{**places, **QUICK, **options}), cwd=BUNDLE)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert expected in result.stderr[result.stderr.index("Error: ") :]
    assert not list(tmp_path.rglob("*.pt"))
