"""Where a slide has tissue, and how much of a tile is."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation, distance_transform_edt, uniform_filter

from .regions import Region, thumbnail_scale

MASK_SIZE = 2048  # pixels of the longer side of a tissue mask
_SATURATION, _DARKEST = 0.07, 40  # of tissue, from 0 to 1 and 255


def tissue_mask(region: Region, max_size: int = MASK_SIZE) -> tuple[np.ndarray, float]:
    """Where there is tissue, and not glass or the black that some scanners put around it.

    Tissue is what has colour: (max − min) / max of red, green and blue, each averaged over 3 × 3 pixels, is at least
    0.07, where glass and empty lumina lie at 0.02 to 0.06; and the brightest of the three is at least 40 of 255. The
    mask is one pixel wider than what is found. A pen's marks have colour, too.

    Args:
        region: at scale `max(region.size) / max_size` it is read whole: from a pyramid at once, but from a large
            TIFF without one by decoding all of it.
        max_size: the longer side of the mask at most.

    Returns:
        the mask, bool, (height, width), and how many pixels of the file one of its pixels is wide.
    """
    colours = uniform_filter(region.thumbnail(max_size).astype(np.float32), (3, 3, 1), mode="nearest")
    return binary_dilation(has_colour(colours), np.ones((3, 3))), thumbnail_scale(region, max_size)


def near_tissue(points: np.ndarray, mask: np.ndarray, scale: float, reach: float = 0.0) -> np.ndarray:
    """Which points lie on tissue, or no further from it than `reach`.

    Args:
        points: x and y in pixels of the region, (n, 2).
        mask, scale: see `tissue_mask`.
        reach: in pixels of the region.
    """
    if not mask.any():
        return np.zeros(len(points), bool)
    columns, rows = np.clip((points / scale).astype(int), 0, np.array(mask.shape[::-1]) - 1).T
    return distance_transform_edt(~mask)[rows, columns] * scale <= reach


def tissue_share(pixels: np.ndarray) -> float:
    """The share of an image (height, width, 3), uint8, that is tissue as in `tissue_mask`, seen at an eighth."""
    return float(has_colour(np.asarray(Image.fromarray(pixels).reduce(8), np.float32)).mean())


def has_colour(colours: np.ndarray) -> np.ndarray:
    """Which pixels of an image (..., 3), float32 from 0 to 255, have the colour of tissue, see `tissue_mask`."""
    brightest, least = colours.max(-1), colours.min(-1)
    return (brightest - least >= _SATURATION * brightest) & (brightest >= _DARKEST)
