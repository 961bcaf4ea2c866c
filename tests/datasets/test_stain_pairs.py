from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.datasets.stain_pairs import StainPair, draw_pixels, paired_images, read_pairs
from shared.utils import DataError


def save(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0, turned: bool = False) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(255 - pixels if turned else pixels).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for i, name in enumerate(("b", "a", "deep/c")):
        save(tmp_path / "source" / f"{name}.png", seed=i)
        save(tmp_path / "teacher" / f"{name}.tif", seed=i, turned=True)
    return tmp_path / "source", tmp_path / "teacher"


def test_pictures_of_the_same_names_are_pairs(folders: tuple[Path, Path]) -> None:
    pairs = paired_images(*folders)
    assert [pair["case"] for pair in pairs] == ["a", "b", "deep/c"]
    for pair in pairs:
        assert np.array_equal(255 - np.array(Image.open(pair["image"])), np.array(Image.open(pair["wanted"])))


def lacking(source: Path, teacher: Path) -> None:
    (teacher / "a.tif").unlink()
    save(teacher / "z.tif")


def of_other_sizes(source: Path, teacher: Path) -> None:
    save(teacher / "a.tif", (30, 40))
    save(teacher / "b.tif", (40, 31))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lacking, "source: 1 of its pictures have no partner of the same name in .*teacher: a. Expected pairs."),
        (lambda s, t: save(t / "z.tif"), "teacher: 1 of its pictures have no partner .*source: z. Expected"),
        (lambda s, t: save(s / "a.jpg"), "source: has several pictures called a. Which one is meant?"),
        (of_other_sizes, r"source: 2 of the 3 pairs .*\n.*a.png: has 40 × 30 pixels, and .*a.tif 30 × 40.\n.*b.png"),
        (lambda s, t: (t / "a.tif").write_text("no picture"), r"1 of the 3 pairs.*\n.*a.tif: cannot be read"),
        (lambda s, t: Image.new("L", (40, 30)).save(s / "a.png"), "a.png: found a grey image"),
        (lambda s, t: [file.unlink() for file in s.rglob("*.png")], "source: holds no image"),
        (lambda s, t: t.rename(t.parent / "other"), "teacher: there is no such folder"),
    ],
)
def test_what_makes_no_pairs(folders: tuple[Path, Path], change: Callable[[Path, Path], object], message: str) -> None:
    change(*folders)
    with pytest.raises(DataError, match=message):
        for _ in read_pairs(paired_images(*folders), 10, 0):
            pass


def test_of_large_images_the_same_tiles_are_read_of_both(tmp_path: Path) -> None:
    save(tmp_path / "large.png", (300, 200))
    entry = {"image": str(tmp_path / "large.png"), "case": "large.png", "domain": "XR", "slide": "1"}
    pairs = list(read_pairs([entry] * 2, 5, 0, lambda found: {"image": 255 - found["image"]}))
    assert len(pairs) == 4  # there is room for two of each
    whole = np.array(Image.open(tmp_path / "large.png"))
    windows = np.lib.stride_tricks.sliding_window_view(whole, 256, axis=1)[0]
    for pair in pairs:
        assert pair.source.shape == (3, 200, 256)
        assert torch.equal(pair.wanted, 255 - pair.source)
        assert (windows == pair.source[:, 0].T.numpy().T).all(axis=(1, 2)).sum() == 1
    assert len({pair.source.numpy().tobytes() for pair in pairs}) > 1
    again = read_pairs([{**entry, "wanted": entry["image"]}], 5, 0)
    assert all(torch.equal(pair.source, pair.wanted) for pair in again)
    assert len(list(read_pairs([entry] * 3, 2, 0, dict))) == 2


def test_pixels_are_drawn_at_the_same_places() -> None:
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.integers(0, 256, (3, 7 + i, 9), dtype=np.uint8)) for i in range(3)]
    source, wanted = draw_pixels([StainPair("", "", image, 255 - image) for image in images], 0)
    assert source.shape == (3, 3, 1024)
    assert torch.equal(wanted, 255 - source)
    for image, pixels in zip(images, source, strict=True):
        assert set(map(tuple, pixels.T.tolist())) == set(map(tuple, image.flatten(1).T.tolist()))


@pytest.mark.parametrize("grey", ["the images", "what the teacher makes of them"])
def test_grey_is_refused(grey: str) -> None:
    colour, plain = torch.zeros(3, 20, 20, dtype=torch.uint8), torch.full((3, 20, 20), 120, dtype=torch.uint8)
    colour[0], colour[2] = 150, 140
    pair = StainPair("", "", *((plain, colour) if grey == "the images" else (colour, plain)))
    message = f"Of {grey}, 1 to learn from, 0.0% of the pixels have the colour of tissue, expected at least 1%"
    with pytest.raises(DataError, match=re.escape(message)):
        draw_pixels([pair], 0)
