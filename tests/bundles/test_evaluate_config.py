from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

CONFIGS = Path(__file__).resolve().parents[2] / "bundles/abdominal_unetr_cbs/configs"
LABELS = {"spleen": 1, "liver": 2, "aorta": 3}
# Axes that point inferior, posterior and left, with a spacing of their own.
AFFINE = np.array([[0, 0, -0.9, 40], [0, -1.2, 0, 30], [-2.5, 0, 0, 20], [0, 0, 0, 1]])
SHAPE = (20, 30, 40)


class ClassByIntensity(torch.nn.Module):
    """Logits of the class whose HU is nearest: 0 (background) at most -175 HU, class i at -175 + 85 i HU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([-100 * (x - 0.2 * i).abs() for i in range(len(LABELS) + 1)], dim=1)


def write_case(folder: Path, seed: int) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    for i in LABELS.values():
        corner = rng.integers(2, 9, 3)
        label[tuple(slice(c, c + n) for c, n in zip(corner, rng.integers(5, 10, 3), strict=True))] = i
    image = np.where(label, -175 + 85 * label.astype(np.int16), -1000).astype(np.int16)
    names = {"image": f"image{seed}.nii.gz", "label": f"label{seed}.nii.gz"}
    for name, volume in zip(names.values(), (image, label), strict=True):
        nib.save(nib.Nifti1Image(volume, AFFINE), folder / name)
    return names


def test_a_network_that_is_right_scores_1_on_the_native_grid(tmp_path: Path) -> None:
    cases = [write_case(tmp_path, seed) for seed in range(2)]
    (tmp_path / "dataset.json").write_text(json.dumps({"name": "toy", "test": cases}))
    parser = ConfigParser(ConfigParser.load_config_files([CONFIGS / "train.json", CONFIGS / "evaluate.json"]))
    parser.update(
        {
            "dataset_dir": str(tmp_path),
            "output_dir": str(tmp_path / "output"),
            "ckpt_dir": str(tmp_path),
            "labels": LABELS,
            "network": ClassByIntensity(),
            "spacing": [0.9, 1.2, 2.5],
            "roi_size": [16, 16, 16],
            "device": torch.device("cpu"),
            "num_workers": 0,
        }
    )
    parser.get_parsed_content("run")
    with (tmp_path / "output/evaluation/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row in rows:
        label = np.asarray(nib.load(tmp_path / cases[int(row["case"].removeprefix("image"))]["label"]).dataobj)
        assert (row["dice"], row["nsd"], row["hd95_mm"]) == ("1.0", "1.0", "0.0")
        assert float(row["label_ml"]) == pytest.approx((label == int(row["id"])).sum() * 0.9 * 1.2 * 2.5 / 1000)
