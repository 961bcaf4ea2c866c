"""The files that a user means by the paths given: CTs, and images of histology."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..utils import DataError, read_json_object
from ..utils.values import Number, OrNone, check_value
from .datalist import check_names, get_list

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
# What OpenSlide opens as a slide. Slides in many JPEG files (.vms, .vmu) have to be named: in a folder of theirs, each
# of these would pass for an image.
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide")
_DATALIST = 'a datalist {"test": [{"image": "a path"}, ...], ...}, or the files themselves'
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def case_name(path: str | os.PathLike) -> str:
    """The name of a case: that of its file without extension, or of its folder."""
    path = Path(path).expanduser().resolve()
    if path.is_dir():
        return path.name
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() == ".dcm":
        return True
    if not path.is_file() or path.stat().st_size < 132:
        return False
    with path.open("rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM"


def _is_volume(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(VOLUME_SUFFIXES)


def _in_folder(folder: Path) -> list[Path]:
    """The volumes in a folder, the folder itself where it holds DICOM files, and those of its folders that do."""
    content = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    found = [p for p in content if _is_volume(p)]
    if any(_is_dicom(p) for p in content if p not in found):
        found.append(folder)
    found += [p for p in content if p.is_dir() and any(_is_dicom(q) for q in sorted(p.iterdir()))]
    if not found:
        raise DataError(
            f"{folder}: holds no CT. Looked for {', '.join(VOLUME_SUFFIXES)} and DICOM files in it, and for DICOM "
            "files in the folders in it."
        )
    return found


def _in_datalist(path: Path) -> dict[Path, float | None]:
    content = read_json_object(path, _DATALIST, "")
    images = {}
    for i, entry in enumerate(get_list(path, content, "test", _DATALIST)):
        entry = entry if isinstance(entry, dict) else {"image": entry}
        check_names(path, "test", i, entry, ["image"])
        mpp = entry.get("mpp") or content.get("mpp")
        check_value(f"{path}: mpp of entry {i} of 'test'", mpp, OrNone(Number(above=0)))
        images[path.parent / entry["image"]] = mpp
    return images


def _find(path: Path, in_folder: Callable[[Path], list[Path]]) -> dict[Path, float | None]:
    """What is meant by a path, and the µm a pixel that a datalist states of it."""
    if path.is_dir():
        return dict.fromkeys(in_folder(path))
    if path.is_file():
        return _in_datalist(path) if path.suffix == ".json" else {path: None}
    if glob.has_magic(str(path)):
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
        if not found:
            raise DataError(f"{path}: no file or folder fits this pattern.")
        return {q: mpp for p in found for q, mpp in _find(p, in_folder).items()}
    raise DataError(f"{path}: there is no such file or folder.")


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """Case names; where several paths share one, with as many folders in front as it takes."""
    names = [case_name(p) for p in paths]
    for depth in range(1, max(len(p.parts) for p in paths)):
        shared = {n for n in names if names.count(n) > 1}
        if not shared:
            return names
        names = [
            "_".join([*p.parts[-1 - depth : -1], case_name(p)]).lstrip("/") if n in shared else n
            for p, n in zip(paths, names, strict=True)
        ]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise DataError(
                f"{paths[names.index(name)]} and {paths[i]} would both be the case {case_name(paths[i])}, and one "
                "result would overwrite the other. Rename one, or run them into different --output_dir."
            )
    return names


def _given(path: object, what: str, forms: str) -> list[Path]:
    """The paths; a `DataError` where one of them is empty, or a command line says `--input` and nothing behind it."""
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path) if isinstance(path, Sequence) else []
    if not paths or not all(os.fspath(p) for p in paths):
        raise DataError(f"No {what} is given. Give one with --input: {forms}, or a datalist.")
    return [Path(p).expanduser() for p in paths]


def list_inputs(path: str | os.PathLike | Sequence[str | os.PathLike]) -> list[dict[str, str]]:
    """The CTs that a user means by a path.

    Args:
        path: a file (NIfTI, NRRD, MetaImage, one DICOM file), a folder with the DICOM files of one series, a folder
            of such files or folders, a glob pattern, a datalist in the decathlon format (`.json`, its list `test`), or
            a list of all these.

    Returns:
        One dict a CT, in the order given: `image`, the path of a file or DICOM folder, and `case`, a name that no
        other of them has. A path that is found twice is listed once.

    Raises:
        DataError: when nothing is given, a path does not exist, nothing is found in it, or two CTs would get the same
            name.
    """
    forms = "a file (NIfTI, NRRD, MHA), a DICOM folder, a folder of these, a pattern such as 'scans/*.nii.gz'"
    paths = list(dict.fromkeys(q.resolve() for p in _given(path, "CT", forms) for q in _find(p, _in_folder)))
    return [{"image": str(p), "case": name} for p, name in zip(paths, _unique_names(paths), strict=True)]


def list_images(path: str | os.PathLike | Sequence[str | os.PathLike], slides: bool = False) -> list[dict[str, Any]]:
    """The image files that a user means by a path.

    Args:
        path: an image file, a folder (with those below it, without hidden ones), a glob pattern, a datalist (`.json`,
            its list `test`), or a list of all these.
        slides: for detection: whole slides in folders, too, and the size of a pixel where a datalist states it.

    Returns:
        One dict an image: `image` and `file`, the full path, and `case`, the path from the folder that all have in
        common. In the order given, a folder's in alphabetical order; what is found twice is listed once. With
        `slides`, the case has no extension unless two would then be the same, and `mpp` is the µm per pixel that an
        entry of a datalist, or else the datalist, states, if either does.

    Raises:
        DataError: when nothing is given, a path does not exist, or nothing is found in it.
    """
    # links are not followed: what they are called is what the user knows
    suffixes = IMAGE_SUFFIXES + SLIDE_SUFFIXES * slides
    below = partial(_images_below, suffixes=suffixes)
    forms = "a file (PNG, JPEG, TIFF), a folder of these, a pattern such as 'patches/*.png'"
    mpp: dict[str, float | None] = {}
    for p in _given(path, "image", forms):
        for q, stated in _find(p, below).items():
            file = os.path.abspath(q)
            mpp[file] = stated or mpp.get(file)
    common = os.path.commonpath([os.path.dirname(file) for file in mpp])
    images: list[dict[str, Any]] = [
        {"image": file, "file": file, "case": os.path.relpath(file, common)} for file in mpp
    ]
    if slides:
        stems = [os.path.splitext(image["case"])[0] for image in images]
        counts = Counter(stems)
        for image, stem in zip(images, stems, strict=True):
            image["case"] = stem if counts[stem] == 1 else image["case"]
            if mpp[image["file"]] is not None:
                image["mpp"] = mpp[image["file"]]
    return images


def _images_below(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    shown = [p for p in sorted(path.rglob("*")) if not any(n.startswith(".") for n in p.relative_to(path).parts)]
    found = [p for p in shown if p.suffix.lower() in suffixes and p.is_file()]
    if not found:
        raise DataError(f"{path}: holds no image. Looked for {', '.join(suffixes)} in it and below it.")
    return found
