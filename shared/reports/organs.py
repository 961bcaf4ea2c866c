"""What is said of a segmentation's organs: measures, and their names for programs that show label maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

DICOM_FILES = {"seg": "seg.dcm", "rtstruct": "rtstruct.dcm", "sr": "sr.dcm"}
"""What DICOM objects of a segmentation are called: no name of a patient's, whatever the case is called."""
DICOM_NOTE = "dicom.json"  # which there are, and where they are stored


def measure_organs(
    label_map: np.ndarray, names: Mapping[str, int], voxel_mm3: float, hu: np.ndarray | None = None
) -> dict[str, dict[str, Any]]:
    """For each organ, in the order of the ids: `label`, its id, `voxels`, `volume_ml`, `hu_mean` and `hu_std`, the mean
    and the standard deviation of the HU in it, and `at_edge`, whether it touches the scan's edge and so may be cut.

    Args:
        label_map: (x, y, z), uint8.
        names: name → id.
        voxel_mm3: volume of a voxel.
        hu: on the same grid; without it, and of an organ that was not found, mean and deviation are None.
    """
    inside = label_map > 0
    ids = label_map[inside]
    counts = np.bincount(ids, minlength=256)
    faces = [np.take(label_map, (0, -1), axis) for axis in range(3)]
    at_edge = {int(i) for face in faces for i in np.unique(face)}
    mean = spread = np.full(256, np.nan)
    if hu is not None:
        values = hu[inside].astype(float)
        with np.errstate(invalid="ignore"):
            mean = np.bincount(ids, values, 256) / counts
            spread = np.sqrt(np.bincount(ids, (values - mean[ids]) ** 2, 256) / counts)

    def rounded(value: float) -> float | None:
        return round(float(value), 1) if np.isfinite(value) else None

    return {
        name: {
            "label": i,
            "voxels": int(counts[i]),
            "volume_ml": round(float(counts[i]) * voxel_mm3 / 1000, 3),
            "hu_mean": rounded(mean[i]),
            "hu_std": rounded(spread[i]),
            "at_edge": i in at_edge,
        }
        for name, i in sorted(names.items(), key=lambda item: item[1])
    }


def organ_colour(i: int) -> tuple[float, float, float, float]:
    """Red, green, blue and opacity from 0 to 1 of an id from 1 on; neighbours, in the body too, differ in hue."""
    return matplotlib.colormaps["tab20"]((i - 1) % 20)


def label_name_files(stem: str) -> tuple[str, str]:
    """What `write_label_names` writes: a colour table of 3D Slicer, as it is called beside an exported label map, and a
    label description of ITK-SNAP.
    """
    return f"{stem}_ColorTable.ctbl", f"{stem}_labels.txt"


def write_label_names(folder: Path, stem: str, names: Mapping[str, int]) -> None:
    """Write the names and colours of the ids of a label map for 3D Slicer and ITK-SNAP, see `label_name_files`."""
    rows = [(i, [round(255 * c) for c in organ_colour(i)[:3]], name) for name, i in names.items()]
    rows.sort(key=lambda row: row[0])
    slicer = ["# Color table file", f"# {len(rows) + 1} values", "0 background 0 0 0 0"]
    slicer += [f"{i} {'_'.join(name.split())} {r} {g} {b} 255" for i, (r, g, b), name in rows]
    snap = ["# ITK-SnAP Label Description File", "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL"]
    snap += ['0 0 0 0 0 0 0 "Clear Label"']
    snap += [f'{i} {r} {g} {b} 1 1 1 "{name.replace(chr(34), chr(39))}"' for i, (r, g, b), name in rows]
    for name, lines in zip(label_name_files(stem), (slicer, snap), strict=True):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
