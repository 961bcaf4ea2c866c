from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from ct_phantom import ORIENTATIONS, write_phantom

from shared.datasets import synthetic_ct
from shared.datasets.dicom_ct import write_ct_series
from shared.transforms import LoadVolumed


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_series_is_loaded_as_it_was_written(orientation: str, tmp_path: Path) -> None:
    phantom = write_phantom(tmp_path / "ct", orientation)
    volume = LoadVolumed("image", check_intensity="off")({"image": phantom.folder})["image"]
    loaded = nib.as_closest_canonical(nib.Nifti1Image(volume[0].numpy(), volume.affine.numpy()))
    assert np.array_equal(loaded.get_fdata(), phantom.hu)
    assert np.allclose(loaded.affine, phantom.affine, atol=1e-5)


def test_the_same_arguments_give_the_same_bytes_and_others_other_uids(tmp_path: Path) -> None:
    hu = np.arange(24).reshape(2, 3, 4) - 1000
    one, again = (write_ct_series(tmp_path / name, hu, np.eye(4), "A") for name in ("one", "again"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in again]
    other = write_ct_series(tmp_path / "other", hu, np.eye(4), "B")
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(one, other, strict=True))


def test_a_synthetic_data_set_of_series_is_axial_and_can_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hu = np.arange(24 * 16 * 8, dtype=np.int16).reshape(24, 16, 8) - 1000
    affine = np.array([[0, 0, -2.5, 30.0], [2.0, 0, 0, -40], [0, 1.5, 0, -10], [0, 0, 0, 1]])  # sagittal
    stored = (nib.Nifti1Image(hu, affine), nib.Nifti1Image((hu % 14).astype(np.uint8), affine))
    monkeypatch.setattr(synthetic_ct, "synthetic_ct_case", lambda seed: stored)
    for _ in range(2):
        path = synthetic_ct.make_synthetic_ct(tmp_path / "data", 3, processes=1, dicom=True)
    case = json.loads(path.read_text())["test"][0]
    assert len(list((path.parent / case["image"]).iterdir())) == 16  # the axis to the head
    loaded = LoadVolumed(["image", "label"], label_key="label", check_intensity="off")(
        {key: path.parent / case[key] for key in ("image", "label")}
    )
    assert nib.aff2axcodes(loaded["image"].affine.numpy()) == ("L", "P", "S")
    assert np.array_equal(loaded["image"].numpy().astype(int) % 14, loaded["label"].numpy())
    volume = nib.Nifti1Image(loaded["image"][0].numpy(), loaded["image"].affine.numpy())
    turned, own = (nib.as_closest_canonical(image) for image in (volume, stored[0]))
    assert np.array_equal(turned.get_fdata(), own.get_fdata())
    assert np.allclose(turned.affine, own.affine)
