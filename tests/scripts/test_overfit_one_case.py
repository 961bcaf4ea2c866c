from __future__ import annotations

import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import PYTHON, run

ROOT = Path(__file__).resolve().parents[2]


def overfit(folder: Path, python: str = PYTHON, **options: Any) -> CompletedProcess[str]:
    options = {"image": folder / "image.nii.gz", "label": folder / "label.nii.gz", "output_dir": folder / "o"} | options
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return run(ROOT / "scripts" / "overfit_one_case.py", *arguments, python=python)


@pytest.mark.slow
def test_one_case_is_trained_scored_and_gone_on_with(tmp_path: Path) -> None:
    label = np.zeros((24, 24, 24), np.uint8)
    label[4:20, 4:20, 4:20] = 6
    for name, volume in (("image", np.where(label, 100, -1000).astype(np.int16)), ("label", label)):
        stored = nib.Nifti1Image(volume, None)
        stored.header.set_zooms((6, 6, 6))
        nib.save(stored, tmp_path / f"{name}.nii.gz")  # which says nothing of sides
    quick = {"spacing": 6, "bundle": "abdominal_lambda3d_cbs", "steps": 2}
    quick |= {"labels": {"left_kidney": 1}, "label_ids": {"left_kidney": 6}, "assume_orientation": "RAS"}
    first = overfit(tmp_path, python=sys.executable, **quick)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "mean Dice over 1 organs" in first.stdout
    again = overfit(tmp_path, **quick)
    assert again.returncode == 1
    assert "Go on with it (--resume)" in again.stderr
    resumed = overfit(tmp_path, resume=True, **quick)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert torch.load(tmp_path / "o" / "last.pt", weights_only=True)["trainer"]["epoch"] == 2


def test_an_unknown_bundle_is_named(tmp_path: Path) -> None:
    result = overfit(tmp_path, bundle="lambda3d")
    assert result.returncode == 1
    assert "--bundle is 'lambda3d', expected abdominal_unetr_cbs or abdominal_lambda3d_cbs." in result.stderr


def test_a_missing_file_leaves_nothing(tmp_path: Path) -> None:
    result = overfit(tmp_path)
    assert result.returncode == 1
    image, label = tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"
    assert result.stderr == f"\nError: --image {image} and --label {label}: there is no such file.\n"
    assert list(tmp_path.iterdir()) == []
