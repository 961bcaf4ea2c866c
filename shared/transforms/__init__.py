"""Dictionary transforms that load volumes, bring label maps back to the native grid and save them."""

from .crop import CropBodyd
from .load import LoadVolumed
from .preview import save_preview
from .restore import RestoreLabelMapd
from .save import SaveSegmentationd

__all__ = ["CropBodyd", "LoadVolumed", "RestoreLabelMapd", "SaveSegmentationd", "save_preview"]
