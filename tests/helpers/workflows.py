"""Runs of the bundles' configs, in this process, in a process of their own, and on several ranks."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import torch
from commands import PYTHON, run
from ignite.engine import Engine, Events
from matplotlib.image import imread
from monai.bundle import ConfigParser, ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shared.utils.errors import data_error_message

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


def config_files(bundle: Path, configs: Iterable[str]) -> list[str]:
    return [str(bundle / "configs" / f"{name}.json") for name in configs]


def load_config(bundle: Path, name: str) -> dict[str, Any]:
    """As it stands in the file."""
    return json.loads((bundle / "configs" / f"{name}.json").read_text())


def parsed(bundle: Path, *configs: str) -> ConfigParser:
    """A config with overlays, to take parts of it from."""
    parser = ConfigParser()
    parser.read_config(config_files(bundle, configs))
    return parser


def workflow(files: list[str], **options: Any) -> ConfigWorkflow:
    """A workflow in this process, initialised as far as its data is told of, seeded where its configs have a seed."""
    flow = ConfigWorkflow(config_file=files, logging_file=False, **options)
    # and not what changes how this process ends
    told = [step for step in flow.parser["initialize"] if step.startswith("$tell_")]
    flow.parser["initialize"] = told + ["$torch.manual_seed(@seed)"] * ("seed" in flow.parser)
    flow.initialize()
    return flow


def train(flow: ConfigWorkflow, stop: int = 0) -> dict[str, Any]:
    """Run a training, interrupted after an iteration where one is given; returns its last checkpoint."""
    if stop:
        trainer: Engine = flow.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop), _interrupt)
    flow.run()
    flow.finalize()
    return torch.load(Path(flow.parser["ckpt_dir"]) / "last.pt", weights_only=True)


def _interrupt(engine: Engine) -> None:
    raise KeyboardInterrupt("SIGTERM")


def command(files: list[str], **options: Any) -> list[str]:
    """The arguments of Python that run the configs."""
    texts = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return ["-m", "monai.bundle", "run", "--config_file", str(files), *texts]


def torchrun(
    ranks: int, *arguments: object, timeout: float = 300, python: str = PYTHON, **options: Any
) -> CompletedProcess[str]:
    """Several processes of `python ARGUMENTS`.

    Args:
        ranks: how many.
        arguments: of each.
        timeout: in seconds.
        python: of torchrun and of the ranks.
        options: of `subprocess.run`.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return run(*launcher, *arguments, python=python, timeout=timeout, **options)


def check_histology_training(folder: Path, epochs: int, score: str) -> dict[str, Any]:
    """Assert that a training on XR and CS has left what it promises, and return its record."""
    for name in ("last.pt", "best.pt", "model.pt", "model.json", "threshold.json", "training.csv"):
        assert (folder / name).is_file(), name
    assert imread(folder / "training.png").std() > 0.02
    assert list((folder / "tensorboard").iterdir())
    record = json.loads((folder / "model.json").read_text())
    assert record["synthetic"] is True
    assert record["train_domains"] == ["CS", "XR"]
    assert record["labels"] == {"non_mitotic": 0, "mitotic": 1}
    threshold = json.loads((folder / "threshold.json").read_text())
    assert 0 < threshold["threshold"] < 1
    assert threshold["domains"] == ["CS", "XR"]
    history = rows(folder / "training.csv")
    assert [row["epoch"] for row in history] == [str(i) for i in range(1, epochs + 1)]
    best = max(history, key=lambda row: float(row[score]))
    assert (int(best["epoch"]), float(best[score])) == (record["epoch"], record[score])
    return record


def check_same_histology_training(first: Path, second: Path) -> None:
    """Assert that two trainings have left the same, to the bit."""
    ours, theirs = (torch.load(folder / "last.pt", weights_only=True) for folder in (first, second))
    assert ours.keys() == theirs.keys()
    for key in ("model", "optimizer"):
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0, msg=key)
    for key in ("lr_scheduler", "report", "trainer", "evaluator"):
        assert ours[key] == theirs[key], key
    assert (first / "threshold.json").read_text() == (second / "threshold.json").read_text()
    curves = scalars(first / "tensorboard")
    assert curves.keys() > {"train_loss"}
    assert curves == scalars(second / "tensorboard")


def rows(path: Path) -> list[dict[str, str]]:
    """Of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every scalar in TensorBoard's files, as they stand there."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def message(error: BaseException) -> str:
    """What a user would read."""
    return data_error_message(error) or ""
