"""The CTs of a PACS, and the labels that people submit for them, which are kept there alone, as DICOM SEG."""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset

from shared.data.dicom_series import UID_FORM
from shared.data.volumes import read_volume
from shared.dicom import (
    DicomWeb,
    Origin,
    SeriesEntry,
    SourceSeries,
    Submission,
    identify,
    make_segmentation,
    read_codes,
    read_segmentation,
    read_source,
)
from shared.dicom.codes import structure_of
from shared.dicom.origin import MANUFACTURER
from shared.dicom.web import referred_series
from shared.transforms import LoadVolumed
from shared.utils import DataError, atomic_path, temporary_folder

PROGRAM = "MONAI Label"
MARK = {"Manufacturer": MANUFACTURER, "ManufacturerModelName": PROGRAM}  # of what was submitted, and of nothing else
FRESH = 10.0  # seconds for which the server's lists are taken to be the same
_SAID = re.compile(r"label (\d+), submitted (\S+)")  # of a segment, in its description
RAW = ".bin"  # voxels alone, a byte each, as OHIF sends them

T = TypeVar("T")


@dataclass(frozen=True)
class SubmittedLabel:
    """A SEG that somebody submitted.

    Attributes:
        study, series: its UIDs.
        image: UID of the CT series.
        when: it was submitted, UTC.
        names: name → id of the organs in it, as they were submitted.
    """

    study: str
    series: str
    image: str
    when: str
    names: Mapping[str, int]


class PacsLabels:
    """CTs and submitted labels of a DICOMweb server. An image is known by its SeriesInstanceUID.

    Of several labels that were submitted for an image the last one counts. All that is kept in `folder` can be fetched
    again.

    Args:
        web: the server.
        folder: for files that were fetched; made, for this user alone.
        codes: name → DICOM code of the classes, see `read_codes`.
        classes: name → id of the classes in labels that come without names.
        asked: what image series have to have beside the modality, see `DicomWeb.series`.
        version: of the program in which labels are submitted.
    """

    def __init__(
        self,
        web: DicomWeb,
        folder: Path,
        codes: Mapping[str, Mapping[str, Any]],
        classes: Mapping[str, int] | None = None,
        asked: Mapping[str, str] | None = None,
        version: str = "unknown",
    ) -> None:
        self.web, self.place, self.codes = web, folder, codes
        self.classes, self.asked, self.version = dict(classes or {}), dict(asked or {}), version
        self._lists: dict[str, tuple[float, Any]] = {}
        self._looked_at: dict[str, SubmittedLabel | None] = {}  # SEG series, which never change

    @property
    def folder(self) -> Path:
        """Where files are kept, also after somebody has removed it."""
        self.place.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self.place

    def images(self) -> dict[str, SeriesEntry]:
        """The CT series of the server, by UID."""
        return self._lately(
            "images", lambda: {entry.series: entry for entry in self.web.series(None, "CT", self.asked)}
        )

    def labels(self) -> dict[str, SubmittedLabel]:
        """The label of each image that has one, by the image's UID."""
        return self._lately("labels", lambda: {label.image: label for label in self._submitted()})

    def image(self, uid: str) -> SeriesEntry | None:
        """A CT series of the server; None where it has no such."""
        if found := self.images().get(uid):
            return found
        asked = {**self.asked, "SeriesInstanceUID": uid}  # it may be new
        found = self.web.series(None, "CT", asked) if UID_FORM.fullmatch(uid) else []
        return next((entry for entry in found if entry.series == uid), None)

    def needed_image(self, uid: str) -> SeriesEntry:
        """As `image`.

        Raises:
            DataError: when there is no such.
        """
        if found := self.image(uid):
            return found
        raise DataError(f"{uid}: the PACS has no such CT series. Give the SeriesInstanceUID of one.")

    def series_folder(self, image: SeriesEntry) -> Path:
        """The folder with the files of a CT series, fetched unless they are there."""
        place = self.folder / image.series
        wanted = {f"{uid}.dcm" for uid in self.web.instances(image.study, image.series)}
        if self._holds(place, wanted):
            return place
        with temporary_folder(self.folder) as temporary:
            (new := temporary / "new").mkdir()
            self.web.fetch(image.study, image.series, new)
            self._volume_file(image).unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                place.rename(temporary / "old")
            try:
                new.rename(place)
            except OSError:  # another process was faster
                if not self._holds(place, wanted):
                    raise
        return place

    def volume(self, image: SeriesEntry) -> Path:
        """A CT series as NIfTI, in HU, made unless it is there."""
        folder, file = self.series_folder(image), self._volume_file(image)
        if not file.is_file():
            load = LoadVolumed("image", check_intensity="off")
            volume = load({"image": folder, "series": image.series})["image"]
            voxels = volume[0].numpy()
            whole = voxels.astype(np.int16) if np.abs(voxels).max() < 2**15 else voxels
            _write(file, whole if np.array_equal(whole, voxels) else voxels, volume.affine.numpy())
        return file

    def source(self, image: SeriesEntry) -> SourceSeries:
        """What SEGs of a CT series refer to."""
        return read_source(self.series_folder(image), image.series)

    def submit(self, uid: str, file: str | os.PathLike, names: Mapping[str, int] | None = None) -> None:
        """Store a label map as the label of an image. Earlier ones stay in the PACS, and count no more.

        Args:
            uid: of the image.
            file: the label map, NIfTI, NRRD or MetaImage on the image's voxels, whatever the order of its axes; or the
                bytes of its voxels, with the ending `RAW`, in the image's own order.
            names: name → id of the classes in it; None: those that are known.

        Raises:
            DataError: when there is no such image, the label map lies on other voxels, holds other ids than the names
                say, or none, or the PACS refuses it.
        """
        image, names = self.needed_image(uid), dict(names or self.classes)
        if not names:
            raise DataError(
                "label_info is missing, and the bundles that are served have several lists of classes. Send it with "
                "the label, a name and an idx for each organ."
            )
        source = self.source(image)
        when = datetime.datetime.now(datetime.UTC).isoformat()
        label_map, affine = read_label_map(Path(file), source)
        submission = Submission(PROGRAM, self.version, {"when": when})
        segmentation = segment(source, label_map, affine, names, self.codes, submission)
        for item in segmentation.SegmentSequence:
            item.SegmentDescription = f"label {names[item.TrackingID]}, submitted {when}"
        (outcome,) = self.web.store([segmentation])
        if not outcome.is_there:
            raise DataError(f"{self.web.url}: does not take the label ({outcome.reason}). It is not submitted.")
        self._lists.clear()  # that of images too: this one may be new

    def label(self, label: SubmittedLabel) -> Path:
        """A label map as NIfTI on the grid of its image, with the ids that were submitted, made unless it is there.

        Raises:
            DataError: when it cannot be read, or an organ in it has another code than is known now.
        """
        file = self.folder / "submitted" / f"{label.series}.nii.gz"
        if not file.is_file():
            file.parent.mkdir(exist_ok=True)
            source = self.source(self.needed_image(label.image))
            structures = read_codes(self.codes, label.names)
            with temporary_folder(self.folder) as temporary:
                (path,) = self.web.fetch(label.study, label.series, temporary)
                segmentation = pydicom.dcmread(path)
                label_map = read_segmentation(segmentation, source, structures)
            found = [structure_of(segment, structures) for segment in segmentation.SegmentSequence]
            if lost := [n for n in label.names if n not in [s.name for s in found if s]]:
                raise DataError(
                    f"the label {label.series} of {label.image} has other DICOM codes of {', '.join(lost)} than the "
                    "bundles that are served. Submit it again."
                )
            _write(file, label_map, source.grid.affine)
        return file

    def withdraw(self, uid: str) -> None:
        """Delete all labels that were submitted for an image from the PACS.

        Raises:
            DataError: when it does not delete.
        """
        self._lists.pop("labels", None)
        for label in self._submitted():
            if label.image == uid and not self.web.delete(label.study, label.series):
                raise DataError(
                    f"{self.web.url}: does not delete: series {label.series} stays the label of {uid}. Delete it there."
                )

    def _submitted(self) -> list[SubmittedLabel]:
        """All that the server has, the last ones last."""
        entries = self.web.series(None, "SEG")
        for entry in entries:
            if entry.series not in self._looked_at:
                self._looked_at[entry.series] = self._look_at(entry)
        found = [label for entry in entries if (label := self._looked_at[entry.series])]
        return sorted(found, key=lambda label: (label.when, label.series))

    def _look_at(self, entry: SeriesEntry) -> SubmittedLabel | None:
        """What was submitted; None for anything else, which its description already tells where the server has it."""
        if entry.description not in ("", self._description):
            return None
        for header in self.web.headers(entry.study, entry.series):
            images, segments = {*referred_series(header)} - {entry.series}, header.get("SegmentSequence", [])
            said = [_SAID.fullmatch(str(item.get("SegmentDescription"))) for item in segments]
            if (
                len(images) == 1
                and said
                and all(said)
                and all(header.get(keyword) == value for keyword, value in MARK.items())
            ):
                names = {item.TrackingID: int(match[1]) for item, match in zip(segments, said, strict=True)}
                return SubmittedLabel(entry.study, entry.series, *images, said[0][2], names)
        return None

    @cached_property
    def _description(self) -> str:
        return Submission(PROGRAM, "").describe("")

    def _lately(self, what: str, find: Callable[[], T]) -> T:
        """What was found at most `FRESH` seconds ago."""
        if what not in self._lists or time.monotonic() - self._lists[what][0] > FRESH:
            found = find()
            self._lists[what] = (time.monotonic(), found)
        return self._lists[what][1]

    def _volume_file(self, image: SeriesEntry) -> Path:
        return self.folder / f"{image.series}.nii.gz"

    def _holds(self, place: Path, wanted: set[str]) -> bool:
        return place.is_dir() and {path.name for path in place.iterdir()} == wanted


def segment(
    source: SourceSeries,
    label_map: np.ndarray,
    affine: np.ndarray,
    names: Mapping[str, int],
    codes: Mapping[str, Mapping[str, Any]],
    origin: Origin,
) -> Dataset:
    """The SEG of a label map, whose segments have the names and codes of the ids in it.

    Args:
        source: the CT.
        label_map: (x, y, z), of ids.
        affine: (4, 4), from its voxels to mm (RAS).
        names: name → id.
        codes: name → DICOM code, see `read_codes`.
        origin: who made it.

    Raises:
        DataError: when it lies on other voxels than the CT, holds other ids, or nothing.
    """
    structures = read_codes(codes, names)
    placed = source.place(label_map, affine, list(names.values()))
    made = make_segmentation(source, placed, structures, origin, identify(source, placed, structures, origin))
    if made is None:
        raise DataError("the label map holds nothing but background, and a DICOM SEG has to have a segment.")
    return made


def read_label_map(file: Path, source: SourceSeries) -> tuple[np.ndarray, np.ndarray]:
    """The voxels of a label map in a file, see `PacsLabels.submit`, and (4, 4), from these to mm (RAS)."""
    if file.suffix != RAW:
        voxels, grid = read_volume(file)
        return voxels, grid.affine
    voxels, shape = np.fromfile(file, np.uint8), source.grid.shape
    if voxels.size != np.prod(shape):
        raise DataError(
            f"the label map has {voxels.size} bytes, expected one for each of {' × '.join(map(str, shape))} voxels."
        )
    return voxels.reshape(shape, order="F"), source.grid.affine


def named_ids(label_info: Any) -> dict[str, int] | None:
    """Name → id, as clients of MONAI Label send it with a label: `label_info`, a list of `name` and `idx`.

    Returns:
        None where there is no such list.

    Raises:
        DataError: when an entry is of another kind, or two have the same name or id.
    """
    if not label_info:
        return None
    names: dict[str, int] = {}
    for entry in label_info if isinstance(label_info, list) else [label_info]:
        name, i = (entry.get("name"), entry.get("idx")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not 0 < len(name.strip()) <= 64 or "\\" in name or type(i) is not int:
            raise DataError(
                f'label_info has {entry!r}, expected for each organ {{"name": "liver", "idx": 6}}: text of 64 '
                "characters at most, and its id in the label map."
            )
        if not 0 < i < 256 or name in names or i in names.values():
            raise DataError(f"label_info has {entry!r}, expected names and ids from 1 to 255, each of them once.")
        names[name] = i
    return names


def _write(file: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    with atomic_path(file) as temporary:
        image = nib.Nifti1Image(voxels, affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        image.header.set_xyzt_units("mm")
        nib.save(image, temporary)
