"""Whether the slices of a CT series make one volume, and its grid."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..utils import DataError
from ..utils.text import first_few
from .dicom_headers import DicomHeader, Frame, read_frames
from .dicom_series import DicomSeries
from .geometry import Grid, check_geometry

logger = logging.getLogger(__name__)

# Largest deviation of the distance between two slices from the mean one, as a share of it.
_GAP_TOLERANCE = 0.25
# Largest distance between a slice's place in the volume and the one in its header, in pixels.
_SLICE_TOLERANCE = 0.5
# Largest difference of a direction cosine between two slices of one orientation.
_AXIS_TOLERANCE = 1e-3
# Distance in mm below which two slices lie at the same place.
_SAME_PLACE = 0.01


@dataclass(frozen=True)
class DicomVolume:
    """The slices of a volume from the first to the last along the normal of the image plane, and its grid in mm (LPS).

    `spacing` is that along rows, columns and slices; `direction`'s columns are these three axes.
    """

    frames: tuple[Frame, ...]
    headers: tuple[DicomHeader, ...]
    spacing: tuple[float, float, float]
    origin: tuple[float, ...]
    direction: np.ndarray

    def grid(self, path: Path) -> Grid:
        """The grid by the name of `path`, in mm (RAS)."""
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = self.direction * self.spacing, self.origin
        affine[:2] *= -1
        return Grid(path, (self.headers[0].columns, self.headers[0].rows, len(self.frames)), affine)


def volume_of(path: Path, series: DicomSeries) -> DicomVolume:
    """The volume that a series makes.

    Args:
        path: of what was given, for messages.
        series: see `series_of`.

    Raises:
        DataError: when sizes, spacing or orientation differ, a position is missing, two slices have the same one, a
            slice is missing, or the gantry was tilted.
    """
    frames = [frame for header in series.headers for frame in read_frames(header)]
    _check_same(path, series, frames)
    if len(frames) > 1:
        _check_places(path, series, frames)
    first = frames[0]
    axes = _axes(first)
    normal = axes[:, 2]
    places = np.array([np.dot(normal, frame.position or (0, 0, 0)) for frame in frames])
    order = np.argsort(places, kind="stable")
    frames, places = [frames[i] for i in order], places[order]
    if len(frames) > 1:
        _check_apart(path, frames, places)
        _check_gaps(path, frames, places)
        _check_tilt(path, frames, places, normal)
        step = float((places[-1] - places[0]) / (len(frames) - 1))
    else:
        step = _thickness(path, first)
    across = first.spacing or (1.0, 1.0)
    spacing = (across[1], across[0], step)
    origin = frames[0].position or (0.0, 0.0, 0.0)
    header = series.headers[0]
    check_geometry(path, [header.columns, header.rows, len(frames)], spacing, header.samples)
    return DicomVolume(tuple(frames), series.headers, spacing, origin, axes)


def _axes(frame: Frame) -> np.ndarray:
    """Unit vectors along rows, columns and slices, as columns, the rounding of the header taken out as ITK does."""
    along, down = np.reshape(frame.orientation or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (2, 3))
    normal = np.cross(along, down)
    normal, down = normal / np.linalg.norm(normal), down / np.linalg.norm(down)
    return np.column_stack([np.cross(down, normal), down, normal])


def _name(frame: Frame, frames: Sequence[Frame]) -> str:
    several = sum(other.file == frame.file for other in frames) > 1
    return f"frame {frame.index + 1}" if several else frame.file.name


def _names(chosen: Sequence[Frame], frames: Sequence[Frame]) -> str:
    return first_few([_name(frame, frames) for frame in chosen], 4)


def _check_same(path: Path, series: DicomSeries, frames: Sequence[Frame]) -> None:
    """Sizes, orientation and spacing are those of all slices."""
    scouts = [h.frame for h in series.headers if "LOCALIZER" in h.image_type]
    if scouts:
        raise DataError(
            f"{path}: a scout (localizer) lies among the slices of the series: {_names(scouts, frames)}. Take it away."
        )
    sizes = Counter((h.rows, h.columns) for h in series.headers)
    if len(sizes) > 1:
        found = ", ".join(f"{count} of {rows} × {columns}" for (rows, columns), count in sizes.most_common())
        odd = [h.frame for h in series.headers if (h.rows, h.columns) != sizes.most_common(1)[0][0]]
        raise DataError(
            f"{path}: the slices are of different sizes ({found} pixels): {_names(odd, frames)}. Take away what "
            "does not belong to the volume, or export the series again."
        )
    for what, values in (
        ("orientation (a localizer, or a reformatted view?)", [frame.orientation for frame in frames]),
        ("size of a pixel", [frame.spacing for frame in frames]),
    ):
        usual = Counter(values).most_common(1)[0][0]
        odd = [f for f, v in zip(frames, values, strict=True) if not _alike(v, usual)]
        if odd:
            raise DataError(
                f"{path}: {len(odd)} of {len(frames)} slices have another {what} than the others: "
                f"{_names(odd, frames)}. Take away what does not belong to the volume."
            )


def _alike(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    return one == other or (one is not None and other is not None and np.allclose(one, other, 0, _AXIS_TOLERANCE))


def _check_places(path: Path, series: DicomSeries, frames: Sequence[Frame]) -> None:
    without = [frame for frame in frames if frame.position is None or frame.orientation is None]
    if without:
        raise DataError(
            f"{path}: {len(without)} of {len(frames)} slices have no position or orientation in their headers "
            f"(ImagePositionPatient, ImageOrientationPatient): {_names(without, frames)}. Without these their order is "
            "not known: export the series again from where it was made."
        )


def _check_apart(path: Path, frames: Sequence[Frame], places: np.ndarray) -> None:
    """No two slices lie at the same place."""
    new = np.concatenate([[True], np.diff(places) > _SAME_PLACE])
    counts = np.diff([*np.flatnonzero(new), len(frames)])
    if len(counts) == len(frames):
        return
    _refuse_thicknesses(path, frames)
    if len(set(counts)) == 1 and len(counts) > 1:
        raise DataError(
            f"{path}: holds {counts[0]} slices at each of {len(counts)} positions, under one SeriesInstanceUID: "
            f"{counts[0]} phases, or reconstructions, or copies, of one scan. Expected one volume: export each as a "
            "series of its own, or put the files of the one that is wanted into a folder."
        )
    twice = int(np.argmin(new))
    pair = frames[twice - 1 : twice + 1]
    raise DataError(
        f"{path}: {len(frames) - len(counts)} of {len(frames)} slices are duplicates, at the same position as another: "
        f"{' and '.join(_name(frame, frames) for frame in pair)} at {places[twice]:g} mm. Take away those that do not "
        "belong to the volume."
    )


def _refuse_thicknesses(path: Path, frames: Sequence[Frame]) -> None:
    """Say so where slices of several thicknesses are the reason that a series makes no even volume."""
    found = _thicknesses(frames)
    if len(found) > 1:
        listed = " and ".join(f"{count} of {value:g} mm" for value, count in sorted(found.items()))
        raise DataError(
            f"{path}: holds slices of several thicknesses under one SeriesInstanceUID ({listed}), which make no even "
            "volume: two reconstructions of one scan? Export each as a series of its own, or put the files of the one "
            "that is wanted into a folder."
        )


def _thicknesses(frames: Sequence[Frame]) -> Counter[float]:
    return Counter(round(frame.thickness, 2) for frame in frames if frame.thickness)


def _check_gaps(path: Path, frames: Sequence[Frame], places: np.ndarray) -> None:
    gaps = np.diff(places)
    mean = float(gaps.mean())
    if (off := float(np.abs(gaps - mean).max())) > _GAP_TOLERANCE * mean:
        widest = int(gaps.argmax())
        _refuse_thicknesses(path, frames)
        pair = " and ".join(_name(frame, frames) for frame in frames[widest : widest + 2])
        raise DataError(
            f"{path}: slices are missing or unevenly spaced: of {len(frames)} slices, {mean:g} mm apart on average, "
            f"two are {off:g} mm off that distance ({pair}: {gaps[widest]:g} mm). Expected even distances. Export "
            "the whole series again, or resample it to an even spacing."
        )


def _check_tilt(path: Path, frames: Sequence[Frame], places: np.ndarray, normal: np.ndarray) -> None:
    positions = np.array([frame.position for frame in frames])
    beside = positions - positions[0] - np.outer(places - places[0], normal)
    shifts = np.linalg.norm(beside, axis=1)
    pixel = (frames[0].spacing or (1.0, 1.0))[1]
    if shifts.max() <= _SLICE_TOLERANCE * pixel:
        return
    last = shifts[-1] >= 0.99 * shifts.max()
    worst = len(frames) - 1 if last else int(shifts.argmax())
    which = f"the last of {len(frames)}" if last else f"{_name(frames[worst], frames)}, of {len(frames)},"
    raise DataError(
        f"{path}: the slices are shifted against each other (a tilted gantry?): {which} lies {shifts[worst]:.1f} mm "
        "beside where a box-shaped grid has it. Resample the series onto such a grid."
    )


def _thickness(path: Path, frame: Frame) -> float:
    if frame.thickness is None:
        logger.warning("%s: one slice, whose header has no thickness: 1 mm is taken. Volumes are of it alone.", path)
        return 1.0
    logger.warning("%s: one slice alone, %g mm thick by its header", path, frame.thickness)
    return frame.thickness


def check_values(path: Path, volume: DicomVolume) -> None:
    """See that all slices of a volume say how HU are stored; warn where none does, and of what else is odd in headers.

    Raises:
        DataError: when some of them alone do.
    """
    frames = volume.frames
    without = [frame for frame in frames if frame.rescale is None]
    if without and len(without) < len(frames):
        raise DataError(
            f"{path}: {len(without)} of {len(frames)} slices have no RescaleSlope and RescaleIntercept, which the "
            f"others have: {_names(without, frames)}. Export the series again."
        )
    if without:
        logger.warning(
            "%s: no slice has a RescaleSlope and RescaleIntercept: what is stored is taken for HU, which few CTs hold. "
            "Organs may come out wrong; export the series again with these tags.",
            path,
        )
    if len(thicknesses := _thicknesses(frames)) > 1:
        found = " and ".join(f"{count} of {value:g} mm" for value, count in sorted(thicknesses.items()))
        logger.warning("%s: slices of several thicknesses (%s) at even distances are taken for one volume", path, found)
    first = volume.headers[0]
    empty = [name for name in ("study", "series") if not getattr(first, name)]
    if empty:
        names = " and ".join(f"{name.capitalize()}InstanceUID" for name in empty)
        logger.warning("%s: has no %s: nothing can be stored for it in a PACS", path, names)
