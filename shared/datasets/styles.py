"""What images are redrawn in the style of: pictures of a folder, or textures that are made up."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..data import list_images
from ..utils import DataError
from .preparation import refuse

TEXTURES = 1000  # made-up styles that are drawn from
_FAULTS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # of Pillow, for a picture that is none


class Styles:
    """Pictures or textures, of which each image gets one by its name and a seed.

    Args:
        folder: with pictures, those below it included; None: textures that are made up.
        size: side in pixels of the square that is taken from the middle of a picture, as large as it goes.
        seed: another one gives other styles to the same names, and other textures.

    Raises:
        DataError: when the folder is missing, holds no picture, or one that cannot be opened.
    """

    def __init__(self, folder: Path | None, size: int, seed: int) -> None:
        self.folder, self.size, self.seed = folder, size, seed
        self.files = [] if folder is None else [Path(image["image"]) for image in list_images(folder)]
        unreadable = [str(file) for file in self.files if not _is_picture(file)]
        refuse(str(folder), unreadable, "{count} pictures cannot be opened: {few}. Copy them again, or take them out.")

    def number(self, name: str) -> int:
        """Which style an image of this name has."""
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        return int.from_bytes(digest[:8]) % (len(self.files) or TEXTURES)

    def title(self, number: int) -> str:
        return self.files[number].name if self.files else f"texture {number}"

    def picture(self, number: int) -> np.ndarray:
        """Uint8, (size, size, 3), RGB: that of a grey picture is grey.

        Raises:
            DataError: when the picture cannot be decoded.
        """
        if not self.files:
            return paint_texture(self.size, np.random.default_rng((self.seed, number)))
        try:
            with Image.open(self.files[number]) as opened:
                return np.array(ImageOps.fit(opened.convert("RGB"), (self.size, self.size), Image.Resampling.BILINEAR))
        except _FAULTS as e:
            raise DataError(
                f"{self.files[number]}: cannot be decoded as a picture ({e}). Copy it again, or take it out and begin "
                "in a new folder: which style an image gets goes by the number of pictures."
            ) from e


def _is_picture(file: Path) -> bool:
    try:
        with Image.open(file):
            return True
    except _FAULTS:
        return False


def paint_texture(size: int, rng: np.random.Generator) -> np.ndarray:
    """A texture that is made up: areas and strokes in a few colours, with grain.

    Smooth noise of a power law, stretched along a direction, is bent by another noise, and its height says which of the
    colours a pixel has. So there is detail in all bands, and more in the coarse ones, as in pictures.

    Returns:
        uint8, (size, size, 3).
    """
    heights = power_noise(size, rng.uniform(1.0, 1.8), rng.uniform(1, 4), rng.uniform(0, np.pi), rng)
    bent = heights + rng.uniform(0.2, 1) * np.sin(rng.uniform(1, 4) * power_noise(size, 1.5, 1.0, 0.0, rng))
    colours = rng.uniform(0, 255, (rng.integers(3, 7), 3))
    place = (np.argsort(np.argsort(bent, axis=None)) / (bent.size - 1)).reshape(bent.shape) * (len(colours) - 1)
    edge = rng.uniform(1, 6)  # how sharply areas end
    share = np.clip((place % 1 - 0.5) * edge + 0.5, 0, 1)[..., None]
    lower = np.minimum(place.astype(int), len(colours) - 2)
    painted = colours[lower] * (1 - share) + colours[lower + 1] * share
    grain = rng.normal(0, rng.uniform(2, 14), (size, size, 1)) + rng.normal(0, rng.uniform(1, 6), (size, size, 3))
    return np.clip(np.rint(painted + grain), 0, 255).astype(np.uint8)


def power_noise(size: int, slope: float, stretch: float, angle: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit variance whose amplitude falls with frequency to the power of `slope`.

    Args:
        size: side in pixels.
        slope: 0 for white noise.
        stretch: how much longer than wide its shapes are, along `angle` in radians.
    """
    y, x = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    frequency = np.hypot(along * stretch, across)
    frequency[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.standard_normal((size, size))) / frequency**slope
    noise = np.fft.ifft2(spectrum).real
    return noise / noise.std()
