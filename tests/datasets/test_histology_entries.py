from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from shared.datasets.histology_entries import check_image_files
from shared.utils import DataError


def test_images_of_another_size(tmp_path: Path) -> None:
    Image.new("RGB", (4, 5)).save(tmp_path / "a.png")
    check_image_files("table", [str(tmp_path / "a.png")], size=(4, 5))
    with pytest.raises(
        DataError,
        match=r"table: 1 of 1 images cannot be used. Do it again.\n  .*a.png: has 4 × 5 pixels, expected 5 × 4",
    ):
        check_image_files("table", [str(tmp_path / "a.png")], size=(5, 4), remedy="Do it again.")
