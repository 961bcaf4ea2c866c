from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from ct_phantom import METADATA, ORIGIN, write_phantom
from dicom_slide import write_slide
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from shared.dicom import make_annotations, read_codes
from shared.dicom.annotations import read_slide
from shared.utils import DataError

TABLE = json.loads((METADATA.parents[2] / "mitosis_retinanet_fusestyle" / "configs" / "metadata.json").read_text())
CODES = read_codes(TABLE["dicom_codes"], {"non_mitotic": 0, "mitotic": 1})
BOXES = np.array([[10, 20, 60, 70.5], [300, 5, 350, 55], [100.25, 200, 150, 250]], np.float32)
SCORES = np.array([0.9, 0.75, 0.6], np.float32)
LABELS = np.array([1, 0, 1])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    picture = np.full((512, 1024, 3), 230, np.uint8)
    return write_slide(tmp_path_factory.mktemp("dicom") / "slide", picture)


def annotated(base: Path, **changes: object) -> Dataset:
    # by the file of any level
    slide = read_slide(base.with_name("level_1.dcm"))
    return make_annotations(slide, BOXES, SCORES, LABELS, CODES, replace(ORIGIN, **changes))


def test_figures_are_read_back_with_their_scores_in_pixels_of_the_base_level(base: Path, tmp_path: Path) -> None:
    annotated(base).save_as(tmp_path / "ann.dcm")
    made = hd.ann.annread(tmp_path / "ann.dcm")
    other, mitotic = made.get_annotation_groups()
    assert (other.label, mitotic.label) == ("non mitotic", "mitotic")
    assert mitotic.annotated_property_type.value == "MITOTIC"
    assert mitotic.annotated_property_category == codes.SCT.MorphologicallyAbnormalStructure
    for group, label in ((other, 0), (mitotic, 1)):
        assert (group.graphic_type.value, group.algorithm_type.value) == ("POLYGON", "AUTOMATIC")
        found = np.array(group.get_graphic_data(coordinate_type="2D"))
        expected = [[[x1, y1], [x2, y1], [x2, y2], [x1, y2]] for x1, y1, x2, y2 in BOXES[label == LABELS]]
        assert np.array_equal(found, np.array(expected, np.float32))
        names, values, units = group.get_measurements()
        assert (list(names), list(units)) == ([codes.SCT.Score], [codes.UCUM.NoUnits])
        assert np.array_equal(values[:, 0], SCORES[label == LABELS])
    slide = read_slide(base)
    assert slide.TotalPixelMatrixColumns == 1024
    references = made.ReferencedImageSequence
    assert [item.ReferencedSOPInstanceUID for item in references] == [slide.SOPInstanceUID]
    assert (made.PatientID, made.PatientName, made.StudyInstanceUID) == ("S1", "Slide", slide.StudyInstanceUID)
    assert "ab" * 32 in mitotic.algorithm_identification.parameters["weights_sha256"]


def test_without_figures_there_are_no_annotations(base: Path) -> None:
    nothing = make_annotations(read_slide(base), BOXES[:0], SCORES[:0], LABELS[:0], CODES, ORIGIN)
    assert nothing is None


def test_the_same_figures_have_the_same_uids(base: Path) -> None:
    one, same = ([str(e.value) for e in annotated(base).iterall() if e.VR == "UI"] for _ in range(2))
    assert one == same
    others = [annotated(base, version="0.2.0"), annotated(base, record={"synthetic": True})]
    assert len({annotated(base).SeriesInstanceUID, *(other.SeriesInstanceUID for other in others)}) == 3
    assert "SYNTHETIC" in others[1].SeriesDescription


def test_what_is_no_slide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0001\.dcm: is no DICOM slide"):
        read_slide(write_phantom(tmp_path / "ct").folder / "0001.dcm")
