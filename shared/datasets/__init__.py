"""What people prepare: public data sets as downloaded, tables of patches, splits, synthetic CT and histology.
Each ends in a datalist that a run reads with `data`. Only scripts and tests import it; packages leave it out.

May import: data, layers, metrics, networks, utils.
"""

from .btcv import BTCV_LABELS, extract_btcv, find_btcv, is_unpacked_btcv
from .camelyon17 import CAMELYON17_LABELS, CAMELYON17_SPLITS, read_camelyon17
from .ct_cases import (
    PAPER_VOXEL_SHARES,
    CtCase,
    check_ct_case,
    check_ct_cases,
    count_organs,
    option_names,
    organ_table,
    resolve_folders,
    worker_count,
    write_ct_datalist,
)
from .midog import (
    MIDOG_FIELDS,
    MIDOG_LABELS,
    MIDOG_NAMES,
    MidogImage,
    count_midog,
    find_midog,
    midog_domain,
    read_midog,
)
from .midog_patches import claim_folder, crop_midog, crop_square, dark_nuclei, midog_patches, midog_settings
from .midog_tiles import clipped_boxes, count_regions, midog_region_settings, midog_regions
from .nnunet import read_nnunet, split_nnunet
from .patch_table import check_image_files, count_patches, read_patch_table
from .splits import split_cases, split_patches, split_regions
from .synthetic_ct import ORIENTATIONS, make_synthetic_ct, synthetic_ct_case
from .synthetic_histology import (
    IMPOSTER_KINDS,
    MITOTIC_KINDS,
    SCANNER_PROFILES,
    ScannerProfile,
    make_synthetic_histology,
    render_stains,
)
from .totalsegmentator import (
    TOTALSEGMENTATOR_ORGANS,
    find_totalsegmentator,
    merge_masks,
    merge_totalsegmentator,
    split_totalsegmentator,
)

__all__ = [
    "BTCV_LABELS",
    "CAMELYON17_LABELS",
    "CAMELYON17_SPLITS",
    "IMPOSTER_KINDS",
    "MIDOG_FIELDS",
    "MIDOG_LABELS",
    "MIDOG_NAMES",
    "MITOTIC_KINDS",
    "ORIENTATIONS",
    "PAPER_VOXEL_SHARES",
    "SCANNER_PROFILES",
    "TOTALSEGMENTATOR_ORGANS",
    "CtCase",
    "MidogImage",
    "ScannerProfile",
    "check_ct_case",
    "check_ct_cases",
    "check_image_files",
    "claim_folder",
    "clipped_boxes",
    "count_midog",
    "count_organs",
    "count_patches",
    "count_regions",
    "crop_midog",
    "crop_square",
    "dark_nuclei",
    "extract_btcv",
    "find_btcv",
    "find_midog",
    "find_totalsegmentator",
    "is_unpacked_btcv",
    "make_synthetic_ct",
    "make_synthetic_histology",
    "merge_masks",
    "merge_totalsegmentator",
    "midog_domain",
    "midog_patches",
    "midog_region_settings",
    "midog_regions",
    "midog_settings",
    "option_names",
    "organ_table",
    "read_camelyon17",
    "read_midog",
    "read_nnunet",
    "read_patch_table",
    "render_stains",
    "resolve_folders",
    "split_cases",
    "split_nnunet",
    "split_patches",
    "split_regions",
    "split_totalsegmentator",
    "synthetic_ct_case",
    "worker_count",
    "write_ct_datalist",
]
