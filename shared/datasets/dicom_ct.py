"""Made-up CTs as DICOM series, with all that the standard asks of a CT image."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ..utils import atomic_path

_DATE, _TIME = "20000101", "120000"
_INTERCEPT = -1024


def write_ct_series(folder: str | os.PathLike, hu: np.ndarray, affine: np.ndarray, patient: str) -> list[Path]:
    """Write a made-up CT as one series of a study, a file for each slice: `0001.dcm` … in the order of the third axis.

    The same arguments give the same bytes, and so the same UIDs.

    Args:
        folder: made where it is missing.
        hu: whole numbers from -1024 to 64511 along columns, rows and slices.
        affine: (4, 4), from voxels to mm (RAS), of perpendicular axes; whatever the directions of the first two, the
            slices lie in their plane.
        patient: the made-up patient's ID, and part of the name.

    Returns:
        the files.
    """
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    digest = hashlib.sha256(patient.encode() + np.ascontiguousarray(hu).tobytes() + lps.tobytes()).hexdigest()
    common = _common(patient, digest)
    common.ImageOrientationPatient = [_decimal(x) for x in (lps[:3, :2] / spacing[:2]).T.ravel()]
    common.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    common.SliceThickness = _decimal(spacing[2])
    common.Columns, common.Rows = hu.shape[:2]
    files = []
    for k in range(hu.shape[2]):
        image = Dataset()
        image.update(common)
        image.InstanceNumber = k + 1
        image.SOPInstanceUID = generate_uid(entropy_srcs=[digest, str(k)])
        image.ImagePositionPatient = [_decimal(x) for x in (lps @ [0, 0, k, 1])[:3]]
        image.PixelData = (hu[:, :, k].T.astype(np.int32) - _INTERCEPT).astype("<u2").tobytes()
        files.append(Path(folder) / f"{k + 1:04d}.dcm")
        _write(files[-1], image)
    return files


def _decimal(value: float) -> str:
    """A number in the 16 characters that DICOM has for it."""
    return f"{value + 0.0:.10f}"[:16]


def _common(patient: str, digest: str) -> Dataset:
    """What all slices of a series have."""
    image = Dataset()
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID, image.Modality, image.ImageType = CTImageStorage, "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.PatientID, image.PatientName = patient, f"Made-up^{patient}"
    image.PatientBirthDate, image.PatientSex = "", "O"
    for role, key in (("study", "Study"), ("series", "Series")):
        setattr(image, f"{key}InstanceUID", generate_uid(entropy_srcs=[digest, role]))
    image.FrameOfReferenceUID = generate_uid(entropy_srcs=[digest, "frame"])
    for part in ("Study", "Series", "Acquisition", "Content"):
        setattr(image, f"{part}Date", _DATE)
        setattr(image, f"{part}Time", _TIME)
    image.StudyID, image.AccessionNumber, image.ReferringPhysicianName = "1", "", ""
    image.StudyDescription, image.SeriesDescription = "made-up abdomen", "made-up CT"
    image.SeriesNumber, image.AcquisitionNumber = 1, 1
    image.Manufacturer, image.PatientPosition, image.PositionReferenceIndicator = "made up", "HFS", ""
    image.BodyPartExamined, image.KVP = "ABDOMEN", "120"
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = str(_INTERCEPT), "1", "HU"
    return image


def _write(path: Path, image: Dataset) -> None:
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    with atomic_path(path) as temporary:
        pydicom.dcmwrite(temporary, image, enforce_file_format=True)
