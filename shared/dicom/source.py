"""The CT series that a result is of: its grid, and the headers that objects take patient and study from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pydicom
from highdicom import VolumeGeometry
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, TM

from ..data.dicom_series import series_of
from ..data.dicom_volume import DicomVolume, volume_of
from ..data.geometry import Grid
from ..data.label_maps import to_label_map
from ..utils import DataError

# What every object repeats of its study; empty where the headers have it not.
STUDY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
STUDY += ("AccessionNumber", "ReferringPhysicianName")
_NEEDED = ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")


@dataclass(frozen=True)
class SourceSeries:
    """A CT series that makes one volume.

    Attributes:
        path: of what was given, for messages.
        volume: its slices from the first to the last along the normal of their plane, and its grid.
        images: headers of its files, without pixels: one for each slice, in their order, or the one of an enhanced CT.
            They tell nothing of the patient, so that no library's message can.
        study: what every object repeats of patient and study.
    """

    path: Path
    volume: DicomVolume
    images: tuple[Dataset, ...]
    study: Dataset

    @cached_property
    def grid(self) -> Grid:
        """In voxels along columns, rows and slices, and mm (RAS), as a volume is loaded."""
        return self.volume.grid(self.path)

    @property
    def enhanced(self) -> bool:
        return len(self.images) == 1 and "PerFrameFunctionalGroupsSequence" in self.images[0]

    @property
    def uids(self) -> list[str]:
        return [image.SOPInstanceUID for image in self.images]

    @cached_property
    def geometry(self) -> VolumeGeometry:
        """The grid for highdicom: slices, rows and columns, in mm (LPS)."""
        affine = np.eye(4)
        affine[:3, :3] = (self.volume.direction * self.volume.spacing)[:, ::-1]
        affine[:3, 3] = self.volume.origin
        frame = self.images[0].FrameOfReferenceUID
        return VolumeGeometry(affine, self.grid.shape[::-1], "PATIENT", frame_of_reference_uid=frame)

    @property
    def is_axial(self) -> bool:
        return bool(abs(self.volume.direction[2, 2]) > 0.999)

    def stamp(self, made: Dataset) -> None:
        """Write patient and study into an object, whose text is in UTF-8 then."""
        made.update(self.study)

    def place(self, label_map: np.ndarray, affine: np.ndarray, labels: Sequence[int]) -> np.ndarray:
        """A label map on the grid of the series, uint8, turned to it where its axes are in another order.

        Args:
            label_map: (x, y, z), of ids.
            affine: (4, 4), from its voxels to mm (RAS).
            labels: the ids that it may hold beside 0.

        Raises:
            DataError: when it lies on other voxels, or holds other ids.
        """
        own = Grid(Path("the label map"), label_map.shape, np.asarray(affine, float))
        return to_label_map(label_map, own, {i: i for i in labels}, image=self.grid).voxels


def read_source(path: str | os.PathLike, series: str | None = None) -> SourceSeries:
    """The CT series in a folder, or that a file belongs to.

    Args:
        path: as `LoadVolumed` reads it.
        series: its SeriesInstanceUID, where the folder holds several.

    Raises:
        DataError: when there is none, or it makes no volume (slices missing or at uneven distances, a tilted gantry),
            or its headers lack UIDs that an object has to name, or it is an enhanced CT in several files.
    """
    path = Path(path)
    volume = volume_of(path, series_of(path, series))
    files = list(dict.fromkeys(frame.file for frame in volume.frames))
    if len(files) > 1 and len(files) < len(volume.frames):
        raise DataError(
            f"{path}: an enhanced CT in {len(files)} files, expected one. No DICOM objects can be made for it; export "
            "the series as single slices."
        )
    images = tuple(_read_header(file) for file in files)
    first = images[0]
    for key in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if len({image[key].value for image in images}) > 1:
            raise DataError(f"{path}: its slices have several {key}s, expected one. Export the series again.")
    if len({image.SOPInstanceUID for image in images}) < len(images):
        raise DataError(f"{path}: several slices have the same SOPInstanceUID. Export the series again.")
    study = study_of(first)
    for image in images:
        image.SpecificCharacterSet = study.SpecificCharacterSet
        for key in STUDY:
            setattr(image, key, "")
    return SourceSeries(path, volume, images, study)


def _read_header(file: Path) -> Dataset:
    with warnings.catch_warnings():  # of values that are not as the standard has them
        warnings.simplefilter("ignore")
        image = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        image.decode()
    if lacking := [key for key in _NEEDED if not image.get(key)]:
        raise DataError(
            f"{file}: has no {' and no '.join(lacking)}, which DICOM objects have to name. Export the series again."
        )
    return image


def study_of(image: Dataset) -> Dataset:
    """Patient and study of a header, as text in UTF-8; empty where it is missing, or no value of its kind."""
    study = Dataset()
    study.SpecificCharacterSet = "ISO_IR 192"
    study.StudyInstanceUID = image.StudyInstanceUID
    for key in STUDY:
        value = str(image.get(key) or "")
        valid = key != "PatientSex" or value in ("M", "F", "O", "")
        try:
            (TM if key == "StudyTime" else DA if key.endswith("Date") else str)(value)
        except ValueError:
            valid = False
        setattr(study, key, value if valid else "")
    return study
