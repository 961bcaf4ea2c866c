"""Volumes and mean HU of organs as a DICOM structured report (Comprehensive SR, TID 1500)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from highdicom import sr
from highdicom.seg import Segmentation
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

from .codes import StructureCode
from .origin import MANUFACTURER, Identity, Origin
from .segmentation import SERIES_NUMBERS
from .source import SourceSeries


def make_report(
    source: SourceSeries,
    measures: Mapping[str, Mapping[str, Any]],
    structures: Sequence[StructureCode],
    origin: Origin,
    identity: Identity,
    segmentation: Segmentation | None,
) -> sr.ComprehensiveSR:
    """The report of a segmentation, complete, preliminary and unverified.

    A structure that was found has a group of measurements (TID 1411): its volume in cm³ and, if known, the mean of its
    HU, of the segment that the group refers to, whose tracking UID it has. Of one that was not found no volume of 0 is
    said, which would be a measurement: its group (TID 1501) has the evaluation "Presence of property: Not
    visualized".

    Args:
        source: the CT, all slices of which are evidence.
        measures: name → `voxels`, `volume_ml` and `hu_mean`, as `measure_organs` has them.
        structures: the classes, see `read_codes`.
        origin: who made it.
        identity: of the result, see `identify`.
        segmentation: see `make_segmentation`; None where nothing was found.
    """
    segments = _segments(source, segmentation)
    groups = [
        _found(structure, measures[structure.name], segments[structure.name[:64]], origin, identity)
        if measures[structure.name]["voxels"]
        else _not_found(structure, origin, identity)
        for structure in structures
    ]
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=origin.device_uid,
        name=origin.algorithm,
        manufacturer_name=MANUFACTURER,
        model_name=origin.algorithm,
        serial_number=origin.weights,
    )
    observer = sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.ComputedTomography,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    equipment = origin.equipment
    report = sr.ComprehensiveSR(
        evidence=[*source.images, *([segmentation] if segmentation else [])],
        content=content[0],
        series_instance_uid=identity.uid("SR", "series"),
        series_number=SERIES_NUMBERS["SR"],
        sop_instance_uid=identity.uid("SR", "instance"),
        instance_number=1,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description=origin.describe("Volumes"),
        manufacturer=equipment.pop("manufacturer"),
        **equipment,
    )
    source.stamp(report)
    return report


def _about(structure: StructureCode, origin: Origin, identity: Identity) -> dict[str, Any]:
    """What a group of either kind says of its structure."""
    places = structure.parts or (structure.concept,)
    return {
        "tracking_identifier": sr.TrackingIdentifier(identity.uid("tracking", structure.name), structure.name[:64]),
        "finding_category": structure.category,
        "finding_type": structure.concept,
        "finding_sites": [sr.FindingSite(CodedConcept.from_code(p), laterality=structure.side) for p in places],
        "algorithm_id": origin.sr_identification,
    }


def _segments(source: SourceSeries, segmentation: Segmentation | None) -> dict[str, sr.ReferencedSegment]:
    """A reference to each segment, by its tracking id, which the background of a LABELMAP lacks."""
    if segmentation is None:
        return {}
    series = sr.SourceSeriesForSegmentation(source.images[0].SeriesInstanceUID)
    about = (segmentation.SOPClassUID, segmentation.SOPInstanceUID)
    return {
        segment.TrackingID: sr.ReferencedSegment(*about, segment.SegmentNumber, source_series=series)
        for segment in segmentation.SegmentSequence
        if "TrackingID" in segment
    }


def _found(
    structure: StructureCode,
    measures: Mapping[str, Any],
    segment: sr.ReferencedSegment,
    origin: Origin,
    identity: Identity,
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    measured = [sr.Measurement(codes.SCT.Volume, measures["volume_ml"], codes.UCUM.CubicCentimeter)]
    if measures.get("hu_mean") is not None:
        attenuation = (codes.DCM.AttenuationCoefficient, measures["hu_mean"], codes.UCUM.HounsfieldUnit)
        measured.append(sr.Measurement(*attenuation, derivation=codes.SCT.Mean))
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        **_about(structure, origin, identity),
        referenced_segment=segment,
        measurements=measured,
    )


def _not_found(
    structure: StructureCode, origin: Origin, identity: Identity
) -> sr.MeasurementsAndQualitativeEvaluations:
    evaluation = sr.QualitativeEvaluation(codes.DCM.PresenceOfProperty, codes.DCM.NotVisualized)
    return sr.MeasurementsAndQualitativeEvaluations(
        **_about(structure, origin, identity), qualitative_evaluations=[evaluation]
    )
