"""A small CT of made-up numbers as a DICOM series, in any orientation, with organs as blocks on its grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
from nibabel.orientations import axcodes2ornt, ornt_transform
from scipy.spatial.transform import Rotation

from shared.datasets.dicom_ct import write_ct_series
from shared.dicom import Origin, StructureCode, read_codes

METADATA = Path(__file__).resolve().parents[2] / "bundles" / "abdominal_unetr_cbs" / "configs" / "metadata.json"
# How the voxels are stored: the slices lie in the plane of the first two axes. LPI: from the head to the feet.
ORIENTATIONS = ("LPS", "LPI", "LAS", "LIP", "PIL", "oblique", "enhanced")
SPACING = (1.5, 2.0, 2.5)  # mm, to the right, the front and the head
ORIGIN = Origin("abdominal_unetr_cbs", "0.1.0", {"weights": "ab" * 32, "settings": {"sw_overlap": 0.25}}, {"epoch": 3})


class Phantom(NamedTuple):
    """A series, and of its voxels, as they were before they were stored, HU and organs, (x, y, z), with the affine."""

    folder: Path
    hu: np.ndarray
    label_map: np.ndarray
    affine: np.ndarray


def structures() -> list[StructureCode]:
    """The thirteen organs of the CT bundles."""
    content = json.loads(METADATA.read_text())
    names = content["network_data_format"]["outputs"]["pred"]["channel_def"]
    return read_codes(content["dicom_codes"], {name: int(i) for i, name in names.items() if i != "0"})


def label_blocks(shape: tuple[int, int, int], labels: tuple[int, ...] = tuple(range(1, 14))) -> np.ndarray:
    """Organs as blocks of other sizes, none of which is its own mirror image; the last one lies in one slice."""
    label_map = np.zeros(shape, np.uint8)
    for i in labels:
        x, y, z = 2 + 4 * (i % 5), 1 + 4 * (i // 5), 1 + i % 3
        label_map[x : x + 3, y : y + 2 + i % 2, z : z + 1 + 2 * (i < 13)] = i
        label_map[x + 2, y, z] = 0
    return label_map


def write_phantom(
    folder: Path, orientation: str = "LPS", labels: tuple[int, ...] = tuple(range(1, 14)), patient: str = "P1"
) -> Phantom:
    """Write a CT of 24 × 16 × 8 voxels, stored in an orientation, as `ORIENTATIONS` has them."""
    shape = (24, 16, 8)
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-20.5, 31.25, -112.0)
    if orientation == "oblique":
        affine[:3, :3] = Rotation.from_euler("xyz", (20, -15, 30), degrees=True).as_matrix() @ affine[:3, :3]
    hu = np.arange(np.prod(shape), dtype=np.int32).reshape(shape) - 1000
    label_map = label_blocks(shape, labels)
    code = orientation if orientation in ("LPS", "LPI", "LAS", "LIP", "PIL") else "LPS"
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code))
    stored = nib.orientations.apply_orientation(hu, turn)
    files = write_ct_series(folder, stored, affine @ nib.orientations.inv_ornt_aff(turn, shape), patient)
    if orientation == "enhanced":
        make_enhanced(files)
    return Phantom(folder, hu, label_map, affine)


def make_enhanced(files: list[Path]) -> None:
    """Put the slices of a series into one file, in an order of their own."""
    images = [pydicom.dcmread(file) for file in files]
    images = images[::2] + images[1::2]
    uid = hd.UID.from_uuid("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
    whole = hd.legacy.LegacyConvertedEnhancedCTImage(images, uid, 2, uid + ".1", 1)
    for file in files:
        file.unlink()
    whole.save_as(files[0])
