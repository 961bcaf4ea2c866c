"""Synthetic H&E histology: made-up mitotic figures and their imposters, seen by four scanners.

A scene is a map of two concentrations, haematoxylin and eosin, at 0.25 µm a pixel. Light goes through it by the
Beer-Lambert law; a scanner's profile says in what colours the stains absorb and what optics, sensor and compression
make of the light. Every slide has its own strength and hue of the stains and its own tissue, so a scanner is a family
of appearances and not a constant.

The pictures teach software, not medicine: no figure measured on them says anything about real slides.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from scipy.ndimage import gaussian_filter

from ..data import SPLITS
from ..utils import atomic_path
from ..utils.values import Whole, check_value
from .preparation import make_data_set
from .splits import split_patches

MITOTIC_KINDS = ("plate", "ring", "anaphase")
"""Metaphase plates seen from the side, the same seen end-on, and anaphases with two plates."""

IMPOSTER_KINDS = ("pyknotic", "elongated", "out_of_focus")
"""Dark nuclei that are no mitotic figures: shrunken round ones, spindles, and such as lie outside the focal plane."""

PATCH_SIZE = 64
TILE_SIZE = 512
BOX_SIZE = 50

_MARGIN = 12  # px drawn around a picture, so that blurring sees no border
_MITOTIC_SHARE = 0.4
_JITTER = 3  # px, how far a patch's figure lies from its centre along each axis
# Haematoxylin of condensed chromosomes and of shrunken or superposed nuclei, on average; it varies by 0.3 around them.
_CONDENSED, _SHRUNKEN = 1.95, 1.75
_KIND_WEIGHTS = {MITOTIC_KINDS: (0.5, 0.25, 0.25), IMPOSTER_KINDS: (0.35, 0.35, 0.3)}


@dataclass(frozen=True)
class ScannerProfile:
    """How stains and light become pixels.

    Attributes:
        haematoxylin, eosin: decadic absorbance of one unit of the stain in red, green and blue light.
        white: what the scanner writes where nothing absorbs, 0 to 255.
        gamma: light is stored as `light ** (1 / gamma)`.
        blur: standard deviation of the point-spread function in px.
        sharpening: how much of the difference to a blurred copy is added, 0 for none.
        noise: standard deviation in grey levels.
        jpeg_quality: 1 to 95, or None for no compression.
    """

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    white: tuple[float, float, float]
    gamma: float = 2.2
    blur: float = 1.0
    sharpening: float = 0.0
    noise: float = 2.0
    jpeg_quality: int | None = 80


# The mean colours and their spread follow those of MIDOG's patches; the GT450 has no such measurement behind it.
SCANNER_PROFILES: dict[str, ScannerProfile] = {
    "XR": ScannerProfile((0.70, 0.92, 0.35), (0.15, 0.47, 0.17), (244, 240, 247), 2.2, 0.6, 0.6, 2.5, 80),
    "S360": ScannerProfile((0.53, 1.00, 0.42), (0.14, 0.50, 0.24), (250, 240, 243), 2.2, 1.4, 0.0, 1.5, 80),
    "CS": ScannerProfile((0.63, 0.85, 0.54), (0.16, 0.42, 0.31), (253, 243, 244), 2.2, 0.6, 0.8, 3.5, 70),
    "GT450": ScannerProfile((0.60, 0.74, 0.40), (0.10, 0.38, 0.20), (247, 244, 248), 2.2, 0.7, 0.5, 2.5, 90),
}
"""The scanners of MIDOG 2021 by their short names."""


def render_stains(
    haematoxylin: np.ndarray, eosin: np.ndarray, profile: ScannerProfile, rng: np.random.Generator
) -> np.ndarray:
    """What a scanner sees of a scene: Beer-Lambert, optics, sensor, compression.

    Args:
        haematoxylin, eosin: concentrations, (H, W), 0 or above.
        profile: the scanner.
        rng: for the sensor's noise.

    Returns:
        RGB, (H, W, 3), uint8.
    """
    absorbance = haematoxylin[..., None] * np.float32(profile.haematoxylin)
    absorbance = absorbance + eosin[..., None] * np.float32(profile.eosin)
    light = gaussian_filter(np.float32(10) ** -absorbance.astype(np.float32), (profile.blur, profile.blur, 0))
    pixels = np.float32(profile.white) * light ** np.float32(1 / profile.gamma)
    if profile.sharpening:
        pixels += np.float32(profile.sharpening) * (pixels - gaussian_filter(pixels, (1.5, 1.5, 0)))
    pixels += np.float32(profile.noise) * rng.standard_normal(pixels.shape, dtype=np.float32)
    pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    if profile.jpeg_quality is None:
        return pixels
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=profile.jpeg_quality)
    return np.array(Image.open(buffer))


def _noise(rng: np.random.Generator, shape: Sequence[int], grain: float) -> np.ndarray:
    """Smooth noise of unit variance whose blobs are about 2 * `grain` px wide."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), grain, mode="wrap", truncate=3)
    return noise * np.float32(2 * grain * np.sqrt(np.pi))


# What a slide's tissue is like lies between these; its scenes vary around it.
_TISSUE = {
    "spacing": (33, 44),  # px, the least distance between nuclei
    "size": (13.5, 17),  # mean radius of a nucleus in px
    "chromatin": (0.45, 0.75),  # haematoxylin of an ordinary nucleus
    "cytoplasm": (0.04, 0.16),  # haematoxylin between nuclei
    "eosin": (0.75, 1.05),
    "fibres": (0, 0.45),  # how fibrous, 0 to 1
    "gaps": (0.9, 2.3),  # how much of it is torn or empty, as a threshold on unit noise
}


class _Scene:
    """Concentrations of the two stains on a grid, painted from the ground up.

    Attributes:
        haematoxylin, eosin: (N, N), one unit is that of a dense nucleus and of plain cytoplasm.
    """

    def __init__(self, size: int, tissue: Mapping[str, float], rng: np.random.Generator) -> None:
        self.rng, self.tissue = rng, tissue
        self.shape = (size + 2 * _MARGIN,) * 2
        self.axis = np.arange(self.shape[0], dtype=np.float32) - _MARGIN
        coarse, fine = _noise(rng, self.shape, 10), _noise(rng, self.shape, 1.3)
        angle, period = rng.uniform(0, np.pi), rng.uniform(8, 15)
        along = self.axis * np.float32(np.cos(angle)) + self.axis[:, None] * np.float32(np.sin(angle))
        fibres = np.sin(along * np.float32(2 * np.pi / period) + 2 * coarse)
        amount = tissue["fibres"] * np.clip(0.5 + 0.7 * _noise(rng, self.shape, 14), 0, 1)
        self.eosin = tissue["eosin"] * (1 + 0.2 * coarse + 0.16 * fine + 0.4 * amount * fibres)
        self.haematoxylin = tissue["cytoplasm"] * (1 + 0.4 * coarse + 0.35 * fine)
        gap = 1 / (1 + np.exp(-7 * (_noise(rng, self.shape, 12) - np.float32(tissue["gaps"]))))
        self.eosin *= 1 - 0.93 * gap
        self.haematoxylin *= 1 - gap

    def crop(self) -> tuple[np.ndarray, np.ndarray]:
        inner = (slice(_MARGIN, -_MARGIN),) * 2
        return np.maximum(self.haematoxylin, 0)[inner], np.maximum(self.eosin, 0)[inner]

    def around(self, x: float, y: float, reach: float) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
        """The grid's window around a point, turned at random: its slices and coordinates along and across, in px."""
        low, high = (np.searchsorted(self.axis, (c - reach, c + reach)) for c in (y, x))
        box = (slice(*low), slice(*high))
        angle = self.rng.uniform(0, 2 * np.pi)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        dx, dy = self.axis[box[1]] - np.float32(x), (self.axis[box[0]] - np.float32(y))[:, None]
        return box, cos * dx + sin * dy, cos * dy - sin * dx

    def lay(self, box: tuple[slice, slice], cover: np.ndarray, haematoxylin: ArrayLike, eosin: ArrayLike) -> None:
        """Put something that covers 0 to 1 of each pixel over what is there."""
        self.haematoxylin[box] += cover * (haematoxylin - self.haematoxylin[box])
        self.eosin[box] += cover * (eosin - self.eosin[box])

    def nucleus(self, x: float, y: float) -> None:
        """An ordinary nucleus: a pale, grained inside, a darker rim, one or two nucleoli."""
        rng, tissue = self.rng, self.tissue
        radius = tissue["size"] * rng.uniform(0.8, 1.2)
        stretch = rng.uniform(1, 1.35)
        box, u, v = self.around(x, y, 1.6 * radius + 4)
        distance = _blob(rng, u, v, radius * stretch**0.5, radius / stretch**0.5, 0.05)
        inside = _soft(distance, 1.0)
        level = tissue["chromatin"] * rng.uniform(0.75, 1.3)
        grain = _noise(rng, u.shape, 1.5)
        rim = np.exp(-(((distance + 1.5) / 1.3) ** 2))
        chromatin = level * (1 + 0.25 * grain + 0.6 * rim)
        for _ in range(rng.integers(0, 3)):
            a, b = rng.uniform(-0.4, 0.4, 2) * radius
            width = np.float32(2 * rng.uniform(1.3, 2.2) ** 2)
            chromatin += 0.9 * level * np.exp(-((u - a) ** 2 + (v - b) ** 2) / width)
        self.lay(box, inside, chromatin, self.eosin[box] * np.float32(0.5))

    def figure(self, kind: str, x: float, y: float) -> None:
        """A mitotic figure or an imposter in its cell."""
        rng = self.rng
        mitotic = kind in MITOTIC_KINDS
        box, u, v = self.around(x, y, 38)
        cell = _soft(_blob(rng, u, v, rng.uniform(20, 27), rng.uniform(17, 23), 0.06), 2.0)
        # Dividing cells are mostly pale and dying ones mostly red, but far from always.
        tint = rng.normal(0.8, 0.17) if mitotic else rng.normal(0.93, 0.17)
        grain = 1 + 0.12 * _noise(rng, u.shape, 1.6)
        self.lay(box, 0.8 * cell, self.tissue["cytoplasm"] * grain, self.tissue["eosin"] * max(tint, 0.4) * grain)
        cover = getattr(self, f"_{kind}")(u, v)
        # The kinds overlap widely: darkness alone says little.
        level = float(np.clip(rng.normal(_CONDENSED if mitotic else _SHRUNKEN, 0.3), 1.0, 2.8))
        if kind == "out_of_focus":
            level *= 1.1
        focus = max(rng.normal(2.4, 0.6), 1.2) if kind == "out_of_focus" else abs(rng.normal(0, 0.8))
        grain = 1 + 0.10 * _noise(rng, u.shape, 2.0)
        self.lay(box, gaussian_filter(cover, focus), level * grain, 0.6 * self.tissue["eosin"])

    def chromatin(self, distance: np.ndarray, low: float, high: float, edge: float) -> np.ndarray:
        """The cover of a shape with ragged edges: the arms of chromosomes reach out, a nuclear membrane is smooth."""
        amount, grain = np.float32(self.rng.uniform(low, high)), self.rng.uniform(1.4, 2.2)
        return _soft(distance + amount * _noise(self.rng, distance.shape, grain), edge)

    def _plate(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        rng = self.rng
        length, width = rng.uniform(9, 16), rng.uniform(3.2, 5.8)
        return self.chromatin(_bar(u, v - rng.normal(0, 0.008) * u**2, length, width), 0.5, 1.8, 0.8)

    def _ring(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        rng = self.rng
        radius, half = rng.uniform(6.5, 10), rng.uniform(2.5, 4)
        middle = np.hypot(u, v * np.float32(rng.uniform(1, 1.3))) - np.float32(radius)
        hole = rng.uniform(0.35, 0.95)  # how empty the middle looks: the plate is more or less tilted
        ring = self.chromatin(np.abs(middle) - np.float32(half), 0.5, 1.6, 0.8)
        return np.maximum(ring, (1 - hole) * _soft(middle, 0.8))

    def _anaphase(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        rng = self.rng
        apart, length, width = np.float32(rng.uniform(5, 9.5)), rng.uniform(7, 12), rng.uniform(2.4, 4)
        bend = rng.uniform(0, 0.02) * u**2
        upper = _bar(u, v - apart + bend, length, width)
        lower = _bar(u, v + apart - bend, length * rng.uniform(0.85, 1.15), width)
        return self.chromatin(np.minimum(upper, lower), 0.5, 1.4, 0.8)

    def _pyknotic(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        rng = self.rng
        radius, stretch = rng.uniform(6.5, 12), rng.uniform(1, 1.25)
        distance = _blob(rng, u, v, radius * stretch**0.5, radius / stretch**0.5, 0.05)
        if rng.random() < 0.3:  # a fragment beside it
            angle, far = rng.uniform(0, 2 * np.pi), radius + rng.uniform(2, 6)
            a, b = np.float32(far * np.cos(angle)), np.float32(far * np.sin(angle))
            distance = np.minimum(distance, np.hypot(u - a, v - b) - np.float32(rng.uniform(2, 4)))
        cover = self.chromatin(distance, 0, 0.7, 0.9)
        return cover * (1 - rng.uniform(0, 0.5) * _soft(np.hypot(u, v) - np.float32(0.5 * radius), 2.0))

    def _elongated(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        rng = self.rng
        length, width = rng.uniform(11, 19), rng.uniform(3.6, 6.2)
        return self.chromatin(_blob(rng, u, v - rng.normal(0, 0.006) * u**2, length, width, 0.04), 0, 0.7, 0.9)

    def _out_of_focus(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        length = self.rng.uniform(8, 15)
        width = max(length * self.rng.uniform(0.4, 1), 4.5)
        return self.chromatin(_blob(self.rng, u, v, length, width, 0.08), 0, 1.2, 1.0)

    def scatter(self, size: int, taken: Sequence[tuple[float, float]]) -> None:
        """Ordinary nuclei wherever there is room."""
        spacing, low, high = self.tissue["spacing"], -_MARGIN, size + _MARGIN
        chances = self.rng.uniform(low, high, (int(6 * ((high - low) / spacing) ** 2), 2))
        points = np.concatenate([np.reshape(taken, (-1, 2)), np.empty_like(chances)])
        apart = np.where(np.arange(len(points)) < len(taken), 34, spacing)  # figures keep their cells to themselves
        count = len(taken)
        for x, y in chances:
            if np.all(np.hypot(points[:count, 0] - x, points[:count, 1] - y) > apart[:count]):
                points[count] = x, y
                count += 1
                self.nucleus(x, y)


def _soft(distance: np.ndarray, edge: float) -> np.ndarray:
    """1 inside, 0 outside, with an edge of about 4 * `edge` px."""
    return 1 / (1 + np.exp(np.clip(distance / np.float32(edge), -30, 30)))


def _bar(u: np.ndarray, v: np.ndarray, length: float, width: float) -> np.ndarray:
    """Distance in px to a bar with round ends; `length` and `width` are half of its extent."""
    beyond = np.maximum(np.abs(u) - np.float32(length - width), 0)
    return np.hypot(beyond, v) - np.float32(width)


def _blob(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, length: float, width: float, uneven: float
) -> np.ndarray:
    """Distance in px, to first order near the edge, to an uneven ellipse with these semi-axes."""
    p, q = u / np.float32(length), v / np.float32(width)
    level, theta = np.hypot(p, q), np.arctan2(q, p)
    for k in (2, 3, 4):
        level *= 1 + np.float32(rng.normal(0, uneven)) * np.cos(k * theta + np.float32(rng.uniform(0, 2 * np.pi)))
    slope = np.hypot(p / np.float32(length), q / np.float32(width)) / np.maximum(level, np.float32(1e-3))
    return (level - 1) / np.maximum(slope, np.float32(1 / (2 * length)))


def _vary(profile: ScannerProfile, rng: np.random.Generator) -> ScannerProfile:
    """The same scanner with another slide in it: another strength and hue of the stains."""
    haematoxylin, eosin = (
        tuple(np.multiply(stain, np.exp(rng.normal(0, 0.1) + rng.normal(0, 0.05, 3))))
        for stain in (profile.haematoxylin, profile.eosin)
    )
    return replace(profile, haematoxylin=haematoxylin, eosin=eosin)


class _Slide(NamedTuple):
    """One slide's work: what to draw into which file."""

    scanner: str
    seed: tuple[int, int, int]
    patches: list[tuple[str, str]]  # file, kind
    tiles: list[tuple[str, list[tuple[str, int, int]]]]  # file, (kind, x, y) of each figure


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _write_slide(output_dir: Path, slide: _Slide) -> None:
    def draw(name: str, size: int, figures: Sequence[tuple[str, float, float]], rng: np.random.Generator) -> None:
        scene = _Scene(size, tissue, rng)
        scene.scatter(size, [(x, y) for _, x, y in figures])
        for kind, x, y in figures:
            scene.figure(kind, x, y)
        pixels = render_stains(*scene.crop(), profile, rng)
        with atomic_path(output_dir / name) as temporary:
            Image.fromarray(pixels).save(temporary, compress_level=1)  # noise hardly compresses at any level

    rng = _generator(*slide.seed)
    profile = _vary(SCANNER_PROFILES[slide.scanner], rng)
    tissue = {name: rng.uniform(*between) for name, between in _TISSUE.items()}
    for i, (name, kind) in enumerate(slide.patches):
        rng = _generator(*slide.seed, 0, i, 1)
        x, y = (PATCH_SIZE - 1) / 2 + rng.uniform(-_JITTER, _JITTER, 2)
        draw(name, PATCH_SIZE, [(kind, x, y)], rng)
    for i, (name, figures) in enumerate(slide.tiles):
        draw(name, TILE_SIZE, figures, _generator(*slide.seed, 1, i, 1))


def _plan_kind(mitotic: bool, rng: np.random.Generator) -> str:
    kinds = MITOTIC_KINDS if mitotic else IMPOSTER_KINDS
    return str(rng.choice(kinds, p=_KIND_WEIGHTS[kinds]))


def _plan_tile(rng: np.random.Generator) -> list[tuple[str, int, int]]:
    """Where a tile's figures and imposters lie; one tile in four holds no mitotic figure."""
    mitotic = 0 if rng.random() < 0.25 else int(rng.integers(1, 5))
    kinds = [_plan_kind(k < mitotic, rng) for k in range(mitotic + int(rng.integers(2, 7)))]
    places: list[tuple[int, int]] = []
    while len(places) < len(kinds):
        x, y = (int(c) for c in rng.integers(BOX_SIZE // 2 - 5, TILE_SIZE - BOX_SIZE // 2 + 6, 2))
        if all(np.hypot(x - a, y - b) > 1.4 * BOX_SIZE for a, b in places):
            places.append((x, y))
    return [(kind, x, y) for kind, (x, y) in zip(kinds, places, strict=True)]


def _plan(slides: int, patches_per_slide: int, tiles_per_slide: int, seed: int) -> list[_Slide]:
    # Every stretch of patches holds the same share of mitotic figures.
    mitotic = np.diff(np.floor(_MITOTIC_SHARE * np.arange(patches_per_slide + 1) + 0.5)) > 0
    plan = []
    for s, scanner in enumerate(SCANNER_PROFILES):
        for n in range(slides):
            place = f"{scanner}/slide_{n:02d}"
            kinds = [_plan_kind(bool(m), _generator(seed, s, n, 0, i, 0)) for i, m in enumerate(mitotic)]
            figures = [_plan_tile(_generator(seed, s, n, 1, i, 0)) for i in range(tiles_per_slide)]
            patches = [(f"patches/{place}/patch_{i:03d}.png", kind) for i, kind in enumerate(kinds)]
            tiles = [(f"tiles/{place}/tile_{i:02d}.png", those) for i, those in enumerate(figures)]
            plan.append(_Slide(scanner, (seed, s, n), patches, tiles))
    return plan


def make_synthetic_histology(
    output_dir: str | Path,
    slides: int = 10,
    patches_per_slide: int = 40,
    tiles_per_slide: int = 1,
    seed: int = 0,
    label_all: bool = True,
    processes: int | None = None,
) -> Path:
    """Write made-up H&E patches and tiles of four scanners as a data set.

    `dataset.json` lists the patches (64 x 64 px, a figure or an imposter in the middle of each), `tiles.json` the tiles
    (512 x 512 px) with their boxes (50 x 50 px, `[x1, y1, x2, y2]`; some reach a few px over the border). The splits
    are by slide, with the shares of `split_patches`, and the same in both lists. The same arguments give the same
    bytes, whatever the number of processes; a picture depends on `seed` and its own numbers alone.

    Args:
        output_dir: an empty or new folder, or one that holds this very data set, which is then written again.
        slides: how many of each scanner, 3 at least.
        patches_per_slide: how many, 2 at least; 40 % are mitotic figures.
        tiles_per_slide: how many; without any there is no `tiles.json`.
        seed: 0 or above.
        label_all: False leaves the GT450 without labels, as in MIDOG 2021: its pictures are in no split but in the
            list `unlabelled`, with `"labelled": false`.
        processes: how many work at the same time; by default one for each core.

    Returns:
        the path of `dataset.json`.

    Raises:
        DataError: a wrong number, or a folder that holds something else or cannot be written to.
    """
    check_value("slides", slides, Whole(3))
    check_value("patches_per_slide", patches_per_slide, Whole(2))
    check_value("tiles_per_slide", tiles_per_slide, Whole(0))
    check_value("seed", seed, Whole(0))
    plan = _plan(slides, patches_per_slide, tiles_per_slide, seed)
    description = (
        f"Made-up H&E of four scanners to try the software on: {slides} slides each with {patches_per_slide} patches "
        f"and {tiles_per_slide} tiles, seed {seed}. Not for real slides."
    )
    head = {"name": "synthetic_histology", "description": description, "synthetic": True, "seed": seed}
    head |= {"labels": {"0": "non_mitotic", "1": "mitotic"}}
    patches, tiles = _datalists(plan, seed, label_all)
    lists = {"tiles.json": head | {"box_mode": "xyxy"} | tiles} if tiles_per_slide else {}
    files = [name for slide in plan for name, _ in (*slide.patches, *slide.tiles)]
    write = partial(_write_slide, Path(output_dir))
    lists["dataset.json"] = head | patches
    return make_data_set(output_dir, lists, [*files, "tiles.json"], write, plan, processes, "slide")


def _datalists(plan: Sequence[_Slide], seed: int, label_all: bool) -> tuple[dict[str, list], dict[str, list]]:
    """The lists of patches and of tiles, split by slide in the same way."""
    patches, tiles, half = [], [], BOX_SIZE // 2
    for slide in plan:
        where = {"domain": slide.scanner, "slide": f"{slide.scanner}_{slide.seed[2]:02d}"}
        for name, kind in slide.patches:
            patches.append({"image": name, "label": int(kind in MITOTIC_KINDS), **where, "kind": kind})
        for name, figures in slide.tiles:
            boxes = [[x - half, y - half, x + half, y + half] for _, x, y in figures]
            labels = [int(kind in MITOTIC_KINDS) for kind, _, _ in figures]
            tiles.append({"image": name, "box": boxes, "label": labels, **where})
    split = split_patches(patches, seed=seed)
    slides = {key: {patch["slide"] for patch in split[key]} for key in SPLITS}
    lists = split, {key: [tile for tile in tiles if tile["slide"] in slides[key]] for key in SPLITS}
    if not label_all:
        for datalist in lists:
            _hide_labels(datalist, "GT450")
    return lists


def _hide_labels(datalist: dict[str, list[dict[str, Any]]], scanner: str) -> None:
    """Move a scanner's items to the list `unlabelled`, without what tells the answer."""
    hidden = [item for key in SPLITS for item in datalist[key] if item["domain"] == scanner]
    for key in SPLITS:
        datalist[key] = [item for item in datalist[key] if item["domain"] != scanner]
    told = [{"image": i["image"], "labelled": False, "domain": scanner, "slide": i["slide"]} for i in hidden]
    datalist["unlabelled"] = sorted(told, key=lambda item: item["image"])
