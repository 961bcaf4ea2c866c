"""Networks, weights for them, and what a training leaves beside its weights: the record, `model.json`.

May import: layers, utils.
"""

from .anchors import PyramidAnchors, decode_batch, decode_detections, match_anchors
from .batch_norm import adapt_batch_norm
from .classifier import (
    check_classifier_labels,
    check_subtype_labels,
    load_classifier,
    read_classifier_record,
    weights_of_classifier,
)
from .densenet import fusestyle_densenet
from .lambda3d import Lambda3D
from .prepare import place_network, prepare_network
from .pretrained import CLASSIFICATION_HEADS, DETECTION_HEADS, load_pretrained, read_state_dict
from .record import (
    ModelRecord,
    check_record,
    joint_domains,
    known_domains,
    read_model_record,
    record_with_history,
)
from .resnet import fusestyle_resnet
from .retinanet import RetinaNet, fusestyle_retinanet
from .stainnet import StainNet
from .style_transfer import AdaINNetwork, PyramidTransfer
from .weights import load_weights
