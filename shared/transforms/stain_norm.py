"""Stain normalisation: the colours of a slide as they would be on a reference slide.

Macenko et al., *A method for normalizing histology slides for quantitative analysis*, ISBI 2009; Reinhard et al.,
*Color transfer between images*, IEEE CG&A 21(5), 2001.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.apps.pathology.transforms.stain.array import ExtractHEStains
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor
from tqdm import tqdm

from ..data import Region, open_region, source_digest
from ..data.tissue import MASK_SIZE, has_colour
from ..networks import StainNet
from ..utils import DataError, fault_list

METHODS = ("macenko", "reinhard")
OVERVIEW = 1024  # pixels of the longer side of what a slide is fitted on
MOST = 1000  # images of a slide that it is fitted on
FEWEST = 500  # pixels of tissue that are needed
DARK, FEWEST_DARK = 0.15, 50  # optical density that Macenko's stains are told by, and how many pixels have to have it
LIGHT = 240.0  # what comes through without tissue, of 255
_LARGE = 2**21  # values at a time that are worth a table of colours
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
        density = -np.log((pixels + 1.0) / LIGHT)
        if (dark := int((density > DARK).all(axis=1).sum())) < FEWEST_DARK:
            raise ValueError(f"{dark} pixels are dark enough in red, green and blue, and {FEWEST_DARK} are needed")
        stains = ExtractHEStains(tli=LIGHT, beta=DARK)(pixels[None]).astype(np.float64)
        stains = stains[:, np.argsort(-stains[0] / stains[2])]  # MONAI 1.6.1 has eosin, which takes less red, first
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
            image: uint8 (3, ...) or (B, 3, H, W), RGB.

        Returns:
            uint8 of the same shape, where the image is.
        """
        if image.ndim == 4:
            channels = image.transpose(0, 1)
            return self(channels.flatten(1)).view(channels.shape).transpose(0, 1)
        before, mix, shift, after = (
            torch.from_numpy(x).to(image.device, torch.float32) for x in (self.before, self.mix, self.shift, self.after)
        )
        with torch.autocast(image.device.type, enabled=False):  # half precision is some grey levels off
            seen = torch.log(before @ (image.flatten(1).float() + 1))
            changed = after @ torch.exp(torch.addmm(shift[:, None], mix, seen)) - 1
        return changed.round_().clamp_(0, 255).to(torch.uint8).view(image.shape)


_KINDS: dict[str, type[Macenko | Reinhard]] = {"macenko": Macenko, "reinhard": Reinhard}
Fit = Macenko | Reinhard


class NormalizeStain:
    """Fits slides, and gives the change of colours that makes each look like the reference.

    Args:
        method: `"macenko"` or `"reinhard"`.
        reference: an image, of any size, whose tissue is the reference; or its fit, as `content` has it; None: a
            published one.

    Attributes:
        method: as given.
        reference: its fit.

    Raises:
        ValueError: for another method.
        DataError: when the reference cannot be read, has no tissue, or is the fit of another method.
    """

    def __init__(self, method: str = "macenko", reference: str | os.PathLike | Mapping[str, Any] | None = None) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        self.method = method
        if isinstance(reference, Mapping):
            self.reference = _read_fit(method, reference)
        else:
            self.reference = _KINDS[method]() if reference is None else self.fit([reference])

    @property
    def content(self) -> dict[str, Any]:
        """The fit of the reference, as it stands in JSON."""
        return asdict(self.reference)

    def fit(self, images: Sequence[str | os.PathLike | Region]) -> Fit:
        """The fit of images of one slide, by their tissue, of each at most 1024 pixels wide and high.

        Of more than 1000 images as many are taken, evenly spread. Of a whole slide it is what is searched.

        Raises:
            DataError: when one cannot be read, or all together have too little tissue.
        """
        more = f" and {len(images) - 1} more of its slide" if len(images) > 1 else ""
        overviews = [_overview(image) for image in images[:: math.ceil(len(images) / MOST)]]
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

    def change(self, fit: Fit) -> ColourMap:
        """What makes the colours of a slide with this fit those of the reference."""
        return _change(fit, self.reference)


class NormalizeByStainNet:
    """The change of colours that a StainNet has learned: the same for all slides, which need no fit.

    Args:
        weights: a file of weights, see `shared.networks.StainNet`.

    Raises:
        DataError: when it is missing or holds another network.
    """

    method = "stainnet"

    def __init__(self, weights: str | os.PathLike) -> None:
        self.weights = weights
        self.network = StainNet(pretrained=weights).eval().requires_grad_(False)
        self.content = {"weights": source_digest(weights)}

    def __reduce__(self) -> tuple[Any, ...]:
        """By the file and its digest: a tensor's pickle holds addresses, by which no cache would be found again."""
        return type(self), (os.path.abspath(self.weights),), {"content": self.content}

    def fit(self, images: Sequence[str | os.PathLike | Region]) -> None:
        """Nothing."""

    def change(self, fit: None = None) -> Callable[[Tensor], Tensor]:
        """That of the network, which goes where the image is."""
        return self

    def __call__(self, image: Tensor) -> Tensor:
        """See `StainNet.normalize`."""
        return self.network.to(image.device).normalize(image)


class ByColour:
    """A change of colours, pixel by pixel, that keeps what it made of those that were seen, for the parts of a region.

    These have far more pixels than colours. It does so on a CPU, where many pixels come at once; others are changed as
    they come.

    Args:
        change: what takes uint8 (3, H, W) or (B, 3, H, W), RGB, and gives the same shape.
    """

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change
        self._seen: tuple[Tensor, Tensor] | None = None  # of all colours: whether it was seen, and what it became

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_seen": None}  # 64 MB that a process finds out in less time

    def __call__(self, image: Tensor) -> Tensor:
        """See `change`."""
        if image.device.type != "cpu" or image.numel() < _LARGE:
            return self.change(image)
        if self._seen is None:
            self._seen = torch.zeros(256**3, dtype=torch.bool), torch.empty((3, 256**3), dtype=torch.uint8)
        known, changed = self._seen
        red, green, blue = channels = image.movedim(-3, 0)
        codes = red.int().mul_(256).add_(green).mul_(256).add_(blue).flatten()
        new = torch.zeros_like(known).index_fill_(0, codes.long(), True).logical_and_(~known)
        if len(found := new.nonzero().flatten()):
            colours = torch.stack([found >> 16, found >> 8 & 255, found & 255]).to(torch.uint8)
            changed[:, found] = self.change(colours[..., None])[..., 0]
            known |= new
        looked_up = torch.stack([torch.index_select(channel, 0, codes) for channel in changed])
        return looked_up.view(channels.shape).movedim(0, -3).contiguous()


Normalizer = NormalizeStain | NormalizeByStainNet


def stain_normalizer(
    method: str | None,
    reference: str | os.PathLike | Mapping[str, Any] | None = None,
    weights: str | os.PathLike | None = None,
) -> Normalizer | None:
    """The normaliser of a configuration.

    Args:
        method: `"macenko"`, `"reinhard"`, `"stainnet"`, or None, which gives None.
        reference: of the first two, see `NormalizeStain`.
        weights: of StainNet.

    Raises:
        DataError: see `NormalizeStain` and `NormalizeByStainNet`; when StainNet's weights are none, or are not those
            whose digest `reference` has, as a record says it.
    """
    if method != "stainnet":
        return None if method is None else NormalizeStain(method, reference)
    if weights is None or not os.path.isfile(weights):
        raise DataError(
            f"{weights or 'stain_weights'}: there are no weights of StainNet. Give a file with --stain_weights; "
            "scripts/train_stainnet.py makes one."
        )
    found = NormalizeByStainNet(weights)
    if isinstance(reference, Mapping) and found.content != dict(reference):
        raise DataError(
            f"{weights}: these are other weights of StainNet than those that the network was trained with, whose "
            f"SHA-256 is {reference.get('weights')}. Give those with --stain_weights."
        )
    return found


class NormalizeStaind(MapTransform):
    """Normalise the stains of images, each by the fit of its slide: all images of the slide together.

    An image whose slide is not among the fitted ones is fitted by itself, by an overview of its `file` where the
    dictionary has one, else by the pixels that it is given: of small patches the fit is unsteady. Its fit goes into
    `stain_fit`, as it stands in JSON. A path or `Region` becomes a
    `Region` whose `recolour` says what is to be changed of the parts that are read.

    Args:
        keys: of uint8 (3, H, W), RGB, or of paths or `Region`s.
        normalizer: see `stain_normalizer`; None changes nothing.
        entries: what is fitted at once, each with `image`, a path or `Region`, and where known `domain` and `slide`.
        progress: show a bar over the slides.

    Attributes:
        fits: by (domain, slide), or, of images without these, by `case`.

    Raises:
        DataError: for the slides, all of them, that cannot be fitted, see `NormalizeStain`.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        normalizer: Normalizer | None = None,
        entries: Sequence[Mapping[str, Any]] = (),
        progress: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.normalizer = normalizer
        self.fits: dict[Hashable, Fit] = {}
        if isinstance(normalizer, NormalizeStain):
            self.fits = _fit_slides(normalizer, entries, progress)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.normalizer is None:
            return d
        for key in self.key_iterator(d):
            fit = self.fits.get(_slide(d))
            if fit is None and isinstance(self.normalizer, NormalizeStain):
                fit = self._by_itself(d, key)
                d["stain_fit"] = asdict(fit)
            change = self.normalizer.change(fit)
            if isinstance(d[key], Tensor):
                d[key] = change(d[key])
            else:
                d[key] = open_region(d[key], d.get("mpp")).recoloured(ByColour(change))
        return d

    def _by_itself(self, d: Mapping[Hashable, Any], key: Hashable) -> Fit:
        if not isinstance(d[key], Tensor) or "file" in d:
            return self.normalizer.fit([d["file"] if isinstance(d[key], Tensor) else d[key]])
        return self.normalizer.fit_pixels(np.asarray(d[key]).reshape(3, -1).T, str(d.get("case", key)))

    @property
    def content(self) -> dict[str, Any]:
        """Method, reference and fits, as they stand in JSON; the fits each with its `domain` and `slide`, or `case`."""
        if self.normalizer is None:
            return {"method": None, "reference": None, "fits": []}
        fits = [
            {**(dict(zip(("domain", "slide"), slide, strict=True)) if isinstance(slide, tuple) else {"case": slide})}
            | asdict(fit)
            for slide, fit in self.fits.items()
        ]
        return {"method": self.normalizer.method, "reference": self.normalizer.content, "fits": fits}


def _fit_slides(
    normalizer: NormalizeStain, entries: Sequence[Mapping[str, Any]], progress: bool
) -> dict[Hashable, Fit]:
    slides, fits, faults = defaultdict(list), {}, []
    for entry in entries:
        slides[_slide(entry)].append(entry["image"])
    for slide, images in tqdm(slides.items(), desc="fitting stains", unit="slide", delay=2, disable=not progress):
        try:
            fits[slide] = normalizer.fit(images)
        except DataError as e:
            faults.append(str(e))
    if len(faults) > 1:
        raise DataError(f"{len(faults)} of {len(slides)} slides cannot be fitted:{fault_list(faults)}")
    if faults:
        raise DataError(faults[0])
    return fits


def _overview(image: str | os.PathLike | Region) -> np.ndarray:
    """Pixels (n, 3). They come from what a tissue mask is made of, which is kept: a large file is decoded once."""
    pixels = open_region(image).searched().thumbnail(MASK_SIZE)
    step = math.ceil(max(pixels.shape) / OVERVIEW)
    return pixels[::step, ::step].reshape(-1, 3)


def _read_fit(method: str, content: Mapping[str, Any]) -> Fit:
    kind = _KINDS[method]
    try:
        default, found = kind(), kind(**{key: _tuples(value) for key, value in content.items()})
        if all(np.shape(value) == np.shape(getattr(default, key)) for key, value in asdict(found).items()):
            return found
    except (TypeError, ValueError) as e:
        raise DataError(_no_fit(method, content)) from e
    raise DataError(_no_fit(method, content))


def _no_fit(method: str, content: Mapping[str, Any]) -> str:
    return (
        f"stain_reference is {dict(content)}, which is no fit of {method}, such as {asdict(_KINDS[method]())}. "
        "Weights that were trained with another method need that: leave --stain_norm and its overlay out."
    )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else float(value)


def _slide(entry: Mapping[Hashable, Any]) -> Hashable:
    named = entry.get("domain") is not None and entry.get("slide") is not None
    return (entry["domain"], entry["slide"]) if named else str(entry.get("case"))


@lru_cache(maxsize=4096)
def _change(fit: Fit, reference: Fit) -> ColourMap:
    return fit.towards(reference)
