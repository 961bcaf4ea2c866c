from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from ct_phantom import structures
from pydicom.sr.codedict import codes

from shared.datasets.ct_cases import BTCV_LABELS
from shared.dicom import read_codes
from shared.dicom.codes import LOCAL
from shared.reports.organs import organ_colour
from shared.utils import DataError

ROOT = Path(__file__).resolve().parents[2]
SPLEEN = {"code": "78961009", "meaning": "Spleen"}


def test_the_organs_have_the_codes_of_the_standard_their_sides_and_the_colours_of_the_other_files(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = {structure.name: structure for structure in structures()}
    assert {name: structure.label for name, structure in found.items()} == BTCV_LABELS
    concepts = {name: structure.concept for name, structure in found.items()}
    assert concepts["liver"] == codes.SCT.Liver
    assert concepts["inferior_vena_cava"] == codes.SCT.InferiorVenaCava
    assert concepts["right_kidney"] == concepts["left_kidney"] == codes.SCT.Kidney
    sides = {name: s.side and s.side.meaning.lower() for name, s in found.items()}
    assert sides == {n: n.split("_")[0] if n.split("_")[0] in ("left", "right") else None for n in BTCV_LABELS}
    # the rule for what has no code of its own: what its parts have in common, and the parts
    veins = found["portal_and_splenic_veins"]
    assert (veins.concept, veins.parts) == (codes.SCT.Vein, (codes.SCT.PortalVein, codes.SCT.SplenicVein))
    assert all(s.colour == tuple(round(255 * c) for c in organ_colour(s.label)[:3]) for s in found.values())
    assert caplog.records == []


def test_both_ct_bundles_and_the_detector_have_codes_for_their_classes(caplog: pytest.LogCaptureFixture) -> None:
    tables = {}
    for name in ("abdominal_unetr_cbs", "abdominal_lambda3d_cbs", "mitosis_retinanet_fusestyle"):
        tables[name] = json.loads((ROOT / "bundles" / name / "configs" / "metadata.json").read_text())["dicom_codes"]
    assert tables["abdominal_unetr_cbs"] == tables["abdominal_lambda3d_cbs"]
    figures = read_codes(tables["mitosis_retinanet_fusestyle"], {"non_mitotic": 0, "mitotic": 1})
    assert {figure.concept.scheme_designator for figure in figures} == {LOCAL}
    assert caplog.records == []


def test_a_class_without_code_gets_one_of_the_local_scheme_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    names = {"spleen": 1, "my_own_lesion": 2, "a class with a very long name": 3, "another class with a long name": 4}
    with caplog.at_level(logging.WARNING):
        found = read_codes({"spleen": SPLEEN}, names)
    assert [s.concept.scheme_designator for s in found] == ["SCT", LOCAL, LOCAL, LOCAL]
    assert found[1].concept.value == "MY_OWN_LESION"
    assert found[1].concept.meaning == "my own lesion"
    assert len({s.concept.value for s in found}) == 4
    assert max(len(s.concept.value) for s in found) <= 16
    assert "my_own_lesion" in caplog.text
    assert "--codes" in caplog.text


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("78961009", "expected a table with code and meaning"),
        ({"code": "78961009"}, "expected a table with code and meaning"),
        ({**SPLEEN, "color": [1, 2, 3]}, "of code, scheme"),
        ({**SPLEEN, "meaning": "Liver"}, "code 78961009 of SCT with the meaning 'Liver', expected 'Spleen'"),
        ({**SPLEEN, "code": 78961009}, "has the code 78961009, expected text of 16"),
        ({**SPLEEN, "laterality": "L"}, "laterality 'L', expected right or left"),
        ({**SPLEEN, "category": "organ"}, "category 'organ', expected anatomical structure or"),
        ({**SPLEEN, "colour": [1, 2, 256]}, "red, green and blue from 0 to 255"),
        ({**SPLEEN, "structures": ["32764006"]}, "expected a table of codes and meanings"),
    ],
)
def test_a_wrong_entry_is_refused(entry: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)^codes: spleen.*{message}"):
        read_codes({"spleen": entry}, {"spleen": 1})


def test_a_code_that_the_standard_does_not_list_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    read_codes({"a": {"code": "1234567", "meaning": "Something"}}, {"a": 1})
    assert "1234567 of SCT is in no list" in caplog.text


def test_two_classes_of_one_code_are_refused() -> None:
    with pytest.raises(DataError, match="codes: a and b have the same code"):
        read_codes({"a": SPLEEN, "b": SPLEEN}, {"a": 1, "b": 2})
