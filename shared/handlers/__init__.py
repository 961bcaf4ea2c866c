"""Ignite handlers: class re-weighting, what keeps a training safe, and those that collect what `reports` writes.

May import: data, dicom, inferers, layers, losses, metrics, networks, reports, transforms, utils.
"""

from .adapt_batch_norm import AdaptBatchNorm
from .cascade_choice import CascadeChoice
from .class_reweighting import ClassReweighting
from .classification_report import ClassificationReport
from .decision_threshold import DecisionThreshold
from .detection_report import DetectionReport
from .detection_threshold import DetectionThreshold
from .end_workers import EndWorkers
from .event_log import EventLog
from .federated_checkpoint import FederatedCheckpoint
from .follow_steps import follow_steps
from .match_positive_rate import MatchPositiveRate
from .partner_counts import PartnerCounts
from .reweighting_rules import ClassBoostStrategy, PlateauClassFreezing, StaticClassWeights, ThresholdClassFreezing
from .run_folders import check_evaluation, claim_run
from .save_detections import SaveDetections
from .save_predictions import SavePredictions
from .save_stain_fits import SaveStainFits
from .scale_gradients import ScaleGradients
from .seed_epochs import SeedEpochs
from .segmentation_report import SegmentationReport
from .stop_on_bad_loss import StopOnBadLoss
from .training_checkpoint import TrainingCheckpoint
from .training_report import TrainingCurves, TrainingReport
from .warm_up import WarmUp
