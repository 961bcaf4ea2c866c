"""Datalists, data sets, tables of patches, synthetic volumes and synthetic histology."""

from .btcv import BTCV_LABELS
from .cached_dataset import cached_dataset
from .camelyon17 import CAMELYON17_LABELS, CAMELYON17_SPLITS, read_camelyon17
from .datalist import dataset_info, load_datalist
from .images import read_rgb
from .inputs import case_name, list_images, list_inputs
from .midog import (
    MIDOG_FIELDS,
    MIDOG_LABELS,
    MIDOG_NAMES,
    MidogImage,
    claim_folder,
    count_midog,
    crop_midog,
    crop_square,
    dark_nuclei,
    find_midog,
    midog_domain,
    midog_patches,
    midog_settings,
    read_midog,
)
from .patch_datalist import domain_names, load_patches, patch_labels, positive_weight
from .patches import (
    SPLITS,
    check_image_files,
    count_patches,
    leaked_slides,
    read_patch_table,
    scanner_name,
    split_patches,
    text_table,
    write_datalist,
)
from .samplers import DomainBalancedSampler, DomainBatchSampler
from .synthetic_ct import ORIENTATIONS, make_synthetic_ct, synthetic_ct_case
from .synthetic_histology import (
    IMPOSTER_KINDS,
    MITOTIC_KINDS,
    SCANNER_PROFILES,
    ScannerProfile,
    make_synthetic_histology,
    render_stains,
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
    "SCANNER_PROFILES",
    "SPLITS",
    "DomainBalancedSampler",
    "DomainBatchSampler",
    "MidogImage",
    "ScannerProfile",
    "cached_dataset",
    "case_name",
    "check_image_files",
    "claim_folder",
    "count_midog",
    "count_patches",
    "crop_midog",
    "crop_square",
    "dark_nuclei",
    "dataset_info",
    "domain_names",
    "find_midog",
    "leaked_slides",
    "list_images",
    "list_inputs",
    "load_datalist",
    "load_patches",
    "make_synthetic_ct",
    "make_synthetic_histology",
    "midog_domain",
    "midog_patches",
    "midog_settings",
    "patch_labels",
    "positive_weight",
    "read_camelyon17",
    "read_midog",
    "read_patch_table",
    "read_rgb",
    "render_stains",
    "scanner_name",
    "split_patches",
    "synthetic_ct_case",
    "text_table",
    "write_datalist",
]
