from __future__ import annotations

import json
from pathlib import Path

import highdicom as hd
import monai.transforms as mt
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from ct_phantom import METADATA, ORIGIN, write_phantom
from dicom_slide import write_slide
from monai.data import MetaTensor

from shared.data.regions import open_region
from shared.dicom import AnnotationExport, Outcome, SegmentationExport, export, read_segmentation, read_source
from shared.reports.detection_files import DetectedImage
from shared.transforms import LoadVolumed, SaveSegmentationd
from shared.utils import DataError
from shared.utils.bundle_run import without_export

METADATAS = {
    name: json.loads((METADATA.parents[2] / name / "configs" / "metadata.json").read_text())
    for name in ("abdominal_unetr_cbs", "mitosis_retinanet_fusestyle")
}
CODES = METADATAS["abdominal_unetr_cbs"]["dicom_codes"]
LABELS = {name: i for i, name in enumerate(CODES, 1)}
SOME = (2, 6, 13)
ALL = ("seg", "sr", "rtstruct")
URL = "http://127.0.0.1:1/dicom-web"


def exporter(*objects: str, **options: object) -> SegmentationExport:
    return SegmentationExport(objects or ALL, LABELS, CODES, ORIGIN, **options)


def case(path: Path, label_map: np.ndarray) -> dict:
    """What is saved of a CT: a label map on its grid, whose axes are to the right, the front and the head."""
    load = [LoadVolumed("image", hu_key="hu", check_intensity="off"), mt.Orientationd("image", "RAS", labels=None)]
    d = mt.Compose([*load, mt.ScaleIntensityRanged("image", -175, 250, 0, 1, clip=True)])({"image": str(path)})
    native = nib.Nifti1Image(label_map, d["image"].affine.numpy())
    codes = nib.aff2axcodes(d["image"].meta["original_affine"])
    turn = nib.orientations.ornt_transform(nib.io_orientation(native.affine), nib.orientations.axcodes2ornt(codes))
    stored = native.as_reoriented(turn)
    voxels = torch.from_numpy(np.asanyarray(stored.dataobj).copy())[None]
    return {**d, "pred": MetaTensor(voxels, affine=torch.from_numpy(stored.affine))}


def save(folder: Path, orientation: str = "LPS", labels: tuple[int, ...] = SOME, **options: object) -> Path:
    """Save a case with objects; the folder of its results."""
    phantom = write_phantom(folder / "ct", orientation, labels, patient="Doe")
    SaveSegmentationd(output_dir=folder / "out", labels=LABELS, **options)(case(phantom.folder, phantom.label_map))
    return folder / "out" / "ct"


@pytest.mark.parametrize("orientation", ["LPI", "PIL"])
def test_the_objects_lie_beside_the_other_results_and_say_the_same(orientation: str, tmp_path: Path) -> None:
    written = save(tmp_path, orientation, export=exporter())
    names = {"seg.dcm", "sr.dcm", "rtstruct.dcm", "dicom.json", "organs.json"}
    assert names < {file.name for file in written.iterdir()}
    source = read_source(tmp_path / "ct")
    found = read_segmentation(written / "seg.dcm", source, exporter().structures)
    nifti = nib.load(written / "ct_seg.nii.gz")
    assert np.array_equal(found, source.place(np.asanyarray(nifti.dataobj), nifti.affine, range(1, 14)))
    assert {*np.unique(found)} == {0, *SOME}
    said = json.loads((written / "organs.json").read_text())["organs"]
    groups = hd.sr.srread(written / "sr.dcm").content.get_volumetric_roi_measurement_groups()
    volumes = {g.tracking_identifier: [m.value for m in g.get_measurements()] for g in groups}
    assert volumes == {n: [o["volume_ml"], o["hu_mean"]] for n, o in said.items() if o["voxels"]}
    regions = pydicom.dcmread(written / "rtstruct.dcm").StructureSetROISequence
    assert [region.ROIName for region in regions] == ["right kidney", "liver", "left adrenal gland"]
    uids = {name: pydicom.dcmread(written / name).SOPInstanceUID for name in ("seg.dcm", "sr.dcm", "rtstruct.dcm")}
    assert json.loads((written / "dicom.json").read_text()) == {"objects": [*ALL], "files": uids, "stored": None}


def test_a_scan_without_any_organ_gives_a_report_alone(tmp_path: Path) -> None:
    written = save(tmp_path, labels=(), export=exporter())
    assert [file.name for file in sorted(written.glob("*.dcm"))] == ["sr.dcm"]
    assert exporter().is_whole(tmp_path / "out", "ct")


def test_of_structures_that_were_not_asked_for_nothing_is_said(tmp_path: Path) -> None:
    written = save(tmp_path, export=exporter(), structures=["liver", "spleen"])
    assert [s.SegmentLabel for s in pydicom.dcmread(written / "seg.dcm").SegmentSequence] == ["liver"]
    content = hd.sr.srread(written / "sr.dcm").content
    assert [g.tracking_identifier for g in content.get_image_measurement_groups()] == ["spleen"]


def test_what_is_no_series_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((24, 16, 8), np.int16), np.diag([2, 2, 3, 1])), tmp_path / "ct.nii.gz")
    saver = SaveSegmentationd(output_dir=tmp_path / "out", labels=LABELS, export=exporter())
    with pytest.raises(DataError, match=r"ct\.nii\.gz: is no DICOM series"):
        saver(case(tmp_path / "ct.nii.gz", np.ones((24, 16, 8), np.uint8)))
    assert [*(tmp_path / "out").iterdir()] == []


def stored(monkeypatch: pytest.MonkeyPatch, state: str) -> list[tuple]:
    """Let a PACS take or refuse what it gets, and note that."""
    calls = []

    def store(url: str, objects: list[Path], *, replace: bool = False) -> list[Outcome]:
        calls.append((url, [path.name for path in objects], replace))
        return [Outcome("1.2", "1.3", path.stem, state, "it is full" * (state == "refused")) for path in objects]

    monkeypatch.setattr(export, "store", store)
    return calls


def test_objects_are_stored_the_report_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, sending = stored(monkeypatch, "stored"), exporter(url=URL, replace="true")
    save(tmp_path, export=sending)
    assert calls == [(URL, ["seg.dcm", "rtstruct.dcm", "sr.dcm"], True)]
    assert sending.is_whole(tmp_path / "out", "ct")


def test_what_the_pacs_refuses_is_said_and_the_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(monkeypatch, "refused")
    with pytest.raises(DataError, match=r"dicom-web: does not take seg: it is full.*files are in .*ct"):
        save(tmp_path, export=exporter("seg", url=URL))
    assert (tmp_path / "out/ct/seg.dcm").is_file()
    assert exporter("seg").is_whole(tmp_path / "out", "ct")
    assert not exporter("seg", url=URL).is_whole(tmp_path / "out", "ct")


def test_a_case_is_whole_with_all_that_is_asked_for(tmp_path: Path) -> None:
    written = save(tmp_path, export=exporter("seg", "sr", segmentation_type="LABELMAP"))
    assert exporter("seg").is_whole(tmp_path / "out", "ct")
    assert not exporter().is_whole(tmp_path / "out", "ct")
    (written / "seg.dcm").unlink()
    assert not exporter("seg").is_whole(tmp_path / "out", "ct")
    (written / "dicom.json").write_text("{")
    assert not exporter("seg").is_whole(tmp_path / "out", "ct")
    again = save(tmp_path)  # without objects, in place of those
    assert not [*again.glob("*.dcm")]


@pytest.mark.parametrize(
    ("objects", "message"),
    [(("sr",), "sr without seg"), (("seg", "ann"), "a list of seg and rtstruct and sr")],
)
def test_wrong_objects_are_refused(objects: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        exporter(*objects)


@pytest.mark.parametrize(("dicom", "store"), [(["seg"], ""), ([], URL)])
def test_objects_need_the_overlay(dicom: list[str], store: str) -> None:
    without_export([], "")
    with pytest.raises(DataError, match=r"configs/variants/dicom\.json"):
        without_export(dicom, store)


def test_figures_of_a_slide_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stored(monkeypatch, "stored")
    file = write_slide(tmp_path / "slide", np.full((256, 512, 3), 200, np.uint8))
    labels = {"non_mitotic": 0, "mitotic": 1}
    writer = AnnotationExport(["ann"], labels, METADATAS["mitosis_retinanet_fusestyle"]["dicom_codes"], ORIGIN, URL)
    found = {"box": np.array([[5, 5, 55, 55], [80, 9, 130, 59]], np.float32), "label": np.array([1, 1])}
    found["score"] = np.array([0.9, 0.2], np.float32)
    image = DetectedImage(region=open_region(file), detections=found, threshold=0.5)
    writer.write(tmp_path, "s", file, image)
    assert not writer.is_whole(tmp_path, "s")
    writer.send(tmp_path, "s")
    assert calls == [(URL, ["s_ann.dcm"], False)]
    assert writer.is_whole(tmp_path, "s")
    (group,) = hd.ann.annread(tmp_path / "s_ann.dcm").get_annotation_groups()
    assert np.array_equal(group.get_graphic_data("2D")[0][0], [5, 5])
    assert len(group.get_graphic_data("2D")) == 1
    other = write_slide(tmp_path / "other", np.full((256, 256, 3), 200, np.uint8))
    with pytest.raises(DataError, match="its base level has"):
        writer.write(tmp_path, "s", other, image)
