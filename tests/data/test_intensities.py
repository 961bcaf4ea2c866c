"""What is no CT in HU is noticed, and every true CT passes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import shared.transforms.load as load_module
import shared.transforms.save as save_module
from shared.data import list_inputs
from shared.data.volumes import doubt_of_hu, label_maps_among
from shared.datasets.synthetic_ct import make_synthetic_ct
from shared.transforms import LoadVolumed, SaveSegmentationd
from shared.utils import DataError

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")
AFFINE = np.diag([5.0, 5, 5, 1])
HU = np.random.default_rng(0).normal(0, 15, (40, 36, 30)) - 1000
HU[4:36, 4:32] += 940  # fat
HU[8:30, 8:28] += 100
HU[12:16, 12:16] += 600

NO_CT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "HU + 1024": lambda hu: hu + 1024,
    "HU + 1024, air cut off": lambda hu: (hu + 1024).clip(0),
    "HU + 1000": lambda hu: hu + 1000,
    "a window of 8 bits": lambda hu: (hu + 160).clip(0, 400) / 400 * 255,
    "MR": lambda hu: np.abs(hu + 1000) * 2,
    "PET": lambda hu: np.exp((hu + 1000) / 200),
    "from 0 to 1": lambda hu: (hu - hu.min()) / np.ptp(hu),
    "standardised": lambda hu: (hu - hu.mean()) / hu.std(),
    "a label map": lambda hu: (hu > 0) * 3 + (hu > 400) * 10,
    "a window in HU": lambda hu: hu.clip(-120, 120),
    "air alone": lambda hu: hu * 0 - 1000,
}


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE, kind: type = np.int16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(kind), affine), path)
    return path


@pytest.mark.parametrize("kind", NO_CT)
@pytest.mark.parametrize("size", ["scan", "crop"])
def test_what_is_no_ct_is_doubted(kind: str, size: str) -> None:
    part = HU if size == "scan" else HU[6:20, 6:20, 6:20]
    assert doubt_of_hu("x", part, AFFINE) == ""
    doubt = doubt_of_hu("x", NO_CT[kind](HU)[: len(part)], AFFINE)
    assert doubt.startswith("x: this may be no CT in Hounsfield units (HU): its voxels lie from ")


def organs_with_room(image: np.ndarray, labels: np.ndarray, affine: np.ndarray, margin: float = 9) -> list[np.ndarray]:
    room = np.ceil(margin / np.linalg.norm(affine[:3, :3], axis=0)).astype(int)
    boxes = [np.argwhere(labels == i) for i in np.unique(labels) if i > 0]
    return [image[tuple(map(slice, (b.min(0) - room).clip(0), b.max(0) + room + 1))] for b in boxes]


@needs_data
def test_no_alarm_on_real_cts_nor_on_crops_to_an_organ(caplog: pytest.LogCaptureFixture) -> None:
    paths = [DATA / "ct/ct_3mm.nii.gz", DATA / "ct/ct_3mm_label_btcv13.nii.gz"]
    ct, labels = (nib.load(p) for p in paths)
    for crop in organs_with_room(np.asanyarray(ct.dataobj), np.asanyarray(labels.dataobj), ct.affine):
        assert doubt_of_hu("crop", crop, ct.affine) == ""
    for path in (paths[0], DATA / "ct_dicom/ct-3slice"):
        LoadVolumed("image")({"image": path})
    assert not [r.getMessage() for r in caplog.records if "HU" in r.getMessage()]


@pytest.mark.slow
def test_no_alarm_on_synthetic_cts_nor_on_crops_to_an_organ(tmp_path: Path) -> None:
    listed = json.loads(make_synthetic_ct(tmp_path, cases=3, processes=1).read_text())
    for entry in listed["training"] + listed["validation"] + listed["test"]:
        ct, labels = (nib.load(tmp_path / entry[key]) for key in ("image", "label"))
        voxels = np.asanyarray(ct.dataobj)
        for part in (voxels, *organs_with_room(voxels, np.asanyarray(labels.dataobj), ct.affine)):
            assert doubt_of_hu(entry["image"], part, ct.affine) == ""


def test_warned_of_refused_or_not_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "x.nii.gz", HU + 1024)
    image = LoadVolumed("image")({"image": path})["image"]
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.WARNING, image.meta["remarks"])
    LoadVolumed("image")({"image": path})
    assert len(caplog.records) == 2  # each scan of an inference
    assert LoadVolumed("image", check_intensity="off")({"image": path})["image"].meta["remarks"] == ""
    with pytest.raises(DataError, match=r"x\.nii\.gz: this may be no CT .* no voxel is below -500 HU, as air and gas"):
        LoadVolumed("image", check_intensity="error")({"image": path})
    assert len(caplog.records) == 2


def test_a_data_set_is_warned_of_once_and_its_label_maps_never(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "_TOLD", set())
    label = save(tmp_path / "label.nii.gz", HU > 0, kind=np.uint8)
    load = LoadVolumed(["image", "label"], "label")
    load({"image": save(tmp_path / "good.nii.gz", HU), "label": label})
    for name in "abc":
        load({"image": save(tmp_path / f"{name}.nii.gz", HU + 1024), "label": label})
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path}/a.nii.gz: this may be no CT")
    assert record.getMessage().endswith("(Said once, other files may be alike.)")


def test_results_and_preview_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(save_module, "save_preview", lambda *a, **options: drawn.append(options["warning"]))
    d = LoadVolumed("image")({"image": save(tmp_path / "ct.nii.gz", HU + 1024)})
    SaveSegmentationd(output_dir=tmp_path / "out", labels={"liver": 1})({**d, "pred": (d["image"] > 1000) * 1})
    warning = json.loads((tmp_path / "out/ct/organs.json").read_text())["warning"]
    assert warning.splitlines()[-1] == d["image"].meta["remarks"]
    assert drawn == [warning]


def test_label_maps_are_no_scans_of_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    labels = (HU > 0).astype(np.uint8) * 200
    folder = tmp_path / "study"
    save(folder / "ct.nii.gz", HU)
    save(folder / "liver.nii.gz", labels, kind=np.uint8)
    nib.save(nib.Nifti1Image(labels, AFFINE).as_reoriented(np.array([[1, -1], [0, 1], [2, 1]])), folder / "turned.nii")
    kept = {
        "alone": save(folder / "alone.nii.gz", labels[1:], kind=np.uint8),
        "elsewhere": save(folder / "elsewhere.nii.gz", labels, AFFINE + np.eye(4, k=3), np.uint8),
        "phase_2": save(folder / "phase_2.nii.gz", HU + 5),
        "probabilities": save(folder / "probabilities.nii.gz", labels / 255, kind=np.float32),
        "unsigned": save(folder / "unsigned.nii.gz", HU + 1200, kind=np.uint16),
    }
    (folder / "damaged.nii.gz").write_bytes(b"no volume")
    found = [item["case"] for item in list_inputs(folder)]
    assert sorted(found) == sorted(["ct", "damaged", *kept])
    said = [r.getMessage() for r in caplog.records]
    assert [name in line for name, line in zip(("liver.nii.gz, a label map of ct", "turned.nii"), said, strict=True)]
    assert [item["case"] for item in list_inputs(folder / "liver.nii.gz")] == ["liver"]  # who names it means it
    for name in ("ct", *kept, "damaged"):
        (folder / f"{name}.nii.gz").unlink()
    assert [item["case"] for item in list_inputs(folder)] == ["liver", "turned"]  # beside no scan


def test_label_maps_beside_a_dicom_series(tmp_path: Path) -> None:
    path = save(tmp_path / "liver.nii.gz", HU > 0, kind=np.uint8)
    assert label_maps_among([path]) == {}
    assert label_maps_among([path], {(30, 36, 40): "series 1.2"}) == {path: "series 1.2"}
    assert label_maps_among([path], {(30, 36, 41): "series 1.2"}) == {}
