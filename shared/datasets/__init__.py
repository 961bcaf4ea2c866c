"""What people prepare: public data sets as downloaded, tables of patches, splits, synthetic CT and histology.
Each ends in a datalist that a run reads with `data`. Only scripts and tests import it; packages leave it out.

May import: data, layers, metrics, networks, utils.
"""

from .btcv import BTCV_LABELS, find_btcv, unpack_btcv
from .camelyon17 import CAMELYON17_LABELS, read_camelyon17
from .ct_cases import PAPER_VOXEL_SHARES, CtCase, check_ct_cases, write_ct_datalist
from .histology_entries import check_image_files, count_patches, count_regions, write_histology_datalist
from .midog import MIDOG_LABELS, MidogImage, find_midog, read_midog
from .midog_crops import crop_midog
from .midog_datalist import claim_folder, clipped_boxes, midog_patches, midog_regions, write_midog
from .nnunet import read_nnunet, split_nnunet
from .patch_table import misleading_names, read_patch_table
from .preparation import check_whole, option_names, resolve_folders, worker_count
from .splits import split_cases, split_patches, split_regions
from .synthetic_ct import make_synthetic_ct, synthetic_ct_case
from .synthetic_histology import SCANNER_PROFILES, ScannerProfile, make_synthetic_histology, render_stains
from .totalsegmentator import find_totalsegmentator, merge_totalsegmentator, split_totalsegmentator
