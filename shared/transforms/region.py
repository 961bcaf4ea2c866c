from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import LoadImaged

from ..data.regions import open_region


class OpenRegiond(LoadImaged):
    """Open H&E regions and whole slides of any size: a `Region` in place of the path, of which tiles are then read.

    The dict gets `case`, the name of the file, unless it has one. It is a `LoadImaged`, so that programs which look for
    a bundle's loader find it.

    Args:
        keys: of the paths.
        mpp: µm per pixel; None: what the dict has as `mpp`, or else what the file says.

    Raises:
        DataError: when called: the file is missing, unreadable, or not 8-bit RGB.
    """

    def __init__(
        self, keys: KeysCollection = "image", mpp: float | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, image_only=True, allow_missing_keys=allow_missing_keys)
        self.mpp = mpp

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d.setdefault("case", Path(d[key]).name)
            d[key] = open_region(d[key], d.get("mpp") if self.mpp is None else self.mpp)
        return d
