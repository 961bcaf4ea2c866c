"""From a network's output to a result on the grid of the input.

Tiles of regions, merged detections, a classifier's judgement of them, restored label maps.

May import: data, layers, metrics, networks, utils.
"""

from .detection import DetectionMerger, TilePlace
from .findings import FindingsCollector
from .judge import (
    CandidateJudge,
    CropClassifier,
    SubtypeCaller,
    cascade_digest,
    combine_scores,
    crop_classifier,
)
from .region import RegionInferer
from .restore import NativeLabels, axis_maps, restore_label_map
from .sliding_window import SlidingWindowLabelInferer
from .suppression import suppress_within_radius
