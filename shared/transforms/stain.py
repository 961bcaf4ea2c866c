"""Colour augmentation in stain space.

Ruifrok and Johnston, *Quantification of histochemical staining by color deconvolution*, 2001; Tellez et al.,
*Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train distilled stain-invariant
convolutional networks*, IEEE TMI 2018 (arXiv 1808.05896), section III-C.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, RandomizableTransform
from torch import Tensor

# Optical density in red, green and blue of haematoxylin, eosin and DAB (Ruifrok and Johnston 2001), rows of length 1.
_STAINS = torch.nn.functional.normalize(
    torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], dtype=torch.float64), dim=1
)
_DARKEST = 1.0  # of 255: optical density is infinite at 0


def stain_jitter(image: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Change the amount of each stain in an H&E image: `c' = scale c + shift`.

    With `OD = -log(I / 255)` the optical density of a pixel and `c = OD S^-1` its amounts of haematoxylin, eosin and
    a third stain (rows of S), the result is `255 exp(-c' S)`.

    Args:
        image: uint8 (3, ...), RGB.
        scale: (3,), 1 leaves a stain as it is.
        shift: (3,), in units of optical density.

    Returns:
        uint8 of the shape of `image`.
    """
    # c' S = OD (S^-1 diag(scale) S) + shift S: one 3 × 3 matrix and one vector
    stains = _STAINS.to(image.device)
    mix = (torch.linalg.inv(stains) * scale.to(stains)) @ stains
    offset = shift.to(stains) @ stains
    density = -torch.log(image.flatten(1).float().clamp(min=_DARKEST) / 255)
    changed = torch.addmm(offset.float()[:, None], mix.T.float(), density)
    return (255 * torch.exp(-changed)).round_().clamp_(0, 255).to(torch.uint8).view_as(image)


class RandStainJitter(RandomizableTransform):
    """Change the amounts of haematoxylin and eosin in an image at random, see `stain_jitter`.

    Each of the three stains gets `scale ~ U[1 - scale_range, 1 + scale_range]` and
    `shift ~ U[-shift_range, shift_range]`.

    Args:
        prob: of a change.
        scale_range: in [0, 1].
        shift_range: 0 or more, in units of optical density.

    Raises:
        ValueError: when an option is out of its range; when called, on anything but uint8 (3, ...).
    """

    def __init__(self, prob: float = 1.0, scale_range: float = 0.2, shift_range: float = 0.05) -> None:
        if not 0 <= prob <= 1 or not 0 <= scale_range <= 1 or shift_range < 0:
            raise ValueError(
                "prob and scale_range must be in [0, 1] and shift_range 0 or more, got "
                f"{prob}, {scale_range} and {shift_range}"
            )
        RandomizableTransform.__init__(self, prob)
        self.scale_range = scale_range
        self.shift_range = shift_range
        self._scale, self._shift = torch.ones(3), torch.zeros(3)

    def randomize(self, data: Any = None) -> None:
        super().randomize(None)
        self._scale = torch.from_numpy(self.R.uniform(1 - self.scale_range, 1 + self.scale_range, 3))
        self._shift = torch.from_numpy(self.R.uniform(-self.shift_range, self.shift_range, 3))

    def __call__(self, image: Tensor, randomize: bool = True) -> Tensor:
        if image.dtype != torch.uint8 or image.shape[0] != 3:
            raise ValueError(f"expected a uint8 tensor (3, ...) of RGB, got {image.dtype} {tuple(image.shape)}")
        if randomize:
            self.randomize()
        return stain_jitter(image, self._scale, self._shift) if self._do_transform else image


class RandStainJitterd(MapTransform, Randomizable):
    """`RandStainJitter` for dictionaries; all keys get the same change."""

    def __init__(
        self,
        keys: KeysCollection = "image",
        prob: float = 1.0,
        scale_range: float = 0.2,
        shift_range: float = 0.05,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.jitter = RandStainJitter(prob, scale_range, shift_range)

    def set_random_state(self, seed: int | None = None, state: Any = None) -> RandStainJitterd:
        super().set_random_state(seed, state)
        self.jitter.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.jitter.randomize()
        for key in self.key_iterator(d):
            d[key] = self.jitter(d[key], randomize=False)
        return d
