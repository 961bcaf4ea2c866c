"""Images of regions in every format: coloured noise, and tissue on glass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import tifffile
from PIL import Image
from scipy.ndimage import zoom

WIDTH, HEIGHT = 300, 200  # of the coloured noise


def texture(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Coloured noise that a scale of 2 does not wipe out."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(30, 220, (height // 10, width // 10, 3))
    return (zoom(coarse, (10, 10, 1), order=1) + rng.uniform(0, 20, (height, width, 3))).astype(np.uint8)


def write_tiled(path: Path, image: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, image, **{"tile": (64, 64), "compression": "zlib", "photometric": "rgb"} | options)
    return path


def write_pyramid(path: Path, levels: list[np.ndarray], **options: Any) -> Path:
    with tifffile.TiffWriter(path) as file:
        for i, level in enumerate(levels):
            file.write(level, tile=(64, 64), compression="zlib", photometric="rgb", subfiletype=int(i > 0), **options)
    return path


def write_picture(path: Path, image: np.ndarray, **options: Any) -> Path:
    Image.fromarray(image).save(path, **options)
    return path


def write_scn(path: Path, image: np.ndarray, corner: tuple[int, int], nm: int = 250) -> Path:
    """A Leica SCN whose scanned area, the image, begins at a corner of OpenSlide's level 0, half as large again."""
    height, width = image.shape[:2]
    size = ((corner[0] + width) * 3 // 2, (corner[1] + height) * 3 // 2)

    def part(ifd: int, pixels: tuple[int, int], view: tuple[int, int], x: int, y: int) -> str:
        sizes = f'sizeX="{pixels[0]}" sizeY="{pixels[1]}"'
        return (
            f'<image name="{ifd}"><device model="M" version="1"/><pixels {sizes}><dimension {sizes} r="0" ifd="{ifd}"/>'
            f'</pixels><view sizeX="{view[0] * nm}" sizeY="{view[1] * nm}" offsetX="{x * nm}" offsetY="{y * nm}"/>'
            "<scanSettings><objectiveSettings><objective>40</objective></objectiveSettings><illuminationSettings>"
            "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
        )

    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" sizeX="{size[0] * nm}" sizeY="{size[1] * nm}">'
        f"{part(0, (64, 64), size, 0, 0)}{part(1, (width, height), (width, height), *corner)}</collection></scn>"
    )
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(np.full((64, 64, 3), 240, np.uint8), description=xml, **options)
        file.write(image, **options)
    return path


def write_dicom_slide(folder: Path, image: np.ndarray, mpp: float = 0.25, series: str = "1.2.3.4") -> Path:
    """A slide of two levels, a file each: 0.dcm is a quarter as wide as 1.dcm."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate((4, 1)):
        pixels, tile = image[::step, ::step], 64
        height, width = pixels.shape[:2]
        rows, columns = -(-height // tile), -(-width // tile)
        padded = np.pad(pixels, ((0, rows * tile - height), (0, columns * tile - width), (0, 0)), constant_values=255)
        file, meta, measures, shared, optics = (pydicom.Dataset() for _ in range(5))
        meta.MediaStorageSOPClassUID = file.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
        meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = f"{series}.{number + 1}"
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        file.file_meta = pydicom.dataset.FileMetaDataset(meta)
        file.StudyInstanceUID, file.SeriesInstanceUID, file.Modality = "1.2.3", series, "SM"
        kind = ("DERIVED", "RESAMPLED") if step > 1 else ("ORIGINAL", "NONE")
        file.ImageType = [kind[0], "PRIMARY", "VOLUME", kind[1]]
        file.Rows = file.Columns = tile
        file.NumberOfFrames, file.TotalPixelMatrixFocalPlanes = rows * columns, 1
        file.TotalPixelMatrixRows, file.TotalPixelMatrixColumns = height, width
        file.SamplesPerPixel, file.PhotometricInterpretation, file.PlanarConfiguration = 3, "RGB", 0
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 8, 8, 7, 0
        file.DimensionOrganizationType = "TILED_FULL"
        measures.PixelSpacing, measures.SliceThickness = [mpp * step / 1000] * 2, 0.001
        shared.PixelMeasuresSequence, optics.ObjectiveLensPower, optics.OpticalPathIdentifier = [measures], 40, "1"
        file.SharedFunctionalGroupsSequence, file.OpticalPathSequence = [shared], [optics]
        file.PixelData = padded.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2).tobytes()
        file["PixelData"].VR = "OB"
        file.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


WRITERS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "tiled": lambda folder, image: write_tiled(folder / "tiled.tif", image),
    "planar": lambda folder, image: write_tiled(
        folder / "planar.tif", np.ascontiguousarray(image.transpose(2, 0, 1)), planarconfig="separate"
    ),
    "pyramid": lambda folder, image: write_pyramid(folder / "pyramid.tif", [image, image[::4, ::4]]),
    "odd": lambda folder, image: write_tiled(folder / "odd.tif", image, compression="jpegxl"),  # OpenSlide refuses it
    "strips": lambda folder, image: write_tiled(folder / "strips.tif", image, tile=None, rowsperstrip=7),
    "png": lambda folder, image: write_picture(folder / "a.png", image),
    "bmp": lambda folder, image: write_picture(folder / "a.bmp", image),
}
LAZY = {"tiled", "planar", "pyramid", "odd"}


def make_slide(glass: tuple[int, int, int] = (243, 240, 236), border: int = 0) -> np.ndarray:
    """Glass with some noise, tissue in its middle, `border` black pixels around."""
    rng = np.random.default_rng(0)
    slide = np.array(glass) + rng.normal(0, 2, (600, 800, 3))
    slide[200:400, 250:500] = (215, 150, 195) + rng.normal(0, 25, (200, 250, 3))
    if border:
        black = np.ones(slide.shape[:2], bool)
        black[border:-border, border:-border] = False
        slide[black] = rng.normal(4, 4, (black.sum(), 3))
    return slide.clip(0, 255).astype(np.uint8)
