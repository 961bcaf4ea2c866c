"""The files that a user means by the paths given: CTs, and images of histology."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from ..utils import DataError, fault_list, read_json_object
from ..utils.values import MPP, OrNone, check_value
from .case_names import case_name, case_names, without
from .datalist import check_names, get_list
from .dicom_headers import DicomHeader, read_header
from .dicom_series import DicomSeries, find_series
from .dicom_slides import slide_headers
from .volumes import label_maps_among
from .zipped import unpack

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
# What OpenSlide opens as a slide. Slides in many JPEG files (.vms, .vmu) have to be named: in a folder of theirs, each
# of these would pass for an image.
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide")
_DATALIST = 'a datalist {"test": [{"image": "a path"}, ...], ...}, or the files themselves'
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def _is_volume(path: Path) -> bool:
    """Also a link that leads nowhere, whose case fails by its name, and the header of a pair of files."""
    if path.suffix.lower() == ".hdr":
        return any(path.with_suffix(suffix).is_file() for suffix in (".img", ".IMG"))
    there = path.is_file() or (path.is_symlink() and not path.exists())
    return there and path.name.lower().endswith(VOLUME_SUFFIXES)


class _NothingFoundError(DataError):
    """A folder that holds nothing of what is looked for, which is no fault where a pattern fits others, too."""


@dataclass(frozen=True)
class _Found:
    """A file, or a folder and the UID of a series in it, with what its name ends in where several share the folder."""

    path: Path
    series: str | None = None
    ending: str = ""
    origin: Path | None = None  # where it is in a zip

    def __str__(self) -> str:
        path = self.origin or self.path
        return f"{path} (series {self.series})" if self.series else f"{path}"

    def name(self, folder: Path) -> str:
        """The path from the folder on, as one word; without the extension of a file, or a zip."""
        way = _below(self.origin or self.path, folder)
        own = way.name if self.origin and self.path.is_dir() else case_name(self.origin or self.path)
        return "_".join(without(part, ".zip") for part in (*way.parts[:-1], own)) + self.ending


class _Finder:
    """Finds the CTs in files and folders: volumes in the folder itself, DICOM series in all that lies below it.

    Args:
        wanted: the UID or number of a DICOM series, or a part of its UID or description; "": all CTs.
    """

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self.folders: dict[Path, list[DicomSeries]] = {}
        self.left_out: list[str] = []
        self.zips: dict[Path, Path] = {}  # by the folder that they are unpacked to

    def in_folder(self, folder: Path) -> list[_Found]:
        series = self._series(folder)
        volumes = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".") and _is_volume(p)]
        scans = {tuple(sorted((s.slices, *s.size))): f"series {s.uid}" for s in series if not s.why_no_ct()}
        for label_map, scan in label_maps_among(volumes, scans).items():
            volumes.remove(label_map)
            logger.info("passed over in %s: %s, a label map of %s", self._shown(folder), label_map.name, scan)
        if self.wanted:
            return self._named(folder, self._chosen(series), series)
        whole = [s for s in series if not s.why_no_ct() and s.slices != 1]
        alone = not whole and not volumes
        taken = [s for s in series if s in whole or (alone and not s.why_no_ct())]
        for s in series:
            if s not in taken:
                self._leave_out(f"{s.folder}: {s}", s.why_no_ct() or "a single slice beside other scans")
        if not volumes and not taken:
            zips = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.suffix.lower() == ".zip"]
            below = fault_list(
                [*(f"{s}: {s.why_no_ct()}" for s in series), *(f"{p}: to be given itself" for p in zips)]
            )
            raise _NothingFoundError(
                f"{self._shown(folder)}: holds no CT. Looked for {', '.join(VOLUME_SUFFIXES)} in it, and for DICOM "
                f"files in it and in the folders below it.{below}"
            )
        return [_Found(p) for p in volumes] + self._named(folder, taken, series)

    def in_file(self, path: Path) -> list[_Found]:
        """A file itself, and of a DICOM file its series: a slice is no volume, an enhanced CT is."""
        if path.name == "DICOMDIR":  # lists what lies beside it
            return self.in_folder(path.parent)
        headers = [path.with_suffix(suffix) for suffix in (".hdr", ".HDR")] if path.suffix.lower() == ".img" else []
        if header := next((h for h in headers if h.is_file()), None):  # one volume by either name
            return [_Found(header)]
        if path.suffix.lower() == ".zip":
            folder = unpack(path)
            self.zips[folder] = path
            return [replace(f, origin=path / f.path.relative_to(folder)) for f in self.in_folder(folder)]
        header = read_header(path)
        own = []
        if isinstance(header, DicomHeader) and (header.frames == 1 or self.wanted):
            series = self._series(path.parent)
            own = [s for s in series if any(h.file == path for h in s.headers)]
        if not own and self.wanted:
            self._leave_out(path, "no DICOM series")
            return []
        if not own:
            return [_Found(path)]
        return self._named(path.parent, self._chosen(own) if self.wanted else own, series)

    def in_pattern(self, path: Path) -> list[_Found]:
        """As `in_file`; but of a pattern's files a DICOM file that is no CT is passed over, as in a folder."""
        if isinstance(read_header(path), DicomHeader) and not self.wanted:
            for s in self._series(path.parent):
                if s.why_no_ct() and any(h.file == path for h in s.headers):
                    self._leave_out(f"{s.folder}: {s}", s.why_no_ct())
                    return []
        return self.in_file(path)

    def in_datalist(self, path: Path) -> list[_Found]:
        """What an entry names, which holds one CT; where one is wanted, that."""
        if not self.wanted:
            return [_Found(path)]
        return self.in_folder(path) if path.is_dir() else self.in_file(path)

    def _series(self, folder: Path) -> list[DicomSeries]:
        if folder not in self.folders:
            self.folders[folder] = find_series(folder)
        return self.folders[folder]

    def _chosen(self, series: Sequence[DicomSeries]) -> list[DicomSeries]:
        """Those that are meant best; of several, those that are CTs."""
        best = max((s.matches(self.wanted) for s in series), default=0)
        taken = [s for s in series if best and s.matches(self.wanted) == best]
        taken = [s for s in taken if not s.why_no_ct()] or taken
        for s in series:
            if s not in taken:
                self._leave_out(f"{s.folder}: {s}", "not the one that is wanted")
        return taken

    def _leave_out(self, what: str | Path, why: str) -> None:
        line = self._shown(f"{what}: {why}")
        if line not in self.left_out:
            self.left_out.append(line)
            logger.info("passed over: %s", line)

    def _shown(self, text: str | Path) -> str:
        """A message with the names of zips in place of where they are unpacked to."""
        text = str(text)
        for folder, path in self.zips.items():
            text = text.replace(str(folder), str(path))
        return text

    def _named(self, folder: Path, taken: Sequence[DicomSeries], series: Sequence[DicomSeries]) -> list[_Found]:
        """With the series' number where several volumes share a folder, and the end of their UID where that is one."""
        found = []
        for s in taken:
            beside = [o for o in series if o.folder == s.folder and not o.why_no_ct() and (o.slices > 1 or o in taken)]
            numbers = [o.number for o in beside]
            parts = [s.number, s.uid.rpartition(".")[2]] if numbers.count(s.number) > 1 else [s.number]
            ending = "_".join(["", *filter(None, parts)]) if len(beside) > 1 else ""
            found.append(_Found(s.folder, s.uid if s.headers else None, ending))
        return found


def _in_datalist(path: Path) -> dict[Path, Mapping[str, Any]]:
    content = read_json_object(path, _DATALIST, "")
    images = {}
    for i, entry in enumerate(get_list(path, content, "test", _DATALIST)):
        entry = entry if isinstance(entry, dict) else {"image": entry}
        check_names(path, "test", i, entry, ["image"])
        mpp = content.get("mpp") if entry.get("mpp") is None else entry["mpp"]
        check_value(f"{path}: mpp of entry {i} of 'test'", mpp, OrNone(MPP, "as the file says"))
        images[path.parent / entry["image"]] = {**entry, "mpp": mpp}
    return images


def _itself(path: Path) -> list[Path]:
    return [path]


def _find(
    path: Path,
    in_folder: Callable[[Path], list[Any]],
    in_file: Callable[[Path], list[Any]] = _itself,
    in_datalist: Callable[[Path], list[Any]] = _itself,
    in_pattern: Callable[[Path], list[Any]] | None = None,
) -> dict[Any, Mapping[str, Any]]:
    """What is meant by a path, and the entries where a datalist says it. `in_pattern` is for what a pattern fits."""
    if path.is_dir():
        return {q: {} for q in in_folder(path)}
    if path.is_file() and path.suffix == ".json":
        return {q: entry for p, entry in _in_datalist(path).items() for q in in_datalist(p)}
    if path.is_file() or path.is_symlink():  # one that leads nowhere fails by its own name, and the others go on
        return {q: {} for q in in_file(path)}
    if glob.has_magic(str(path)):
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
        if not found:
            raise DataError(f"{path}: no file or folder fits this pattern.")
        return _find_each(found, in_folder, in_pattern or in_file, in_datalist)
    raise DataError(f"{path}: there is no such file or folder.")


def _find_each(paths: Sequence[Path], *how: Callable[[Path], list[Any]]) -> dict[Any, Mapping[str, Any]]:
    """What is meant by the paths that a pattern fits. A folder that holds nothing is passed over where others do."""
    found, nothing = {}, []
    for path in paths:
        try:
            found |= {q: entry for q, entry in _find(path, *how).items() if q not in found}
        except _NothingFoundError as e:
            nothing.append(e)
    if nothing and not found:
        raise nothing[0]
    for error in nothing:
        logger.info("passed over: %s", str(error).partition("\n")[0])
    return found


def _common_folder(given: Sequence[Path]) -> Path:
    """The folder below which cases are named: of the paths given, whatever else is in it.

    So a case's name does not depend on which other files are found.
    """
    folders = []
    for path in (Path(os.path.abspath(p)) for p in given):
        if path.is_dir():
            folders.append(path)
        elif path.is_file() or path.is_symlink():
            folders.append(path.parent)
        else:  # of a pattern what stands before its first wild card
            folders.append(Path(*takewhile(lambda part: not glob.has_magic(part), path.parts)))
    return Path(os.path.commonpath(folders))


def _below(path: Path, folder: Path) -> Path:
    """The way from the folder to a file; its mere name where a datalist lists what lies elsewhere."""
    path = Path(os.path.abspath(path))
    return path.relative_to(folder) if path != folder and path.is_relative_to(folder) else Path(path.name)


def _check_distinct(cases: Mapping[Any, str]) -> None:
    """Raise a `DataError` where two files have the same name."""
    paths: dict[str, Any] = {}
    for path, case in cases.items():
        if paths.setdefault(case, path) != path:
            raise DataError(
                f"{paths[case]} and {path} would both be the case {case}, and one result would overwrite the other. "
                "Rename one, or choose by a pattern, such as 'scans/*.nii.gz' or 'slides/*.svs'."
            )


def _tell_apart(cases: dict[_Found, str]) -> None:
    """Give cases of the same name others: with the extension of their files, and where these are the same, numbers."""
    shared = {case for case, times in Counter(cases.values()).items() if times > 1}
    taken = set(cases.values()) - shared
    for found, case in cases.items():
        if case in shared:
            path = found.origin or found.path
            longer = case + ("" if path.is_dir() else path.name.removeprefix(case_name(path)))
            numbered = (f"{longer}_{i}" for i in count(2))
            cases[found] = longer if longer not in taken else next(name for name in numbered if name not in taken)
            logger.info("%s is the case %s, since others are called %s, too", found, cases[found], case)
        taken.add(cases[found])


def _given(path: object, what: str, forms: str) -> list[Path]:
    """The paths; a `DataError` where one of them is empty, or a command line says `--input` and nothing behind it."""
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path) if isinstance(path, Sequence) else []
    if not paths or not all(os.fspath(p) for p in paths):
        raise DataError(f"No {what} is given. Give one with --input: {forms}, or a datalist.")
    return [Path(p).expanduser() for p in paths]


def list_inputs(
    path: str | os.PathLike | Sequence[str | os.PathLike], series: str | float = ""
) -> list[dict[str, str]]:
    """The CTs that a user means by a path.

    Args:
        path: a file (NIfTI, also as `.hdr` and `.img`, NRRD, MetaImage, a zip of such; a DICOM file, or a DICOMDIR,
            stands for its series), a folder with such files in it and DICOM series in it or in any folder below it, a
            glob pattern, a datalist in the decathlon format (`.json`, its list `test`), or a list of all these.
        series: of DICOM series those with this UID, or else this number, or else this as a part of their UID or
            description, and nothing else; "": all that are CT volumes. What else there is, such as scouts and reports,
            is passed over, and a single slice beside other scans; the log says so.

    Returns:
        One dict a CT, in the order given: `image`, the path of a file or DICOM folder, of a series `series`, its UID,
        of what a zip holds `origin`, where it is in it, and `case`, its name without extension, with the folders in
        front, joined by `_`, from the one that the given paths have in common (of a pattern: from its first wild card
        on), and of several series in a folder with their numbers behind; in a datalist, see `case_names`. What is found
        twice is listed once, but two links to one file are two CTs, called as the links are. CTs that would get the
        same name have the extension of their files, too, or a number.

    Raises:
        DataError: when nothing is given, a path does not exist, or nothing is found in it.
    """
    forms = "a file (NIfTI, NRRD, MHA), a DICOM folder, a folder of these, a pattern such as 'scans/*.nii.gz'"
    given = _given(path, "CT", forms)
    folder = _common_folder(given)
    finder = _Finder(str(series))
    files: dict[tuple[str, str | None], _Found] = {}
    cases: dict[_Found, str] = {}
    for p in given:
        found = _find(p, finder.in_folder, finder.in_file, finder.in_datalist, finder.in_pattern)
        listed = {id(entry): entry for entry in found.values() if entry}  # of one, several series may be chosen
        names = dict(zip(listed, case_names(p, [*listed.values()]), strict=True))
        for q, entry in found.items():
            if files.setdefault((os.path.abspath(q.path), q.series), q) == q:
                cases.setdefault(q, names.get(id(entry)) or q.name(folder))
    if not cases:
        wrong = f"No DICOM series is {series!r}, by UID, number or description." if str(series) else "No CT is found."
        raise DataError(wrong + fault_list(finder.left_out))
    _tell_apart(cases)
    images = [{"image": os.path.abspath(q.path), "case": case} for q, case in cases.items()]
    for image, q in zip(images, cases, strict=True):
        image |= {"series": q.series} if q.series is not None else {}
        image |= {"origin": os.path.abspath(q.origin)} if q.origin is not None else {}
    return images


def list_images(path: str | os.PathLike | Sequence[str | os.PathLike], slides: bool = False) -> list[dict[str, Any]]:
    """The image files that a user means by a path.

    Args:
        path: an image file, a folder (with those below it, without hidden ones), a glob pattern, a datalist (`.json`,
            its list `test`), or a list of all these. A link that leads nowhere is listed.
        slides: for detection: whole slides in folders, too, DICOM files of one series as one, and the size of a pixel
            where a datalist states it.

    Returns:
        One dict an image: `image` and `file`, the full path, and `case`, the path from the folder that the given paths
        have in common: of a pattern from its first wild card on, of a datalist from its own folder, or the mere name
        of what lies elsewhere. In the order given, a folder's in alphabetical order; what is found twice is listed
        once. With `slides`, the case has no extension, and `mpp` is the µm per pixel that an entry of a datalist, or
        else the datalist, states, if either does.

    Raises:
        DataError: when nothing is given, a path does not exist, nothing is found in it, or two images would get the
            same name.
    """
    # links are not followed: what they are called is what the user knows
    finder = _ImageFinder(IMAGE_SUFFIXES + SLIDE_SUFFIXES * slides, slides)
    forms = "a file (PNG, JPEG, TIFF), a folder of these, a pattern such as 'patches/*.png'"
    given = _given(path, "image", forms)
    folder = _common_folder(given)
    mpp: dict[str, float | None] = {}
    for p in given:
        for q, entry in _find(p, finder.in_folder, finder.in_file, finder.in_file).items():
            file = os.path.abspath(q)
            mpp[file] = entry.get("mpp") or mpp.get(file)
    cases = {}
    for file in mpp:
        named = finder.dicom.get(file)
        way = _below(named or Path(file), folder)
        cases[file] = str(way.with_suffix("") if slides and not named else way)
    _check_distinct(cases)
    images: list[dict[str, Any]] = [{"image": file, "file": file, "case": case} for file, case in cases.items()]
    for image in images if slides else ():
        if mpp[image["file"]] is not None:
            image["mpp"] = mpp[image["file"]]
    return images


class _ImageFinder:
    """Finds images in files and folders, those of a DICOM slide as one: its first file stands for all of them.

    Args:
        suffixes: of what a folder is looked through for.
        dicom: whether DICOM slides are looked for, too.

    Attributes:
        dicom: of the files that stand for slides, what these are called after: the folder, if it holds no other, or
            the file.
    """

    def __init__(self, suffixes: tuple[str, ...], dicom: bool) -> None:
        self.suffixes = suffixes
        self.slides = dicom
        self.dicom: dict[str, Path] = {}

    def in_folder(self, path: Path) -> list[Path]:
        shown = [p for p in sorted(path.rglob("*")) if not any(n.startswith(".") for n in p.relative_to(path).parts)]
        found = [p for p in shown if p.suffix.lower() in self.suffixes and (p.is_file() or not p.exists())]
        found += self._in_dicom(slide_headers(shown)) if self.slides else []
        if not found:
            kinds = ", ".join(self.suffixes) + " and DICOM slides" * self.slides
            raise _NothingFoundError(f"{path}: holds no image. Looked for {kinds} in it and below it.")
        return sorted(found)

    def in_file(self, path: Path) -> list[Path]:
        """A file itself, and of a DICOM slide or its folder the file that stands for it."""
        if not self.slides:
            return [path]
        if path.is_dir():
            return self.in_folder(path)
        keys = slide_headers([path]).keys()
        beside = slide_headers(path.parent.iterdir()) if keys else {}
        own = self._in_dicom(beside) if keys else []
        return [p for p, key in zip(own, beside, strict=True) if key in keys] or [path]

    def _in_dicom(self, slides: Mapping[tuple[Path, str], Sequence[DicomHeader]]) -> list[Path]:
        alone = Counter(folder for folder, _ in slides)
        files = [headers[0].file for headers in slides.values()]
        for (folder, _), file in zip(slides, files, strict=True):
            self.dicom[os.path.abspath(file)] = folder if alone[folder] == 1 else file.with_suffix("")
        return files
