"""Results for hospitals: what is fetched from a PACS, and the DICOM objects that go back to it: SEG, SR, RTSTRUCT, ANN.

Its packages are those of the extra `dicom`. So that all else works without, no other room hands on what imports this.

May import: data, inferers, layers, metrics, networks, reports, utils.
"""

from importlib.util import find_spec

from ..utils import DataError

if missing := [name for name in ("contourpy", "dicomweb_client", "highdicom", "requests") if find_spec(name) is None]:
    raise DataError(
        f"what is for DICOM needs {', '.join(missing)}, not installed here. Install the extra dicom of this project, "
        "or the packages under extra_packages_version in a bundle's metadata.json."
    )

from .annotations import make_annotations, read_slide
from .codes import StructureCode, read_codes
from .connection import ServerAwayError
from .export import AnnotationExport, SegmentationExport
from .origin import Identity, Origin, Submission
from .report import make_report
from .segmentation import identify, make_segmentation, read_segmentation
from .source import SourceSeries, read_source
from .structure_set import make_structure_set
from .web import DicomWeb, Outcome, SeriesEntry, store
