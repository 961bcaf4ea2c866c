"""The voxels of a DICOM series."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import itk
import numpy as np
from monai.data import ITKReader

from ..utils import DataError
from ..utils.text import first_few
from .dicom_series import DicomSeries
from .dicom_volume import check_values, volume_of


class SeriesReader(ITKReader):
    """Reads the slices of one DICOM series, whose order and grid its headers give.

    Of a folder, the parent would take those that GDCM groups by details such as the thickness, and leave out others.
    """

    def __init__(self, path: Path, series: DicomSeries) -> None:
        super().__init__()
        self.path, self.volume = path, volume_of(path, series)
        check_values(path, self.volume)

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> Any:
        frames, files = self.volume.frames, sorted({frame.file for frame in self.volume.frames})
        try:
            if len(files) == len(frames) and not any(frame.index for frame in frames):
                image = self._read_files()
            else:
                image = self._read_frames(files)
        except RuntimeError as e:  # ITK's, which does not name the file
            bad = [file.name for file in files if not _has_pixels(file)]
            raise DataError(
                f"{self.path}: the pixels of {len(bad) or len(files)} of {len(files)} files cannot be read: "
                f"{first_few(bad or ['all'])} ({str(e).strip().splitlines()[-1]}). Copy or export the series again."
            ) from e
        image.SetSpacing([float(s) for s in self.volume.spacing])
        image.SetOrigin([float(x) for x in self.volume.origin])
        image.SetDirection(self.volume.direction)
        return image

    def _read_files(self) -> Any:
        """As ITK reads a series; as real numbers where its slices are not stored in the same way."""
        names = [os.fspath(frame.file) for frame in self.volume.frames]
        alike = len({h.storage for h in self.volume.headers}) == 1 and len({f.rescale for f in self.volume.frames}) == 1
        kind = None if alike else itk.F
        return itk.imread(names if len(names) > 1 else names[0], kind, imageio=itk.GDCMImageIO.New())

    def _read_frames(self, files: Sequence[Path]) -> Any:
        """The frames of enhanced images; GDCM takes the first one's slope and intercept for all of them."""
        header = self.volume.headers[0]
        voxels = np.empty((len(self.volume.frames), header.rows, header.columns), np.float32)
        for file in files:
            reader = itk.GDCMImageIO.New()
            values = itk.array_view_from_image(itk.imread(os.fspath(file), itk.F, imageio=reader))
            for k, frame in enumerate(self.volume.frames):
                if frame.file == file:
                    slope, intercept = frame.rescale or (1.0, 0.0)
                    taken = values[frame.index].astype(np.float64) - reader.GetRescaleIntercept()
                    voxels[k] = np.rint(taken / reader.GetRescaleSlope()) * slope + intercept
        return itk.image_from_array(voxels)


def _has_pixels(file: Path) -> bool:
    try:
        itk.imread(os.fspath(file), imageio=itk.GDCMImageIO.New())
    except RuntimeError:
        return False
    return True
