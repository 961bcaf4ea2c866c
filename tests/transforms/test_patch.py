from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, LoadImaged
from PIL import Image
from region_images import write_tiled

from shared.data import read_rgb
from shared.data.regions import Region
from shared.transforms import LoadPatchd, OpenRegiond, patch
from shared.utils import DataError


def colours(height: int = 6, width: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(path: Path, pixels: np.ndarray, kind: int, extra: bytes = b"") -> Path:
    """A PNG by the book (W3C, sections 5 and 9): `kind` 0 is grey, 2 RGB, 4 grey with alpha, 6 RGBA; 8 or 16 bit."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def deep_tiff(path: Path, pixels: np.ndarray, compressed: bool) -> Path:
    """A TIFF of 16-bit RGB by the book (TIFF 6.0, section 6): one strip, plain or deflated."""
    height, width = pixels.shape[:2]
    strip = pixels.astype("<u2").tobytes()
    strip = zlib.compress(strip) if compressed else strip
    end = 8 + 2 + 9 * 12 + 4
    fields = [(256, 1, width), (257, 1, height), (258, 3, end), (259, 1, 8 if compressed else 1), (262, 1, 2)]
    fields += [(273, 1, end + 6), (277, 1, 3), (278, 1, height), (279, 1, len(strip))]
    directory = b"".join(struct.pack("<HHLL", tag, 3, count, value) for tag, count, value in fields)
    header = b"II*\0" + struct.pack("<LH", 8, len(fields))
    path.write_bytes(header + directory + struct.pack("<LHHH", 0, 16, 16, 16) + strip)
    return path


def colour_key(value: tuple[int, int, int]) -> bytes:
    content = b"tRNS" + struct.pack(">HHH", *value)
    return struct.pack(">I", 6) + content + struct.pack(">I", zlib.crc32(content))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.tif", {}),
        ("a.tiff", {"compression": "tiff_lzw"}),
        ("a.bmp", {}),
        ("a.webp", {"lossless": True}),
    ],
)
def test_rgb_comes_as_it_is(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    Image.fromarray(colours()).save(tmp_path / name, **options)
    image = read_rgb(tmp_path / name)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.array(image), colours())


def test_jpeg(tmp_path: Path) -> None:
    wanted = np.broadcast_to(np.array([190, 110, 170], np.uint8), (16, 24, 3))
    Image.fromarray(wanted).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(np.array(read_rgb(tmp_path / "a.jpg")).astype(int) - wanted).max() <= 2


def test_other_forms_of_rgb_are_converted_exactly(tmp_path: Path) -> None:
    opaque = np.dstack([colours(), np.full((6, 9), 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(np.array(read_rgb(tmp_path / "rgba.png")), colours())
    indices = np.random.default_rng(1).integers(0, 16, (6, 9), dtype=np.uint8)
    table = colours(1, 16, 2)
    palette = Image.frombytes("P", (9, 6), indices.tobytes())
    palette.putpalette(table.tobytes())
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "unused.png", transparency=bytes([255] * 16 + [0]))
    for name in ("palette.png", "unused.png"):
        image = read_rgb(tmp_path / name)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.array(image), table[0][indices])
    found = read_rgb(png(tmp_path / "key.png", colours(), 2, colour_key((1, 2, 3))))
    np.testing.assert_array_equal(np.array(found), colours())


def bad_image(folder: Path, what: str) -> Path:
    rgb, path = colours(), folder / f"{what}.png"
    deep = rgb.astype(np.uint16) * 257
    if what == "cmyk":
        Image.fromarray(rgb).convert("CMYK").save(folder / "cmyk.jpg")
        return folder / "cmyk.jpg"
    if what.startswith("deep_tiff"):
        return deep_tiff(folder / f"{what}.tiff", deep, what == "deep_tiff_zlib")
    if what == "float":
        Image.fromarray(rgb[..., 0].astype(np.float32)).save(folder / "float.tif")
        return folder / "float.tif"
    pictures = {
        "grey": lambda: png(path, rgb[..., 0], 0),
        "grey_alpha": lambda: png(path, rgb[..., :2], 4),
        "deep_grey": lambda: png(path, deep[..., 0], 0),
        "deep_grey_alpha": lambda: png(path, deep[..., :2], 4),
        "deep_rgb": lambda: png(path, deep, 2),
        "deep_rgba": lambda: png(path, np.dstack([deep, deep[..., :1] * 0 + 65535]), 6),
        "bits": lambda: Image.fromarray(rgb[..., 0] > 9).save(path),
        "transparent": lambda: Image.fromarray(np.dstack([rgb, rgb[..., 0]])).save(path),
        "one_transparent": lambda: png(path, rgb, 2, colour_key(tuple(rgb[2, 3].tolist()))),
        "transparent_palette": lambda: Image.fromarray(rgb).quantize(8).save(path, transparency=3),
    }
    pictures[what]()
    return path


def test_more_pixels_than_are_decoded_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = png(tmp_path / "bomb.png", colours(), 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"bomb\.png: its header claims more pixels than are decoded at once \(20\)"):
        read_rgb(path)


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("grey", "found a grey image"),
        ("grey_alpha", "found a grey image"),
        ("deep_grey", "found I;16.* of more than 8 bit"),
        ("deep_grey_alpha", "found .* of more than 8 bit"),
        ("deep_rgb", "found RGB of more than 8 bit"),
        ("deep_rgba", "found RGBA of more than 8 bit"),
        ("deep_tiff", "found RGB of more than 8 bit"),
        ("deep_tiff_zlib", "found RGB of more than 8 bit"),
        ("float", "found F of more than 8 bit"),
        ("bits", "found black and white"),
        ("transparent", "found transparent pixels"),
        ("one_transparent", "found transparent pixels"),
        ("transparent_palette", "found transparent pixels"),
        ("cmyk", "found CMYK"),
    ],
)
def test_what_is_not_rgb_is_refused(tmp_path: Path, what: str, found: str) -> None:
    path = bad_image(tmp_path, what)
    with pytest.raises(
        DataError, match=rf"{path.name}: {found}.*, expected 8-bit RGB\. .*(Export it|export the patch)"
    ):
        read_rgb(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
def test_files_that_are_cut_short_at_any_length(tmp_path: Path, name: str) -> None:
    Image.fromarray(colours(20, 20)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    refused = 0
    for length in range(0, len(whole) - 1, 7):
        (tmp_path / name).write_bytes(whole[:length])
        try:
            read_rgb(tmp_path / name)
        except DataError as e:
            assert f"{name}: cannot be read as an image" in str(e)  # noqa: PT017
            assert "Expected 8-bit RGB as PNG, JPEG or TIFF" in str(e)  # noqa: PT017
            refused += length < len(whole) // 2
    assert refused == len(range(0, len(whole) // 2, 7))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_files_with_wrong_bytes_do_nothing_worse(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a.png", "a.jpg", "a.tif"):
        Image.fromarray(colours(20, 20)).save(tmp_path / name)
        whole = np.fromfile(tmp_path / name, np.uint8)
        for _ in range(60):
            broken = whole.copy()
            broken[rng.integers(0, min(len(broken), 200), 3)] = rng.integers(0, 256, 3)
            broken.tofile(tmp_path / name)
            try:
                image = read_rgb(tmp_path / name)
            except DataError:
                continue
            assert image.mode == "RGB"


def test_text_folders_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    for name in ("a.png", "folder.png"):
        with pytest.raises(DataError, match=f"{name}: cannot be read as an image .*copy the file again"):
            read_rgb(tmp_path / name)
    with pytest.raises(DataError, match=r"none\.png: there is no such file"):
        read_rgb(tmp_path / "none.png")


def test_the_note_of_a_camera_does_not_turn_the_pixels(tmp_path: Path) -> None:
    image = Image.fromarray(colours())
    exif = image.getexif()
    exif[0x0112] = 6  # to be shown turned by 90°
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.array(read_rgb(tmp_path / "a.png")), colours())


@pytest.mark.parametrize(
    ("height", "width", "crop", "top", "left"),
    [
        (6, 9, 4, 1, 2),
        (6, 9, 5, 0, 2),
        (7, 8, 4, 1, 2),
        (7, 8, 3, 2, 2),
        (6, 9, 6, 0, 1),
        (5, 5, 5, 0, 0),
        (5, 4, 1, 2, 1),
    ],
)
def test_the_middle_is_cut_out(tmp_path: Path, height: int, width: int, crop: int, top: int, left: int) -> None:
    pixels = colours(height, width)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    d = LoadPatchd(crop_size=crop, size=crop)({"image": str(tmp_path / "a.png")})
    image = d["image"]
    assert (image.dtype, image.shape, image.is_contiguous()) == (torch.uint8, (3, crop, crop), True)
    for channel in range(3):
        for y in range(crop):
            for x in range(crop):
                assert image[channel, y, x] == pixels[top + y, left + x, channel]
    assert d["case"] == "a.png"
    assert "label" not in d


def test_resampling_halves_by_the_tent_and_keeps_flat_colours(tmp_path: Path) -> None:
    flat = np.broadcast_to(np.array([200, 90, 160], np.uint8), (10, 10, 3))
    Image.fromarray(flat).save(tmp_path / "flat.png")
    for size in (3, 10, 16):
        image = LoadPatchd(crop_size=10, size=size)({"image": tmp_path / "flat.png"})["image"]
        assert image.shape == (3, size, size)
        assert (image == torch.tensor([200, 90, 160])[:, None, None]).all()
    pixels = colours(8, 8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = LoadPatchd(crop_size=8, size=4)({"image": tmp_path / "a.png"})["image"]
    tent = np.zeros((4, 8))  # with antialiasing: as wide as two new pixels on each side, in units of old ones
    for i in range(4):
        for j in range(8):
            tent[i, j] = max(0.0, 1 - abs((j + 0.5) / 2 - (i + 0.5)))
        tent[i] /= tent[i].sum()
    wanted = np.einsum("yj,xk,jkc->cyx", tent, tent, pixels.astype(float))
    assert np.abs(image.numpy() - wanted).max() <= 1.01  # rounded after each of two passes


def test_labels_and_other_fields(tmp_path: Path) -> None:
    Image.fromarray(colours(64, 64)).save(tmp_path / "a.png")
    item = {"image": str(tmp_path / "a.png"), "label": 1, "domain": "XR", "case": "XR/a.png"}
    d = LoadPatchd()(item)
    torch.testing.assert_close(d["label"], torch.tensor([1.0]), rtol=0, atol=0)
    assert (d["domain"], d["case"]) == ("XR", "XR/a.png")
    assert item["image"] == str(tmp_path / "a.png")
    assert LoadPatchd(label_key="grade")(item)["label"] == 1
    assert LoadPatchd(["image", "other"], allow_missing_keys=True)(item)["image"].shape == (3, 64, 64)
    with pytest.raises(KeyError, match="other"):
        LoadPatchd(["image", "other"])(item)


def test_too_small(tmp_path: Path) -> None:
    Image.fromarray(colours(70, 50)).save(tmp_path / "a.png")
    with pytest.raises(
        DataError, match=r"a\.png: the image has 50 × 70 pixels, smaller than the patch of 64 × 64.*--crop_size 50"
    ):
        LoadPatchd()({"image": tmp_path / "a.png"})


@pytest.mark.parametrize("options", [{"crop_size": 0}, {"size": 0}])
def test_bad_options(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        LoadPatchd(**options)


def test_in_the_processes_of_a_loader(tmp_path: Path) -> None:
    items = []
    for i in range(5):
        Image.fromarray(colours(seed=i)).save(tmp_path / f"{i}.png")
        items.append({"image": str(tmp_path / f"{i}.png"), "label": i % 2})
    transform = pickle.loads(pickle.dumps(Compose([LoadPatchd(crop_size=4, size=4)])))
    batches = list(DataLoader(Dataset(items, transform), batch_size=3, num_workers=2))
    wanted = torch.stack([torch.from_numpy(colours(seed=i)[1:5, 2:6]).permute(2, 0, 1) for i in range(5)])
    torch.testing.assert_close(torch.cat([batch["image"] for batch in batches]), wanted, rtol=0, atol=0)
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [[0], [1], [0], [1], [0]]


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
    for wrong in (40, 0.0025, float("nan")):
        with pytest.raises(DataError, match=r"mpp is .*, expected a number from 0\.05 to 4"):
            OpenRegiond(mpp=wrong)


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch, "_TOLD", set())


@pytest.mark.usefixtures("untold")
def test_a_profile_of_a_patch_is_said_to_be_ignored_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in "ab":
        Image.fromarray(colours()).save(tmp_path / f"{name}.png", icc_profile=b"a profile")
        LoadPatchd(crop_size=4, size=4)({"image": str(tmp_path / f"{name}.png")})
    (record,) = caplog.records
    assert "a.png: has an ICC profile, which is not applied (said once)" in record.getMessage()


@pytest.mark.usefixtures("untold")
def test_what_goes_before_a_file_that_is_wrong_or_vague(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.tif", dpi=(101_600, 50_800))
    with pytest.raises(DataError, match=r"0\.25 × 0\.5 µm, .* with --mpp and --override_mpp true"):
        OpenRegiond(mpp=0.25)({"image": str(tmp_path / "a.tif")})
    assert OpenRegiond(mpp=0.25, override=True)({"image": str(tmp_path / "a.tif")})["image"].mpp == 0.25
    write_tiled(tmp_path / "b.tif", colours(), description="Aperio 9x6|AppMag = 20", compression=None, metadata=None)
    given = {"image": str(tmp_path / "b.tif")}
    assert OpenRegiond()(given)["image"].mpp == 0.5
    assert "b.tif: says only that its objective has 20x, which is taken for 0.5 µm a pixel" in caplog.text
    assert OpenRegiond(mpp=0.25)(given)["image"].mpp == 0.25


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"a\.png: cannot be read as an image"):
        OpenRegiond()({"image": str(tmp_path / "a.png")})
    with pytest.raises(DataError, match=r"b\.png: there is no such file"):
        OpenRegiond()({"image": str(tmp_path / "b.png")})
