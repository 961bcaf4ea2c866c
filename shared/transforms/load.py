from __future__ import annotations

import gzip
import logging
import math
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, ITKReader, MetaTensor, NibabelReader
from monai.transforms import LoadImaged
from monai.utils import ensure_tuple

from ..data import case_name, ids_in_files
from ..data.geometry import DEFLATED, check_claim, check_geometry, check_grid, check_nifti_header
from ..data.labels import MOST_CLASSES, MOST_FILE_ID
from ..utils import DataError
from ..utils.text import first_few

logger = logging.getLogger(__name__)

# Largest difference between two affines, in mm, that is taken for rounding.
_AFFINE_TOLERANCE = 1e-3
# Largest deviation of the distance between two DICOM slices from the mean one, as a share of it.
_GAP_TOLERANCE = 0.25
# Largest distance between a slice's place in the volume and the one in its DICOM header, in pixels.
_SLICE_TOLERANCE = 0.5
# The mappings of label values whose left-out values were told of: the log of many files need not repeat it.
_TOLD: set[tuple[int, ...]] = set()


class _NiftiReader(NibabelReader):
    """Takes the affine that nibabel does, and every other program.

    The parent exchanges an sform that differs from `pixdim` by as little as rounding for the qform, even where the
    header says that there is no qform: left and right can then be swapped. A compressed file is read to its end, so
    that its checksum tells of damage anywhere in it.
    """

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


class _SeriesReader(ITKReader):
    """Refuses a DICOM series whose slices form no box: ITK would make one of them, and move or stretch the patient.

    Args:
        last_slice: the file of the series' last slice.
    """

    def __init__(self, last_slice: str) -> None:
        super().__init__()
        self.last_slice = last_slice

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> Any:
        image = super().read(data, **kwargs)
        folder, count, spacing = ensure_tuple(data)[0], itk.size(image)[2], image.GetSpacing()
        found, key = image.GetMetaDataDictionary(), "ITK_non_uniform_sampling_deviation"
        if found.HasKey(key) and found[key] > _GAP_TOLERANCE * spacing[2]:
            raise DataError(
                f"{folder}: slices are missing or unevenly spaced: of {count} slices, {spacing[2]:g} mm apart on "
                f"average, two are {found[key]:g} mm off that distance. Expected even distances. Export the whole "
                "series again, or resample it to an even spacing."
            )
        header = itk.GDCMImageIO.New(FileName=self.last_slice)
        header.ReadImageInformation()
        place = image.TransformIndexToPhysicalPoint([0, 0, count - 1])
        shift = np.linalg.norm([place[i] - header.GetOrigin(i) for i in range(3)])
        if shift > _SLICE_TOLERANCE * spacing[0]:
            raise DataError(
                f"{folder}: the slices are shifted against each other (a tilted gantry?): the last of {count} lies "
                f"{shift:.1f} mm beside where a box-shaped grid has it. Resample the series onto such a grid."
            )
        return image


class LoadVolumed(LoadImaged):
    """Load CT volumes (and label maps) and refuse, with the reason, what cannot be worked on.

    Reads NIfTI (nibabel), and NRRD, MetaImage and folders with one DICOM series (ITK). Images become float32, the
    label map uint8, both `MetaTensor` of shape (1, x, y, z) in the file's own orientation, with the affine to RAS mm.
    The dict gets `case`, the name of the first key's file without extension, unless it has one.

    Args:
        keys: keys that hold the path of a file or of a DICOM folder.
        label_key: the one of them that is a label map.
        labels: name → id of the classes, ids 1 … N; the label map may hold 0 … N. Without it 0 … 255.
        label_ids: name → id or ids in the files, see `ids_in_files`: the label map becomes one of `labels`, and other
            values, up to 65535, become background, which a line in the log says once. None: the ids are those of
            `labels`.
        allow_missing_keys: pass over keys that the dict lacks.

    Raises:
        DataError: the file is missing, unreadable or cut short; it is no 3D volume with one value a voxel; an axis is
            empty; spacing is zero, negative or not a number; the axes are sheared; voxels are NaN or infinite; a
            folder holds no DICOM series or several, or one with uneven distances between its slices, or slices
            shifted by a tilted gantry; a label map lies on another grid than the image (the first other key), or
            holds other values than the labels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str | None = None,
        labels: Mapping[str, int] | None = None,
        allow_missing_keys: bool = False,
        label_ids: Mapping[str, int | Sequence[int]] | None = None,
    ) -> None:
        super().__init__(keys, ensure_channel_first=True, image_only=True, allow_missing_keys=allow_missing_keys)
        self.label_key = label_key
        self.label_count = MOST_CLASSES if labels is None else len(labels)
        self.classes = None  # id in the file → id of the class; part of what the preprocessing's cache goes by
        if label_ids is not None:
            names = dict(labels or {})
            self.classes = {i: names[name] for name, ids in ids_in_files(names, label_ids).items() for i in ids}

    def __call__(
        self, data: Mapping[Hashable, Any], reader: ImageReader | None = None
    ) -> dict[Hashable, torch.Tensor | str]:
        d = dict(data)
        paths = {key: Path(d[key]).expanduser() for key in self.key_iterator(d)}
        for key, path in paths.items():
            d[key] = self._load(path, reader)
            d.setdefault("case", case_name(path))
        if self.label_key in paths:
            label, path = d[self.label_key], paths[self.label_key]
            image_key = next((key for key in paths if key != self.label_key), None)
            if image_key is not None:
                _check_same_grid(d[image_key], paths[image_key], label, path)
            if self.classes is not None:
                label = _map_labels(label, path, self.classes)
            _check_labels(label, path, self.label_count)
            d[self.label_key] = label.to(torch.uint8)
        return d

    def _load(self, path: Path, reader: ImageReader | None) -> MetaTensor:
        """The volume in a file or DICOM folder, checked."""
        if not path.exists():
            raise DataError(f"{path}: there is no such file or folder.")
        try:
            # A reader of its own for each file: NibabelReader keeps the name of the last one, and threads share us.
            if path.is_dir():
                files = _files_of_one_series(path)
                reader = reader or _SeriesReader(last_slice=files[-1])
            elif path.name.lower().endswith((".nii", ".nii.gz")):
                check_nifti_header(path)
                reader = reader or _NiftiReader(squeeze_non_spatial_dims=True)
            else:
                _check_itk_header(path)
                reader = reader or ITKReader()
            loaded = self._loader(path, reader)
        except DataError:
            raise
        except MemoryError as e:
            raise DataError(
                f"{path}: there is not enough memory to read it. Cut or resample the volume, or export it again where "
                "its header claims more voxels than it has."
            ) from e
        except Exception as e:  # each reader, and each codec below it, has types of its own
            raise DataError(
                f"{path}: cannot be read ({type(e).__name__}: {_last_line(e)}). Expected NIfTI, NRRD, MetaImage or a "
                "DICOM series; it may be cut short or damaged: copy or export it again."
            ) from e
        # MONAI Label tells each loader of a bundle to give the metadata beside the image
        volume = loaded[0] if isinstance(loaded, tuple) else loaded
        _check_volume(volume, path)
        return volume


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _files_of_one_series(folder: Path) -> list[str]:
    """The files, in the order of the slices, of a folder with exactly one series; told apart as `ITKReader` does."""
    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(True)
    names.AddSeriesRestriction("0008|0021")
    names.SetDirectory(os.fspath(folder))
    series = {uid: list(names.GetFileNames(uid)) for uid in names.GetSeriesUIDs()}
    if not series:
        raise DataError(f"{folder}: holds no readable DICOM series. Expected a folder with the slices of one CT.")
    if len(series) > 1:
        found = "; ".join(f"{uid} with {len(files)} slices" for uid, files in series.items())
        raise DataError(
            f"{folder}: holds {len(series)} DICOM series, expected one: {found}. Put each into a folder of its own "
            "and give the one that is wanted."
        )
    return next(iter(series.values()))


def _check_itk_header(path: Path) -> None:
    """The header as it stands in the file: ITK turns a negative spacing into a flip."""
    io = itk.ImageIOFactory.CreateImageIO(os.fspath(path), itk.CommonEnums.IOFileMode_ReadMode)
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


def _check_volume(volume: MetaTensor, path: Path) -> None:
    check_grid(path, volume.shape[1:], volume.affine.numpy(), volume.shape[0])
    if not volume.isfinite().all():
        bad = int((~volume.isfinite()).sum())
        raise DataError(
            f"{path}: {bad} of {volume.numel()} voxels are NaN or infinite, expected HU in every voxel of a CT "
            "(air is -1024) and a whole number in every voxel of a label map. Export it again."
        )


def _check_same_grid(image: MetaTensor, image_path: Path, label: MetaTensor, label_path: Path) -> None:
    remedy = "The label map has to be drawn on, or resampled (nearest neighbour) to, this image."
    if image.shape != label.shape:
        raise DataError(
            f"{label_path}: a grid of {tuple(label.shape[1:])} voxels, expected {tuple(image.shape[1:])} as in "
            f"{image_path}. {remedy}"
        )
    if not torch.allclose(image.affine, label.affine, rtol=0, atol=_AFFINE_TOLERANCE):
        raise DataError(
            f"{label_path}: its affine is\n{label.affine.numpy()}\nexpected that of {image_path}\n"
            f"{image.affine.numpy()}\n{remedy}"
        )


def _map_labels(label: MetaTensor, path: Path, classes: Mapping[int, int]) -> MetaTensor:
    """A label map of the classes from one with the ids of a file; what has no class becomes background."""
    _check_labels(label, path, MOST_FILE_ID)
    table = torch.zeros(MOST_FILE_ID + 1)
    table[list(classes)] = torch.tensor(list(classes.values()), dtype=table.dtype)
    values = label.as_tensor()
    mapped = table[values.long()]
    left_out = tuple(int(value) for value in torch.unique(values[(mapped == 0) & (values != 0)]))
    if left_out and (key := tuple(classes)) not in _TOLD:
        _TOLD.add(key)
        logger.info(
            "%s: the values %s are not in label_ids and become background, here and in other files (said once)",
            path,
            first_few([str(value) for value in left_out], 10),
        )
    return MetaTensor(mapped, meta=label.meta)


def _check_labels(label: MetaTensor, path: Path, count: int) -> None:
    values = label.as_tensor()
    bad = (values != values.round()) | (values < 0) | (values > count)
    if bad.any():
        found = [f"{value:g}" for value in torch.unique(values[bad]).tolist()]
        raise DataError(
            f"{path}: holds the label values {first_few(found, 10)} in {int(bad.sum())} voxels, expected whole numbers "
            f"from 0 to {count}. Set `labels` to the classes of the data set, or map its ids to these with `label_ids`."
        )
