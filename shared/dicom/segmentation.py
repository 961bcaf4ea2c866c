"""Label maps as DICOM SEG, and back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy

import highdicom as hd
import numpy as np
import pydicom
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.valuerep import DS

from ..utils import DataError
from ..utils.text import first_few
from .codes import StructureCode, structure_of
from .origin import Identity, Origin
from .source import SourceSeries

KINDS = ("BINARY", "LABELMAP")
SERIES_NUMBERS = {"BINARY": 9301, "LABELMAP": 9301, "SR": 9302, "RTSTRUCT": 9303, "ANN": 9304}
_SAME_PLACE = 0.01  # mm


def identify(
    source: SourceSeries, label_map: np.ndarray, structures: Sequence[StructureCode], origin: Origin
) -> Identity:
    """The UIDs of the objects that are made of a label map on the grid of a CT."""
    return Identity(origin, source.uids, repr(list(structures)), label_map)


def make_segmentation(
    source: SourceSeries,
    label_map: np.ndarray,
    structures: Sequence[StructureCode],
    origin: Origin,
    identity: Identity,
    kind: str = "BINARY",
) -> Segmentation | None:
    """The segmentation of a CT as a DICOM SEG: a segment for each structure that is there, by the order of their ids.

    Its algorithm type is AUTOMATIC, or SEMIAUTOMATIC of a `Submission`. Empty slices are left out, as the standard
    allows; `read_segmentation` restores them.

    Args:
        source: the CT.
        label_map: (x, y, z), uint8, on its grid, see `SourceSeries.place`.
        structures: the classes, see `read_codes`.
        origin: who made it.
        identity: of the result, see `identify`.
        kind: BINARY, a bit for each voxel and segment, which all programs read; or LABELMAP, a byte for each voxel.

    Returns:
        None where none of the structures is there: a SEG has to have a segment.
    """
    present = [s for s in structures if (label_map == s.label).any()]
    if not present:
        return None
    table = np.zeros(256, np.uint8)
    for number, structure in enumerate(present, 1):
        table[structure.label] = number
    # as stored: frames, rows, columns
    frames = table[label_map].transpose(2, 1, 0)
    if source.enhanced:
        frames = frames[np.argsort([frame.index for frame in source.volume.frames])]
    segmentation = Segmentation(
        source_images=source.images,
        pixel_array=frames,
        segmentation_type=kind,
        segment_descriptions=[_describe(s, i, origin, identity) for i, s in enumerate(present, 1)],
        series_instance_uid=identity.uid(kind, "series"),
        series_number=SERIES_NUMBERS[kind],
        sop_instance_uid=identity.uid(kind, "instance"),
        instance_number=1,
        content_label="SEGMENTATION",
        content_description=origin.describe("Automatic"),
        series_description=origin.describe("Segmentation"),
        **origin.equipment,
    )
    source.stamp(segmentation)
    _name_dimensions(segmentation, identity.uid(kind, "dimensions"))
    return segmentation


def _describe(structure: StructureCode, number: int, origin: Origin, identity: Identity) -> SegmentDescription:
    found = SegmentDescription(
        segment_number=number,
        segment_label=structure.title[:64],
        segmented_property_category=structure.category,
        segmented_property_type=structure.concept,
        algorithm_type=origin.algorithm_type,
        algorithm_identification=origin.identification,
        tracking_uid=identity.uid("tracking", structure.name),
        tracking_id=structure.name[:64],
        primary_anatomic_structures=structure.parts or None,
        display_color=structure.lab_colour,
    )
    if structure.side is not None:
        side = CodedConcept.from_code(structure.side)
        found.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
    return found


def _name_dimensions(segmentation: Segmentation, uid: hd.UID) -> None:
    """highdicom draws this UID anew each time."""
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def read_segmentation(
    segmentation: str | os.PathLike | Dataset, source: SourceSeries, structures: Sequence[StructureCode]
) -> np.ndarray:
    """The label map in a DICOM SEG, also of another program's, on the whole grid of a CT.

    Ids are found by codes, never by the numbers of segments, which depend on what else is in the object.

    Args:
        segmentation: a file, or what pydicom read of it.
        source: the CT.
        structures: the classes, see `read_codes`. Segments of others are left out.

    Returns:
        (x, y, z), uint8, of ids, 0 where there is none.

    Raises:
        DataError: when it is no SEG of whole voxels, belongs to another frame of reference, lies on other voxels, has
            two structures in one voxel, or none of the structures.
    """
    where = "the SEG" if isinstance(segmentation, Dataset) else str(segmentation)
    found = _open(where, segmentation, source)
    if found.get("FrameOfReferenceUID") != source.images[0].FrameOfReferenceUID:
        raise DataError(f"{where}: belongs to another frame of reference than {source.path}. Give the SEG of this CT.")
    numbered = {segment.SegmentNumber: structure_of(segment, structures) for segment in found.SegmentSequence}
    known = {number: structure.label for number, structure in numbered.items() if structure}
    if not known:
        there = first_few([segment.SegmentLabel for segment in found.SegmentSequence])
        raise DataError(f"{where}: has no segment with a code of the classes, but {there}. Give their codes.")
    try:
        volume = found.get_volume(
            segment_numbers=list(known),
            combine_segments=True,
            dtype=np.uint8,
            apply_palette_color_lut=False,
        )
        placed = volume.match_geometry(source.geometry, tol=1e-3).array
    except (RuntimeError, ValueError) as e:  # highdicom's, for what overlaps and for what lies elsewhere
        raise DataError(
            f"{where}: cannot be brought onto the voxels of {source.path} ({str(e).rstrip('.')}). Expected one "
            "structure a voxel, on the CT's own grid."
        ) from e
    table = np.zeros(256, np.uint8)
    table[list(known)] = list(known.values())
    return np.ascontiguousarray(table[placed].transpose(2, 1, 0))


def _open(where: str, segmentation: str | os.PathLike | Dataset, source: SourceSeries) -> Segmentation:
    try:
        dataset = deepcopy(segmentation) if isinstance(segmentation, Dataset) else pydicom.dcmread(segmentation)
        _even_out(dataset, source)
        found = Segmentation.from_dataset(dataset, copy=False)
    except Exception as e:  # pydicom and highdicom have no type of their own for what they meet
        raise DataError(f"{where}: cannot be read as a DICOM SEG ({type(e).__name__}). Export it again.") from e
    if found.SegmentationType not in KINDS or len(found.SegmentSequence) > 255:
        kind, count = found.SegmentationType, len(found.SegmentSequence)
        raise DataError(f"{where}: is of the type {kind} with {count} segments, expected {' or '.join(KINDS)}, of 255.")
    return found


def _even_out(dataset: Dataset, source: SourceSeries) -> None:
    """Put frames that lie where slices of the CT do to where the volume of these has them: distances, which headers
    round, may be uneven by as much as `volume_of` lets pass, and highdicom asks for a hundredth.
    """
    volume = source.volume
    places = np.array([frame.position or volume.origin for frame in volume.frames])
    even = volume.origin + np.outer(np.arange(len(places)) * volume.spacing[2], volume.direction[:, 2])
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        for plane in frame.get("PlanePositionSequence", []):
            distances = np.linalg.norm(places - np.array(plane.ImagePositionPatient, float), axis=1)
            if distances.min() < _SAME_PLACE:
                plane.ImagePositionPatient = [DS(x, auto_format=True) for x in even[distances.argmin()]]
