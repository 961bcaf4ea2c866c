from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from ct_phantom import ORIGIN, Phantom, structures, write_phantom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from shared.dicom import SourceSeries, identify, make_report, make_segmentation, read_source
from shared.reports.organs import measure_organs

CODES = structures()
SOME = (2, 3, 6, 10, 13)


def reported(phantom: Phantom, folder: Path, with_hu: bool = True) -> tuple[hd.sr.ComprehensiveSR, Dataset | None]:
    """The report as a program reads it, and the SEG that it refers to."""
    source: SourceSeries = read_source(phantom.folder)
    label_map = source.place(phantom.label_map, phantom.affine, range(1, 14))
    identity = identify(source, label_map, CODES, ORIGIN)
    segmentation = make_segmentation(source, label_map, CODES, ORIGIN, identity)
    names = {code.name: code.label for code in CODES}
    hu = phantom.hu if with_hu else None
    measures = measure_organs(phantom.label_map, names, float(np.prod(source.volume.spacing)), hu)
    made = make_report(source, measures, CODES, ORIGIN, identity, segmentation)
    made.save_as(folder / "sr.dcm")
    return hd.sr.srread(folder / "sr.dcm"), segmentation


@pytest.mark.parametrize("orientation", ["LPS", "PIL", "enhanced"])
def test_volumes_and_mean_hu_of_what_was_found_and_their_segments(orientation: str, tmp_path: Path) -> None:
    phantom = write_phantom(tmp_path / "ct", orientation, SOME)
    report, segmentation = reported(phantom, tmp_path)
    voxel_cm3 = 1.5 * 2.0 * 2.5 / 1000
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == [CODES[i - 1].name for i in SOME]
    for number, (i, group) in enumerate(zip(SOME, groups, strict=True), 1):
        inside = phantom.label_map == i
        volume, attenuation = group.get_measurements()
        assert (volume.name, volume.unit) == (codes.SCT.Volume, codes.UCUM.CubicCentimeter)
        assert volume.value == pytest.approx(inside.sum() * voxel_cm3, abs=6e-4)
        assert (attenuation.name, attenuation.unit) == (codes.DCM.AttenuationCoefficient, codes.UCUM.HounsfieldUnit)
        assert attenuation.value == pytest.approx(phantom.hu[inside].mean(), abs=0.06)
        assert attenuation.derivation == codes.SCT.Mean
        assert group.finding_type == CODES[i - 1].concept
        segment = group.referenced_segment
        assert segment.referenced_sop_instance_uid == segmentation.SOPInstanceUID
        assert [*segment.referenced_segment_numbers] == [number]
        assert group.tracking_uid == segmentation.SegmentSequence[number - 1].TrackingUID
    sides = [[site.laterality for site in group.finding_sites] for group in groups]
    assert sides == [[codes.SCT.Right], [codes.SCT.Left], [None], [None, None], [codes.SCT.Left]]
    assert [s.value for s in groups[3].finding_sites] == [codes.SCT.PortalVein, codes.SCT.SplenicVein]


def test_what_was_not_found_is_said_and_has_no_volume(tmp_path: Path) -> None:
    report, _ = reported(write_phantom(tmp_path / "ct", labels=SOME), tmp_path, with_hu=False)
    missing = report.content.get_image_measurement_groups()
    assert [g.tracking_identifier for g in missing] == [c.name for c in CODES if c.label not in SOME]
    for group in missing:
        assert group.get_measurements() == []
        said = [(e.name, e.value) for e in group.get_qualitative_evaluations()]
        assert (codes.DCM.PresenceOfProperty, codes.DCM.NotVisualized) in said
    assert [g.finding_type for g in missing] == [c.concept for c in CODES if c.label not in SOME]
    first, *_ = report.content.get_volumetric_roi_measurement_groups()
    assert [m.name for m in first.get_measurements()] == [codes.SCT.Volume]  # without HU


def test_a_scan_without_any_organ_has_a_report_and_no_segmentation(tmp_path: Path) -> None:
    report, segmentation = reported(write_phantom(tmp_path / "ct", labels=()), tmp_path)
    assert segmentation is None
    assert report.content.get_volumetric_roi_measurement_groups() == []
    assert len(report.content.get_image_measurement_groups()) == 13


def test_evidence_state_and_patient(tmp_path: Path) -> None:
    phantom = write_phantom(tmp_path / "ct", labels=SOME)
    report, segmentation = reported(phantom, tmp_path)
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert (report.PatientID, report.PatientName) == ("P1", "Made-up^P1")
    evidence = {
        item.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert evidence == {*read_source(phantom.folder).uids, segmentation.SOPInstanceUID}
    again, _ = reported(phantom, tmp_path)
    uids = [[str(e.value) for e in each.iterall() if e.VR == "UI"] for each in (report, again)]
    assert uids[0] == uids[1]
