"""Scores of segmentations, classifications and detections."""

from .class_dice import ClassDice, MeanClassDice
from .classification import (
    best_threshold,
    bootstrap_scores,
    classification_scores,
    read_threshold,
    roc_curve,
    weighted_auc,
)
from .segmentation import ClassScores, segmentation_scores

__all__ = [
    "ClassDice",
    "ClassScores",
    "MeanClassDice",
    "best_threshold",
    "bootstrap_scores",
    "classification_scores",
    "read_threshold",
    "roc_curve",
    "segmentation_scores",
    "weighted_auc",
]
