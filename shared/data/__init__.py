"""What a run reads: datalists, inputs, slides and their tiles, samplers, batches, preprocessing kept on disk.
What people prepare, before any run, is in `datasets`.

May import: layers, utils.
"""

from .cached_dataset import cached_dataset
from .case_names import case_name
from .collate import collate_detections, collate_readable, collate_regions
from .ct_datalist import load_datalist
from .datalist import SPLITS, data_digest, dataset_info, write_datalist
from .entries import (
    PatchEntry,
    RegionEntry,
    domain_names,
    leaked_slides,
    positive_weight,
    scanner_name,
    slide_names,
)
from .histology_datalist import MPP_TOLERANCE, load_patches, load_regions, patch_labels, patch_mpp, region_labels
from .images import read_rgb
from .inputs import list_images, list_inputs
from .label_maps import tell_reoriented
from .labels import foreground_labels, ids_in_files
from .leakage import check_leakage
from .region_tiles import RegionTiles, TileData, tile_items
from .regions import Region, open_region
from .rule_sampler import RuleSampler
from .samplers import DomainBalancedSampler, DomainBatchSampler, InferenceSampler, ShuffledSampler, TileSampler
from .seeded_dataset import SeededDataset
from .sources import check_source, made_with, source_digest, weights_digest
from .tissue import near_tissue, tissue_mask, tissue_share
