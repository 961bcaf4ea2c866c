"""Losses with a weight for each class, static weights by prevalence, of a detector, and over several domains.

May import: data, dicom, inferers, layers, metrics, networks, reports, transforms, utils.
"""

from .class_weighted import ClassWeightedLoss, DicePlainCELoss, check_class_weight_buffers, class_weight_buffers
from .coral import CORALLoss
from .detection import RetinaNetLoss
from .domain_adversarial import DomainAdversarialLoss, labelled_loss
from .domain_loss import DomainLoss, DomainPart, KeptFeatures, mean_losses
from .group_dro import GroupDROLoss
from .ib_irm import IBIRMLoss
from .log_dice import LogDiceCELoss
from .prevalence import label_voxel_counts, prevalence_weights
from .vrex import VRExLoss
