from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import itk
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, ITKReader, MetaTensor
from monai.transforms import LoadImaged
from monai.utils import ensure_tuple

from ..data import case_name, ids_in_files
from ..data.geometry import Grid, check_grid
from ..data.label_maps import REORIENTED, to_label_map
from ..data.labels import MOST_CLASSES
from ..data.volumes import volume_reader
from ..utils import DataError

logger = logging.getLogger(__name__)

# Largest deviation of the distance between two DICOM slices from the mean one, as a share of it.
_GAP_TOLERANCE = 0.25
# Largest distance between a slice's place in the volume and the one in its DICOM header, in pixels.
_SLICE_TOLERANCE = 0.5
# What was said of one file and need not be repeated for the others of a data set.
_TOLD: set[str] = set()


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
        # id in the file → id of the class; part of what the preprocessing's cache goes by
        names = {str(i): i for i in range(1, MOST_CLASSES + 1)} if labels is None else dict(labels)
        self.classes = {i: names[name] for name, ids in ids_in_files(names, label_ids).items() for i in ids}
        self.others = label_ids is not None

    def __call__(
        self, data: Mapping[Hashable, Any], reader: ImageReader | None = None
    ) -> dict[Hashable, torch.Tensor | str]:
        d = dict(data)
        paths = {key: Path(d[key]).expanduser() for key in self.key_iterator(d)}
        for key, path in paths.items():
            d[key] = self._load(path, reader)
            d.setdefault("case", case_name(path))
        if self.label_key in paths:
            image = next((key for key in paths if key != self.label_key), self.label_key)
            d[self.label_key] = self._label_map(*((d[key], paths[key]) for key in (self.label_key, image)))
        return d

    def _label_map(self, of: tuple[MetaTensor, Path], image_of: tuple[MetaTensor, Path]) -> MetaTensor:
        (label, path), (image, _) = of, image_of
        own, wanted = (Grid(p, tuple(x.shape[1:]), x.affine.numpy()) for x, p in (of, image_of))
        found = to_label_map(label[0].numpy(), own, self.classes, self.others, wanted)
        if found.reoriented and "reoriented" not in _TOLD:
            _TOLD.add("reoriented")
            logger.info("%s: %s (said once, other files may be alike)", path, REORIENTED)
        meta = {**(image if found.reoriented else label).meta, "filename_or_obj": label.meta["filename_or_obj"]}
        return MetaTensor(torch.from_numpy(found.voxels)[None], meta=meta)

    def _load(self, path: Path, reader: ImageReader | None) -> MetaTensor:
        """The volume in a file or DICOM folder, checked."""
        if not path.exists():
            raise DataError(f"{path}: there is no such file or folder.")
        try:
            # A reader of its own for each file: NibabelReader keeps the name of the last one, and threads share us.
            if path.is_dir():
                files = _files_of_one_series(path)
                reader = reader or _SeriesReader(last_slice=files[-1])
            else:
                reader = reader or volume_reader(path)
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


def _check_volume(volume: MetaTensor, path: Path) -> None:
    check_grid(path, volume.shape[1:], volume.affine.numpy(), volume.shape[0])
    if not volume.isfinite().all():
        bad = int((~volume.isfinite()).sum())
        raise DataError(
            f"{path}: {bad} of {volume.numel()} voxels are NaN or infinite, expected HU in every voxel of a CT "
            "(air is -1024) and a whole number in every voxel of a label map. Export it again."
        )
