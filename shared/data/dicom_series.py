"""The DICOM series in a folder, told apart by their UID, and which of them are CT volumes."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import UID_dictionary
from tqdm import tqdm

from ..utils import DataError, fault_list
from ..utils.text import first_few
from .dicom_headers import CT_IMAGE, ENHANCED, DicomHeader, read_header

logger = logging.getLogger(__name__)

# What is looked through for the series of a folder, at most: files, and seconds.
MOST_FILES, MOST_SECONDS = 200_000, 900.0
UID_FORM = re.compile(r"[0-9]+(\.[0-9]+)+")
# What the names of slices may end in that were not unpacked, or not copied to their end.
_UNFINISHED = (".gz", ".bz2", ".xz", ".zst", ".part", ".partial", ".crdownload", ".filepart", ".tmp")
_PART = 5  # digits of a number that may be meant as a part of a UID
CT_CLASSES = (CT_IMAGE, *ENHANCED, "")
KINDS = {"MR": "an MR", "PT": "a PET", "SEG": "a segmentation", "SR": "a report", "RTSTRUCT": "contours"}
KINDS |= {"PR": "a presentation state", "KO": "a list of key images", "CR": "an X-ray", "DX": "an X-ray"}
KINDS |= {
    "NM": "nuclear medicine",
    "US": "ultrasound",
    "OT": "another picture",
    "RTDOSE": "a dose",
    "REG": "a registration",
}


@dataclass(frozen=True)
class DicomSeries:
    """The files of one series.

    Attributes:
        folder: the one that holds them, or that their folders have in common.
        headers: of its files, in the order of their names; none where no file can be read.
        damaged: files beside them that may be slices of it and cannot be read, and why.
        others: names of the files beside them that are no DICOM files.
    """

    folder: Path
    headers: tuple[DicomHeader, ...]
    damaged: tuple[tuple[Path, str], ...]
    others: tuple[str, ...]

    @property
    def uid(self) -> str:
        return self.headers[0].series if self.headers else ""

    @property
    def number(self) -> str:
        return self.headers[0].number if self.headers else ""

    @property
    def description(self) -> str:
        return self.headers[0].description if self.headers else ""

    @property
    def slices(self) -> int:
        return sum(header.frames for header in self.headers)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return (self.headers[0].rows, self.headers[0].columns) if self.headers else (0, 0)

    def __str__(self) -> str:
        number = f"number {self.number}" if self.number else ""
        named = ", ".join(filter(None, (number, self.description)))
        what = "slice" if any(header.rows for header in self.headers) else "file"
        count = f"{self.slices} {what}{'s' * (self.slices != 1)}"
        return f"{self.uid or 'a series without UID'} with {count}" + f" ({named})" * bool(named)

    def why_no_ct(self) -> str:
        """Why this is no CT volume; empty where it is one, or cannot be read."""
        if not self.headers:
            return ""
        modality = _most_common([h.modality for h in self.headers])
        if modality not in ("CT", ""):
            return f"{KINDS.get(modality, 'another kind of object')} (modality {modality})"
        kind = _most_common([h.sop_class for h in self.headers])
        if kind not in CT_CLASSES:
            return f"no CT image but {UID_dictionary.get(kind, [repr(kind)])[0]} (its SOP class)"
        if all("LOCALIZER" in h.image_type for h in self.headers):
            return "a scout (localizer)"
        if any(h.samples != 1 for h in self.headers):
            return "a colour picture"
        return ""

    def matches(self, wanted: str) -> int:
        """See `match_series`."""
        return match_series(wanted, self.uid, self.number, self.description)


def match_series(wanted: str, uid: str, number: str, description: str) -> int:
    """How well a series is meant: 3 by its UID, 2 by its number, 1 by a part of its UID or description, or 0."""
    if wanted == uid:
        return 3
    if wanted == number:
        return 2
    part = wanted in uid and not (wanted.isdigit() and len(wanted) < _PART)  # few digits are in any UID
    return int(part or wanted.casefold() in description.casefold())


def _most_common(values: Sequence[str]) -> str:
    return Counter(values).most_common(1)[0][0]


def find_series(folder: Path) -> list[DicomSeries]:
    """The series in a folder and those below it, in the order of their folders and numbers.

    Only headers are read. Files of one UID that lie in several folders are one series unless they are another copy,
    or another patient's: those have slices at the same places. A folder whose DICOM files cannot be read, none of
    them, is a series without headers.

    Raises:
        DataError: when there are more files than are looked through.
    """
    found: dict[tuple[str, Path], list[DicomHeader]] = {}
    unread: dict[Path, list[tuple[Path, str]]] = {}
    others: dict[Path, list[str]] = {}
    for path in _within_budget(folder):
        header = read_header(path)
        if isinstance(header, DicomHeader):
            found.setdefault((header.series, path.parent), []).append(header)
        elif isinstance(header, str) or path.suffix.lower() == ".dcm":
            unread.setdefault(path.parent, []).append((path, header or _what(path)))
        elif path.name != "DICOMDIR":  # lists what lies beside it
            others.setdefault(path.parent, []).append(path.name)
    for (uid, place), headers in list(found.items()):
        beside = any(p == place and u != uid and UID_FORM.fullmatch(u) for u, p in found)
        if beside and len(headers) == 1 and _is_garbled(headers[0]):
            del found[uid, place]
            why = headers[0].fault or "its SeriesInstanceUID is damaged"
            unread.setdefault(place, []).append((headers[0].file, why))
    series = []
    for headers in _joined(found):
        folders = {h.file.parent for h in headers}
        alike = _Alike([h.file.name for h in headers])
        beside = [(place, name) for place in folders for name in others.get(place, ())]
        damaged = [d for place in folders for d in unread.get(place, ())]
        slices = {p / name for p, name in beside if name in alike or _is_unfinished(p / name, alike)}
        damaged += [(path, _what(path)) for path in slices]
        left = sorted({name for p, name in beside if p / name not in slices})
        common = Path(os.path.commonpath(folders))
        series.append(DicomSeries(common, tuple(headers), tuple(sorted(damaged)), tuple(left)))
    readable = {h.file.parent for s in series if not s.why_no_ct() for h in s.headers}
    series += [DicomSeries(p, (), tuple(sorted(files)), ()) for p, files in unread.items() if p not in readable]
    return sorted(series, key=lambda s: (s.folder, int(s.number) if s.number.isdecimal() else 0, s.uid))


def _is_garbled(header: DicomHeader) -> bool:
    """Whether the header of what may be a CT slice is damaged, so that it passes for a series of its own."""
    kinds = (header.modality in KINDS, header.sop_class in UID_dictionary and header.sop_class not in CT_CLASSES)
    if any(kinds) or "LOCALIZER" in header.image_type:
        return False
    return bool(header.fault) or not UID_FORM.fullmatch(header.series)


def _is_unfinished(path: Path, alike: _Alike) -> bool:
    """Whether it stands for a slice that is not there itself."""
    stem = path.with_suffix("")
    return path.suffix.lower() in _UNFINISHED and stem.name in alike and not stem.exists()


def _what(path: Path) -> str:
    size = path.stat().st_size
    return f"no DICOM file ({size:,} bytes)" if size else "it is empty"


class _Alike:
    """Whether a name is like those of slices: the same but for its numbers, the same extension, or as long a number."""

    def __init__(self, names: Sequence[str]) -> None:
        self.forms = {self._form(name) for name in names}
        self.suffixes = {s for s in (Path(name).suffix.lower() for name in names) if s[1:].isalpha()}
        self.lengths = {len(name) for name in names if "." not in name}

    def __contains__(self, name: str) -> bool:
        number = "." not in name and any(c.isdecimal() for c in name) and len(name) in self.lengths
        return number or self._form(name) in self.forms or Path(name).suffix.lower() in self.suffixes

    @staticmethod
    def _form(name: str) -> str:
        return re.sub(r"[0-9a-fA-F]{8,}|[0-9]+", "#", name)


def _joined(found: dict[tuple[str, Path], list[DicomHeader]]) -> Iterator[list[DicomHeader]]:
    """The files of each series, from all folders that hold a part of it."""
    groups: list[list[DicomHeader]] = []
    for (uid, _), headers in sorted(found.items()):
        for group in groups:
            if uid and group[0].series == uid and group[0].study == headers[0].study and _complete(group, headers):
                group += headers
                break
        else:
            groups.append(list(headers))
    yield from groups


def _complete(some: Sequence[DicomHeader], more: Sequence[DicomHeader]) -> bool:
    """Whether two folders hold different slices of the same grid."""
    places = [{h.frame.position for h in headers} for headers in (some, more)]
    grids = {(h.rows, h.columns, h.frame.spacing) for h in (*some, *more)}
    return len(grids) == 1 and None not in places[0] | places[1] and places[0].isdisjoint(places[1])


def _within_budget(folder: Path) -> Iterator[Path]:
    """The files in a folder and below it, with a bar where it takes long; an error where it takes too long."""
    start = time.monotonic()
    bar = tqdm(files_below(folder), desc="files looked at", unit=" files", delay=3, leave=False)
    for count, path in enumerate(bar):
        if count >= MOST_FILES or time.monotonic() - start > MOST_SECONDS:
            raise DataError(
                f"{folder}: holds more files than are looked through for DICOM series ({count:,} in "
                f"{time.monotonic() - start:.0f} s, of {MOST_FILES:,} and {MOST_SECONDS:.0f} s). Give a folder further "
                "down, or a pattern such as 'study/*/series'."
            )
        yield path


def files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and below it, linked folders too; without hidden ones."""
    seen: set[str] = set()  # links may lead in circles
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(n for n in folders if not n.startswith((".", "__MACOSX")))
        if real not in seen:
            yield from (path for n in sorted(names) if not n.startswith(".") and (path := Path(place, n)).is_file())
        seen.add(real)


def is_dicom(path: Path) -> bool:
    """Whether a path is taken for DICOM: a folder, or a file that is, or claims to be, of it."""
    return path.is_dir() or path.suffix.lower() == ".dcm" or read_header(path) is not None


def series_of(path: Path, uid: str | None = None) -> DicomSeries:
    """The CT series that is meant by a folder, or by a file of it.

    Args:
        path: of a folder that holds it, however deep, or of one of its files; an enhanced CT's file is meant alone.
        uid: which of the folder's series; None: there is but one.

    Raises:
        DataError: when there is none, or several, some of its files cannot be read, or it is no CT.
    """
    folder, own = path, None
    if not path.is_dir():
        own = read_header(path)
        if not isinstance(own, DicomHeader):
            raise DataError(f"{path}: cannot be read as DICOM: {own or _what(path)}. Copy or export it again.")
        if own.frames > 1:
            return _readable(path, DicomSeries(path.parent, (own,), (), ()))
        folder, uid = path.parent, own.series
    found = find_series(folder)
    if own is not None:
        found = [s for s in found if any(h.file == path for h in s.headers)]
    elif uid is not None:
        found = [s for s in found if s.uid == uid]
    else:
        found = [s for s in found if not s.why_no_ct()] or found
    if not found:
        named = f" {uid}" if uid else ""
        raise DataError(f"{path}: holds no readable DICOM series{named}. Expected a folder with the slices of one CT.")
    if len(found) > 1:
        raise DataError(
            f"{path}: holds {len(found)} DICOM series, expected one: {'; '.join(_placed(s, folder) for s in found)}. "
            "Choose one with --series UID, or put each into a folder of its own and give the one that is wanted."
        )
    return _readable(path, found[0])


def _placed(series: DicomSeries, folder: Path) -> str:
    return str(series) + (f" in {series.folder.relative_to(folder)}" if series.folder != folder else "")


def _readable(path: Path, series: DicomSeries) -> DicomSeries:
    """The series, unless it is no CT, or files of it are damaged."""
    if why := series.why_no_ct():
        raise DataError(f"{path}: {why}, expected a CT. Choose a CT series, by its folder or with --series UID.")
    damaged = [*series.damaged, *((h.file, h.fault) for h in series.headers if h.fault)]
    if damaged:
        faults = fault_list([f"{file.name}: {why}" for file, why in damaged], 10)
        count = len(series.headers) + len(series.damaged)
        raise DataError(
            f"{path}: {len(damaged)} of {count} files may be slices of the series and cannot be read; the volume would "
            f"lack a part. Copy or export the series again, or take away what is no slice.{faults}"
        )
    if series.others:
        logger.info("%s: passed over what is no DICOM file: %s", series.folder, first_few(series.others))
    return series
