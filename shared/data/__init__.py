"""What a run reads: datalists, inputs, slides and their tiles, samplers, batches, preprocessing kept on disk.
What people prepare, before any run, is in `datasets`.

May import: layers, utils.
"""

from .cached_dataset import cached_dataset
from .collate import collate_detections, collate_readable, collate_regions
from .ct_datalist import load_datalist
from .datalist import SPLITS, dataset_info, leaked_slides, write_datalist
from .domain_datalist import domain_names, scanner_name
from .images import read_rgb
from .inputs import case_name, list_images, list_inputs
from .patch_datalist import load_patches, patch_labels, positive_weight
from .region_datalist import TILE_KINDS, load_regions, region_labels, tile_items
from .region_tiles import RegionEntry, RegionTiles, Tile, tile_grid, tile_origins
from .regions import Region, open_region
from .samplers import TILE_SHARES, DomainBalancedSampler, DomainBatchSampler, InferenceSampler, TileSampler
from .tissue import tissue_mask, tissue_share

__all__ = [
    "SPLITS",
    "TILE_KINDS",
    "TILE_SHARES",
    "DomainBalancedSampler",
    "DomainBatchSampler",
    "InferenceSampler",
    "Region",
    "RegionEntry",
    "RegionTiles",
    "Tile",
    "TileSampler",
    "cached_dataset",
    "case_name",
    "collate_detections",
    "collate_readable",
    "collate_regions",
    "dataset_info",
    "domain_names",
    "leaked_slides",
    "list_images",
    "list_inputs",
    "load_datalist",
    "load_patches",
    "load_regions",
    "open_region",
    "patch_labels",
    "positive_weight",
    "read_rgb",
    "region_labels",
    "scanner_name",
    "tile_grid",
    "tile_items",
    "tile_origins",
    "tissue_mask",
    "tissue_share",
    "write_datalist",
]
