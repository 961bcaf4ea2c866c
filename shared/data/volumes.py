"""CT volumes and label maps in files: NIfTI by nibabel, NRRD and MetaImage by ITK, read alike for every use."""

from __future__ import annotations

import gzip
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
from monai.data import ImageReader, ITKReader, NibabelReader
from monai.utils import ensure_tuple

from ..utils import DataError
from .dicom_series import is_dicom, series_of
from .dicom_volume import volume_of
from .geometry import (
    DEFLATED,
    SIDES_MM,
    Grid,
    check_claim,
    check_geometry,
    check_grid,
    check_nifti_header,
    longest_side,
)

logger = logging.getLogger(__name__)

NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img")
_UNITS = {1: ("metres", 1000), 3: ("microns", 1e-3)}  # NIfTI's codes: in words, and in mm

_CROP_LITRES = 2
_MOST_LABELS = 256


class NiftiReader(NibabelReader):
    """Takes the affine that nibabel does, and every other program.

    The parent exchanges an sform that differs from `pixdim` by as little as rounding for the qform, even where the
    header says that there is no qform: left and right can then be swapped. A compressed file is read to its end, so
    that its checksum tells of damage anywhere in it.
    """

    def __init__(self) -> None:
        super().__init__(squeeze_non_spatial_dims=True)

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> nib.Nifti1Image:
        self.filenames = ensure_tuple(data)
        path = self.filenames[0]
        image = nib.load(path, **kwargs)
        if not str(path).lower().endswith(".gz"):
            return image
        header = image.header
        needed = int(image.dataobj.offset) + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
        with gzip.open(path) as file:
            content = file.read(needed)
            while file.read(2**20):  # to the end of the stream, where its checksum stands
                pass
        return type(image).from_bytes(content)


def volume_reader(path: Path) -> ImageReader:
    """A reader for a file, whose header has been seen to.

    Raises:
        DataError: when it is of no known format, or no volume that can be worked on, see `shared.data.geometry`. What
            nibabel and ITK raise of an unreadable file is not caught.
    """
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        check_nifti_header(path)
        return NiftiReader()
    _read_itk_header(path)
    return ITKReader()


def settle_affine(
    path: Path, shape: Sequence[int], affine: np.ndarray, assumed: str | None = None, sided: Sequence[str] = ()
) -> tuple[np.ndarray, list[str]]:
    """What a reader takes for the affine of a file, to mm, and where the file says nothing of sides, as is `assumed`.

    NIfTI in metres and microns becomes mm where that makes it as large as a CT. NIfTI without qform and sform, Analyze,
    and NRRD without `space` say nothing of sides, and each program assumes its own.

    Args:
        path: a file, or a folder with DICOM files, which say all of it.
        shape: number of voxels along the axes.
        affine: (4, 4), as read, RAS.
        assumed: where the axes point to, as RAS.
        sided: organs that have sides.

    Returns:
        the affine, and in words what to warn of.

    Raises:
        DataError: when there are sided organs, nothing is assumed, and the file says nothing of sides.
    """
    is_nifti, remarks = path.name.lower().endswith(NIFTI_SUFFIXES), []
    header = nib.load(path).header if is_nifti else {}
    code = int(header["xyzt_units"]) % 8 if "xyzt_units" in header else 2  # Analyze has none, others may be anything
    unit, factor = _UNITS.get(code, ("mm", 1))
    if factor != 1:
        longest = longest_side(shape, affine)
        if SIDES_MM[0] <= longest * factor <= SIDES_MM[1]:
            affine = np.diag([factor, factor, factor, 1]) @ affine
        elif SIDES_MM[0] <= longest <= SIDES_MM[1]:
            remarks.append(
                f"{path}: its header says {unit}, in which its longest side would be {longest * factor:.4g} mm: taken "
                "for mm."
            )
    if not (_lacks_forms(header) if is_nifti else _lacks_space(path)):
        return affine, remarks
    lacking = "its header says nothing of its orientation (neither qform nor sform, nor NRRD's space)"
    affine, doubts = settle_sides(path, affine, lacking, assumed, sided)
    return affine, remarks + doubts


def settle_sides(
    path: Path, affine: np.ndarray, lacking: str, assumed: str | None, sided: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """The affine of a volume that says nothing of sides, and what to warn of; see `settle_affine`.

    Args:
        path: or a name, for the message.
        affine: (4, 4), RAS, of which the spacing is right.
        lacking: in words, what it does not say.
        assumed: where the axes point to, as RAS.
        sided: organs that have sides.

    Raises:
        DataError: when there are sided organs, and nothing is assumed.
    """
    if assumed:
        return _assumed_affine(affine, assumed), []
    if sided:
        raise DataError(
            f"{path}: {lacking}: left and right of {', '.join(sided[:2])} cannot be told. Convert the original again, "
            "or say where its axes point to, as in --assume_orientation RAS (right, front, head)."
        )
    codes = "".join(nib.aff2axcodes(affine))
    exchanged = f"left and right may be exchanged. Taken for {codes}; --assume_orientation RAS takes another."
    return affine, [f"{path}: {lacking}: {exchanged}"]


def _lacks_forms(header: nib.Nifti1Header) -> bool:
    return not any(int(header[form]) for form in ("qform_code", "sform_code") if form in header)


def _lacks_space(path: Path) -> bool:
    if path.suffix.lower() not in (".nrrd", ".nhdr") or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(2**16).split(b"\n\n")[0].split(b"\r\n\r\n")[0]
    return not re.search(rb"^space: *\S", head, re.MULTILINE | re.IGNORECASE)


def _assumed_affine(affine: np.ndarray, codes: str) -> np.ndarray:
    result = np.eye(4)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    for axis, (direction, sign) in enumerate(nib.orientations.axcodes2ornt(codes)):
        result[axis, axis] = 0
        result[int(direction), axis] = sign * spacing[axis]
    return result


def sided_organs(labels: Iterable[str]) -> tuple[str, ...]:
    """The names of those that are left or right, also short, as in kidney_l."""
    return tuple(name for name in labels if re.search(r"left|right|(?<![a-z])[lr](?![a-z])", name, re.IGNORECASE))


def read_grid(path: str | os.PathLike, assumed: str | None = None, sided: Sequence[str] = ()) -> Grid:
    """The grid of a volume, from its header alone, as `find_grid` finds it; its remarks are warned of."""
    grid, remarks = find_grid(path, assumed, sided)
    for remark in remarks:
        logger.warning("%s", remark)
    return grid


def find_grid(
    path: str | os.PathLike, assumed: str | None = None, sided: Sequence[str] = (), series: str | None = None
) -> tuple[Grid, list[str]]:
    """The grid of a volume, from its header alone, and what to warn of.

    Args:
        path: a file, or a DICOM series' folder.
        assumed, sided: see `settle_affine`.
        series: the SeriesInstanceUID, where the folder holds several.

    Raises:
        DataError: when it cannot be read, or worked on, or says nothing of sides, see `settle_affine`.
    """
    path = Path(path)
    try:
        _, shape, affine = _read_grid(path, series)
    except Exception as e:
        raise _unreadable(path, e) from e
    affine, remarks = settle_affine(path, shape, affine, assumed, sided)
    check_grid(path, shape, affine)
    return Grid(path, tuple(int(n) for n in shape[:3]), affine), remarks


def _read_grid(path: Path, series: str | None = None) -> Grid:
    """As it stands in the file."""
    path.stat()  # where there is none, that is said
    if is_dicom(path):
        return volume_of(path, series_of(path, series)).grid(path)
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        check_nifti_header(path)
        image = nib.load(path)
        return Grid(path, image.shape, image.affine)
    io = _read_itk_header(path)
    affine = np.eye(4)
    for i in range(3):
        affine[:3, i] = np.array(io.GetDirection(i)[:3]) * io.GetSpacing(i)
        affine[i, 3] = io.GetOrigin(i)
    affine[:2] *= -1  # ITK's axes point to the left and back
    return Grid(path, tuple(io.GetDimensions(i) for i in range(io.GetNumberOfDimensions())), affine)


def read_volume(
    path: str | os.PathLike, assumed: str | None = None, sided: Sequence[str] = ()
) -> tuple[np.ndarray, Grid]:
    """The voxels (x, y, z) of a volume, in the type of the file unless its header scales them, and their grid.

    Args:
        path: a file.
        assumed, sided: see `settle_affine`.

    Raises:
        DataError: when it cannot be read, or worked on, or says nothing of sides.
    """
    path = Path(path)
    try:
        reader = volume_reader(path)
        voxels, meta = reader.get_data(reader.read(path))
    except Exception as e:
        raise _unreadable(path, e) from e
    voxels = voxels.reshape(voxels.shape[:3])
    affine, _ = settle_affine(path, voxels.shape, np.asarray(meta["affine"], float), assumed, sided)
    check_grid(path, voxels.shape, affine)
    return voxels, Grid(path, voxels.shape, affine)


def doubt_of_hu(path: str | os.PathLike, voxels: np.ndarray, affine: np.ndarray) -> str:
    """Why a volume (x, y, z) seems to be no CT in HU, in words; empty where it may well be one.

    Every scan shows air, in the lungs, the bowel or around the body. A crop to one organ, of less than two litres, may
    have none, but it has fat. Both have more than soft tissue in them.
    """
    low, high = float(voxels.min()), float(voxels.max())
    litres = abs(np.linalg.det(affine[:3, :3])) * voxels.size / 1e6
    least, span, what = (-500, 300, "air and gas are") if litres > _CROP_LITRES else (-80, 250, "fat is")
    if low < least and high - low > span:
        return ""
    lies = f"no voxel is below {least} HU, as {what}" if low >= least else "as little as in soft tissue alone"
    return (
        f"{path}: this may be no CT in Hounsfield units (HU): its voxels lie from {low:g} to {high:g}, {lies}. "
        "Expected air at -1000 and water at 0. Look for a rescale that is missing, a window of 8 bits, MR, PET or a "
        "label map; --check_intensity off goes on without a word."
    )


def label_maps_among(paths: Sequence[Path], series: Mapping[tuple[int, ...], str] | None = None) -> dict[Path, str]:
    """Those volumes of a folder that are label maps, each with the name of the scan on the same grid beside it.

    A label map is stored as whole numbers, none negative, and at most 256 of them. Volumes that lie beside none, and
    such as cannot be read, are not looked into.

    Args:
        paths: the volumes.
        series: of the DICOM series beside them the numbers of voxels, sorted, and the name.
    """
    grids: dict[tuple[int, ...], list[tuple[Path, np.ndarray]]] = {}
    for path in paths:
        try:
            _, shape, affine = _read_grid(path)
        except Exception:  # who loads it will say what is wrong with it
            continue
        corners = nib.affines.apply_affine(affine, np.array([*np.ndindex(2, 2, 2)]) * (np.array(shape[:3]) - 1))
        grids.setdefault(tuple(sorted(shape[:3])), []).append((path, np.array([corners.min(0), corners.max(0)])))
    found = {}
    for size, same in grids.items():
        scan = (series or {}).get(size)
        maps = [path for path, _ in same if (scan or len(same) > 1) and _is_label_map(path)]
        for path, box in ((path, box) for path, box in same if path in maps):
            beside = [q.name for q, other in same if q not in maps and np.allclose(box, other, atol=0.01)]
            if beside or scan:
                found[path] = beside[0] if beside else scan
    return found


def _is_label_map(path: Path) -> bool:
    try:
        if path.name.lower().endswith(NIFTI_SUFFIXES):  # a CT shows in its first slice what it is
            first = np.asanyarray(nib.load(path).dataobj[..., :1])
            if first.dtype.kind not in "iu" or first.min() < 0:
                return False
        voxels, _ = read_volume(path)
    except Exception:  # as above
        return False
    return voxels.dtype.kind in "iu" and voxels.min() >= 0 and len(np.unique(voxels)) <= _MOST_LABELS


def _unreadable(path: Path, error: Exception) -> DataError:
    """What to raise: each reader, and each codec below it, has exceptions of its own."""
    if isinstance(error, DataError):
        return error
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: cannot be read (there is no such file). Download or unpack it again.")
    said = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    return DataError(f"{path}: cannot be read ({type(error).__name__}: {said[-1]}). Download or unpack it again.")


def _read_itk_header(path: Path) -> Any:
    """ITK's reader with the header as it stands in the file: ITK turns a negative spacing into a flip."""
    mode = itk.CommonEnums.IOFileMode_ReadMode
    io = None if path.is_dir() else itk.ImageIOFactory.CreateImageIO(os.fspath(path), mode)
    if io is None:
        raise DataError(
            f"{path}: no known format of volumes. Expected NIfTI (.nii, .nii.gz), NRRD (.nrrd), MetaImage (.mha) or a "
            "folder with DICOM files."
        )
    io.SetFileName(os.fspath(path))
    io.ReadImageInformation()
    axes = range(io.GetNumberOfDimensions())
    spacing = [io.GetSpacing(i) for i in axes][:3]
    if ratio := _packed(path):
        check_claim(path, io.GetImageSizeInBytes(), ratio)
    check_geometry(path, [io.GetDimensions(i) for i in axes], spacing, io.GetNumberOfComponents())
    return io


def _packed(path: Path) -> int:
    """Bytes of voxels that a byte of a NRRD or MetaImage file holds at most; 0 where that is not known."""
    with path.open("rb") as file:
        head = file.read(2**12).lower()
    if path.suffix.lower() == ".mha" and not re.search(rb"binarydata *= *false", head):
        return DEFLATED if re.search(rb"compresseddata *= *true", head) else 1
    encoding = re.search(rb"^encoding: *(raw|gzip|gz)\s", head, re.MULTILINE)
    if path.suffix.lower() != ".nrrd" or not encoding or b"data file:" in head or b"datafile:" in head:
        return 0
    return 1 if encoding[1] == b"raw" else DEFLATED
