"""Engines that run a network over cases, those of a detector, and those that train over several domains.

May import: data, dicom, inferers, layers, losses, metrics, networks, reports, transforms, utils.
"""

from .batch_mixing import LISA, BatchMixing, DomainMix
from .case_evaluator import CaseEvaluator, FaultTolerantDataset, InferenceEvaluator, prepare_region
from .cases_to_do import cases_to_do
from .detection import DetectionEvaluator, DetectionTrainer, MeanImageLoss, prepare_detection_batch
from .domain_trainer import DomainTrainer, apply_loss, prepare_domain_batch
from .fish import FishTrainer
