from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
from ct_phantom import ORIENTATIONS, ORIGIN, Phantom, structures, write_phantom
from pydicom.dataset import Dataset

from shared.dicom import identify, make_structure_set, read_source
from shared.dicom.structure_set import outlines

CODES = structures()
SOME = (2, 3, 6, 10, 13)


def inside(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels (rows, columns) whose centres a polygon of x and y encloses: a ray to the right crosses it oddly often."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    odd = np.zeros(shape, bool)
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y1 == y2:
            continue
        crossed = (y1 > y) != (y2 > y)
        odd ^= crossed & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return odd


def filled(polygons: list[np.ndarray], shape: tuple[int, int], joined: bool) -> np.ndarray:
    """What contours enclose for readers that join their areas, and for those that go by parity."""
    areas = [inside(polygon, shape) for polygon in polygons] or [np.zeros(shape, bool)]
    return np.logical_or.reduce(areas) if joined else np.logical_xor.reduce(areas)


RING = np.zeros((14, 16), bool)
RING[1:12, 2:14] = True
RING[3:10, 4:12] = False
NESTED = RING.copy()
NESTED[5:8, 6:10] = True  # an island in the hole, with a hole of its own
NESTED[6, 7] = False
HOLES = np.ones((12, 12), bool)
HOLES[1::3, 1::3] = False
DIAGONAL = np.eye(6, dtype=bool)
SPECKLES = np.random.default_rng(0).random((20, 17)) < 0.6
MASKS = {"ring": RING, "nested": NESTED, "holes": HOLES, "diagonal": DIAGONAL, "speckles": SPECKLES}
MASKS |= {"voxel": np.pad([[True]], 3), "edge": np.ones((3, 5), bool)}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("joined", [True, False], ids=["areas are joined", "parity"])
def test_whoever_fills_the_outlines_gets_the_mask(name: str, joined: bool) -> None:
    mask = MASKS[name]
    found = outlines(mask)
    assert np.array_equal(filled(found, mask.shape, joined), mask)
    pieces = {"ring": 1, "nested": 2, "holes": 1, "voxel": 1, "edge": 1}
    assert len(found) == pieces.get(name, len(found))


def test_straight_parts_have_no_points_in_their_middle() -> None:
    assert len(outlines(np.ones((5, 7), bool))[0]) == 8  # the corners are cut


def rasterised(contours: Dataset, folder: Path) -> dict[str, np.ndarray]:
    """Instance and frame → pixels, from points in mm by the equation of PS3.3, C.7.6.2.1.1, turned round."""
    images = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, sorted(folder.iterdir()))}
    polygons: dict[tuple, list[np.ndarray]] = {}
    for contour in contours.ContourSequence:
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        (reference,) = contour.ContourImageSequence
        image, frame = images[reference.ReferencedSOPInstanceUID], reference.get("ReferencedFrameNumber", 1) - 1
        place = axes = spacing = image
        if "PerFrameFunctionalGroupsSequence" in image:
            own, shared = image.PerFrameFunctionalGroupsSequence[frame], image.SharedFunctionalGroupsSequence[0]
            place = own.PlanePositionSequence[0]
            axes, spacing = shared.PlaneOrientationSequence[0], shared.PixelMeasuresSequence[0]
        points = np.reshape(contour.ContourData, (-1, 3)).astype(float) - np.array(place.ImagePositionPatient, float)
        assert len(points) == contour.NumberOfContourPoints
        along, down = np.reshape(axes.ImageOrientationPatient, (2, 3)).astype(float)
        assert np.abs(points @ np.cross(along, down)).max() < 1e-3  # they lie in the slice
        between_rows, between_columns = map(float, spacing.PixelSpacing)
        pixels = np.stack([points @ along / between_columns, points @ down / between_rows], axis=1)
        key = (reference.ReferencedSOPInstanceUID, frame)
        polygons.setdefault(key, []).append(pixels)
    size = next(iter(images.values()))
    return {key: filled(found, (size.Rows, size.Columns), joined=True) for key, found in polygons.items()}


def contoured(phantom: Phantom) -> tuple[Dataset | None, np.ndarray]:
    source = read_source(phantom.folder)
    label_map = source.place(phantom.label_map, phantom.affine, range(1, 14))
    return make_structure_set(source, label_map, CODES, ORIGIN, identify(source, label_map, CODES, ORIGIN)), label_map


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_contours_enclose_the_voxels(orientation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    phantom = write_phantom(tmp_path / "ct", orientation, SOME)
    with caplog.at_level(logging.WARNING):
        made, label_map = contoured(phantom)
    pydicom.dcmwrite(tmp_path / "rt.dcm", made, enforce_file_format=True)
    made = pydicom.dcmread(tmp_path / "rt.dcm")
    source = read_source(phantom.folder)
    names = [region.ROIName for region in made.StructureSetROISequence]
    assert names == [CODES[i - 1].title for i in SOME]
    for i, contours in zip(SOME, made.ROIContourSequence, strict=True):
        found = rasterised(contours, phantom.folder)
        for k, frame in enumerate(source.volume.frames):
            uid = source.images[0 if source.enhanced else k].SOPInstanceUID
            expected = (label_map[:, :, k] == i).T
            mask = found.get((uid, frame.index), np.zeros_like(expected))
            dice = 2 * (mask & expected).sum() / max(mask.sum() + expected.sum(), 1)
            assert dice >= 0.99 or not (mask.any() or expected.any())
    assert bool(caplog.records) == (orientation in ("LIP", "PIL", "oblique"))


def test_without_any_organ_there_is_no_structure_set(tmp_path: Path) -> None:
    assert contoured(write_phantom(tmp_path / "ct", labels=()))[0] is None


def test_what_stands_in_a_structure_set(tmp_path: Path) -> None:
    phantom = write_phantom(tmp_path / "ct", labels=SOME)
    made, _ = contoured(phantom)
    source = read_source(phantom.folder)
    assert (made.ApprovalStatus, made.PatientID, made.Modality) == ("UNAPPROVED", "P1", "RTSTRUCT")
    (frame,) = made.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == made.FrameOfReferenceUID == source.images[0].FrameOfReferenceUID
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert [item.ReferencedSOPInstanceUID for item in series.ContourImageSequence] == source.uids
    assert {region.ROIGenerationAlgorithm for region in made.StructureSetROISequence} == {"AUTOMATIC"}
    assert all("ab" * 32 in region.ROIDescription for region in made.StructureSetROISequence)
    colours = [tuple(contours.ROIDisplayColor) for contours in made.ROIContourSequence]
    assert colours == [CODES[i - 1].colour for i in SOME]
    numbers = [x for c in made.ROIContourSequence for q in c.ContourSequence for x in q.ContourData]
    assert max(len(str(x)) for x in numbers) <= 16
    again, _ = contoured(phantom)
    assert (made.SOPInstanceUID, made.SeriesInstanceUID) == (again.SOPInstanceUID, again.SeriesInstanceUID)
