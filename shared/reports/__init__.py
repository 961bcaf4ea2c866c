"""What people read: summaries, tables, figures, pictures and files for other programs, made of finished scores.
When they are made is for `handlers` and `transforms` to say.

May import: data, layers, metrics, networks, utils.
"""

from .classification import classification_table
from .detection import detection_table
from .detection_files import (
    DetectedImage,
    write_detections_csv,
    write_gallery,
    write_geojson,
    write_midog_json,
    write_overview,
)
from .preview import save_preview
from .segmentation import summary_table

__all__ = [
    "DetectedImage",
    "classification_table",
    "detection_table",
    "save_preview",
    "summary_table",
    "write_detections_csv",
    "write_gallery",
    "write_geojson",
    "write_midog_json",
    "write_overview",
]
