"""Whole slides as DICOM: the files of one series are the levels of one slide's pyramid, its label and its overview."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .dicom_headers import DicomHeader, read_header

SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image


def slide_headers(paths: Iterable[Path]) -> dict[tuple[Path, str], list[DicomHeader]]:
    """Of the DICOM slides among some files by folder and series, the levels of the pyramid first.

    Only files that are called `.dcm`, or by a number or without extension, are looked at.
    """
    found: dict[tuple[Path, str], list[DicomHeader]] = {}
    for path in sorted(paths):
        called = path.suffix.lower() in (".dcm", "") or path.suffix[1:].isdigit()
        header = read_header(path) if called and path.is_file() else None
        if isinstance(header, DicomHeader) and header.sop_class == SLIDE_CLASS:
            found.setdefault((path.parent, header.series), []).append(header)
    return {key: sorted(headers, key=lambda h: "VOLUME" not in h.image_type) for key, headers in found.items()}


def slide_files(path: Path) -> list[Path]:
    """The files of the slide that a DICOM file belongs to, which lie beside it; none of anything else."""
    slides = slide_headers([path])
    return [h.file for key in slides for h in slide_headers(path.parent.iterdir())[key]]
