"""Losses with a weight for each class, static weights by prevalence, and losses of a detector.

May import: data, inferers, layers, metrics, networks, reports, transforms, utils.
"""

from .class_weighted import ClassWeightedLoss, DicePlainCELoss, check_class_weight_buffers, class_weight_buffers
from .detection import RetinaNetLoss
from .domain_adversarial import DomainAdversarialLoss, labelled_loss
from .prevalence import label_voxel_counts, prevalence_weights
