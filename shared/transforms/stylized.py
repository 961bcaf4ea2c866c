from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform


class RandStylizedd(MapTransform, RandomizableTransform):
    """Take an item's copy in another style in the place of the image, at random.

    The copy goes, whatever was drawn. An item without one stays as it is: that those which need one have it is for
    `load_patches` and `load_regions` to see.

    Args:
        keys: of the image, a tensor or a path, for which the copy stands.
        stylized_key: of the copy.
        prob: of the copy.
    """

    def __init__(self, keys: KeysCollection = "image", stylized_key: str = "stylized", prob: float = 1.0) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.stylized_key = stylized_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        copy = d.pop(self.stylized_key, None)
        self.randomize(None)
        if copy is not None and self._do_transform:
            for key in self.key_iterator(d):
                d[key] = copy
        return d
