"""MONAI Deploy's App SDK with packed CT bundles: a real application has the label map that `monai.bundle run` has.

It runs in an environment of its own, .venv-deploy, made by `bash scripts/monai_deploy.sh --set_up`. Without it the
tests are skipped, or, where DEPLOY_TESTS=1 is set, it is made.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools.archive import lay_out
from commands import run
from monai.bundle import ConfigParser
from scipy import ndimage
from small_runs import SEGMENT, SEGMENT_LAMBDA
from workflows import BUNDLES, command, load_config

from shared.datasets.dicom_ct import write_ct_series

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "monai_deploy.sh"
STAMP = ROOT / ".venv-deploy" / "made-by-setup-env"
REQUIREMENTS = ROOT / "requirements-deploy.txt"

wanted = os.environ.get("DEPLOY_TESTS") == "1"
made = STAMP.is_file() and STAMP.read_text().endswith(REQUIREMENTS.read_text())
pytestmark = [
    pytest.mark.deploy,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (made or wanted),
        reason="there is no .venv-deploy of these versions: `bash scripts/monai_deploy.sh --set_up` makes it, and so "
        "does DEPLOY_TESTS=1",
    ),
]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT with square pixels, from the head to the feet, and the environment made."""
    if not made:
        subprocess.run(["bash", SCRIPT, "--set_up"], check=True)
    folder = tmp_path_factory.mktemp("series")
    affine = np.diag([-5.0, -5.0, -6.0, 1.0])
    affine[:3, 3] = (90, 80, 120)
    noise = np.random.default_rng(0).normal(0, 6000, (36, 32, 24))
    hu = ndimage.gaussian_filter(noise, 2).clip(-1024, 1500).round()
    write_ct_series(folder, hu, affine, "deploy")
    return folder


def packed(name: str, folder: Path) -> Path:
    """A package with seeded weights of the demo's network, whose answers vary."""
    overlay = load_config(BUNDLES / name, "variants/demo")
    torch.manual_seed(0)
    network = ConfigParser({**load_config(BUNDLES / name, "inference"), **overlay}).get_parsed_content("network_def")
    with torch.no_grad():
        for key, value in network.named_parameters():
            if "out.conv" in key:
                value.normal_(0, 1 if key.endswith("weight") else 0)
    torch.save(network.state_dict(), folder / "model.pt")
    record = {"name": "nothing", "synthetic": True, "network_overlay": overlay["network_overlay"]}
    (folder / "model.json").write_text(json.dumps(record))
    return lay_out(BUNDLES / name, folder / name, folder / "model.pt", "demo")


def canonical(path: Path) -> nib.Nifti1Image:
    return nib.as_closest_canonical(nib.load(path))


@pytest.mark.parametrize(("name", "weights"), [(SEGMENT, "model.ts"), (SEGMENT_LAMBDA, "model.pt")])
def test_an_application_has_the_label_map_of_the_bundle(name: str, weights: str, series: Path, tmp_path: Path) -> None:
    bundle, elsewhere = packed(name, tmp_path), tmp_path / "elsewhere"
    elsewhere.mkdir()
    if weights == "model.ts":
        done = run("-m", "monai.bundle", "ckpt_export", "--config_file", "configs/inference.json", cwd=bundle)
        assert done.returncode == 0, done.stderr[-3000:]
    options = {"input": series, "output_dir": tmp_path / "bundle", "ckpt_path": bundle / "models" / weights}
    done = run(*command([str(bundle / "configs" / "inference.json")], **options), cwd=elsewhere)
    assert done.returncode == 0, done.stderr[-3000:]
    before = sorted(bundle.rglob("*.*"))
    deployed = subprocess.run(
        ["bash", SCRIPT, bundle, series, tmp_path / "deployed"],
        capture_output=True, text=True, check=False, cwd=elsewhere, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert deployed.returncode == 0, (deployed.stdout + deployed.stderr)[-5000:]

    (theirs,) = (tmp_path / "bundle").rglob("*_seg.nii.gz")
    expected, found = canonical(theirs), canonical(tmp_path / "deployed" / "segmentation.nii.gz")
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    assert np.array_equal(np.asanyarray(found.dataobj), np.asanyarray(expected.dataobj))
    assert len(np.unique(np.asanyarray(found.dataobj))) > 2
    assert list(elsewhere.iterdir()) == []
    assert [path for path in sorted(bundle.rglob("*.*")) if "__pycache__" not in path.parts] == [
        path for path in before if "__pycache__" not in path.parts
    ]
