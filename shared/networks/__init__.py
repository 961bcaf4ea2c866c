"""Networks, weights for them, and what a training leaves beside its weights: the record, `model.json`.

May import: layers, utils.
"""

from .anchors import PyramidAnchors, decode_detections, match_anchors
from .batch_norm import adapt_batch_norm
from .lambda3d import Lambda3D
from .prepare import prepare_network
from .pretrained import DETECTION_HEADS, load_pretrained, read_state_dict
from .resnet import fusestyle_resnet
from .retinanet import RetinaNet, fusestyle_retinanet
from .weights import ModelRecord, load_weights, read_model_record, record_with_history

__all__ = [
    "DETECTION_HEADS",
    "Lambda3D",
    "ModelRecord",
    "PyramidAnchors",
    "RetinaNet",
    "adapt_batch_norm",
    "decode_detections",
    "fusestyle_resnet",
    "fusestyle_retinanet",
    "load_pretrained",
    "load_weights",
    "match_anchors",
    "prepare_network",
    "read_model_record",
    "read_state_dict",
    "record_with_history",
]
