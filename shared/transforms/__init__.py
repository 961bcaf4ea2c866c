"""Transforms that load volumes, patches and tiles, vary stains, and bring label maps back to the native grid.

May import: data, inferers, layers, metrics, networks, reports, utils.
"""

from .crop import CropBodyd
from .load import LoadVolumed
from .patch import LoadPatchd
from .region import OpenRegiond
from .restore import RestoreLabelMapd
from .save import SaveSegmentationd
from .spacing import ResampleVolumed
from .stain import RandStainJitter, RandStainJitterd, stain_jitter
from .tile import RandFlipRotateBoxd, RandTiled

__all__ = [
    "CropBodyd",
    "LoadPatchd",
    "LoadVolumed",
    "OpenRegiond",
    "RandFlipRotateBoxd",
    "RandStainJitter",
    "RandStainJitterd",
    "RandTiled",
    "ResampleVolumed",
    "RestoreLabelMapd",
    "SaveSegmentationd",
    "stain_jitter",
]
