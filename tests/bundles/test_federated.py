"""The bundles as clients of federated learning, by `monai.fl.client.MonaiAlgo` as anybody calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bundle_tools.archive import lay_out
from commands import run
from monai.fl.client import MonaiAlgo
from small_runs import CLASSIFY, DETECT, METHODS, QUICK, SEGMENT, SEGMENT_LAMBDA, SMALL, write_data
from workflows import BUNDLES, message

from shared.utils import write_json

# Two rounds; in the second the server's weights are worthless. Prints what the test looks at.
CLIENT = """
import json, sys, threading
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, ModelType
from monai.fl.utils.exchange_object import ExchangeObject

def client(bundle, data):
    algo = MonaiAlgo(bundle_root=bundle, train_kwargs={"dataset_dir": data}, eval_kwargs={"dataset_dir": data})
    algo.initialize({ExtraItems.CLIENT_NAME: "site"})
    sent = {key: value.clone() for key, value in algo.trainer.network.state_dict().items()}
    for number in range(2):
        algo.train(ExchangeObject(weights=sent))
        change = algo.get_weights().weights
        best = algo.get_weights({ExtraItems.MODEL_TYPE: ModelType.BEST_MODEL}).weights
        ours = {key: sent[key] + change[key] for key in sent}
        metrics = algo.evaluate(ExchangeObject(weights=ours)).metrics
        parser = algo.train_workflow.parser
        rule = parser.get_parsed_content("reweighting") if "reweighting" in parser else None
        rounds.append({
            "changed": any(bool(value.any()) for value in change.values()),
            "best": max(float((best[key].double() - ours[key].double()).abs().max()) for key in ours),
            "metrics": {key: value for key, value in metrics.items() if isinstance(value, float)},
            "epoch": algo.trainer.state.epoch,
            "evaluations": rule.evaluations if rule else None,
        })
        sent = {key: torch.zeros_like(value) for key, value in sent.items()}
    algo.finalize()

rounds = []
thread = threading.Thread(target=client, args=sys.argv[1:])  # as in NVFlare
thread.start()
thread.join()
print(json.dumps(rounds))
"""
METRICS = {SEGMENT: "mean_dice", SEGMENT_LAMBDA: "mean_dice", CLASSIFY: "auc", DETECT: "f1"}
FILES = ["best.pt", "last.pt", "model.json", "model.pt"]


def small_package(name: str, folder: Path) -> Path:
    """A package that is untrained, of the demo's network, which trains in seconds by default."""
    bundle = lay_out(BUNDLES / name, folder, variant="demo")
    options = {key: value for key, value in (SMALL[name] | QUICK[name]).items() if "#" not in key}
    # the number of epochs is MonaiAlgo's, and validation in each round follows from that
    options |= {"max_epochs": 100, "val_interval": 5, "num_workers": 0}
    for path, always in ((bundle / "configs" / "train.json", True), (bundle / "configs" / "evaluate.json", False)):
        config = json.loads(path.read_text())
        write_json(path, config | {key: value for key, value in options.items() if always or key in config})
    return bundle


@pytest.mark.parametrize("name", [SEGMENT, SEGMENT_LAMBDA, CLASSIFY, DETECT])
@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
def test_a_client_is_made_by_three_arguments(name: str, trained: bool, tmp_path: Path) -> None:
    bundle, elsewhere = small_package(name, tmp_path / "bundle"), tmp_path / "elsewhere"
    write_data(name, tmp_path / "data")
    (elsewhere / "scripts").mkdir(parents=True)  # a folder of the name of the package's code
    if trained:
        (bundle / "models").mkdir()
        (bundle / "models" / "model.pt").write_bytes(b"weights")
        write_json(bundle / "models" / "model.json", {"name": "earlier"})
    done = run("-c", CLIENT, bundle, tmp_path / "data", cwd=elsewhere)
    assert done.returncode == 0, done.stderr[-5000:]
    rounds = json.loads(done.stdout.splitlines()[-1])
    assert len(rounds) == 2, done.stderr[-5000:]
    for number, found in enumerate(rounds, 1):
        assert found["changed"]
        assert found["best"] < 1e-6
        assert METRICS[name] in found["metrics"]
        assert found["epoch"] == number
        assert found["evaluations"] == (number if name.startswith("abdominal") else None)
    models = bundle / "models"
    threshold = [] if name.startswith("abdominal") else ["threshold.json"]
    assert sorted(path.name for path in models.iterdir() if path.is_file() and path.suffix) == FILES + threshold
    assert json.loads((models / "model.json").read_text())["federated"] is True
    assert sorted(path.name for path in models.glob("before/*")) == (["model.json", "model.pt"] if trained else [])
    assert not trained or (models / "before" / "model.pt").read_bytes() == b"weights"
    assert [path.name for path in elsewhere.rglob("*")] == ["scripts"]


def client(name: str, data: Path, folder: Path, overlays: tuple[str, ...] = (), **options: Any) -> MonaiAlgo:
    """In this process, of a bundle of the collection; evaluation is left out."""
    shutil.copytree(BUNDLES / name / "configs", folder / name / "configs")
    files = [f"configs/{part}.json" for part in ("train", "variants/demo", *overlays)]
    settings = {**SMALL[name], **QUICK[name], "dataset_dir": str(data), "num_workers": 0, **options}
    return MonaiAlgo(
        str(folder / name), config_train_filename=files, train_kwargs=settings, config_evaluate_filename=None
    )


@pytest.mark.parametrize(
    ("name", "method"), [*((CLASSIFY, method) for method in METHODS), (DETECT, "domain_adversarial")]
)
@pytest.mark.filterwarnings("ignore:executing the bundle config")
def test_methods_of_several_domains_say_that_a_client_with_one_scanner_cannot_run_them(
    name: str, method: str, tmp_path: Path
) -> None:
    write_data(name, tmp_path / "data")
    with pytest.raises(RuntimeError) as raised:
        client(name, tmp_path / "data", tmp_path, (f"variants/{method}",)).initialize()
    assert "needs two or more domains to train on, found ['XR']" in message(raised.value)


@pytest.mark.filterwarnings("ignore:executing the bundle config")
def test_nothing_is_resumed(tmp_path: Path) -> None:
    write_data(SEGMENT, tmp_path / "data")
    with pytest.raises(RuntimeError) as raised:
        client(SEGMENT, tmp_path / "data", tmp_path, resume=True).initialize()
    assert "a round of federated training starts from the server's weights" in message(raised.value)
