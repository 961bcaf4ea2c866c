"""Layers for networks of one's own, as functions and as thin modules:
FuseStyle and DSU, which change feature statistics in the batch, and the lambda layer.

May import: torch alone.
"""

from .dsu import DSU, perturb_statistics
from .fusestyle import FuseStyle, fuse_style, reference_indices, tell_batch
from .lambda_layer import LambdaLayer, apply_lambdas
