from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor

from ..data import case_name, ids_in_files
from ..data.dicom_reader import SeriesReader
from ..data.dicom_series import is_dicom, series_of
from ..data.geometry import Grid, check_grid
from ..data.label_maps import to_label_map
from ..data.labels import MOST_CLASSES
from ..data.volumes import doubt_of_hu, settle_affine, sided_organs, volume_reader
from ..utils import DataError
from .in_memory import volume_in_memory
from .loader import OwnLoadImaged

logger = logging.getLogger(__name__)

# What was said of one file and need not be repeated for the others of a data set.
_TOLD: set[str] = set()


class LoadVolumed(OwnLoadImaged):
    """Load CT volumes (and label maps) and refuse, with the reason, what cannot be worked on.

    Reads NIfTI (nibabel), and NRRD, MetaImage and DICOM series (ITK), and takes volumes that are in memory already, as
    MONAI Deploy hands them over, see `volume_in_memory`. Images become float32, the label map uint8, both `MetaTensor`
    of shape (1, x, y, z) in the file's own orientation, with the affine to RAS mm. The dict gets `case`, the name of
    the first key's file without extension, unless it has one; an array has none. Of a folder with several CT series,
    `series` in the dict, a SeriesInstanceUID, is read; a DICOM file stands for its whole series. An image's `meta` then
    has `study_uid` and `series_uid`.

    Args:
        keys: keys that hold the path of a file or of a DICOM folder, or a volume, an array or `MetaTensor`.
        label_key: the one of them that is a label map.
        labels: name → id of the classes, ids 1 … N; the label map may hold 0 … N. Without it 0 … 255.
        label_ids: name → id or ids in the files, see `ids_in_files`: the label map becomes one of `labels`, and other
            values, up to 65535, become background, which a line in the log says once. None: the ids are those of
            `labels`.
        allow_missing_keys: pass over keys that the dict lacks.
        assume_orientation: where the axes of files point to that do not say it, as RAS, see `settle_affine`. None: such
            files are warned of, and refused where names of `labels` are left or right.
        check_intensity: `"warn"` of an image that seems to be no CT in HU, see `doubt_of_hu`, once where there is a
            label map, too; `"error"` refuses it, `"off"` does not look.
        nan_as: HU in place of NaN and infinity in images; None: they are refused.
        hu_key: where the first image's HU are kept, an int16 array (1, x, y, z), for measures on the file's own grid;
            None: nowhere. No tensor: MONAI Deploy gives a network all of these.

    Raises:
        DataError: the file is missing, unreadable or cut short; it is no 3D volume with one value a voxel; an axis is
            empty; spacing is zero, negative, not a number or that of no CT; the axes are sheared; voxels are NaN or
            infinite; sides cannot be told; it seems to be no CT and is to be refused; a folder holds no CT series or
            several, or one whose slices cannot all be read or make no volume, see `series_of` and `volume_of`; a label
            map lies on another grid than the image (the first other key), or holds other values than the labels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str | None = None,
        labels: Mapping[str, int] | None = None,
        allow_missing_keys: bool = False,
        label_ids: Mapping[str, int | Sequence[int]] | None = None,
        assume_orientation: str | None = None,
        check_intensity: str = "warn",
        nan_as: float | None = None,
        hu_key: str | None = None,
    ) -> None:
        super().__init__(keys, ensure_channel_first=True, image_only=True, allow_missing_keys=allow_missing_keys)
        self.label_key = label_key
        # id in the file → id of the class; part of what the preprocessing's cache goes by
        names = {str(i): i for i in range(1, MOST_CLASSES + 1)} if labels is None else dict(labels)
        self.classes = {i: names[name] for name, ids in ids_in_files(names, label_ids).items() for i in ids}
        self.others = label_ids is not None
        self.assume_orientation = assume_orientation
        self.check_intensity = check_intensity
        self.nan_as = nan_as
        self.hu_key = hu_key
        self.sided = sided_organs(labels or ())

    def __call__(
        self, data: Mapping[Hashable, Any], reader: ImageReader | None = None
    ) -> dict[Hashable, torch.Tensor | str]:
        d = dict(data)
        names: dict[Hashable, Path] = {}
        for key in self.key_iterator(d):
            names[key] = _name(key, d[key])
            if key == self.label_key:
                d[key] = self._load(d[key], names[key], reader)
                _check_volume(d[key], names[key], None)
            else:
                d[key] = self._load_image(d[key], names[key], reader, d.get("series"), d.get("origin"))
            if d[key].meta["filename_or_obj"]:
                d.setdefault("case", case_name(names[key]))
        if self.hu_key is not None:
            hu = d[next(iter(names))].numpy()
            d[self.hu_key] = hu.round().clip(-(2**15), 2**15 - 1).astype(np.int16)
        if self.label_key in names:
            image = next((key for key in names if key != self.label_key), self.label_key)
            d[self.label_key] = self._label_map(*((d[key], names[key]) for key in (self.label_key, image)))
        return d

    def _load_image(
        self, value: Any, path: Path, reader: ImageReader | None, series: str | None, origin: str | None
    ) -> MetaTensor:
        """What is wrong with a part of a zip is said by its place there."""
        shown = Path(origin or path)
        try:
            image = self._load(value, path, reader, series)
        except DataError as e:
            if origin is None:
                raise
            raise DataError(str(e).replace(str(path), origin)) from None
        if origin is not None:
            image.meta["origin"] = origin
        _check_volume(image, shown, self.nan_as)
        if self.check_intensity != "off":
            self._doubt(image, shown)
        return image

    def _doubt(self, image: MetaTensor, path: Path) -> None:
        if doubt := doubt_of_hu(path, image[0].numpy(), image.affine.numpy()):
            if self.check_intensity == "error":
                raise DataError(doubt)
            self._warn(image, "intensity", doubt)

    def _warn(self, volume: MetaTensor, kind: str, remark: str) -> None:
        """Warn of a scan, in the log and, by its `remarks`, in what is made of it; once for a data set with labels."""
        volume.meta["remarks"] = " ".join(filter(None, [volume.meta["remarks"], remark]))
        if self.label_key is not None:
            if kind in _TOLD:
                return
            _TOLD.add(kind)
            remark += " (Said once, other files may be alike.)"
        logger.warning("%s", remark)

    def _label_map(self, of: tuple[MetaTensor, Path], image_of: tuple[MetaTensor, Path]) -> MetaTensor:
        label, image = of[0], image_of[0]
        own, wanted = (Grid(p, tuple(x.shape[1:]), x.affine.numpy()) for x, p in (of, image_of))
        found = to_label_map(label[0].numpy(), own, self.classes, self.others, wanted)
        meta = {**(image if found.reoriented else label).meta, "filename_or_obj": label.meta["filename_or_obj"]}
        return MetaTensor(torch.from_numpy(found.voxels)[None], meta=meta)

    def _load(self, value: Any, path: Path, reader: ImageReader | None, series: str | None = None) -> MetaTensor:
        """The volume in memory, or in a file or DICOM folder."""
        if isinstance(value, np.ndarray | torch.Tensor):
            volume, remarks = volume_in_memory(value, path, self.assume_orientation, self.sided)
        else:
            volume, remarks = self._read(path, reader, series)
        for remark in remarks:
            self._warn(volume, "sides", remark)
        return volume

    def _read(self, path: Path, reader: ImageReader | None, series: str | None) -> tuple[MetaTensor, list[str]]:
        """The volume in a file or DICOM folder, and in words what to warn of."""
        if path.is_symlink() and not path.exists():
            raise DataError(
                f"{path}: a link to {path.readlink()}, which is not there. Fetch that file or link another."
            )
        if not path.exists():
            raise DataError(f"{path}: there is no such file or folder.")
        found = None
        try:
            # A reader of its own for each file: NibabelReader keeps the name of the last one, and threads share us.
            if is_dicom(path):
                found = series_of(path, series)
                reader = reader or SeriesReader(path, found)
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
        if found is not None:
            volume.meta |= {"study_uid": found.headers[0].study, "series_uid": found.uid}
        affine, remarks = settle_affine(
            path, volume.shape[1:], volume.affine.numpy(), self.assume_orientation, self.sided
        )
        volume.affine = volume.meta["original_affine"] = torch.from_numpy(affine)
        volume.meta["remarks"] = ""  # text, which batches can hold
        return volume, remarks


def _name(key: Hashable, value: Any) -> Path:
    """Where a volume lies, by which errors call it."""
    if not isinstance(value, np.ndarray | torch.Tensor):
        return Path(value).expanduser()
    return Path(getattr(value, "meta", {}).get("filename_or_obj") or f"{key} (in memory)")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _check_volume(volume: MetaTensor, path: Path, nan_as: float | None) -> None:
    check_grid(path, volume.shape[1:], volume.affine.numpy(), volume.shape[0])
    strange = ~volume.as_tensor().isfinite()
    if not strange.any():
        return
    found = f"{int(strange.sum())} of {volume.numel()} voxels are NaN or infinite"
    if nan_as is None:
        raise DataError(
            f"{path}: {found}, expected HU in every voxel of a CT (air is -1024) and a whole number in every voxel of "
            "a label map. Export it again, or set --nan_as to the HU that stand for them in a CT, such as -1024."
        )
    volume.as_tensor()[strange] = nan_as
    logger.warning("%s: %s, taken for %g HU", path, found, nan_as)
