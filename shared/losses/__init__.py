"""Losses with a weight for each class, static weights by prevalence, and the loss of a detector."""

from .class_weighted import ClassWeightedLoss, check_class_weight_buffers, class_weight_buffers
from .detection import RetinaNetLoss
from .dice_ce import DicePlainCELoss
from .prevalence import label_voxel_counts, prevalence_weights

__all__ = [
    "ClassWeightedLoss",
    "DicePlainCELoss",
    "RetinaNetLoss",
    "check_class_weight_buffers",
    "class_weight_buffers",
    "label_voxel_counts",
    "prevalence_weights",
]
