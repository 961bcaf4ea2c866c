"""The abdominal bundles at work on small made-up volumes: train, resume, evaluate, infer, every variant, two ranks.

Their configs are the same but for the network (`test_abdominal_bundles.py`), so most runs here are of one bundle.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
import workflows
from commands import run
from dicom_files import write_series, write_slice
from matplotlib.image import imread
from monai.bundle import ConfigWorkflow
from workflows import BUNDLES, command, config_files, rows, scalars, torchrun

from shared.datasets.dicom_ct import write_ct_series
from shared.utils import data_error_message, write_json

UNETR, LAMBDA3D = BUNDLES / "abdominal_unetr_cbs", BUNDLES / "abdominal_lambda3d_cbs"
LABELS = {"liver": 1, "spleen": 2, "left_kidney": 3, "aorta": 4}
BOXES = {1: (slice(4, 16), slice(6, 24), slice(8, 24)), 2: (slice(26, 34), slice(6, 14), slice(10, 20))}
BOXES |= {3: (slice(24, 30), slice(4, 10), slice(22, 28)), 4: (slice(19, 22), slice(8, 11), slice(2, 30))}
SPACING = (5.0, 5.5, 6.0)
VARIANTS = sorted({path.stem for path in (UNETR / "configs" / "variants").glob("*.json")} - {"dicom"})
SPATIAL = {"_target_": "RandSpatialCropSamplesd", "keys": ["image", "label"], "roi_size": "@roi_size"}
SPATIAL |= {"num_samples": "@num_samples", "random_size": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six bodies with four box-shaped organs, stored in LPS, each a little different."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    cases = []
    for i in range(6):
        image, label = np.full((40, 34, 32), -1000.0), np.zeros((40, 34, 32), np.uint8)
        image[2:38, 2:30] = -90
        for value, box in BOXES.items():
            moved = tuple(slice(s.start + d, s.stop + d) for s, d in zip(box, rng.integers(-1, 2, 3), strict=True))
            label[moved], image[moved] = value, 40 + 50 * value
        image += rng.normal(0, 10, image.shape)
        affine = nib.affines.from_matvec(np.diag([-SPACING[0], -SPACING[1], SPACING[2]]), [90, 80, -100 + i])
        names = {"image": f"image_{i}.nii.gz", "label": f"label_{i}.nii.gz"}
        nib.save(nib.Nifti1Image(image.astype(np.int16), affine), folder / names["image"])
        nib.save(nib.Nifti1Image(label, affine), folder / names["label"])
        cases.append(names)
    splits = {"training": cases[:3], "validation": cases[3:4], "test": cases[4:]}
    write_json(folder / "dataset.json", {"name": "boxes", "synthetic": True, **splits})
    return folder


def workflow(
    configs: list[str], folder: Path, data: Path, bundle: Path = UNETR, variants: tuple[str, ...] = (), **options: Any
) -> ConfigWorkflow:
    labels = {"labels": LABELS} if configs == ["train"] else {}  # the weights' record says it afterwards
    options = {"dataset_dir": str(data), "output_dir": str(folder), "ckpt_dir": str(folder)} | labels | options
    options = {"num_workers": 0} | options | {"cache": "memory", "amp": False, "device": "$torch.device('cpu')"}
    names = [*configs, "variants/demo", *(f"variants/{name}" for name in variants)]
    return workflows.workflow(config_files(bundle, names), **options)


def train(folder: Path, data: Path, stop: int = 0, **options: Any) -> dict[str, Any]:
    quick = {"max_epochs": 3, "val_interval": 1, "warmup_epochs": 1, "learning_rate": 0.002, "num_samples": 1}
    return workflows.train(workflow(["train"], folder, data, **quick | options), stop)


@pytest.fixture(scope="module", params=[UNETR, LAMBDA3D], ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path, bundle: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(folder, data, bundle=bundle)
    return folder


def test_training_leaves_what_it_promises(trained: Path) -> None:
    for name in ("last.pt", "best.pt", "model.pt", "model.json", "dice_per_class.csv", "class_weights.csv"):
        assert (trained / name).is_file(), name
    assert imread(trained / "training.png").std() > 0.02
    assert list((trained / "tensorboard").iterdir())
    record = json.loads((trained / "model.json").read_text())
    assert record["synthetic"] is True
    assert record["labels"] == LABELS
    assert record["network_overlay"] == "configs/variants/demo.json"
    weights = rows(trained / "class_weights.csv")
    assert [row["class"] for row in weights[:4]] == list(LABELS)
    assert len(weights) == 3 * 4


@pytest.mark.parametrize(
    ("variants", "options"),
    [
        ((), {}),
        (("class_balanced_sampling",), {}),
        ((), {"sampling": SPATIAL, "batch_size": 3}),
        (("class_balanced_sampling",), {"sampling#indices_key": None, "batch_size": 3}),
        (("cbs_sampling",), {"batch_size": 3}),
    ],
)
def test_a_batch_holds_plain_tensors(
    tmp_path: Path, data: Path, variants: tuple[str, ...], options: dict[str, Any]
) -> None:
    """A MetaTensor would take every operation of the network through Python.

    Whatever `sampling` is: the voxels that crops may be centred on are of as many as there are in a case.
    """
    flow = workflow(["train"], tmp_path, data, variants=variants, num_samples=2, **options)
    batch = next(iter(flow.parser.get_parsed_content("train#dataloader")))
    assert [type(batch[key]) for key in ("image", "label")] == [torch.Tensor] * 2
    assert batch["image"].shape == batch["label"].shape == (2 * options.get("batch_size", 1), 1, 32, 32, 32)
    assert not [key for key in batch if "indices" in key]
    assert (batch["image"].dtype, batch["label"].dtype) == (torch.float32, torch.uint8)


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical(tmp_path: Path, data: Path, bundle: Path, trained: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, data, bundle=bundle, stop=5, num_workers=2)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["epoch"] == 1
    resumed = train(tmp_path, data, bundle=bundle, resume=True, num_workers=1)
    whole = torch.load(trained / "last.pt", weights_only=True)
    assert resumed.keys() == whole.keys()
    for key in ("model", "optimizer", "lr_scheduler", "report", "trainer", "evaluator"):
        torch.testing.assert_close(resumed[key], whole[key], rtol=0, atol=0, equal_nan=True, msg=key)
    for key in ("weights", "frozen", "scores", "fired"):
        torch.testing.assert_close(resumed["reweighting"][key], whole["reweighting"][key], rtol=0, atol=0)
    curves, before = (scalars(folder / "tensorboard") for folder in (tmp_path, trained))
    assert [step for step, _ in curves["train_loss"]] == list(range(1, len(curves["train_loss"]) + 1))
    assert repr(curves) == repr(before)  # a score may be NaN


@pytest.mark.slow
def test_a_resumed_run_crops_around_the_same_classes(tmp_path: Path, data: Path, bundle: Path) -> None:
    """With all that follows the rule: crops, cumulative weights, another score; and with workers or without."""
    variants = ("cbs_sampling", "score_found")
    options = {"bundle": bundle, "variants": variants, "reweighting_cumulative": True, "num_samples": 2}
    options |= {"reweighting_trigger": "stagnation", "reweighting_window": 1, "reweighting_tolerance": 1}
    whole = train(tmp_path / "whole", data, max_epochs=4, **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", data, max_epochs=4, stop=8, num_workers=2, **options)
    assert torch.load(tmp_path / "cut" / "last.pt", weights_only=True)["trainer"]["epoch"] == 2
    resumed = train(tmp_path / "cut", data, max_epochs=4, resume=True, num_workers=1, **options)
    assert whole["reweighting"]["fired"].sum() > 1
    assert whole["reweighting"]["weights"].max() > 2
    assert resumed["reweighting"].pop("rule") == whole["reweighting"].pop("rule") == "ClassBoostStrategy"
    for key in ("model", "optimizer", "reweighting"):
        torch.testing.assert_close(resumed[key], whole[key], rtol=0, atol=0, equal_nan=True, msg=key)
    assert whole["record"]["reweighting_metric"] == "val_class_found"
    with pytest.raises(RuntimeError) as error:
        train(tmp_path / "cut", data, resume=True, **options | {"reweighting_cumulative": False, "max_epochs": 4})
    assert "reweighting_cumulative was True, now it is False" in (data_error_message(error.value) or "")


def test_an_organ_in_no_training_case_is_said_and_training_goes_on(
    tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = {**LABELS, "gallbladder": 5}
    state = train(tmp_path, data, variants=("cbs_sampling",), max_epochs=2, labels=labels)
    assert state["trainer"]["epoch"] == 2
    said = [r.getMessage() for r in caplog.records if "No training case has a voxel of" in r.getMessage()]
    assert said == [
        "No training case has a voxel of gallbladder on the grid of the training: no crop is drawn around it."
    ]


def test_an_epoch_of_some_cases(tmp_path: Path, data: Path) -> None:
    """Seven of three cases, in batches of two."""
    state = train(tmp_path, data, max_epochs=1, batch_size=2, cases_per_epoch=7)
    assert (state["trainer"]["epoch_length"], state["record"]["cases_per_epoch"]) == (4, 7)
    with pytest.raises(RuntimeError) as error:
        train(tmp_path, data, max_epochs=1, batch_size=2, cases_per_epoch=8, resume=True)
    assert "cases_per_epoch was 7, now it is 8" in (data_error_message(error.value) or "")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains(tmp_path: Path, data: Path, variant: str) -> None:
    state = train(tmp_path, data, variants=(variant,), max_epochs=1)
    assert state["trainer"]["epoch"] == 1
    rules = {"plain": "Static", "prevalence": "Static", "tcf": "Threshold", "pcf": "Plateau"}
    assert state["reweighting"]["rule"].startswith(rules.get(variant, "ClassBoost"))
    assert len(state["reweighting"]["fired"]) == 1
    weights = state["reweighting"]["weights"]
    assert (weights.max() > 2 * weights.min()) == (variant == "prevalence")


def test_evaluation_scores_on_the_native_grid(tmp_path: Path, data: Path, bundle: Path, trained: Path) -> None:
    options = {"ckpt_path": str(trained / "model.pt"), "bootstrap": 20}
    flow = workflow(["train", "evaluate"], tmp_path, data, bundle, **options)
    flow.run()
    scores = rows(tmp_path / "evaluation" / "scores.csv")
    assert [(row["case"], row["organ"]) for row in scores] == [(c, o) for c in ("image_4", "image_5") for o in LABELS]
    voxel_ml = np.prod(SPACING) / 1000
    for row in scores:
        box = BOXES[LABELS[row["organ"]]]
        assert float(row["label_ml"]) == pytest.approx(np.prod([s.stop - s.start for s in box]) * voxel_ml, rel=1e-3)
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert set(summary["organs"]) == set(LABELS)


def test_inference_gives_label_maps_on_the_native_grid(tmp_path: Path, data: Path, bundle: Path, trained: Path) -> None:
    options = {"ckpt_path": str(trained / "model.pt"), "input": str(data / "dataset.json")}
    flow = workflow(["inference"], tmp_path, data, bundle, **options)
    flow.run()
    for case in ("image_4", "image_5"):
        seg = nib.load(tmp_path / case / f"{case}_seg.nii.gz")
        image = nib.load(data / f"{case}.nii.gz")
        assert seg.shape == image.shape
        assert seg.get_data_dtype() == np.uint8
        np.testing.assert_allclose(seg.affine, image.affine, atol=1e-6)
        organs = json.loads((tmp_path / case / "organs.json").read_text())
        for name, value in LABELS.items():
            inside = np.asarray(seg.dataobj) == value
            assert organs["organs"][name]["voxels"] == int(inside.sum())
            if inside.any():
                hu = organs["organs"][name]["hu_mean"]
                assert hu == pytest.approx(image.get_fdata()[inside].mean(), abs=0.06)
        assert "not for real scans" in organs["warning"]
        assert imread(tmp_path / case / "preview.png").std() > 0.05


def test_a_series_of_a_study_is_chosen(tmp_path: Path, data: Path, bundle: Path, trained: Path) -> None:
    """The result on DICOM is that on the same CT as NIfTI."""
    image = nib.load(data / "image_4.nii.gz")
    x, y, z = image.affine[:3, 3]
    grid = {"Rows": 34, "Columns": 40, "PixelSpacing": "5.5\\5", "SliceThickness": "6", "SeriesDescription": "portal"}
    for k, pixels in enumerate(np.moveaxis(np.asarray(image.dataobj), 2, 0)):
        values = {"pixels": (pixels.T + 1024).clip(0), "ImagePositionPatient": f"{-x:g}\\{-y:g}\\{z + 6 * k:g}"}
        write_slice(tmp_path / "study" / "a" / f"{k}", k, **values, **grid)
    write_series(tmp_path / "study" / "a", 5, name="b{}.dcm", SeriesInstanceUID="1.2.4", SeriesNumber="7")
    results = []
    for given, series in ((data / "image_4.nii.gz", ""), (tmp_path / "study", "Portal")):
        options = {"ckpt_path": str(trained / "model.pt"), "input": str(given), "series": series}
        workflow(["inference"], tmp_path / "out", data, bundle, **options).run()
        case = "a_2" if series else "image_4"
        results.append(nib.load(tmp_path / "out" / case / f"{case}_seg.nii.gz"))
    assert np.array_equal(*(np.asarray(seg.dataobj) for seg in results))
    np.testing.assert_allclose(results[0].affine, results[1].affine, atol=1e-5)
    organs = json.loads((tmp_path / "out" / "a_2" / "organs.json").read_text())
    assert (organs["study_uid"], organs["series_uid"]) == ("1.2.0", "1.2.3")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_2", "image_4"]


def test_dicom_objects_are_written_and_made_up_for(tmp_path: Path, data: Path, bundle: Path, trained: Path) -> None:
    image = nib.load(data / "image_4.nii.gz")
    write_ct_series(tmp_path / "in" / "scan", np.asanyarray(image.dataobj), image.affine, "P1")
    options = {"ckpt_path": str(trained / "model.pt"), "input": str(tmp_path / "in"), "output_dir": str(tmp_path)}
    workflow(["inference"], tmp_path, data, bundle, **options).run()
    case = tmp_path / "scan"
    assert [*case.glob("*.dcm")] == []
    options |= {"variants": ("dicom",), "skip_existing": True, "dicom": ["seg", "sr"]}
    for _ in range(2):  # what is there without objects is done again, and then no more
        flow = workflow(["inference"], tmp_path, data, bundle, **options)
        flow.run()
    assert flow.parser.get_parsed_content("evaluator").state.iteration == 0
    assert sorted(path.name for path in case.glob("*.dcm")) == ["seg.dcm", "sr.dcm"]
    made = pydicom.dcmread(case / "seg.dcm")
    said = json.loads((case / "organs.json").read_text())
    found = [name for name, organ in said["organs"].items() if organ["voxels"]]
    assert [segment.SegmentLabel for segment in made.SegmentSequence] == [name.replace("_", " ") for name in found]
    assert said["weights"] in made.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    assert "SYNTHETIC" in made.SeriesDescription
    assert (made.ManufacturerModelName, made.SoftwareVersions) == (bundle.name, "0.1.0")


def test_what_is_done_is_left_out_and_another_scan_s_result_kept(
    tmp_path: Path, data: Path, bundle: Path, trained: Path
) -> None:
    (tmp_path / "in").mkdir()
    for i in (4, 5):
        shutil.copy(data / f"image_{i}.nii.gz", tmp_path / "in")
    options = {"ckpt_path": trained / "model.pt", "output_dir": tmp_path / "out", "device": "cpu"}
    organs = {i: tmp_path / "out" / f"image_{i}" / "organs.json" for i in (0, 4, 5)}

    def infer(folder: Path, **more: Any) -> tuple[str, list[int]]:
        """What it said, and which cases it has written."""
        before = {i: path.stat().st_mtime_ns for i, path in organs.items() if path.exists()}
        files = config_files(bundle, ["inference", "variants/demo"])
        done = run(*command(files, input=folder, **options, **more), cwd=bundle)
        said = done.stdout + done.stderr
        return said, [i for i, path in organs.items() if path.exists() and path.stat().st_mtime_ns != before.get(i)]

    assert infer(tmp_path / "in")[1] == [4, 5]
    shutil.copy(data / "image_0.nii.gz", tmp_path / "in")
    organs[5].with_name("preview.png").unlink()
    said, written = infer(tmp_path / "in", skip_existing=True)
    assert "1 of 3 cases are done already" in said
    assert written == [0, 5]
    said, written = infer(tmp_path / "in", skip_existing=True, sw_overlap=0.5)
    assert written == [0, 4, 5]
    said, written = infer(tmp_path / "in", skip_existing=True, sw_overlap=0.5)
    assert "3 of 3 cases are done already" in said
    assert written == []
    (tmp_path / "other").mkdir()
    shutil.copy(data / "image_1.nii.gz", tmp_path / "other" / "image_4.nii.gz")
    shutil.move(tmp_path / "in" / "image_5.nii.gz", tmp_path / "other")
    said, written = infer(tmp_path / "other")
    assert "1 of 2 cases failed" in said
    assert f"{organs[4].parent}: holds the results of {tmp_path}/in/image_4.nii.gz, another image than" in said
    assert written == [5]


def test_ids_of_the_label_files_are_mapped_and_recorded(
    tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Label files with other ids, one of them too many, and other axes, train and score as those as they should be."""
    caplog.set_level("INFO")
    held = np.array([0, 5, 300, 7, 9, 70], np.uint16)
    ids = {"liver": 5, "spleen": [300], "left_kidney": 7, "aorta": 9}
    shutil.copytree(data, tmp_path / "data")
    for path in (tmp_path / "data").glob("label_*.nii.gz"):
        label = nib.load(path)
        values = np.asarray(label.dataobj).copy()
        values[:2] = 5  # where nothing is
        stored = nib.Nifti1Image(held[values], label.affine)
        turns = {"label_0.nii.gz": [[2, 1], [0, -1], [1, 1]], "label_4.nii.gz": [[0, -1], [1, 1], [2, 1]]}
        nib.save(stored.as_reoriented(np.array(turns[path.name])) if path.name in turns else stored, path)
    quick = {"variants": ("prevalence",), "max_epochs": 1}
    labels = {"Luft": 0} | LABELS
    own = train(tmp_path / "own", data, labels=labels, **quick)
    other = train(tmp_path / "other", tmp_path / "data", labels=labels, label_ids=ids, **quick)
    torch.testing.assert_close(own["model"], other["model"], rtol=0, atol=0)
    record = json.loads((tmp_path / "other" / "model.json").read_text())
    assert (record["labels"], record["label_ids"]) == (LABELS, ids)
    workflow(["train", "evaluate"], tmp_path / "own", data, bootstrap=1).run()
    workflow(["train", "evaluate"], tmp_path / "other", tmp_path / "data", bootstrap=1).run()
    scores = [(tmp_path / name / "evaluation" / "scores.csv").read_text() for name in ("own", "other")]
    assert scores[0] == scores[1]
    said = [message.partition("dataset.json: ")[2] for message in caplog.messages if "are reoriented" in message]
    assert [message.partition(" label maps")[0] for message in said] == ["1 of 4", "1 of 2"]
    assert "nothing else: label_4.nii.gz. Look" in said[1]


def test_the_grid_and_the_window_are_those_of_the_weights(tmp_path: Path, data: Path) -> None:
    settings = {"spacing": [7.0, 7.0, 7.0], "intensity_range": [-100.0, 300.0], "roi_size": [48, 48, 48]}
    train(tmp_path, data, max_epochs=1, **settings)
    for files in (["inference"], ["train", "evaluate"]):
        names = config_files(UNETR, [*files[:1], "variants/demo", *files[1:]])  # the overlay below the record
        options = {"ckpt_path": str(tmp_path / "model.pt"), "output_dir": str(tmp_path), "device": "cpu"}
        flow = workflows.workflow(names, dataset_dir=str(data), **options)
        taken = {key: flow.parser.get_parsed_content(key) for key in settings}
        assert taken == (settings if files[1:] else settings | {"spacing": [6.0] * 3, "roi_size": [32] * 3})
    with pytest.raises(RuntimeError) as error:
        workflow(["inference"], tmp_path, data, ckpt_path=str(tmp_path / "model.pt"), input=str(data)).run()
    assert "spacing is [6.0, 6.0, 6.0], these weights were trained with [7.0" in (data_error_message(error.value) or "")


@pytest.mark.parametrize("variant", ["unet3d", "dynunet"])
def test_another_network_evaluates_and_segments(tmp_path: Path, data: Path, variant: str) -> None:
    train(tmp_path, data, variants=(variant,), max_epochs=1)
    assert json.loads((tmp_path / "model.json").read_text())["network_overlay"] == f"configs/variants/{variant}.json"
    workflow(["train", "evaluate"], tmp_path, data, variants=(variant,), bootstrap=1).run()
    assert (tmp_path / "evaluation" / "scores.csv").is_file()
    options = {"ckpt_path": str(tmp_path / "model.pt"), "input": str(data / "image_4.nii.gz")}
    workflow(["inference"], tmp_path, data, variants=(variant,), **options).run()
    assert nib.load(tmp_path / "image_4" / "image_4_seg.nii.gz").shape == (40, 34, 32)


def test_weights_of_another_network_name_the_overlay(tmp_path: Path, data: Path, bundle: Path, trained: Path) -> None:
    options = {"ckpt_path": str(trained / "model.pt"), "input": str(data / "image_4.nii.gz")}
    for key, value, said in (
        ("network_def#feature_size", 4, "A setting of the network must differ"),
        ("network_overlay", "", "Add configs/variants/demo.json to --config_file."),
        ("bundle", "another", f"weights of {bundle.name} 0.1.0, this is another."),
    ):
        flow = workflow(["inference"], tmp_path, data, bundle, **options)
        flow.parser[key] = value
        flow.parser.parse(reset=True)
        with pytest.raises(RuntimeError) as error:
            flow.run()
        assert said in (data_error_message(error.value) or "")


WORKER = """
import json, sys
import torch
import torch.distributed as dist
from monai.bundle import ConfigWorkflow
options = json.loads(sys.argv[1])
flow = ConfigWorkflow(logging_file=False, **options)
flow.initialize()
flow.run()
state = [flow.parser.get_parsed_content("loss").class_weight]
state += list(flow.parser.get_parsed_content("network").parameters())
for tensor in state:
    both = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(both, tensor.detach().contiguous())
    assert torch.equal(*both), "the ranks differ"
iterations = flow.parser.get_parsed_content("train#trainer").state.iteration
with open(f"{options['output_dir']}/rank{dist.get_rank()}", "w") as file:
    file.write(str(iterations))
flow.finalize()
"""


@pytest.mark.slow
def test_two_ranks_train_and_stay_equal(tmp_path: Path, data: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    names = ("train", "multi_gpu_train", "variants/demo", "variants/tcf", "variants/cbs_sampling")
    options = {"config_file": config_files(UNETR, names), "labels": LABELS}
    options |= {"dataset_dir": str(data), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path), "num_workers": 0}
    options |= {"max_epochs": 2, "val_interval": 1, "num_samples": 1, "cache_dir": str(tmp_path / "cache")}
    result = torchrun(2, tmp_path / "worker.py", json.dumps(options))
    assert result.returncode == 0, result.stderr[-3000:]
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["4", "4"]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["epoch"] == 2


TRAIN = ["configs/train.json", "configs/variants/demo.json"]


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_to_resume_from(tmp_path: Path, data: Path) -> None:
    options = {"dataset_dir": data, "output_dir": tmp_path, "ckpt_dir": tmp_path, "num_workers": 1, "cache": "none"}
    options |= {"max_epochs": 500, "num_samples": 1}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command(TRAIN, labels=LABELS, **options)], cwd=UNETR, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + 120
            while "training [3/500]" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) != 0
        finally:
            process.kill()
    text = (tmp_path / "log").read_text()
    assert "go on with --resume true" in text
    assert "Traceback" not in text
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["epoch"] >= 2
    assert not list(tmp_path.glob(".writing*"))


@pytest.mark.slow
def test_bad_input_is_one_readable_line(tmp_path: Path, data: Path) -> None:
    bad = nib.load(data / "label_1.nii.gz")
    folder = tmp_path / "data"
    folder.mkdir()
    for file in data.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "label_1.nii.gz").unlink()
    nib.save(nib.Nifti1Image(np.asarray(bad.dataobj) + 3, bad.affine), folder / "label_1.nii.gz")
    options = {"dataset_dir": folder, "output_dir": tmp_path / "out", "ckpt_dir": tmp_path / "models"}
    result = run(*command(TRAIN, labels=LABELS, **options), cwd=UNETR)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    error = result.stderr[result.stderr.index("Error: ") :]
    assert "label_1.nii.gz" in error
    assert "5, 6, 7" in error
    assert not list(tmp_path.rglob("*.pt"))
