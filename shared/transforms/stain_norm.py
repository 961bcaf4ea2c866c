"""Stain normalisation: the colours of a slide as they would be on a reference slide.

Macenko et al., *A method for normalizing histology slides for quantitative analysis*, ISBI 2009; Reinhard et al.,
*Color transfer between images*, IEEE CG&A 21(5), 2001.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.apps.pathology.transforms.stain.array import ExtractHEStains
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor
from tqdm import tqdm

from ..data import Region, open_region
from ..data.tissue import has_colour
from ..utils import DataError

METHODS = ("macenko", "reinhard")
OVERVIEW = 1024  # pixels of the longer side of what a slide is fitted on
FEWEST = 500  # pixels of tissue that are needed
LIGHT = 240.0  # what comes through without tissue, of 255
# Red, green and blue to the responses of the eye's cones, and those, as logarithms, to l, α and β (Reinhard et al.).
_CONES = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_OPPONENTS = np.diag([1 / math.sqrt(3), 1 / math.sqrt(6), 1 / math.sqrt(2)]) @ [[1, 1, 1], [1, 1, -2], [1, -1, 0]]


@dataclass(frozen=True)
class Macenko:
    """The stains of a slide, as Macenko et al. find them.

    Attributes:
        stains: optical density in red, green and blue of haematoxylin, and of eosin; of length 1.
        concentrations: the 99th percentile of the amount of each.
    """

    stains: tuple[tuple[float, ...], ...] = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
    concentrations: tuple[float, ...] = (1.9705, 1.0308)  # both those of the authors' reference

    @classmethod
    def of(cls, pixels: np.ndarray) -> Macenko:
        """That of tissue, uint8 (n, 3)."""
        stains = ExtractHEStains(tli=LIGHT)(pixels[None]).astype(np.float64)
        stains = stains[:, np.argsort(-stains[0] / stains[2])]  # MONAI 1.6.1 has eosin, which takes less red, first
        density = -np.log((pixels + 1.0) / LIGHT)
        amounts = density @ np.linalg.pinv(stains).T
        return cls(tuple(map(tuple, stains.T.tolist())), tuple(np.percentile(amounts, 99, axis=0).tolist()))

    @property
    def is_plain(self) -> bool:
        """Whether the two stains are one."""
        return bool(np.linalg.cond(self.stains) > 100)

    def towards(self, reference: Macenko) -> ColourMap:
        """What makes its colours those of the reference: other stains, in other amounts."""
        ours, theirs = np.array(self.stains).T, np.array(reference.stains).T
        ratio = np.array(reference.concentrations) / np.array(self.concentrations)
        mix = theirs @ np.diag(ratio) @ np.linalg.pinv(ours)
        return ColourMap(np.eye(3) / LIGHT, mix, np.zeros(3), np.eye(3) * LIGHT)


@dataclass(frozen=True)
class Reinhard:
    """Mean and standard deviation of a slide's tissue in lαβ, natural logarithms of colours from 1 to 256."""

    mean: tuple[float, ...] = (8.74108109, -0.12440419, 0.0444982)
    std: tuple[float, ...] = (0.6135447, 0.10989545, 0.0286032)  # both those that HistomicsTK gives of a slide of TCGA

    @classmethod
    def of(cls, pixels: np.ndarray) -> Reinhard:
        """That of tissue, uint8 (n, 3)."""
        opponents = np.log((pixels + 1.0) @ _CONES.T) @ _OPPONENTS.T
        return cls(tuple(opponents.mean(axis=0).tolist()), tuple(opponents.std(axis=0).tolist()))

    @property
    def is_plain(self) -> bool:
        """Whether there is one colour alone."""
        return min(self.std) < 1e-3

    def towards(self, reference: Reinhard) -> ColourMap:
        """What makes its mean and deviation those of the reference."""
        ratio = np.array(reference.std) / np.array(self.std)
        back = np.linalg.inv(_OPPONENTS)
        shift = back @ (np.array(reference.mean) - ratio * np.array(self.mean))
        return ColourMap(_CONES, back @ np.diag(ratio) @ _OPPONENTS, shift, np.linalg.inv(_CONES))


@dataclass(frozen=True)
class ColourMap:
    """A change of colours, pixel by pixel, so that tiles fit together.

        I ← after exp(mix log(before (I + 1)) + shift) − 1

    Attributes:
        before, mix, after: (3, 3).
        shift: (3,).
    """

    before: np.ndarray
    mix: np.ndarray
    shift: np.ndarray
    after: np.ndarray

    def __call__(self, image: Tensor) -> Tensor:
        """
        Args:
            image: uint8 (3, ...), RGB.

        Returns:
            uint8 of the same shape.
        """
        before, mix, shift, after = (
            torch.from_numpy(x).to(image.device, torch.float32) for x in (self.before, self.mix, self.shift, self.after)
        )
        seen = torch.log(before @ (image.flatten(1).float() + 1))
        changed = after @ torch.exp(torch.addmm(shift[:, None], mix, seen)) - 1
        return changed.round_().clamp_(0, 255).to(torch.uint8).view_as(image)


_KINDS: dict[str, type[Macenko | Reinhard]] = {"macenko": Macenko, "reinhard": Reinhard}
Fit = Macenko | Reinhard


class NormalizeStain:
    """Fits slides, and gives the change of colours that makes each look like the reference.

    Args:
        method: `"macenko"` or `"reinhard"`.
        reference: an image, of any size, whose tissue is the reference; None: a published one.

    Attributes:
        reference: its fit.

    Raises:
        ValueError: for another method.
        DataError: when the reference cannot be read, or has no tissue.
    """

    def __init__(self, method: str = "macenko", reference: str | os.PathLike | None = None) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        self.method = method
        self.reference = _KINDS[method]() if reference is None else self.fit([reference])

    def fit(self, images: Sequence[str | os.PathLike | Region]) -> Fit:
        """The fit of images of one slide, by their tissue, seen at most 1024 pixels wide and high.

        Raises:
            DataError: when one cannot be read, or all together have too little tissue.
        """
        overviews = [open_region(image).thumbnail(OVERVIEW).reshape(-1, 3) for image in images]
        more = f" and {len(images) - 1} more of its slide" if len(images) > 1 else ""
        return self.fit_pixels(np.concatenate(overviews), f"{open_region(images[0]).path}{more}")

    def fit_pixels(self, pixels: np.ndarray, name: str) -> Fit:
        """The same of pixels, uint8 (n, 3), of which those with the colour of tissue count; `name` is for messages."""
        tissue = pixels[has_colour(pixels.astype(np.float32))]
        if len(tissue) < FEWEST:
            raise DataError(
                f"{name}: {len(tissue)} pixels have the colour of tissue, and {FEWEST} are needed to fit its stains. "
                "Is it grey, or empty? Take it out, or go without stain normalisation."
            )
        try:
            found = _KINDS[self.method].of(tissue)
        except (ValueError, np.linalg.LinAlgError) as e:
            raise DataError(f"{name}: its stains cannot be told apart ({e}). Is it stained with H&E?") from e
        if found.is_plain:
            raise DataError(f"{name}: its stains cannot be told apart: its tissue is of one colour. Is it H&E?")
        return found


class NormalizeStaind(MapTransform):
    """Normalise the stains of images, each by the fit of its slide: all images of the slide together.

    An image whose slide is not among the fitted ones is fitted by itself, by the pixels that it is given: of small
    patches the fit is unsteady.

    Args:
        keys: of uint8 (3, H, W), RGB.
        method, reference: see `NormalizeStain`.
        entries: what is fitted at once, each with `image`, a path or `Region`, and where known `domain` and `slide`.
        progress: show a bar over the slides.

    Attributes:
        fits: by (domain, slide), or, of images without these, by `case`.

    Raises:
        ValueError, DataError: see `NormalizeStain`.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        method: str = "macenko",
        reference: str | os.PathLike | None = None,
        entries: Sequence[Mapping[str, Any]] = (),
        progress: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.normalizer = NormalizeStain(method, reference)
        slides = defaultdict(list)
        for entry in entries:
            slides[_slide(entry)].append(entry["image"])
        bar = tqdm(slides.items(), desc="fitting stains", unit="slide", delay=2, disable=not progress)
        self.fits = {slide: self.normalizer.fit(images) for slide, images in bar}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            fit = self.fits.get(_slide(d))
            if fit is None:
                fit = self.normalizer.fit_pixels(np.asarray(d[key]).reshape(3, -1).T, str(d.get("case", key)))
            d[key] = _change(fit, self.normalizer.reference)(d[key])
        return d


def _slide(entry: Mapping[Hashable, Any]) -> Hashable:
    named = entry.get("domain") is not None and entry.get("slide") is not None
    return (entry["domain"], entry["slide"]) if named else str(entry.get("case"))


@lru_cache(maxsize=4096)
def _change(fit: Fit, reference: Fit) -> ColourMap:
    return fit.towards(reference)
