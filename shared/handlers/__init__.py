"""Ignite handlers: class re-weighting, what keeps a training safe, and reports."""

from .adapt_batch_norm import AdaptBatchNorm
from .class_reweighting import (
    ClassBoostStrategy,
    ClassReweighting,
    PlateauClassFreezing,
    StaticClassWeights,
    ThresholdClassFreezing,
)
from .classification_report import ClassificationReport, classification_table
from .decision_threshold import DecisionThreshold
from .detection_report import DetectionReport, detection_table
from .detection_threshold import DetectionThreshold
from .region_detections import RegionDetections
from .save_detections import SaveDetections
from .save_predictions import SavePredictions
from .seed_epochs import SeedEpochs
from .segmentation_report import SegmentationReport, summary_table
from .stop_on_bad_loss import StopOnBadLoss
from .training_checkpoint import TrainingCheckpoint
from .training_curves import TrainingCurves
from .training_report import TrainingReport

__all__ = [
    "AdaptBatchNorm",
    "ClassBoostStrategy",
    "ClassReweighting",
    "ClassificationReport",
    "DecisionThreshold",
    "DetectionReport",
    "DetectionThreshold",
    "PlateauClassFreezing",
    "RegionDetections",
    "SaveDetections",
    "SavePredictions",
    "SeedEpochs",
    "SegmentationReport",
    "StaticClassWeights",
    "StopOnBadLoss",
    "ThresholdClassFreezing",
    "TrainingCheckpoint",
    "TrainingCurves",
    "TrainingReport",
    "classification_table",
    "detection_table",
    "summary_table",
]
