"""Camelyon17-WILDS from its folder to the scores of a hospital that is new, by WILDS' protocol, on DenseNet-121."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from camelyon17_tree import make_tree
from commands import run
from monai.networks.nets import DenseNet121
from torch import nn
from workflows import BUNDLES, config_files, rows, train, workflow

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = BUNDLES / "mitosis_fusestyle_cls"
VARIANTS = ("variants/camelyon17", "variants/wilds", "variants/densenet121")


def flow(folder: Path, *configs: str, **options: Any) -> Any:
    options |= {"num_workers": 0, "amp": False, "device": "$torch.device('cpu')", "output_dir": str(folder)}
    return workflow(config_files(BUNDLE, configs), **options)


@pytest.mark.slow
def test_from_the_folder_to_the_scores_of_another_hospital(tmp_path: Path) -> None:
    datalist = tmp_path / "dataset.json"
    tree = make_tree(tmp_path / "camelyon17_v1.0", slides=1, per_slide=9)
    done = run(ROOT / "scripts" / "prepare_camelyon17.py", "--data_dir", tree, "--output", datalist)
    assert done.returncode == 0, done.stderr

    data: dict[str, Any] = {"dataset_dir": str(tmp_path), "ckpt_dir": str(tmp_path)}
    training = flow(tmp_path, "train", *VARIANTS, max_epochs=2, batch_size=8, **data)
    state = train(training)
    (group,) = state["optimizer"]["param_groups"]
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.9, 0.01, 0.001)
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["network_overlay"] == "configs/variants/densenet121.json"
    assert record["train_domains"] == ["centre 0", "centre 3", "centre 4"]
    assert (record["val_split"], record["val_domains"]) == ("ood_validation", ["centre 1"])
    assert json.loads((tmp_path / "threshold.json").read_text())["threshold"] == 0.5
    history = rows(tmp_path / "training.csv")
    assert [row["learning_rate"] for row in history] == ["0.001", "0.001"]
    assert record["val_accuracy"] == max(float(row["val_accuracy"]) for row in history)

    scores = {}
    for split in ("ood_validation", "test"):
        out = tmp_path / split
        flow(out, "train", *VARIANTS, "evaluate", evaluate_split=split, bootstrap=1, **data).run()
        (scores[split], *_) = rows(out / "evaluation" / "scores.csv")
        predictions = rows(out / "evaluation" / "predictions.csv")
        right = [(float(row["probability"]) >= 0.5) == (row["label"] == "tumour") for row in predictions]
        assert float(scores[split]["accuracy"]) == pytest.approx(sum(right) / 9, abs=1e-4)
    # the weights of the epoch that was chosen, on the patches that chose it
    assert float(scores["ood_validation"]["accuracy"]) == pytest.approx(record["val_accuracy"], abs=1e-4)
    assert {s: (row["domain"], row["distribution"]) for s, row in scores.items()} == {
        "ood_validation": ("centre 1", "choice"),
        "test": ("centre 2", "out"),
    }
    found = [json.loads((tmp_path / s / "evaluation/summary.json").read_text())["dataset"] for s in scores]
    assert found[0]["leakage"] == ["Scored is what the epoch was chosen by."]
    assert "leakage" not in found[1]

    images = str(tree / "patches" / "patient_044_node_0")
    flow(tmp_path / "inferred", "inference", VARIANTS[2], input=images, ckpt_path=str(tmp_path / "model.pt")).run()
    inferred = {
        Path(row["case"]).name: float(row["probability"]) for row in rows(tmp_path / "inferred/predictions.csv")
    }
    evaluated = {Path(row["case"]).name: float(row["probability"]) for row in predictions}
    assert inferred == pytest.approx(evaluated, abs=1e-5)
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    plain: nn.Module = DenseNet121(spatial_dims=2, in_channels=3, out_channels=1)
    plain.load_state_dict(weights)  # FuseStyle leaves no trace in them
