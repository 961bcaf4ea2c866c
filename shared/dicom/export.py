"""What writes a bundle's results as DICOM objects, beside their other files, and stores them in a PACS."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from ..reports.detection_files import ANNOTATION_FILES, DetectedImage
from ..reports.organs import DICOM_FILES, DICOM_NOTE
from ..utils import DataError, atomic_path, flag, parse_json, write_json
from .annotations import make_annotations, read_slide
from .codes import read_codes
from .origin import Origin
from .report import make_report
from .segmentation import identify, make_segmentation
from .source import read_source
from .structure_set import make_structure_set
from .web import store


class _Export:
    """Writes objects, stores them if there is where, and keeps in a JSON file which there are and where they went."""

    def __init__(
        self, objects: Sequence[str], kinds: Sequence[str], origin: Origin, url: str, replace: bool | str
    ) -> None:
        self.objects, self.origin, self.url = list(objects), origin, url
        self.replace = flag("replace", replace)
        if not self.objects or not set(self.objects) <= set(kinds):
            raise DataError(f"dicom is {self.objects}, expected a list of {' and '.join(kinds)}.")

    def _write(self, note: Path, files: Mapping[Path, Dataset | None]) -> None:
        made = {file: dataset for file, dataset in files.items() if dataset is not None}
        for file, dataset in made.items():
            with atomic_path(file) as temporary:
                pydicom.dcmwrite(temporary, dataset, enforce_file_format=True)
        written = {file.name: str(dataset.SOPInstanceUID) for file, dataset in made.items()}
        write_json(note, {"objects": self.objects, "files": written, "stored": None})

    def _send(self, note: Path) -> None:
        if not self.url:
            return
        content = parse_json(note)
        outcomes = store(self.url, [note.parent / name for name in content["files"]], replace=self.replace)
        if refused := [f"{outcome.kind}: {outcome.reason}" for outcome in outcomes if not outcome.is_there]:
            raise DataError(f"{self.url}: does not take {'; '.join(refused)}. The files are in {note.parent}.")
        write_json(note, content | {"stored": self.url})

    def _is_whole(self, note: Path) -> bool:
        try:
            content = parse_json(note)
            files, there, stored = content["files"], set(content["objects"]), content["stored"]
        except (OSError, ValueError, LookupError, TypeError):  # what is damaged, or missing, is made again
            return False
        return (
            there >= set(self.objects)
            and all((note.parent / name).is_file() for name in files)
            and (not self.url or stored == self.url)
        )


class SegmentationExport(_Export):
    """Writes the segmentation of a CT as DICOM objects, for `SaveSegmentationd`.

    Of a scan without any organ there is an SR alone.

    Args:
        objects: of seg, sr and rtstruct; sr refers to the segments of seg, and needs it.
        labels: name → id of the classes.
        codes: name → what `read_codes` says, as `dicom_codes` in a bundle's metadata.json.
        origin: who made it.
        url: of the PACS, see `store`; empty: nothing is stored.
        replace: delete what an earlier run stored there for the same scan, where the PACS can.
        segmentation_type: BINARY or LABELMAP, see `make_segmentation`.

    Raises:
        DataError: when there are other objects, or sr without seg, or codes are wrong, see `read_codes`.
    """

    def __init__(
        self,
        objects: Sequence[str],
        labels: Mapping[str, int],
        codes: Mapping[str, Mapping[str, Any]],
        origin: Origin,
        url: str = "",
        replace: bool | str = False,
        segmentation_type: str = "BINARY",
    ) -> None:
        super().__init__(objects, tuple(DICOM_FILES), origin, url, replace)
        if "sr" in self.objects and "seg" not in self.objects:
            raise DataError("dicom has sr without seg, whose segments the report refers to. Add seg, or leave sr out.")
        self.structures = read_codes(codes, labels)
        self.segmentation_type = segmentation_type

    def write(
        self,
        folder: Path,
        source: str,
        series: str | None,
        label_map: np.ndarray,
        affine: np.ndarray,
        measures: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Write the objects of a case.

        Args:
            folder: of its results.
            source: the image's path.
            series: its SeriesInstanceUID; None where it is no DICOM series.
            label_map: (x, y, z), uint8.
            affine: (4, 4), from its voxels to mm (RAS).
            measures: of the structures that are told of, see `measure_organs`.

        Raises:
            DataError: when the image is no DICOM series, or see `read_source`.
        """
        if series is None:
            raise DataError(
                f"{source}: is no DICOM series, and DICOM objects can be made for such alone. Leave --dicom out."
            )
        ct = read_source(source, series)
        structures = [structure for structure in self.structures if structure.name in measures]
        placed = ct.place(label_map, affine, [structure.label for structure in structures])
        identity = identify(ct, placed, structures, self.origin)
        about = (structures, self.origin, identity)
        made: dict[str, Dataset | None] = {}
        if "seg" in self.objects:
            made["seg"] = make_segmentation(ct, placed, *about, self.segmentation_type)
        if "rtstruct" in self.objects:
            made["rtstruct"] = make_structure_set(ct, placed, *about)
        if "sr" in self.objects:  # the last, and the last to be stored
            made["sr"] = make_report(ct, measures, *about, made["seg"])
        self._write(folder / DICOM_NOTE, {folder / DICOM_FILES[name]: dataset for name, dataset in made.items()})

    def send(self, folder: Path) -> None:
        """Store what `write` wrote, where there is where to.

        Raises:
            DataError: when the PACS refuses an object, or cannot be reached.
        """
        self._send(folder / DICOM_NOTE)

    def is_whole(self, output_dir: Path, case: str) -> bool:
        """Whether the objects of a case are written, and stored where they are to be."""
        return self._is_whole(output_dir / case / DICOM_NOTE)


class AnnotationExport(_Export):
    """Writes the figures in a DICOM slide as annotations, for `SaveDetections`.

    Args:
        objects: ann alone.
        labels: name → id of the classes.
        codes, origin, url, replace: see `SegmentationExport`.
    """

    def __init__(
        self,
        objects: Sequence[str],
        labels: Mapping[str, int],
        codes: Mapping[str, Mapping[str, Any]],
        origin: Origin,
        url: str = "",
        replace: bool | str = False,
    ) -> None:
        super().__init__(objects, ("ann",), origin, url, replace)
        self.structures = read_codes(codes, labels)

    def write(self, output_dir: Path, case: str, file: str | os.PathLike, image: DetectedImage) -> None:
        """Write the figures of an image, those from the threshold on; without any there is no object.

        Raises:
            DataError: when it is no DICOM slide, or its base level is not what was searched.
        """
        slide = read_slide(file)
        size = (slide.TotalPixelMatrixColumns, slide.TotalPixelMatrixRows)
        if size != tuple(image.region.size):
            raise DataError(f"{file}: its base level has {size} pixels, and what was searched {image.region.size}.")
        called = image.called(0) | image.called(1)
        boxes, scores, labels = (image.detections[key][called] for key in ("box", "score", "label"))
        annotations = make_annotations(slide, boxes, scores, labels, self.structures, self.origin)
        object_file, note = (output_dir / f"{case}{ending}" for ending in ANNOTATION_FILES)
        self._write(note, {object_file: annotations})

    def send(self, output_dir: Path, case: str) -> None:
        """As that of `SegmentationExport`."""
        self._send(output_dir / f"{case}{ANNOTATION_FILES[1]}")

    def is_whole(self, output_dir: Path, case: str) -> bool:
        """As that of `SegmentationExport`."""
        return self._is_whole(output_dir / f"{case}{ANNOTATION_FILES[1]}")
