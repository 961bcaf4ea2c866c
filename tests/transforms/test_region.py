from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from monai.transforms import LoadImaged
from PIL import Image

from shared.data.regions import Region
from shared.transforms import OpenRegiond
from shared.utils import DataError


def test_a_region_takes_the_place_of_its_path(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    given = {"image": str(tmp_path / "a.png"), "slide": "s"}
    found = pickle.loads(pickle.dumps(OpenRegiond()))(given)
    assert isinstance(found["image"], Region)
    assert (found["image"].size, found["image"].mpp) == ((30, 20), None)
    assert (found["case"], found["slide"]) == ("a.png", "s")
    assert given["image"] == str(tmp_path / "a.png")
    assert OpenRegiond()({**given, "case": "b"})["case"] == "b"
    assert isinstance(OpenRegiond(), LoadImaged)


def test_the_size_of_a_pixel(tmp_path: Path) -> None:
    """Of the configuration before that of the datalist, and that before the file's."""
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.tif", dpi=(101_600, 101_600))
    given = {"image": str(tmp_path / "a.tif")}
    assert OpenRegiond()(given)["image"].mpp == pytest.approx(0.25)
    assert OpenRegiond()({**given, "mpp": 0.23})["image"].mpp == 0.23
    assert OpenRegiond(mpp=0.5)({**given, "mpp": 0.23})["image"].mpp == 0.23
    assert OpenRegiond(mpp=0.5, override=True)({**given, "mpp": 0.23})["image"].mpp == 0.5


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"a\.png: cannot be read as an image"):
        OpenRegiond()({"image": str(tmp_path / "a.png")})
    with pytest.raises(DataError, match=r"b\.png: there is no such file"):
        OpenRegiond()({"image": str(tmp_path / "b.png")})
