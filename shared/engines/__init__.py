"""Engines that run a network over cases, and those of a detector.

May import: data, inferers, layers, losses, metrics, networks, reports, transforms, utils.
"""

from .case_evaluator import CaseEvaluator, FaultTolerantDataset, InferenceEvaluator, prepare_region
from .cases_to_do import cases_to_do
from .detection import DetectionEvaluator, DetectionTrainer, MeanImageLoss, prepare_detection_batch
