"""Ignite handlers: class re-weighting, what keeps a training safe, and reports."""

from .class_reweighting import (
    ClassBoostStrategy,
    ClassReweighting,
    PlateauClassFreezing,
    StaticClassWeights,
    ThresholdClassFreezing,
)
from .seed_epochs import SeedEpochs
from .segmentation_report import SegmentationReport, summary_table
from .stop_on_bad_loss import StopOnBadLoss
from .training_checkpoint import TrainingCheckpoint
from .training_report import TrainingReport

__all__ = [
    "ClassBoostStrategy",
    "ClassReweighting",
    "PlateauClassFreezing",
    "SeedEpochs",
    "SegmentationReport",
    "StaticClassWeights",
    "StopOnBadLoss",
    "ThresholdClassFreezing",
    "TrainingCheckpoint",
    "TrainingReport",
    "summary_table",
]
