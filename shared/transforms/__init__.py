"""Transforms that load volumes, patches and tiles, vary stains, and bring label maps back to the native grid.

May import: data, inferers, layers, metrics, networks, reports, utils.
"""

from .load import LoadVolumed
from .patch import LoadPatchd, OpenRegiond
from .restore import RestoreLabelMapd
from .save import SaveSegmentationd
from .stain import RandStainJitter, RandStainJitterd, stain_jitter
from .stain_norm import NormalizeByStainNet, NormalizeStain, NormalizeStaind, stain_normalizer
from .stylized import RandStylizedd
from .tile import RandFlipRotateBoxd, RandTiled
from .volume import CropAroundClassesd, CropBodyd, CropCentresd, RandRotateVolumesd, ResampleVolumed
