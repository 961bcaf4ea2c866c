"""Losses with a weight for each class, and static weights by prevalence."""

from .class_weighted import ClassWeightedLoss, check_class_weight_buffers, class_weight_buffers
from .dice_ce import DicePlainCELoss
from .prevalence import label_voxel_counts, prevalence_weights

__all__ = [
    "ClassWeightedLoss",
    "DicePlainCELoss",
    "check_class_weight_buffers",
    "class_weight_buffers",
    "label_voxel_counts",
    "prevalence_weights",
]
