"""Label maps as contours: DICOM RT Structure Sets."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from contourpy import FillType, contour_generator
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage
from scipy.spatial import cKDTree

from .codes import CATEGORIES, StructureCode
from .origin import Identity, Origin
from .segmentation import SERIES_NUMBERS
from .source import SourceSeries

logger = logging.getLogger(__name__)

_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, retired, and what is written here all the same


def make_structure_set(
    source: SourceSeries,
    label_map: np.ndarray,
    structures: Sequence[StructureCode],
    origin: Origin,
    identity: Identity,
) -> Dataset | None:
    """The segmentation of a CT as contours in the planes of its slices; unapproved.

    A contour runs half-way between the voxels that are of a structure and those that are not, so that whoever asks at
    voxel centres gets the label map back. Several pieces in a slice are contours of their own. A hole is cut into the
    contour around it by a slit without width (keyhole, PS3.3 C.8.8.6.3), which all readers understand: those that join
    the areas of contours, plastimatch among them, and those that take the holes out by parity.

    Args:
        source: the CT. Contours of slices that are not axial are drawn with a warning: few programs read them.
        label_map: (x, y, z), uint8, on its grid, see `SourceSeries.place`.
        structures: the classes, see `read_codes`.
        origin: who made it.
        identity: of the result, see `identify`.

    Returns:
        None where none of the structures is there.
    """
    present = [s for s in structures if (label_map == s.label).any()]
    if not present:
        return None
    if not source.is_axial:
        logger.warning("%s: its slices are not axial: few programs read contours in such planes.", source.path)
    made = _head(source, origin, identity)
    made.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source)]
    made.StructureSetROISequence, made.ROIContourSequence, made.RTROIObservationsSequence = [], [], []
    for number, structure in enumerate(present, 1):
        contours = Dataset()
        contours.ReferencedROINumber, contours.ROIDisplayColor = number, list(structure.colour)
        contours.ContourSequence = list(_contours(source, label_map == structure.label))
        made.StructureSetROISequence.append(_region(source, structure, number, origin))
        made.ROIContourSequence.append(contours)
        made.RTROIObservationsSequence.append(_observation(structure, number))
    return made


def _head(source: SourceSeries, origin: Origin, identity: Identity) -> Dataset:
    """All that is not of the structures."""
    now, first = datetime.datetime.now(), source.images[0]
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = identity.uid("RTSTRUCT", "instance")
    source.stamp(made)
    made.Modality, made.SeriesInstanceUID = "RTSTRUCT", identity.uid("RTSTRUCT", "series")
    made.SeriesNumber, made.InstanceNumber = SERIES_NUMBERS["RTSTRUCT"], 1
    made.SeriesDescription = origin.describe("Contours")
    equipment = origin.equipment
    made.Manufacturer, made.ManufacturerModelName = equipment["manufacturer"], equipment["manufacturer_model_name"]
    made.SoftwareVersions, made.DeviceSerialNumber = equipment["software_versions"], equipment["device_serial_number"]
    made.FrameOfReferenceUID = first.FrameOfReferenceUID
    made.PositionReferenceIndicator = first.get("PositionReferenceIndicator", "")
    made.OperatorsName = ""
    made.StructureSetLabel, made.StructureSetDescription = "ORGANS", origin.describe("Automatic")
    made.StructureSetDate = made.InstanceCreationDate = now.strftime("%Y%m%d")
    made.StructureSetTime = made.InstanceCreationTime = now.strftime("%H%M%S")
    made.ApprovalStatus = "UNAPPROVED"
    return made


def _reference(source: SourceSeries, place: int) -> Dataset:
    """The image of a slice."""
    item = Dataset()
    image = source.images[0 if source.enhanced else place]
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    if source.enhanced:
        item.ReferencedFrameNumber = source.volume.frames[place].index + 1
    return item


def _frame_of_reference(source: SourceSeries) -> Dataset:
    first = source.images[0]
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = [_reference(source, i) for i in range(len(source.volume.frames))]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = first.FrameOfReferenceUID, [study]
    return frame


def _region(source: SourceSeries, structure: StructureCode, number: int, origin: Origin) -> Dataset:
    region = Dataset()
    region.ROINumber, region.ReferencedFrameOfReferenceUID = number, source.images[0].FrameOfReferenceUID
    region.ROIName, region.ROIGenerationAlgorithm = structure.title[:64], "AUTOMATIC"
    region.ROIGenerationDescription = f"{origin.algorithm} {origin.version}"[:64]
    region.ROIDescription = f"weights {origin.weights}. {origin.warning}".strip()
    return region


def _observation(structure: StructureCode, number: int) -> Dataset:
    found = Dataset()
    found.ObservationNumber = found.ReferencedROINumber = number
    found.RTROIInterpretedType = "ORGAN" if structure.category == CATEGORIES["anatomical structure"] else ""
    found.ROIInterpreter = ""
    identification = CodedConcept.from_code(structure.concept)
    if structure.side is not None:
        identification.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept.from_code(structure.side)]
    found.RTROIIdentificationCodeSequence = [identification]
    return found


def _contours(source: SourceSeries, mask: np.ndarray) -> Iterator[Dataset]:
    """Those of a structure, slice by slice, in mm (LPS)."""
    volume = source.volume
    in_plane = (volume.direction * volume.spacing)[:, :2]
    for k in np.flatnonzero(mask.any(axis=(0, 1))):
        corner = np.array(volume.frames[k].position or volume.origin)
        for outline in outlines(mask[:, :, k].T):
            points = corner + outline @ in_plane.T
            contour = Dataset()
            contour.ContourImageSequence = [_reference(source, k)]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.ContourData = [f"{value:.4f}" for value in points.ravel()]  # 16 characters at most
            yield contour


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The outlines of the pieces of a mask (rows, columns), each (n, 2) of x and y in pixels, whose centres are whole.

    Some of it has to be there. Holes are cut in from outside, see `make_structure_set`; the last point is joined to the
    first.
    """
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    corner = np.array([columns[0], rows[0]])
    padded = np.pad(box.astype(np.float32), 1)
    pieces, offsets = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    found = []
    for points, bounds in zip(pieces, offsets, strict=True):
        rings = [_corners(points[a : b - 1] - 1 + corner) for a, b in pairwise(bounds)]
        found.append(_with_slits(rings[0], rings[1:]))
    return found


def _corners(ring: np.ndarray) -> np.ndarray:
    """A ring without the points in the middle of its straight parts; its coordinates are halves, so this is exact."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _with_slits(ring: np.ndarray, holes: Sequence[np.ndarray]) -> np.ndarray:
    """A ring and its holes as one: from its point nearest to a hole there, around it and back, hole by hole.

    A slit is passed in both directions and has no area by either rule, of parity or of winding.
    """
    left = list(holes)
    while left:
        tree = cKDTree(ring)
        nearest = [tree.query(hole) for hole in left]
        chosen = int(np.argmin([distances.min() for distances, _ in nearest]))
        distances, places = nearest[chosen]
        start = int(distances.argmin())
        here, hole = int(places[start]), np.roll(left.pop(chosen), -start, axis=0)
        ring = np.concatenate([ring[: here + 1], hole, hole[:1], ring[here:]])
    return ring
