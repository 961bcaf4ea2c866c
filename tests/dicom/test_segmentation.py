from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from ct_phantom import ORIENTATIONS, ORIGIN, Phantom, structures, write_phantom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from shared.dicom import SourceSeries, identify, make_segmentation, read_codes, read_segmentation, read_source
from shared.dicom.segmentation import KINDS
from shared.utils import DataError

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / "../shared/data/ct_dicom"
CODES = structures()
SOME = (2, 3, 6, 10, 13)  # of both kidneys, and of what has no code of its own; the last lies in one slice


@pytest.fixture(params=ORIENTATIONS)
def phantom(request: pytest.FixtureRequest, tmp_path: Path) -> Phantom:
    return write_phantom(tmp_path / "ct", request.param, SOME)


@pytest.fixture
def axial(tmp_path: Path) -> Phantom:
    return write_phantom(tmp_path / "ct", labels=SOME)


def segmented(phantom: Phantom, kind: str = "BINARY", **changes: object) -> tuple[Dataset, SourceSeries, np.ndarray]:
    """A SEG, its CT, and the label map on the grid of that."""
    source = read_source(phantom.folder)
    label_map = source.place(phantom.label_map, phantom.affine, range(1, 14))
    origin = replace(ORIGIN, **changes)
    made = make_segmentation(source, label_map, CODES, origin, identify(source, label_map, CODES, origin), kind)
    return made, source, label_map


def voxel_places(segmentation: Dataset) -> dict[tuple[str, str], set[tuple[float, ...]]]:
    """Label and side of each segment → where its voxels are, mm (LPS), by the equation of PS3.3, C.7.6.2.1.1."""
    shared, places = segmentation.SharedFunctionalGroupsSequence[0], {}
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    axes = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    for frame, pixels in zip(segmentation.PerFrameFunctionalGroupsSequence, segmentation.pixel_array, strict=True):
        corner = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(pixels):
            if segmentation.SegmentationType == "BINARY":
                number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            else:
                number = pixels[row, column]
            segment = next(s for s in segmentation.SegmentSequence if s.SegmentNumber == number)
            place = corner + column * between_columns * axes[0] + row * between_rows * axes[1]
            places.setdefault(segment.SegmentLabel, set()).add(tuple(place.round(2) + 0.0))
    return places


@pytest.mark.parametrize("kind", KINDS)
def test_the_voxels_lie_where_they_did_and_are_read_back_equal(phantom: Phantom, kind: str, tmp_path: Path) -> None:
    made, source, label_map = segmented(phantom, kind)
    made.save_as(tmp_path / "seg.dcm")
    to_lps = np.diag([-1, -1, 1, 1]) @ phantom.affine
    expected = {}
    for i in SOME:
        voxels = np.argwhere(phantom.label_map == i)
        places = voxels @ to_lps[:3, :3].T + to_lps[:3, 3]
        expected[CODES[i - 1].title] = {tuple(place.round(2) + 0.0) for place in places}
    assert voxel_places(pydicom.dcmread(tmp_path / "seg.dcm")) == expected
    assert np.array_equal(read_segmentation(tmp_path / "seg.dcm", source, CODES), label_map)
    assert {*np.unique(label_map)} == {0, *SOME}


def test_without_any_organ_there_is_no_segmentation(axial: Phantom) -> None:
    assert segmented(axial._replace(label_map=axial.label_map * 0))[0] is None


def test_what_stands_in_a_segmentation(axial: Phantom) -> None:
    made, source, _ = segmented(axial)
    first, labels = source.images[0], [s.SegmentLabel for s in made.SegmentSequence]
    assert labels == ["right kidney", "left kidney", "liver", "portal and splenic veins", "left adrenal gland"]
    assert (made.PatientID, made.StudyInstanceUID) == ("P1", first.StudyInstanceUID)
    assert made.FrameOfReferenceUID == first.FrameOfReferenceUID
    references = {i.ReferencedSOPInstanceUID for i in made.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert references == set(source.uids)
    assert made.SeriesDescription == "Segmentation: research only"
    for segment in made.SegmentSequence:
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("abdominal_unetr_cbs", "0.1.0")
        assert "ab" * 32 in algorithm.AlgorithmParameters
    veins = made.SegmentSequence[3].PrimaryAnatomicStructureSequence
    assert [part.CodeMeaning for part in veins] == ["Portal vein", "Splenic vein"]


@pytest.mark.parametrize(
    ("record", "mark", "warning"),
    [({}, "weights of unknown origin", "Nobody knows"), ({"synthetic": True}, "SYNTHETIC weights", "synthetic data")],
)
def test_synthetic_and_unknown_weights_are_said(axial: Phantom, record: dict, mark: str, warning: str) -> None:
    made, *_ = segmented(axial, record=record)
    assert mark in made.SeriesDescription
    assert mark in made.ContentDescription
    algorithm = made.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert warning in algorithm.AlgorithmParameters


def uids(dataset: Dataset) -> Iterator[str]:
    for element in dataset.iterall():
        if element.VR == "UI":
            yield str(element.value)


def test_the_same_result_has_the_same_uids_and_any_other_one_a_new_series(axial: Phantom, tmp_path: Path) -> None:
    made, *_ = segmented(axial)
    assert list(uids(made)) == list(uids(segmented(axial)[0]))
    moved = axial.label_map.copy()
    moved[0, 0, 0] = 6
    others = [
        segmented(axial._replace(label_map=moved)),
        segmented(axial, "LABELMAP"),
        segmented(axial, version="0.2.0"),
        segmented(axial, made_with={**ORIGIN.made_with, "weights": "cd" * 32}),
        segmented(axial, made_with={**ORIGIN.made_with, "settings": {"sw_overlap": 0.5}}),
        segmented(axial, record={"synthetic": True}),
        segmented(write_phantom(tmp_path / "other", labels=SOME, patient="P2")),
    ]
    for key in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert len({made[key].value, *(other[0][key].value for other in others)}) == len(others) + 1


def test_ids_are_those_of_the_codes_whatever_the_segments_numbers(axial: Phantom) -> None:
    made, source, label_map = segmented(axial)
    fewer = [replace(code, label=code.label + 20) for code in CODES if code.label != 6]
    expected = np.where(np.isin(label_map, (0, 6)), 0, label_map + 20)
    assert np.array_equal(read_segmentation(made, source, fewer), expected)


def test_another_programs_segmentation_with_older_codes_is_read(axial: Phantom) -> None:
    made, source, label_map = segmented(axial)
    liver = made.SegmentSequence[2].SegmentedPropertyTypeCodeSequence[0]
    liver.CodeValue, liver.CodingSchemeDesignator = "T-62000", "SRT"
    kidney = made.SegmentSequence[0]  # the side beside the region
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "64033007", "SCT", "Kidney"
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    region.AnatomicRegionModifierSequence = kind.SegmentedPropertyTypeModifierCodeSequence
    del kind.SegmentedPropertyTypeModifierCodeSequence
    kidney.AnatomicRegionSequence = [region]
    assert np.array_equal(read_segmentation(made, source, CODES), label_map)


def test_a_segmentation_that_does_not_fit_is_refused(axial: Phantom, tmp_path: Path) -> None:
    made, source, _ = segmented(axial)
    other = read_source(write_phantom(tmp_path / "other", patient="P2").folder)
    with pytest.raises(DataError, match=r"another frame of reference than .*other"):
        read_segmentation(made, other, CODES)
    made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [2.1, 1.5]
    with pytest.raises(DataError, match=r"cannot be brought onto the voxels of .*ct"):
        read_segmentation(made, source, CODES)
    with pytest.raises(DataError, match="no segment with a code of the classes, but right kidney, left kidney"):
        read_segmentation(made, source, read_codes({}, {"lesion": 1}))
    with pytest.raises(DataError, match=r"0001\.dcm: cannot be read as a DICOM SEG"):
        read_segmentation(axial.folder / "0001.dcm", source, CODES)
    made.SegmentationType = "FRACTIONAL"
    with pytest.raises(DataError, match="of the type FRACTIONAL with 5 segments"):
        read_segmentation(made, source, CODES)


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("ImagePositionPatient", [-3.5, -61.25, -106.0], "unevenly spaced"),
        ("ImagePositionPatient", [16.5, -61.25, -107.0], "shifted against each other"),
        ("FrameOfReferenceUID", "1.2.826.0.1.3680043.8.498.1", "several FrameOfReferenceUIDs"),
        ("FrameOfReferenceUID", "", r"0003\.dcm: has no FrameOfReferenceUID"),
        ("SOPInstanceUID", None, "several slices have the same SOPInstanceUID"),
    ],
)
def test_a_series_that_no_object_can_be_made_for_is_refused(
    axial: Phantom, keyword: str, value: object, message: str
) -> None:
    image = pydicom.dcmread(axial.folder / "0003.dcm")
    taken = pydicom.dcmread(axial.folder / "0001.dcm")[keyword].value if value is None else value
    setattr(image, keyword, taken)
    image.save_as(axial.folder / "0003.dcm")
    with pytest.raises(DataError, match=message):
        read_source(axial.folder)


def test_headers_that_are_not_as_the_standard_asks_do_no_harm(axial: Phantom, tmp_path: Path) -> None:
    for file in axial.folder.iterdir():
        image = pydicom.dcmread(file)
        del image.AccessionNumber
        image.SpecificCharacterSet = "ISO_IR 100"
        image.PatientName = "Jürgensen"  # without a caret, which highdicom warns of, with the name
        image.save_as(file)
        # what pydicom would not write
        content = file.read_bytes().replace(b"CS\x02\x00O ", b"CS\x02\x00??")
        file.write_bytes(content)
    made, source, label_map = segmented(axial)
    made.save_as(tmp_path / "seg.dcm")
    made = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (made.PatientName, made.PatientSex, made.AccessionNumber) == ("Jürgensen", "", "")
    assert np.array_equal(read_segmentation(made, source, CODES), label_map)


def test_distances_as_uneven_as_loading_lets_pass_are_read_back(axial: Phantom) -> None:
    image = pydicom.dcmread(axial.folder / "0003.dcm")
    image.ImagePositionPatient[2] += 0.4
    image.save_as(axial.folder / "0003.dcm")
    made, source, label_map = segmented(axial)
    assert np.array_equal(read_segmentation(made, source, CODES), label_map)


def test_what_lies_in_one_slice_of_several_that_overlap_is_read_back(tmp_path: Path) -> None:
    """The distance of slices, which no two frames then tell of, is less than their thickness."""
    phantom = write_phantom(tmp_path / "ct", labels=(13,))
    for file in phantom.folder.iterdir():
        image = pydicom.dcmread(file)
        image.SliceThickness = "7"
        image.save_as(file)
    made, source, label_map = segmented(phantom)
    assert made.NumberOfFrames == 1
    assert np.array_equal(read_segmentation(made, source, CODES), label_map)


def test_real_scanners_headers_and_dcmqis_segmentation() -> None:
    if not REAL.is_dir():
        pytest.skip(f"{REAL.name} is not at hand")
    import itk

    source = read_source(REAL / "ct-3slice")
    expected = itk.array_from_image(itk.imread(str(REAL / "liver_seg.nrrd"))).T > 0
    found = read_segmentation(REAL / "liver_DICOMSEG.dcm", source, CODES)
    assert np.array_equal(found, 6 * expected)
    made = make_segmentation(source, found, CODES, ORIGIN, identify(source, found, CODES, ORIGIN))
    assert made.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue == codes.SCT.Liver.value
    assert np.array_equal(read_segmentation(made, source, CODES), found)
