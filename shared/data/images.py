"""Pictures that are read whole."""

from __future__ import annotations

import os

from PIL import Image

from ..utils import DataError


def missing(path: str | os.PathLike) -> str:
    """What is wrong with a file that cannot be reached."""
    if os.path.islink(path) and not os.path.exists(path):
        return f"{path}: is a link to {os.readlink(path)}, where there is no file. Copy the file, or correct the link."
    return f"{path}: there is no such file, or it cannot be reached."


def read_rgb(path: str | os.PathLike) -> Image.Image:
    """An image file as 8-bit RGB, its pixels as they are stored: an ICC profile is not applied, a camera's note on how
    to turn them is followed in TIFF alone.

    Opaque images with an alpha channel or a palette are RGB in another form and converted; of grey, 16 bit, CMYK and
    transparent ones it is not known what their colours would be in RGB.

    Raises:
        DataError: the file is missing, cannot be read, or is not RGB in this sense.
    """
    try:
        with Image.open(path) as opened:
            # Pillow cuts 16-bit RGB down to 8 bit without a word; its decoder's name still tells.
            deep = ";16" in str(opened.tile)
            image = opened.copy()
    except FileNotFoundError as e:
        raise DataError(missing(path)) from e
    except Image.DecompressionBombError as e:
        raise DataError(
            f"{path}: its header claims more pixels than are decoded at once ({2 * Image.MAX_IMAGE_PIXELS:,}). Cut the "
            "image into patches, or export it again where the header is wrong."
        ) from e
    except (OSError, SyntaxError, ValueError) as e:  # what Pillow's readers raise
        raise DataError(
            f"{path}: cannot be read as an image ({e}). Expected 8-bit RGB as PNG, JPEG or TIFF; copy the file again, "
            "or export it anew."
        ) from e
    if deep or image.mode.startswith(("I", "F")):
        raise DataError(f"{path}: found {image.mode} of more than 8 bit, expected 8-bit RGB. Export it as 8-bit RGB.")
    if image.mode in ("P", "PA") or (image.mode == "RGB" and "transparency" in image.info):  # one colour of it
        image = image.convert("RGBA")
    if image.mode == "RGBA" and image.getextrema()[3][0] == 255:
        image = image.convert("RGB")
    if image.mode != "RGB":
        names = {"L": "a grey image", "LA": "a grey image", "1": "black and white", "RGBA": "transparent pixels"}
        raise DataError(
            f"{path}: found {names.get(image.mode, image.mode)}, expected 8-bit RGB. The colours of the stains cannot "
            "be made up: export the patch as RGB from the slide."
        )
    return image
