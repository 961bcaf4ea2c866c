from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.data import load_patches, load_regions, open_region
from shared.datasets import stylized
from shared.datasets.styles import Styles, paint_texture
from shared.datasets.stylized import Drawing, redraw_patches, redraw_region, stylize_datalist
from shared.networks import AdaINNetwork
from shared.utils import DataError, write_json

DRAWING = Drawing(style_size=64)


def pixels(seed: int, size: tuple[int, int] = (40, 48)) -> np.ndarray:
    return paint_texture(64, np.random.default_rng(seed))[: size[0], : size[1]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lists: dict[str, list[dict[str, Any]]] = {}
    for split in ("training", "validation", "test"):
        for i in range(4):
            name = f"{split}/{i}.png"
            (tmp_path / split).mkdir(exist_ok=True)
            Image.fromarray(pixels(i, (40, 40 + 8 * (i > 2)))).save(tmp_path / name)
            lists.setdefault(split, []).append({"image": name, "label": i % 2, "domain": "XR", "slide": f"{split}{i}"})
    write_json(tmp_path / "dataset.json", {"labels": {"0": "non_mitotic", "1": "mitotic"}, "synthetic": True, **lists})
    return tmp_path


def make(data: Path, output: str = "new/stylized.json", lists: str = "training", **options: Any) -> dict[str, Any]:
    drawing = Drawing(**{"style_size": 64, **options})
    target = data / output
    content, _ = stylize_datalist(data / "dataset.json", target, drawing, lists, batch_size=3, processes=1)
    write_json(target, content)
    return content


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_training_alone_is_redrawn(data: Path) -> None:
    before, content = files(data / "training"), make(data)
    assert files(data / "training") == before
    assert sorted(files(data / "new")) == [f"stylized/images/training/{i}.png" for i in range(4)]
    assert [{"stylized" in entry for entry in content[split]} for split in ("training", "validation")] == [
        {True},
        {False},
    ]
    loaded = load_patches(data / "new" / "stylized.json", "training", stylized=True)
    for entry in loaded:
        image, copy = (np.array(Image.open(entry[key])) for key in ("image", "stylized"))
        assert image.shape == copy.shape
        assert abs(image.astype(float) - copy).mean() > 5
    assert "stylized" not in load_patches(data / "new" / "stylized.json", "training")[0]
    with pytest.raises(DataError, match=r"4 of the 4 patches of 'validation' name no copy .* such as .*validation/0"):
        load_patches(data / "new" / "stylized.json", "validation", stylized=True)
    Path(loaded[1]["stylized"]).unlink()
    with pytest.raises(DataError, match="1 of the 4 files listed in 'training' as copies in other styles do not exist"):
        load_patches(data / "new" / "stylized.json", "training", stylized=True)
    make(data, lists="all")
    assert load_patches(data / "new" / "stylized.json", "test", stylized=True)


def test_a_name_and_a_seed_have_a_style() -> None:
    first, second, other = Styles(None, 64, 0), Styles(None, 64, 0), Styles(None, 64, 1)
    names = [f"{i}.png" for i in range(50)]
    numbers = [first.number(name) for name in names]
    assert numbers == [second.number(name) for name in names]
    assert numbers != [other.number(name) for name in names]
    assert len(set(numbers)) > 40
    np.testing.assert_array_equal(first.picture(7), second.picture(7))
    assert (first.picture(7) != other.picture(7)).any()


def test_what_was_interrupted_comes_to_the_same(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full in the middle of the first batch; what is done by then is not done again."""
    make(data, "whole/s.json")
    save, saved = Image.Image.save, []

    def full(image: Image.Image, path: Path, **options: Any) -> None:
        save(image, path, **options)
        saved.append(Path(path).name)
        if len(saved) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match="the disk is full"):
        make(data, "parts/s.json")
    assert len(files(data / "parts")) == 2
    make(data, "parts/s.json")
    assert sorted(saved[3:]) == sorted({f"{i}.png" for i in range(4)} - set(saved[:2]))
    assert files(data / "parts") == files(data / "whole")
    Image.fromarray(pixels(9)).save(data / "training" / "2.png")
    saved.clear()
    make(data, "parts/s.json")
    assert saved == ["2.png"], "its image is newer"


@pytest.fixture
def weights(tmp_path: Path) -> Drawing:
    torch.manual_seed(0)
    network = AdaINNetwork()
    for parameter in network.parameters():  # so that what goes in has an effect on what comes out
        torch.nn.init.kaiming_normal_(parameter) if parameter.ndim > 1 else torch.nn.init.zeros_(parameter)
    network.decoder[-1].bias.data += 0.5
    for name in ("encoder", "decoder"):
        torch.save(getattr(network, name).state_dict(), tmp_path / f"{name}.pth")
    places = {"encoder": tmp_path / "encoder.pth", "decoder": tmp_path / "decoder.pth"}
    return Drawing(**places, style_size=64, content_size=64)


def test_a_batch_is_redrawn_as_one_by_one(weights: Drawing) -> None:
    images, names = [pixels(i) for i in range(3)], ["a", "b", "c"]
    for drawing in (DRAWING, weights):
        together = redraw_patches(drawing, images, names)
        for image, name, found in zip(images, names, together, strict=True):
            (alone,) = redraw_patches(drawing, [image], [name])
            assert found.shape == image.shape
            np.testing.assert_allclose(found.astype(int), alone, atol=1)
    assert (together[0] != together[1]).any()


def test_a_region_has_no_seams(tmp_path: Path, weights: Drawing) -> None:
    """Tile by tile it is what it is at once."""
    image = np.array(Image.fromarray(paint_texture(256, np.random.default_rng(3))).resize((100, 70)))
    Image.fromarray(image).save(tmp_path / "a.png")
    region = open_region(tmp_path / "a.png")
    for drawing in (DRAWING, weights):
        tiled, whole = (np.concatenate([*redraw_region(drawing, region, "a", tile)]) for tile in (64, 128))
        assert whole.shape == image.shape
        np.testing.assert_allclose(tiled.astype(int), whole, atol=1)
        assert whole.std() > 20


def test_the_copy_of_a_region_keeps_its_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stylized, "TILE", 128)
    image = np.full((150, 300, 3), (220, 170, 200), np.uint8)
    image[50:80, 200:230] -= 120
    Image.fromarray(image).save(tmp_path / "a.png")
    entry = {"image": "a.png", "box": [[200, 50, 230, 80]], "label": [1], "domain": "XR", "slide": "a"}
    head = {"labels": {"0": "non_mitotic", "1": "mitotic"}, "box_mode": "xyxy", "mpp": 0.25}
    write_json(tmp_path / "dataset.json", head | {"training": [entry]})
    make(tmp_path)
    (region,) = load_regions(tmp_path / "new" / "stylized.json", "training", stylized=True)
    copy = open_region(region["stylized"])
    assert (copy.size, copy.in_memory, Path(copy.path).suffix) == ((300, 150), False, ".tif")
    drawn = copy.read(0, 0, 300, 150).astype(float)
    inside, around = drawn[55:75, 205:225].mean((0, 1)), drawn[10:40, 20:150].mean((0, 1))
    assert (around - inside).max() > 20, "the figure is where it was"
    Image.new("RGB", (300, 149)).save(region["stylized"])
    with pytest.raises(DataError, match=r"has 300 × 149 pixels, and .*a\.png, of which it is the copy, 300 × 150"):
        load_regions(tmp_path / "new" / "stylized.json", "training", stylized=True)


def test_bad_input_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with pytest.raises(DataError, match="pictures: holds no image"):
        make(data, styles=pictures)
    Image.new("L", (100, 70), 90).save(pictures / "grey.png")
    (pictures / "text.jpg").write_text("no picture")
    with pytest.raises(DataError, match=r"1 pictures cannot be opened: .*text\.jpg"):
        make(data, styles=pictures)
    (pictures / "text.jpg").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
        with pytest.raises(DataError, match=r"1 pictures cannot be opened: .*grey\.png"):
            make(data, styles=pictures)
    Image.new("L", (40, 40)).save(data / "training" / "1.png")
    with pytest.raises(DataError, match=r"1 of 4 images cannot be redrawn; the others are(?s:.*)1\.png: found a grey"):
        make(data, styles=pictures)
    assert sorted(path.name for path in (data / "new" / "stylized" / "images").rglob("*.png")) == [
        "0.png",
        "2.png",
        "3.png",
    ]
    with pytest.raises(DataError, match=r"holds copies made otherwise: styles 1 pictures, .*, alpha 1\.0\. Choose"):
        make(data, alpha=0.5)
    with pytest.raises(DataError, match="needs both --encoder and --decoder"):
        make(data, "other/s.json", encoder=tmp_path / "vgg.pth")
    (data / "file").touch()
    with pytest.raises(DataError, match="file"):
        make(data, "file/s.json")
    settings = json.loads((data / "new" / "stylized" / "settings.json").read_text())
    assert (settings["method"], settings["styles"][:11]) == ("Laplacian pyramids", "1 pictures,")
