"""Results for hospitals: what is fetched from a PACS, and the DICOM objects that go back to it.

Its packages are those of the extra `dicom`. So that all else works without, no other room hands on what imports this.

May import: data, layers, metrics, networks, utils.
"""

from .connection import ServerAwayError
from .web import DicomWeb, Outcome, SeriesEntry, store
