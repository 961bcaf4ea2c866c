"""The bundles on several processes: fewer cases than ranks, a rank that ends early, inference that is shared out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import PYTHON, run
from monai.bundle import ConfigParser, ConfigWorkflow
from small_runs import (
    CLASSIFY,
    DETECT,
    ORGANS,
    QUICK,
    SEGMENT,
    SIZE,
    SMALL,
    configs_of,
    ct_data,
    histology_data,
    training,
)
from workflows import BUNDLES, command, config_files, message, rows, torchrun, workflow

from shared.reports.provenance import LEAKAGE, LEAKAGE_IN_TRAINING
from shared.utils import lock_folder, unlock_folder, write_json


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each bundle a data set whose splits have two cases each."""
    folders = {name: tmp_path_factory.mktemp(name) for name in (SEGMENT, CLASSIFY, DETECT)}
    ct_data(folders[SEGMENT])
    histology_data(folders[CLASSIFY], SIZE, 2, boxes=False)
    histology_data(folders[DETECT], 128, 2, boxes=True)
    return folders


@pytest.mark.parametrize("bundle", [SEGMENT, CLASSIFY, DETECT])
def test_what_training_sees_is_not_scored(bundle: str, data: dict[str, Path], tmp_path: Path) -> None:
    content = json.loads((data[bundle] / "dataset.json").read_text())
    for split in ("training", "validation", "test"):
        for entry in content[split]:
            entry |= {key: str(data[bundle] / entry[key]) for key in ("image", "label") if isinstance(entry[key], str)}
    content["test"][0] = content["training"][0]
    write_json(tmp_path / "list.json", content)
    options = training(bundle, data, tmp_path / "run", datalist=str(tmp_path / "list.json"))
    for names in (["train"], ["train", "evaluate"]):
        done = run(*command(config_files(BUNDLES / bundle, [*names, "variants/demo"]), **options))
        assert done.returncode == 1
        assert re.search(r"Error: \S+list\.json: .* of 'training' are in 'test', .*--allow_leakage true", done.stderr)
        assert not list((tmp_path / "run").glob("[!.]*"))
    quick = {"max_epochs": 1, "allow_leakage": True}
    done = run(*command(config_files(BUNDLES / bundle, ["train", "variants/demo"]), **options | quick))
    assert done.returncode == 0, done.stderr
    (leak,) = json.loads((tmp_path / "run" / "model.json").read_text())["leakage"]
    assert done.stderr.count(leak) + done.stdout.count(leak) == 1
    files = config_files(BUNDLES / bundle, ["train", "evaluate", "variants/demo"])
    places = {key: value for key, value in options.items() if key not in QUICK[bundle]} | {"bootstrap": 10}
    done = run(*command(files, **places, allow_leakage=True))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "evaluation" / "summary.json").read_text())
    assert summary["dataset"]["leakage"] == [leak]
    assert summary["warnings"][-2:] == [LEAKAGE, LEAKAGE_IN_TRAINING]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained weights for each bundle, with a record."""
    files = {}
    for name, small in SMALL.items():
        parser = ConfigParser()
        parser.read_config(configs_of(name, ["train"]))
        parser.update(small)
        torch.manual_seed(1)
        state = parser.get_parsed_content("network_def").state_dict()
        # untrained, they would see background alone
        if name == SEGMENT:
            state["out.conv.conv.bias"][0] = -9
        if name == DETECT:
            state["head.classification_head.cls_logits.bias"][:] = 0
        files[name] = tmp_path_factory.mktemp("weights") / "model.pt"
        torch.save(state, files[name])
        labels = ORGANS if name == SEGMENT else {"non_mitotic": 0, "mitotic": 1}
        write_json(files[name].with_suffix(".json"), {"name": "nothing", "synthetic": True, "labels": labels})
    return files


def alone(bundle: str, configs: list[str], **options: Any) -> ConfigWorkflow:
    """A workflow in this process."""
    return workflow(configs_of(bundle, configs), **options)


# Runs the workflows that it is told to, one after the other, in one process group.
WORKER = """
import json, os, signal, subprocess, sys, time
import torch, torch.distributed as dist
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from shared.handlers import training_checkpoint
from shared.utils import leave_process_group, rank_watch

def refuse(path):
    raise AssertionError(f"another rank than the first writes {path}")

def end(engine):
    os.kill(os.getpid(), signal.SIGKILL)

def stop(*arguments):
    watch, said = rank_watch._watch, rank_watch._watch.ticks
    while watch.ticks < said + 2:  # until the others have been told where this rank is
        time.sleep(0.1)
    # torchrun would wait for half a minute until it kills this process
    subprocess.Popen(["sh", "-c", f"sleep 12; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1)  # the signal may reach another thread first

for job in json.loads(sys.argv[1]):
    flow = ConfigWorkflow(config_file=job["files"], logging_file=False, **job["options"])
    flow.parser["finalize"] = []
    flow.initialize()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if rank > 0:
        training_checkpoint.atomic_path = refuse
    if rank == job.get("killed"):
        trainer = flow.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=job["iteration"]), end)
    if rank == 1 and job.get("stopped") == "training":
        trainer = flow.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=job["iteration"]), stop)
    if rank == 1 and job.get("stopped") == "preprocessing":
        sys.modules["shared.data.cached_dataset"]._DiskCacheDataset._pre_transform = stop
    flow.run()
    metrics = flow.parser.get_parsed_content("validate#evaluator").state.metrics
    metrics = {name: torch.as_tensor(value).tolist() for name, value in metrics.items()}
    parameters = [p.detach().double().sum().item() for p in flow.parser.get_parsed_content("network").parameters()]
    loss_weights = [b.tolist() for b in flow.parser.get_parsed_content("loss").buffers()]
    found = [None] * ranks
    dist.all_gather_object(found, repr((metrics, parameters, loss_weights)))
    assert len(set(found)) == 1, f"the ranks differ: {found}"
    if rank == 0:
        with open(job["options"]["output_dir"] + "/metrics.json", "w") as file:
            json.dump(metrics, file)
leave_process_group()
"""


def work(ranks: int, jobs: list[dict[str, Any]], folder: Path, python: str = PYTHON) -> CompletedProcess[str]:
    (folder / "worker.py").write_text(WORKER)
    return torchrun(ranks, str(folder / "worker.py"), json.dumps(jobs), cwd=folder, python=python)


def job(bundle: str, configs: list[str], **options: Any) -> dict[str, Any]:
    return {"files": configs_of(bundle, configs), "options": options}


def number(text: str) -> Any:
    """What a cell of a table holds, to compare with."""
    try:
        return pytest.approx(float(text), abs=1e-5)
    except ValueError:
        return text


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


def same(folder: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    return contents(folder) == contents(other)


@pytest.mark.slow
def test_more_ranks_than_cases_give_what_one_process_gives(
    tmp_path: Path, data: dict[str, Path], weights: dict[str, Path]
) -> None:
    """Three ranks on two cases for training, two for validation and two for the test."""
    jobs, evaluation = [], {}
    for bundle in data:
        folder = tmp_path / bundle
        options = training(bundle, data, folder)
        jobs.append(job(bundle, ["train", "multi_gpu_train"], **options))
        evaluation[bundle] = {k: v for k, v in options.items() if k not in QUICK[bundle] or k.endswith("tile_size")}
        evaluation[bundle] |= {"ckpt_path": str(weights[bundle]), "bootstrap": 1}
        jobs.append(job(bundle, ["train", "evaluate", "multi_gpu_evaluate"], **evaluation[bundle]))
        jobs[-1]["options"] = {**jobs[-1]["options"], "output_dir": str(folder / "ranks")}
    for options in (j["options"] for j in jobs):
        Path(options["output_dir"]).mkdir(parents=True)
    result = work(3, jobs, tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]

    for bundle in data:
        folder = tmp_path / bundle
        assert torch.load(folder / "last.pt", weights_only=True)["trainer"]["epoch"] == 2
        again = {"output_dir": str(tmp_path / "again" / bundle), "ckpt_dir": str(tmp_path / "again" / bundle)}
        flow = alone(bundle, ["train"], **training(bundle, data, folder, **again))
        last = torch.load(folder / "last.pt", weights_only=True)["model"]
        flow.parser.get_parsed_content("network").load_state_dict(last)
        evaluator = flow.parser.get_parsed_content("validate#evaluator")
        evaluator.run()
        of_ranks = json.loads((folder / "metrics.json").read_text())
        assert of_ranks.keys() == evaluator.state.metrics.keys()
        for name, value in evaluator.state.metrics.items():
            np.testing.assert_allclose(of_ranks[name], np.asarray(value), rtol=1e-4, atol=1e-5, err_msg=name)

        alone(bundle, ["train", "evaluate"], **evaluation[bundle] | {"output_dir": str(folder / "alone")}).run()
        table = "predictions.csv" if bundle == CLASSIFY else "scores.csv"
        both = [rows(folder / name / "evaluation" / table) for name in ("ranks", "alone")]
        assert len(both[0]) == len(both[1]) > 1
        for ours, theirs in zip(*both, strict=True):
            assert ours.keys() == theirs.keys()
            assert list(map(number, ours.values())) == list(map(number, theirs.values()))


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_which_can_be_resumed(tmp_path: Path, data: dict[str, Path]) -> None:
    task = job(SEGMENT, ["train", "multi_gpu_train"], **training(SEGMENT, data, tmp_path))
    start = time.monotonic()
    result = work(2, [{**task, "killed": 0, "iteration": 2}], tmp_path, python=sys.executable)
    assert time.monotonic() - start < 60
    assert result.returncode != 0
    assert "Error: rank 1 of 2 stops, because another process of this run has ended" in result.stderr
    assert "--resume true" in result.stderr
    assert "[rank1]: Traceback" not in result.stderr
    assert not list(tmp_path.glob(".writing*"))
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["epoch"] == 1
    task["options"]["resume"] = True
    result = work(2, [task], tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["epoch"] == 2
    assert [row["epoch"] for row in rows(tmp_path / "dice_per_class.csv")] == ["1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bundle", "where", "said"),
    [
        (SEGMENT, "preprocessing", "preprocessing, after 0 of 1"),
        (SEGMENT, "training", "in .*epoch [12].*, after [01] "),
        (DETECT, "training", "in .*epoch [12].*, after [0-2] "),
    ],
)
def test_a_rank_that_is_stopped_is_named(
    tmp_path: Path, data: dict[str, Path], bundle: str, where: str, said: str
) -> None:
    iteration = 1 if bundle == SEGMENT else 2
    options = training(bundle, data, tmp_path) | {"rank_timeout": 5, "cache_workers": 1}
    task = job(bundle, ["train", "multi_gpu_train"], **options)
    result = work(2, [{**task, "stopped": where, "iteration": iteration}], tmp_path)
    assert result.returncode == 1
    found = re.findall(r"Error: rank 1 of 2 has stood still for (\d+) s, (.*); all end", result.stderr)
    assert len(found) == 1, result.stderr[-3000:]
    assert re.match(said, found[0][1])  # as it said last
    assert int(found[0][0]) < 12


@pytest.mark.parametrize("bundle", [SEGMENT, CLASSIFY, DETECT])
def test_of_two_trainings_in_a_folder_the_second_is_held_off(
    bundle: str, tmp_path: Path, data: dict[str, Path]
) -> None:
    """Before it reads any data."""
    lock_folder(tmp_path, "--ckpt_dir")  # as the first does in its `initialize`
    options = training(bundle, data, tmp_path) | {"datalist": tmp_path / "nowhere.json"}
    try:
        done = run(*command(config_files(BUNDLES / bundle, ["train"]), **options))
    finally:
        unlock_folder(tmp_path)
    assert done.returncode == 1
    assert f"Error: {tmp_path}: another run writes here (process {os.getpid()} on " in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.slow
def test_two_trainings_share_a_cache_and_an_evaluation_runs_beside_them(tmp_path: Path, data: dict[str, Path]) -> None:
    cache = {"cache_dir": tmp_path / "cache"}
    commands = [
        command(configs_of(SEGMENT, ["train"]), **training(SEGMENT, data, tmp_path / name, **cache)) for name in "ab"
    ]
    started = [subprocess.Popen([PYTHON, *words], stderr=subprocess.PIPE, text=True) for words in commands]
    for process in started:
        assert process.communicate(timeout=300)[1].count("Error:") == 0
        assert process.returncode == 0
    weights = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in "ab"]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert len(list((tmp_path / "cache").glob("*.pt"))) == 4

    lock_folder(tmp_path / "a", "--ckpt_dir")  # as a training does
    try:
        options = training(SEGMENT, data, tmp_path / "a", bootstrap=10)
        done = run(*command(configs_of(SEGMENT, ["train", "evaluate"]), **options))
    finally:
        unlock_folder(tmp_path / "a")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "evaluation" / "summary.json").is_file()


@pytest.mark.slow
def test_a_case_that_one_rank_alone_cannot_use_ends_the_run(tmp_path: Path, data: dict[str, Path]) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data[SEGMENT], folder)
    bad = nib.load(folder / "label_1.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(bad.dataobj) + np.uint8(3), bad.affine), folder / "label_1.nii.gz")
    options = training(SEGMENT, {SEGMENT: folder}, tmp_path)
    start = time.monotonic()
    result = work(2, [job(SEGMENT, ["train", "multi_gpu_train"], **options)], tmp_path)
    assert time.monotonic() - start < 60
    assert result.returncode == 1
    assert "Error: " in result.stderr
    assert "label_1.nii.gz" in result.stderr
    assert "]: Traceback" not in result.stderr
    assert not (tmp_path / "last.pt").exists()


def inference(bundle: str, source: Path, weights: dict[str, Path], folder: Path, **options: Any) -> dict[str, Any]:
    more = {"mpp": 0.25} if bundle == DETECT else {}
    places = {"input": str(source), "output_dir": str(folder), "ckpt_path": str(weights[bundle]), "num_workers": 0}
    return {**SMALL[bundle], **places, **more, **options}


# Three ranks for two slides: one has none. The classifier adapts to all images, not to a rank's share of them.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("bundle", "ranks", "broken", "options"),
    [
        (SEGMENT, 2, "image_2.nii.gz", {}),
        (CLASSIFY, 2, "test_1.png", {"adapt_batch_norm": True, "batch_size": 2}),
        (DETECT, 3, None, {}),
    ],
)
def test_inference_is_shared_out(
    tmp_path: Path,
    data: dict[str, Path],
    weights: dict[str, Path],
    bundle: str,
    ranks: int,
    broken: str | None,
    options: dict[str, Any],
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for path in sorted(data[bundle].glob("test_*" if bundle == DETECT else "*[!n]_[0-3].*")):
        if "label" not in path.name:
            shutil.copy(path, source)
    if broken:
        (source / broken).write_bytes((source / broken).read_bytes()[:200])
    inputs = sorted(source.iterdir())
    single = inference(bundle, source, weights, tmp_path / "one", **options)
    try:
        alone(bundle, ["inference"], **single).run()
        expected = ""
    except RuntimeError as error:
        expected = message(error)
    assert bool(expected) == bool(broken)

    given = inference(bundle, source, weights, tmp_path / "several", **options)
    arguments = command(configs_of(bundle, ["inference"]), **given)
    result = torchrun(ranks, *arguments, cwd=BUNDLES / bundle)
    assert result.returncode == bool(broken), result.stderr[-4000:]
    assert len(inputs) > 1
    for line in expected.splitlines():
        assert result.stderr.count(f"]: Error: {line}") + result.stderr.count(f"]: {line}") == 1, line
    assert "Traceback" not in "".join(line for line in result.stderr.splitlines() if line.startswith("[rank"))
    if bundle != CLASSIFY:
        assert same(tmp_path / "one", tmp_path / "several")
        return
    both = [json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("one", "several")]
    assert both[0].keys() == both[1].keys()
    for key in both[0].keys() - {"predictions"}:
        assert both[0][key] == both[1][key], key
    for ours, theirs in zip(*(content["predictions"] for content in both), strict=True):
        assert ours == theirs | {"probability": pytest.approx(theirs["probability"], abs=1e-5)}
