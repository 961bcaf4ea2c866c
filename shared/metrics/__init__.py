"""Scores of segmentations, classifications and detections, their bootstrap intervals, and thresholds chosen by them.
Arrays in, numbers out: nothing is read or written but the files of thresholds.

May import: layers, utils.
"""

from .class_dice import ClassDice, MeanClassDice
from .classification import (
    best_threshold,
    bootstrap_scores,
    calibration_error,
    classification_scores,
    roc_curve,
    weighted_auc,
)
from .detection import (
    MITOTIC,
    Detections,
    Findings,
    average_precision,
    best_detection_threshold,
    bootstrap_detection,
    box_centres,
    detection_f1,
    detection_scores,
    precision_recall_curve,
)
from .mitotic_count import MitoticCount, mitotic_count
from .rule_scores import ClassFound, ClassSurfaceDice
from .segmentation import ClassScores, segmentation_scores
from .thresholds import (
    POINTS,
    candidate_thresholds,
    kept_cascade,
    matched_threshold,
    read_cascade,
    read_threshold,
)
