"""Detections in whole slides as DICOM Microscopy Bulk Simple Annotations (ANN)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from highdicom import ann
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from ..data.dicom_slides import slide_files
from ..utils import DataError
from .codes import StructureCode
from .origin import Identity, Origin
from .segmentation import SERIES_NUMBERS
from .source import STUDY, study_of


def read_slide(path: str | os.PathLike) -> Dataset:
    """The header of the base level of a DICOM slide: of its files, that of the largest picture.

    Args:
        path: of one of its files.

    Raises:
        DataError: when it is no DICOM slide, or lacks what an object has to name.
    """
    found = [pydicom.dcmread(file, stop_before_pixels=True) for file in slide_files(Path(path))]
    levels = [header for header in found if "VOLUME" in header.get("ImageType", ())]
    if not levels:
        raise DataError(f"{path}: is no DICOM slide, and ANN can be made for such alone. Leave --dicom out.")
    base = max(levels, key=lambda header: header.TotalPixelMatrixColumns)
    if lacking := [key for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID") if not base.get(key)]:
        raise DataError(f"{path}: has no {' and no '.join(lacking)}, which an object has to name. Export it again.")
    return base


def make_annotations(
    slide: Dataset,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    structures: Sequence[StructureCode],
    origin: Origin,
) -> ann.MicroscopyBulkSimpleAnnotations | None:
    """Figures in a slide: a group for each class that was found, each figure a POLYGON, its box, with its score.

    Args:
        slide: the header of its base level, see `read_slide`.
        boxes: (n, 4), x1, y1, x2, y2 in pixels of that level, from the upper left corner of its picture.
        scores: (n,), from 0 to 1.
        labels: (n,), ids of their classes.
        structures: the classes, see `read_codes`.
        origin: who made it.

    Returns:
        None where there are no figures: an object has to have one.
    """
    boxes, scores, labels = (np.asarray(a, kind) for a, kind in ((boxes, "<f4"), (scores, "<f4"), (labels, "<i8")))
    identity = Identity(origin, [slide.SOPInstanceUID], repr(list(structures)), boxes, scores, labels)
    present = [s for s in structures if (labels == s.label).any()]
    if not present:
        return None
    study = study_of(slide)
    source = Dataset()
    source.update(slide)
    for key in STUDY:  # so that no library's message can tell of the patient
        setattr(source, key, "")
    groups = [
        _group(structure, number, boxes[labels == structure.label], scores[labels == structure.label], origin, identity)
        for number, structure in enumerate(present, 1)
    ]
    made = ann.MicroscopyBulkSimpleAnnotations(
        source_images=[source],
        annotation_coordinate_type="2D",
        annotation_groups=groups,
        series_instance_uid=identity.uid("ANN", "series"),
        series_number=SERIES_NUMBERS["ANN"],
        sop_instance_uid=identity.uid("ANN", "instance"),
        instance_number=1,
        content_label="FIGURES",
        content_description=origin.describe("Automatic"),
        series_description=origin.describe("Figures"),
        specific_character_set=study.SpecificCharacterSet,
        **origin.equipment,
    )
    made.update(study)
    return made


def _group(
    structure: StructureCode, number: int, boxes: np.ndarray, scores: np.ndarray, origin: Origin, identity: Identity
) -> ann.AnnotationGroup:
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    return ann.AnnotationGroup(
        number=number,
        uid=identity.uid("group", structure.name),
        label=structure.title[:64],
        annotated_property_category=structure.category,
        annotated_property_type=structure.concept,
        graphic_type="POLYGON",
        graphic_data=list(corners),
        algorithm_type="AUTOMATIC",
        algorithm_identification=origin.identification,
        measurements=[ann.Measurements(codes.SCT.Score, scores, codes.UCUM.NoUnits)],
        description=origin.warning or None,
        display_color=structure.lab_colour,
    )
