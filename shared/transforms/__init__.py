"""Transforms that load volumes and patches, bring label maps back to the native grid and save them, vary stains."""

from .crop import CropBodyd
from .load import LoadVolumed
from .patch import LoadPatchd
from .preview import save_preview
from .restore import RestoreLabelMapd
from .save import SaveSegmentationd
from .stain import RandStainJitter, RandStainJitterd, stain_jitter

__all__ = [
    "CropBodyd",
    "LoadPatchd",
    "LoadVolumed",
    "RandStainJitter",
    "RandStainJitterd",
    "RestoreLabelMapd",
    "SaveSegmentationd",
    "save_preview",
    "stain_jitter",
]
