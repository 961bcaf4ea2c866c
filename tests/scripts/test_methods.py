from __future__ import annotations

from pathlib import Path

import pytest
from experiments.methods import CLASSIFIER, DETECTOR, METHODS, chosen_methods, list_methods, method_values

from shared.utils import DataError, write_json


def test_own_overlays_stand_behind_the_methods(tmp_path: Path) -> None:
    own, loss = tmp_path / "mine.json", {"_target_": "mine.Loss", "weight": 2, "network": "@network"}
    write_json(own, {"fusestyle_p": 0.9, "loss": loss, "+imports": ["$import mine"]})
    chosen = chosen_methods(CLASSIFIER, ["mixstyle", "erm"], [str(own)])
    assert [*chosen] == ["erm", "mixstyle", "mine"]
    assert method_values(CLASSIFIER, chosen["mine"]) == {"fusestyle_p": 0.9, "loss": loss}
    assert method_values(CLASSIFIER, chosen["mixstyle"]) == {
        "fusestyle_places": [1, 4],
        "fusestyle_p": 0.5,
        "fusestyle_alpha": 0.3,
        "fusestyle_reference": "random",
    }
    assert "| mine | fusestyle_p 0.9; loss Loss(weight 2) | an overlay" in list_methods(CLASSIFIER, chosen)
    assert method_values(CLASSIFIER, METHODS[CLASSIFIER]["reinhard"])["stain_norm"] == "reinhard"


def test_overlays_that_cannot_be_methods(tmp_path: Path) -> None:
    for name, said in (
        ("erm", "not called like a method or variant"),
        ("stain_jitter", "not called like a method or variant"),
        ("gone", "gone.json"),
        ("list", "list.json"),
    ):
        if name != "gone":
            write_json(tmp_path / f"{name}.json", [] if name == "list" else {})
        with pytest.raises(DataError, match=said):
            chosen_methods(CLASSIFIER, ["erm"], [str(tmp_path / f"{name}.json")])
    write_json(tmp_path / "mine.json", {})
    write_json(tmp_path / "other" / "mine.json", {})
    with pytest.raises(DataError, match=r"two files called mine\.json"):
        chosen_methods(CLASSIFIER, ["erm"], [str(tmp_path / "mine.json"), str(tmp_path / "other" / "mine.json")])


def test_a_method_without_its_overlay_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = METHODS[DETECTOR]["mixstyle"]._replace(variants=("nonesuch",))
    monkeypatch.setitem(METHODS[DETECTOR], "mixstyle", lost)
    with pytest.raises(DataError, match=r"nonesuch\.json: is not there, and mixstyle needs it"):
        chosen_methods(DETECTOR, ["erm", "mixstyle"], [])


@pytest.mark.parametrize("bundle", METHODS)
def test_every_method_has_its_overlays(bundle: str) -> None:
    assert [*chosen_methods(bundle, [*METHODS[bundle]], [])] == [*METHODS[bundle]]
