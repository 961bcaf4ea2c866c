"""Networks, and weights for them."""

from .batch_norm import adapt_batch_norm
from .lambda3d import Lambda3D
from .prepare import prepare_network
from .pretrained import load_pretrained, read_state_dict
from .resnet import fusestyle_resnet
from .weights import load_weights, read_model_record, record_with_history

__all__ = [
    "Lambda3D",
    "adapt_batch_norm",
    "fusestyle_resnet",
    "load_pretrained",
    "load_weights",
    "prepare_network",
    "read_model_record",
    "read_state_dict",
    "record_with_history",
]
