"""What people read: summaries, tables, figures, pictures and files for other programs, made of finished scores.
When they are made is for `handlers` and `transforms` to say.

May import: data, layers, metrics, networks, utils.
"""

from .detection import DetectionScoring
from .detection_files import (
    DetectedImage,
    write_detections_csv,
    write_gallery,
    write_geojson,
    write_midog_json,
    write_overview,
)
from .domains import DomainScoring
from .preview import save_preview
from .segmentation import SegmentationScoring
from .summary import Scoring, Summary
