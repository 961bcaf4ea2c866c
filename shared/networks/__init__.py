"""Networks, and weights for them."""

from .prepare import prepare_network
from .pretrained import load_pretrained, read_state_dict
from .weights import load_weights, read_model_record

__all__ = ["load_pretrained", "load_weights", "prepare_network", "read_model_record", "read_state_dict"]
