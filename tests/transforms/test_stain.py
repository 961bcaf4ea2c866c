from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.data.utils import set_rnd
from monai.transforms import Compose, RandFlipd
from skimage.color import rgb_from_hed, separate_stains
from torch import Tensor

from shared.transforms import RandStainJitter, RandStainJitterd, stain_jitter

# Ruifrok and Johnston, table 1
HAEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)


def colours(shape: tuple[int, ...] = (3, 5, 7), seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def by_pixel(image: Tensor, scale: list[float], shift: list[float]) -> Tensor:
    """Optical density, amounts of the stains, changed, and back, one pixel at a time."""
    stains = np.array([[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in (HAEMATOXYLIN, EOSIN, DAB)])
    out = torch.empty_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            density = [-math.log(max(int(image[c, y, x]), 1) / 255) for c in range(3)]
            amounts = np.linalg.solve(stains.T, density)  # density = amounts · stains
            changed = [scale[i] * amounts[i] + shift[i] for i in range(3)]
            for c in range(3):
                value = 255 * math.exp(-sum(changed[i] * stains[i][c] for i in range(3)))
                out[c, y, x] = min(max(round(value), 0), 255)
    return out


def test_no_change_leaves_every_colour() -> None:
    grid = torch.cartesian_prod(*[torch.arange(1, 256, 5, dtype=torch.uint8)] * 3).T.contiguous()
    assert torch.equal(stain_jitter(grid, torch.ones(3), torch.zeros(3)), grid)
    dark = torch.tensor([[0], [0], [7]], dtype=torch.uint8)  # the density of 0 is infinite: as of 1
    assert stain_jitter(dark, torch.ones(3), torch.zeros(3)).flatten().tolist() == [1, 1, 7]


@pytest.mark.parametrize(
    ("scale", "shift"),
    [
        ([1.2, 0.8, 1.1], [0.05, -0.02, 0.01]),
        ([0.5, 1.7, 0.9], [0.0, 0.0, 0.0]),
        ([1.0, 1.0, 1.0], [0.2, -0.1, 0.3]),
        ([0.0, 0.0, 0.0], [0.3, 0.2, 0.0]),
    ],
)
def test_against_one_pixel_at_a_time(scale: list[float], shift: list[float]) -> None:
    image = colours((3, 12, 9))
    found = stain_jitter(image, torch.tensor(scale), torch.tensor(shift))
    wanted = by_pixel(image, scale, shift)
    assert (found.dtype, found.shape) == (torch.uint8, image.shape)
    differ = (found.int() - wanted.int()).abs()
    assert differ.max() <= 1  # where the exact value is half-way between two numbers
    assert (differ > 0).float().mean() < 0.01


def test_the_amounts_that_scikit_image_finds() -> None:
    image = colours((3, 40, 40)).clamp(min=90, max=220)  # where nothing is cut off
    rows = np.array([HAEMATOXYLIN, EOSIN, DAB])
    to_stains = np.linalg.inv(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    np.testing.assert_allclose(rgb_from_hed[:2], rows[:2])  # its third row is another: the cross product of the two

    def amounts(pixels: Tensor) -> np.ndarray:
        # in its units: densities are divided by log(1e-6), and negative amounts cut off
        return separate_stains(pixels.permute(1, 2, 0).numpy(), to_stains) * -math.log(1e-6)

    before = amounts(image)
    after = amounts(stain_jitter(image, torch.tensor([1.1, 0.9, 1.0]), torch.tensor([0.02, 0.0, 0.01])))
    there = (before > 0.05).all(axis=-1)
    assert there.sum() > 20
    np.testing.assert_allclose(after[there], before[there] * [1.1, 0.9, 1.0] + [0.02, 0.0, 0.01], atol=0.015)


def test_more_haematoxylin_is_bluer() -> None:
    pixel = torch.tensor([[190], [120], [170]], dtype=torch.uint8)
    more = stain_jitter(pixel, torch.ones(3), torch.tensor([0.3, 0.0, 0.0])).flatten().tolist()
    ratios = [math.log(before / after) for before, after in zip(pixel.flatten().tolist(), more, strict=True)]
    length = math.hypot(*HAEMATOXYLIN)
    assert ratios == pytest.approx([0.3 * v / length for v in HAEMATOXYLIN], abs=0.008)


def test_any_layout_and_an_untouched_input() -> None:
    image = colours((3, 4, 5, 6))
    scale, shift = torch.tensor([1.2, 0.9, 1.0]), torch.tensor([0.01, 0.02, 0.0])
    flat = stain_jitter(image.flatten(1), scale, shift)
    before = image.clone()
    assert torch.equal(stain_jitter(image, scale, shift), flat.view_as(image))
    turned = image.flip(1).transpose(1, 3)
    assert torch.equal(stain_jitter(turned, scale, shift), flat.view_as(image).flip(1).transpose(1, 3))
    assert torch.equal(image, before)


def test_the_ranges() -> None:
    jitter = RandStainJitter(1.0, 0.3, 0.1).set_random_state(0)
    draws = []
    for _ in range(2000):
        jitter.randomize()
        draws.append(torch.cat([jitter._scale, jitter._shift]))
    drawn = torch.stack(draws)
    for column, centre, half in [(i, 1.0, 0.3) for i in range(3)] + [(i, 0.0, 0.1) for i in range(3, 6)]:
        values = (drawn[:, column] - centre) / half
        assert -1 <= values.min() < -0.98
        assert 0.98 < values.max() <= 1
        assert values.mean().abs() < 0.05
        assert values.var().item() == pytest.approx(1 / 3, abs=0.02)
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 0.1


def test_the_probability() -> None:
    image = colours()
    jitter = RandStainJitter(0.3, 0.5, 0.3).set_random_state(1)
    changed = sum(not torch.equal(jitter(image), image) for _ in range(1000))
    assert 250 < changed < 350
    assert all(RandStainJitter(0.0)(image) is image for _ in range(20))
    still = RandStainJitter(1.0, 0.0, 0.0)
    assert torch.equal(still(image.clamp(min=1)), image.clamp(min=1))


def test_a_seed_repeats_it() -> None:
    image = colours()
    for kind in (RandStainJitter, RandStainJitterd):
        wrapped = image if kind is RandStainJitter else {"image": image}
        runs = []
        for seed in (3, 3, 4):
            jitter = kind(prob=0.8, scale_range=0.5).set_random_state(seed)
            results = [jitter(wrapped) for _ in range(6)]
            runs.append(torch.stack([r if isinstance(r, Tensor) else r["image"] for r in results]))
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])
        assert not torch.equal(runs[0][0], runs[0][1])


def test_in_a_composition_and_by_monai_s_seeding() -> None:
    def composed(seed: int, how: str) -> Tensor:
        compose = Compose([RandFlipd("image", 0.5), RandStainJitterd("image")])
        if how == "set_rnd":
            set_rnd(compose, seed)
        else:
            compose.set_random_state(seed)
        return torch.stack([torch.as_tensor(compose({"image": colours()})["image"]) for _ in range(4)])

    for how in ("set_rnd", "set_random_state"):
        assert torch.equal(composed(2, how), composed(2, how))
        assert not torch.equal(composed(2, how), composed(3, how))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_in_a_loader_every_item_and_epoch_is_another(num_workers: int, cached: bool) -> None:
    items = [{"image": colours()} for _ in range(8)]

    def epochs(seed: int) -> list[Tensor]:
        transform = Compose([RandStainJitterd("image")])
        dataset = CacheDataset(items, transform, progress=False) if cached else Dataset(items, transform)
        torch.manual_seed(seed)
        loader = DataLoader(dataset, batch_size=2, num_workers=num_workers)
        return [torch.cat([batch["image"] for batch in loader]) for _ in range(2)]

    first, second = epochs(0)
    drawn = {tuple(image.flatten().tolist()) for image in torch.cat([first, second])}
    assert len(drawn) == 16
    again, other = epochs(0), epochs(1)
    assert torch.equal(again[0], first)
    assert torch.equal(again[1], second)
    assert not torch.equal(other[0], first)


def test_all_keys_get_the_same_change() -> None:
    d = {"image": colours(), "copy": colours(), "label": torch.ones(1)}
    out = RandStainJitterd(["image", "copy", "absent"], allow_missing_keys=True).set_random_state(0)(d)
    assert torch.equal(out["image"], out["copy"])
    assert not torch.equal(out["image"], d["image"])
    assert set(out) == set(d)
    with pytest.raises(KeyError, match="absent"):
        RandStainJitterd(["absent"])(d)


@pytest.mark.parametrize(
    "options", [{"prob": -0.1}, {"prob": 1.1}, {"scale_range": 1.5}, {"scale_range": -1}, {"shift_range": -1}]
)
def test_bad_options(options: dict[str, float]) -> None:
    for kind in (RandStainJitter, RandStainJitterd):
        with pytest.raises(ValueError, match="prob and scale_range must be in"):
            kind(**options)


@pytest.mark.parametrize(
    "image", [torch.rand(3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8), np.zeros((3, 4, 4), np.uint8)]
)
def test_bad_images(image: Tensor | np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected a uint8 tensor"):
        RandStainJitter(0.0)(image)
