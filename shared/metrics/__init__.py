"""Scores of segmentations and detections."""

from .class_dice import ClassDice, MeanClassDice
from .segmentation import ClassScores, segmentation_scores

__all__ = ["ClassDice", "ClassScores", "MeanClassDice", "segmentation_scores"]
