from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.apps.pathology.transforms.stain.array import NormalizeHEStains
from monai.data.utils import pickle_hashing
from PIL import Image

from shared.networks import StainNet
from shared.transforms import NormalizeStain, NormalizeStaind, stain_normalizer
from shared.transforms.stain_norm import METHODS, ByColour, Macenko, Reinhard
from shared.utils import DataError

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])


def tissue(seed: int, strength: float = 1.0, size: int = 96, turn: float = 0.0) -> np.ndarray:
    """H&E of two stains in varying amounts, and glass on its right: uint8 (size, size, 3)."""
    rng = np.random.default_rng(seed)
    amounts = strength * rng.gamma(2.0, (0.35, 0.25), (size, size, 2))
    stains = STAINS + turn * np.array([[0.0, -0.1, 0.2], [0.2, -0.2, 0.1]])
    pixels = 240 * np.exp(-amounts @ (stains / np.linalg.norm(stains, axis=1, keepdims=True)))
    pixels[:, -size // 4 :] = 245
    return pixels.round().clip(0, 255).astype(np.uint8)


def save(pixels: np.ndarray, path: Path) -> str:
    Image.fromarray(pixels).save(path)
    return str(path)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def stained(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, : -pixels.shape[1] // 4].reshape(-1, 3)


def test_macenko_is_monais_for_an_image_by_itself() -> None:
    pixels = tissue(0, 1.3, turn=0.5)[:, :72]  # without glass, which would count among the percentiles there
    change = Macenko.of(pixels.reshape(-1, 3)).towards(Macenko())
    found = change(tensor(pixels)).permute(1, 2, 0).numpy().astype(int)
    # There eosin comes first, but not in the reference; the result is rounded down, and of colours from 1 to 256.
    reference = {"target_he": np.array(Macenko().stains).T[:, ::-1], "max_cref": Macenko().concentrations[::-1]}
    wanted = NormalizeHEStains(**reference)(pixels).astype(int)
    inside = (wanted > 0) & (wanted < 240)
    assert inside.mean() > 0.9
    assert np.abs(found - wanted)[inside].max() <= 1


def test_macenko_finds_the_stains() -> None:
    found = Macenko.of(stained(tissue(1)))
    wanted = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    angles = np.degrees(np.arccos(np.clip((np.array(found.stains) * wanted).sum(axis=1), -1, 1)))
    assert angles.max() < 6
    assert np.linalg.norm(found.stains, axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_reinhard_is_the_equations() -> None:
    """l, α and β of each pixel, moved and stretched, and back, one number after the other."""
    pixels = tissue(2, 1.4)
    own, reference = Reinhard.of(stained(pixels)), Reinhard()
    cones = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
    found = own.towards(reference)(tensor(pixels))
    for y, x in ((0, 0), (40, 30), (95, 10), (17, 71)):
        rgb = [int(v) + 1 for v in pixels[y, x]]
        long, middle, short = (math.log(sum(a * b for a, b in zip(row, rgb, strict=True))) for row in cones)
        lab = [(long + middle + short) / math.sqrt(3), (long + middle - 2 * short) / math.sqrt(6)]
        lab.append((long - middle) / math.sqrt(2))
        lab = [
            (v - m) * s1 / s0 + m1
            for v, m, s0, m1, s1 in zip(lab, own.mean, own.std, reference.mean, reference.std, strict=True)
        ]
        a, b, c = lab[0] / math.sqrt(3), lab[1] / math.sqrt(6), lab[2] / math.sqrt(2)
        back = np.linalg.solve(np.array(cones), np.exp([a + b + c, a + b - c, a - 2 * b]))
        wanted = np.clip(np.round(back - 1), 0, 255)
        assert np.abs(found[:, y, x].numpy() - wanted).max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_two_scanners_look_alike_afterwards(tmp_path: Path, method: str) -> None:
    """The same tissue, stained more weakly and in other colours, comes close to the reference."""
    first, second = tissue(3), tissue(3, 0.6, turn=0.6)
    normalizer = NormalizeStain(method, save(first, tmp_path / "reference.png"))
    change = normalizer.fit([save(second, tmp_path / "second.png")]).towards(normalizer.reference)
    before = np.abs(stained(first).astype(int) - stained(second)).mean()
    changed = change(tensor(second)).permute(1, 2, 0).numpy()
    after = np.abs(stained(first).astype(int) - stained(changed)).mean()
    assert before > 20
    assert after < 0.25 * before


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_stays_as_it_is(tmp_path: Path, method: str) -> None:
    pixels = tissue(4)
    normalizer = NormalizeStain(method, save(pixels, tmp_path / "reference.png"))
    own = normalizer.fit([str(tmp_path / "reference.png")])
    assert own == normalizer.reference
    changed = own.towards(own)(tensor(pixels)).permute(1, 2, 0).numpy().astype(int)
    # Macenko's model has two stains: what they cannot make is lost
    assert np.abs(stained(changed) - stained(pixels)).max() <= (2 if method == "macenko" else 0)


@pytest.mark.parametrize("method", METHODS)
def test_slides_are_fitted_together_and_tiles_fit(tmp_path: Path, method: str) -> None:
    parts = [tissue(5, 0.5), tissue(6, 0.9)]
    entries = [
        {"image": save(part, tmp_path / f"{i}.png"), "domain": "XR", "slide": "a", "case": f"{i}.png"}
        for i, part in enumerate(parts)
    ]
    other = {"image": save(tissue(7, 1.5), tmp_path / "2.png"), "domain": "CS", "slide": "a", "case": "2.png"}
    transform = pickle.loads(pickle.dumps(NormalizeStaind("image", NormalizeStain(method), [*entries, other])))
    pooled = transform.normalizer.fit_pixels(np.concatenate(parts).reshape(-1, 3), "both")
    assert transform.fits.keys() == {("XR", "a"), ("CS", "a")}
    assert transform.fits["XR", "a"] == pooled
    whole = transform({**entries[0], "image": tensor(parts[0])})["image"]
    for x, y in ((0, 0), (13, 5), (31, 40)):  # tiles from a shifted grid
        tile = transform({**entries[0], "image": tensor(parts[0])[:, y : y + 32, x : x + 32]})["image"]
        assert torch.equal(tile, whole[:, y : y + 32, x : x + 32])
    change = transform.normalizer.change(pooled)
    for batch in (tensor(parts[0])[None], torch.stack([tensor(part) for part in parts])):
        assert torch.equal(change(batch), torch.stack([change(image) for image in batch]))
    alone = transform({"case": "new.png", "image": tensor(parts[1])})["image"]
    by_itself = transform.normalizer.fit_pixels(parts[1].reshape(-1, 3), "")
    assert torch.equal(alone, by_itself.towards(transform.normalizer.reference)(tensor(parts[1])))
    assert not torch.equal(alone, transform({**entries[1], "image": tensor(parts[1])})["image"])


def test_a_cache_of_what_a_stainnet_normalised_is_found_again(tmp_path: Path) -> None:
    """Its hash is that of the pickled transforms, and a tensor's pickle holds addresses."""
    weights, pixels = tmp_path / "stainnet.pt", tensor(tissue(9))
    torch.save(StainNet().state_dict(), weights)
    first, second = (stain_normalizer("stainnet", weights=weights) for _ in range(2))
    assert pickle_hashing(first) == pickle_hashing(second)
    copied = pickle.loads(pickle.dumps(ByColour(first.change())))
    assert torch.equal(copied(pixels), first.change()(pixels))
    torch.save({key: value + 0.1 for key, value in StainNet().state_dict().items()}, weights)
    assert pickle_hashing(stain_normalizer("stainnet", weights=weights)) != pickle_hashing(first)


@pytest.mark.parametrize("method", [*METHODS, "stainnet"])
def test_under_autocast_colours_are_the_same(tmp_path: Path, method: str) -> None:
    """They are changed where the network is, inside of an evaluator's mixed precision."""
    torch.manual_seed(0)
    torch.save(StainNet().state_dict(), tmp_path / "stainnet.pt")
    normalizer, pixels = stain_normalizer(method, weights=tmp_path / "stainnet.pt"), tissue(9)
    change = normalizer.change(normalizer.fit([save(pixels, tmp_path / "slide.png")]))
    with torch.autocast("cpu", torch.bfloat16):
        found = change(tensor(pixels)[None])
    assert torch.equal(found, change(tensor(pixels)[None]))


@pytest.mark.parametrize("method", [*METHODS, "stainnet"])
def test_many_pixels_are_looked_up_by_their_colour(tmp_path: Path, method: str) -> None:
    """Those of a large part, of the same again, and of one that has some of its colours and others."""
    torch.manual_seed(0)
    torch.save(StainNet().state_dict(), tmp_path / "stainnet.pt")
    slide = save(tissue(11), tmp_path / "slide.png")
    normalizer, asked = stain_normalizer(method, weights=tmp_path / "stainnet.pt"), []
    of = normalizer.change(normalizer.fit([slide]))
    change = ByColour(lambda image: (asked.append(image.numel()), of(image))[1])
    for seed in (12, 12, 13):
        image = torch.stack([tensor(tissue(seed + i, size=640)) for i in (0, 1)])
        assert torch.equal(change(image), of(image))
    first, other = asked  # nothing of the same again
    assert 0 < other < first < image.numel() / 2
    assert torch.equal(change(image[0]), of(image[0]))
    assert asked[2] == image[0].numel()  # not worth a table
    region = NormalizeStaind("image", normalizer)({"image": slide})["image"]
    assert torch.equal(region.recolour(image), of(image))
    assert len(pickle.dumps(region.recolour)) < 2**16


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["grey", "glass", "one colour", "missing"])
def test_what_has_no_stains_is_named(tmp_path: Path, method: str, kind: str) -> None:
    pixels = tissue(8)
    if kind == "grey":
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
    elif kind == "glass":
        pixels[:] = 245
    elif kind == "one colour":
        pixels[:] = (150, 60, 140)
    path = tmp_path / "slide.png"
    if kind != "missing":
        save(pixels, path)
    with pytest.raises(DataError) as caught:
        NormalizeStain(method, path)
    assert str(path) in str(caught.value)
    expected = {"one colour": "cannot be told apart", "missing": "no such file"}
    assert expected.get(kind, "have the colour of tissue") in str(caught.value)


def test_macenko_needs_more_than_a_few_dark_pixels(tmp_path: Path) -> None:
    """Of a pale slide some specks would decide, and most of what they make of it is white."""
    pixels = tissue(10, 0.1)
    pixels[0, :3] = tissue(11)[0, :3]
    with pytest.raises(DataError, match=r"slide\.png: its stains .* \(\d pixels are dark enough"):
        NormalizeStain("macenko", save(pixels, tmp_path / "slide.png"))


def test_another_method() -> None:
    with pytest.raises(ValueError, match="method must be one of macenko, reinhard, got 'vahadane'"):
        NormalizeStain("vahadane")
