from __future__ import annotations

from typing import Any

from monai.losses import DiceCELoss


class DicePlainCELoss(DiceCELoss):
    """MONAI's `DiceCELoss`, with class weights that act on the Dice term alone; the cross-entropy has none.

    Class re-weighting divides attention between organs. In the cross-entropy it also shifts the balance between organ
    and background: a frozen organ (0.1) loses its voxels to the background, whose weight stays 1. With this loss only
    its Dice term is frozen.

    Args:
        as for `DiceCELoss`; `weight` holds one weight for each class, background included.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cross_entropy.weight = None
