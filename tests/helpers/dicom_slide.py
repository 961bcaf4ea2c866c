"""A whole slide as DICOM, with all that the standard asks of one: tiles of colours, and a smaller level beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from PIL import ImageCms
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

TILE = 256


def write_slide(folder: Path, picture: np.ndarray, mpp: float = 0.25, levels: int = 2) -> Path:
    """Write a picture (rows, columns, 3), uint8, sides of whole tiles; each level is half as large as the one before.

    Returns:
        the file of the base level.
    """
    folder.mkdir(parents=True)
    for level in range(levels):
        part = picture[:: 2**level, :: 2**level]
        part = np.pad(part, [(0, -part.shape[0] % TILE), (0, -part.shape[1] % TILE), (0, 0)], mode="edge")
        image = _slide(part, mpp * 2**level, level)
        pydicom.dcmwrite(folder / f"level_{level}.dcm", image, enforce_file_format=True)
    return folder / "level_0.dcm"


def _slide(picture: np.ndarray, mpp: float, level: int) -> Dataset:
    rows, columns = picture.shape[:2]
    tiles = [picture[r : r + TILE, c : c + TILE] for r in range(0, rows, TILE) for c in range(0, columns, TILE)]
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    uid = generate_uid(entropy_srcs=["slide", str(level), str(picture.shape)])
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = uid
    for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(image, key, generate_uid(entropy_srcs=["slide", key]))
    image.PatientID, image.PatientName, image.PatientBirthDate, image.PatientSex = "S1", "Slide", "", "O"
    image.StudyDate = image.ContentDate = "20000101"
    image.StudyTime = image.ContentTime = "120000"
    image.AcquisitionDateTime, image.StudyID, image.AccessionNumber = "20000101120000", "1", ""
    image.ReferringPhysicianName, image.SeriesNumber, image.InstanceNumber = "", 1, level + 1
    image.Modality, image.Manufacturer, image.ManufacturerModelName = "SM", "made up", "none"
    image.DeviceSerialNumber, image.SoftwareVersions, image.SpecificCharacterSet = "1", "1", "ISO_IR 192"
    image.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE" if level == 0 else "RESAMPLED"]
    image.Rows = image.Columns = TILE
    image.TotalPixelMatrixRows, image.TotalPixelMatrixColumns, image.NumberOfFrames = rows, columns, len(tiles)
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.DimensionOrganizationType, image.BurnedInAnnotation, image.VolumetricProperties = "TILED_FULL", "NO", "VOLUME"
    image.SpecimenLabelInImage, image.FocusMethod, image.ExtendedDepthOfField = "NO", "AUTO", "NO"
    image.LossyImageCompression, image.PositionReferenceIndicator = "00", "SLIDE_CORNER"
    image.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    image.ImagedVolumeWidth, image.ImagedVolumeHeight = columns * mpp / 1000, rows * mpp / 1000
    image.ImagedVolumeDepth, image.NumberOfOpticalPaths, image.TotalPixelMatrixFocalPlanes = 1.0, 1, 1
    origin, measures, kind, shared, path, light, specimen = (Dataset() for _ in range(7))
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0.0
    image.TotalPixelMatrixOriginSequence = [origin]
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000] * 2, 1.0
    kind.FrameType = image.ImageType
    shared.PixelMeasuresSequence, shared.WholeSlideMicroscopyImageFrameTypeSequence = [measures], [kind]
    image.SharedFunctionalGroupsSequence = [shared]
    light.CodeValue, light.CodingSchemeDesignator, light.CodeMeaning = "111744", "DCM", "Brightfield illumination"
    path.IlluminationWaveLength = 550.0
    path.ICCProfile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path.OpticalPathIdentifier, path.IlluminationTypeCodeSequence = "1", [light]
    image.OpticalPathSequence = [path]
    image.ContainerIdentifier, image.IssuerOfTheContainerIdentifierSequence = "S1", []
    image.ContainerTypeCodeSequence, image.AcquisitionContextSequence = [], []
    specimen.SpecimenIdentifier, specimen.SpecimenUID = "S1", generate_uid(entropy_srcs=["specimen"])
    specimen.SpecimenPreparationSequence, specimen.IssuerOfTheSpecimenIdentifierSequence = [], []
    image.SpecimenDescriptionSequence = [specimen]
    organisation = Dataset()
    organisation.DimensionOrganizationUID = generate_uid(entropy_srcs=["dimensions"])
    image.DimensionOrganizationSequence = [organisation]
    image.PixelData = b"".join(np.ascontiguousarray(tile).tobytes() for tile in tiles)
    return image
