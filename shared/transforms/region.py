from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import LoadImaged

from ..data import open_region


class OpenRegiond(LoadImaged):
    """Open H&E regions and whole slides of any size: a `Region` in place of the path, of which tiles are then read.

    The dict gets `case`, the name of the file, unless it has one. It is a `LoadImaged`, so that programs which look for
    a bundle's loader find it.

    Args:
        keys: of the paths.
        mpp: µm per pixel of images that do not say it: neither the dict, as `mpp`, nor the file.
        override: take `mpp` for all of them.

    Raises:
        DataError: when called: the file is missing, unreadable, or not 8-bit RGB.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        mpp: float | None = None,
        override: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, image_only=True, allow_missing_keys=allow_missing_keys)
        self.mpp = mpp
        self.override = override

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d.setdefault("case", Path(d[key]).name)
            region = open_region(d[key], d.get("mpp"))
            if self.mpp is not None and (self.override or region.mpp is None):
                region = open_region(d[key], self.mpp)
            d[key] = region
        return d
