"""Loaders of H&E images: patches as tensors, regions and whole slides as something that tiles are read from."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from PIL import Image

from ..data import open_region, read_rgb
from ..data.roi import find_roi
from ..utils import DataError
from ..utils.values import MPP, OrNone, check_value
from .loader import OwnLoadImaged

logger = logging.getLogger(__name__)


_TOLD: set[str] = set()  # the log of many files need not repeat it


def _warn_once(name: str, note: str) -> None:
    if note not in _TOLD:
        _TOLD.add(note)
        logger.warning("%s: %s (said once)", name, note)


class LoadPatchd(OwnLoadImaged):
    """Load H&E patches with Pillow (PNG, JPEG, TIFF, …): the middle of each, uint8 RGB, (3, size, size).

    Opaque images with an alpha channel or a palette are RGB in another form and converted; grey, 16 bit, CMYK,
    transparent ones are refused: what their colours would be in RGB is not known. `label`, where there is one, becomes
    a float32 tensor (1,). It is a `LoadImaged`, so that programs which look for a bundle's loader find it.

    Args:
        keys: of the paths.
        crop_size: side in pixels of the square that is cut out of the middle.
        size: side in pixels that it is resampled to (bilinear, with antialiasing).
        label_key: of a label 0 or 1.

    Raises:
        DataError: when called: the file is missing, unreadable, not RGB in the sense above, or smaller than
            `crop_size`.
        ValueError: when a size is not positive.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        crop_size: int = 64,
        size: int = 64,
        label_key: str = "label",
        allow_missing_keys: bool = False,
    ) -> None:
        if crop_size < 1 or size < 1:
            raise ValueError(f"crop_size and size must be 1 or more, got {crop_size} and {size}")
        super().__init__(keys, image_only=True, allow_missing_keys=allow_missing_keys)
        self.crop_size = crop_size
        self.size = size
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d.setdefault("case", Path(d[key]).name)
            image = read_rgb(d[key])
            if "icc_profile" in image.info:
                _warn_once(d[key], "has an ICC profile, which is not applied")
            image = self._cut(d[key], image)
            d[key] = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        if self.label_key in d:
            d[self.label_key] = torch.tensor([float(d[self.label_key])])
        return d

    def _cut(self, path: str, image: Image.Image) -> Image.Image:
        if min(image.size) < self.crop_size:
            raise DataError(
                f"{path}: the image has {image.width} × {image.height} pixels, smaller than the patch of "
                f"{self.crop_size} × {self.crop_size}. Give patches of this size or larger, or set --crop_size "
                f"{min(image.size)}, in training too."
            )
        left, top = (image.width - self.crop_size) // 2, (image.height - self.crop_size) // 2
        image = image.crop((left, top, left + self.crop_size, top + self.crop_size))
        return image if self.size == self.crop_size else image.resize((self.size, self.size), Image.Resampling.BILINEAR)


class OpenRegiond(OwnLoadImaged):
    """Open H&E regions and whole slides of any size: a `Region` in place of the path, of which tiles are then read.

    The dict gets `case`, the name of the file, unless it has one. It is a `LoadImaged`, so that programs which look for
    a bundle's loader find it.

    Args:
        keys: of the paths.
        mpp: µm per pixel, 0.05 to 4, of images that do not say it: neither the dict, as `mpp`, nor the file
            (its objective alone does not count).
        override: take `mpp` for all of them.
        roi: GeoJSON with regions of interest in QuPath's pixels, to which search and count are restricted: a file for
            all images, or a folder of such that are called like them.

    Raises:
        DataError: when `mpp` is out of range or `roi` is missing; when called: the file is missing, unreadable, or not
            8-bit RGB, or there is no region of interest for it, or one outside of it.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        mpp: float | None = None,
        override: bool = False,
        allow_missing_keys: bool = False,
        roi: str | None = None,
    ) -> None:
        super().__init__(keys, image_only=True, allow_missing_keys=allow_missing_keys)
        if roi is not None and not Path(roi).exists():
            raise DataError(f"{roi}: there is no such file or folder. Expected GeoJSON with regions of interest.")
        self.roi = roi
        check_value("mpp", mpp, OrNone(MPP, "as the file says"))
        self.mpp = mpp
        self.override = override

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d.setdefault("case", Path(d[key]).name)
            mpp = self.mpp if self.override and self.mpp is not None else d.get("mpp")
            region = open_region(d[key], mpp)
            if self.mpp is not None and (region.mpp is None or region.guessed):
                region = open_region(d[key], self.mpp)
            for note in region.notes:
                _warn_once(d["case"], note)
            d[key] = region if self.roi is None else region.within(find_roi(self.roi, d["case"], region.path))
        return d
