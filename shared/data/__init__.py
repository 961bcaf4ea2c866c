"""Datalists, data sets, tables of patches and synthetic volumes."""

from .btcv import BTCV_LABELS
from .cached_dataset import cached_dataset
from .datalist import dataset_info, load_datalist
from .inputs import case_name, list_inputs
from .patches import count_patches, read_patch_table, scanner_name, split_patches
from .synthetic_ct import ORIENTATIONS, make_synthetic_ct, synthetic_ct_case

__all__ = [
    "BTCV_LABELS",
    "ORIENTATIONS",
    "cached_dataset",
    "case_name",
    "count_patches",
    "dataset_info",
    "list_inputs",
    "load_datalist",
    "make_synthetic_ct",
    "read_patch_table",
    "scanner_name",
    "split_patches",
    "synthetic_ct_case",
]
