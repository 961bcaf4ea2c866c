"""A segmentation written to its folder: the label map, the organs' volumes, a preview."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from errno import EEXIST, ENOTEMPTY
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from ..data import check_source, source_digest
from ..data.geometry import shear
from ..data.volumes import NIFTI_SUFFIXES
from ..inferers import axis_maps
from ..networks import ModelRecord
from ..reports import save_preview
from ..reports.organs import DICOM_FILES, DICOM_NOTE, label_name_files, measure_organs, write_label_names
from ..reports.provenance import warning_of_results
from ..utils import EARLIER, DataError, flag, name_full_disk, temporary_folder, writable_folder

logger = logging.getLogger(__name__)

_MASKS = "structures"  # the folder of a file for each organ
_OPTIONAL = {_MASKS, DICOM_NOTE, *DICOM_FILES.values()}
_ITK_SHEAR = 5e-5  # ITK refuses 1e-4


class SaveSegmentationd(SaveImaged):
    """Write the segmentation of a case: label map, organ volumes, preview.

    In `<output_dir>/<case>/` appear, together or not at all:

    * `<case>_seg.nii.gz`: the label map, uint8, on the native grid, with the same affine; where the image is a NIfTI
      file, also with its sform and qform codes and units.
    * `<case>_seg_ColorTable.ctbl` and `<case>_seg_labels.txt`: its names, for 3D Slicer and ITK-SNAP.
    * `structures/<name>.nii.gz`, if asked for: each organ that was found as a mask of 0 and 1.
    * `organs.json`: of each organ what `measure_organs` says, the image with its digest and, of a DICOM series, its
      Study and Series UID, the weights' digest and the settings, what the network was trained on, and a `warning`
      where that was synthetic data or is unknown.
    * `seg.dcm`, `rtstruct.dcm`, `sr.dcm`, if asked for: the DICOM objects; `dicom.json` says which there are.
    * `preview.png`: three planes with the label map over the CT. It shows the image as the network saw it, which is
      at hand and windowed, and the label map as it was written, taken back to that grid.

    An earlier result is replaced, unless it is of another image. What has no `case`, as a volume that came as an array,
    is not written: the program that gave it, such as MONAI Deploy, takes the label map. It is a `SaveImaged` so that
    programs which drop a bundle's own writer, as MONAI Label does, find it.

    Args:
        keys: the label map, (1, …) on the native grid, a `MetaTensor` as `RestoreLabelMapd` makes it.
        ref_key: the preprocessed image, (1, …), RAS, in [0, 1]. `case` stands beside it, see `LoadVolumed`.
        output_dir: made when it is missing.
        labels: name → id of the organs.
        record: what the weights were trained on, see `read_model_record`; None or empty: unknown.
        made_with: the weights' digest and the settings, see `shared.data.made_with`.
        structures: names of the organs that are written; None: all. The others become background.
        per_structure: a file for each of them, too.
        hu_key: where the HU on the native grid are, see `LoadVolumed`; without them mean and deviation are left out.
        export: what writes the DICOM objects and stores them, see `shared.dicom.SegmentationExport`; None: there are
            none. What the PACS refuses is a failure of the case, whose files are there all the same.

    Raises:
        DataError: when `structures` has other names than `labels`, two names make one file, the folder cannot be
            written to, or that of the case holds other files, or the result of another image.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        ref_key: str = "image",
        output_dir: str | os.PathLike = "eval",
        labels: Mapping[str, int] | None = None,
        record: ModelRecord | None = None,
        allow_missing_keys: bool = False,
        made_with: Mapping[str, Any] | None = None,
        structures: Sequence[str] | None = None,
        per_structure: bool | str = False,
        hu_key: str = "hu",
        export: Any = None,
    ) -> None:
        super().__init__(keys, output_dir=output_dir, allow_missing_keys=allow_missing_keys)
        self.export = export
        self.ref_key = ref_key
        self.output_dir = Path(output_dir)
        self.labels = _chosen(dict(labels or {}), structures)
        self.files = _mask_files(self.labels) if flag("per_structure", per_structure) else {}
        self.hu_key = hu_key
        self.record = dict(record or {})
        self.made_with = dict(made_with or {})

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d) if "case" in d else ():
            self._save(d["case"], d[key], d[self.ref_key], d.get(self.hu_key))
        return d

    def _save(self, case: str, labels: MetaTensor, image: MetaTensor, hu: Any) -> None:
        source = str(image.meta.get("filename_or_obj", ""))
        uids = {key: str(image.meta[key]) for key in ("study_uid", "series_uid") if key in image.meta}
        label_map, affine = labels[0].cpu().numpy().astype(np.uint8), labels.affine.cpu().numpy()
        label_map[~np.isin(label_map, [*self.labels.values()])] = 0
        organs = self._facts(case, source, uids)
        organs["image"] = str(image.meta.get("origin", source))
        if remarks := image.meta.get("remarks"):
            organs["warning"] = "\n".join(filter(None, [organs.get("warning"), remarks]))
        voxel_mm3 = float(abs(np.linalg.det(affine[:3, :3])))
        organs["organs"] = measure_organs(
            label_map, self.labels, voxel_mm3, None if hu is None else torch.as_tensor(hu)[0].cpu().numpy()
        )

        target = writable_folder(self.output_dir) / case
        names = segmentation_files(case)
        check_source(target, read_segmentation(self.output_dir, case) or {}, source, uids.get("series_uid"))
        others = sorted(p.name for p in target.iterdir() if p.name not in names | _OPTIONAL) if target.is_dir() else []
        if others or target.is_file():
            raise DataError(
                f"{target}: holds other things ({', '.join(others[:3]) or 'a file'}) than an earlier segmentation, "
                "which would be replaced. Choose another --output_dir."
            )
        with temporary_folder(self.output_dir) as temporary, name_full_disk(target):
            folder, earlier = temporary / "new", temporary / EARLIER / case
            folder.mkdir()
            earlier.parent.mkdir()
            self._write_maps(folder, case, _nifti(label_map, affine, source))
            (folder / "organs.json").write_text(json.dumps(organs, indent=2) + "\n", encoding="utf-8")
            save_preview(
                folder / "preview.png",
                image[0].cpu().numpy(),
                _on_grid_of(label_map, affine, image),
                tuple(image.pixdim.tolist()),
                self.labels,
                title=case,
                warning=organs.get("warning", ""),
            )
            if self.export is not None:
                measures = organs["organs"]
                self.export.write(folder, source, uids.get("series_uid"), label_map, affine, measures)
            _replace(target, folder, earlier)
        if self.export is not None:
            self.export.send(target)
        found = sum(organ["voxels"] > 0 for organ in organs["organs"].values())
        logger.info("%s: %d of %d organs found, written to %s", case, found, len(self.labels), target)

    def _write_maps(self, folder: Path, case: str, result: nib.Nifti1Image) -> None:
        nib.save(result, folder / f"{case}_seg.nii.gz")
        write_label_names(folder, f"{case}_seg", self.labels)
        label_map = np.asanyarray(result.dataobj)
        for name, file in self.files.items():
            mask = (label_map == self.labels[name]).astype(np.uint8)
            if mask.any():
                (folder / _MASKS).mkdir(exist_ok=True)
                nib.save(nib.Nifti1Image(mask, None, result.header), folder / _MASKS / file)

    def _facts(self, case: str, source: str, uids: Mapping[str, str]) -> dict[str, Any]:
        content: dict[str, Any] = {"case": case, "image": source, **uids}
        if Path(source).exists() and source:
            content["source_digest"] = source_digest(source, uids.get("series_uid"))
        content |= self.made_with
        if warning := warning_of_results(self.record):
            content["warning"] = warning
        content["model"] = {k: v for k, v in self.record.items() if k != "labels"} or None
        return content


def _chosen(labels: dict[str, int], structures: Sequence[str] | None) -> dict[str, int]:
    if structures is None:
        return labels
    if unknown := [name for name in structures if name not in labels]:
        raise DataError(f"structures has {unknown[0]!r}, expected names of the network's classes: {', '.join(labels)}.")
    return {name: i for name, i in labels.items() if name in structures}


def _mask_files(labels: Mapping[str, int]) -> dict[str, str]:
    """Name of the organ → name of its file."""
    files = {name: re.sub(r"[^\w.+-]+", "_", name) + ".nii.gz" for name in labels}
    if len(set(files.values())) < len(files):
        raise DataError(f"labels has names that make one file ({', '.join(files.values())}). Leave per_structure out.")
    return files


def segmentation_files(case: str) -> set[str]:
    """What is in the folder of a case, beside masks of single organs."""
    return {f"{case}_seg.nii.gz", "organs.json", "preview.png", *label_name_files(f"{case}_seg")}


def read_segmentation(output_dir: Path, case: str) -> dict[str, Any] | None:
    """What an earlier result of this name says of its `file` and what it was made with; None where there is none."""
    try:
        content = json.loads((output_dir / case / "organs.json").read_bytes())
        return {"file": content.pop("image", None), **content}
    except (OSError, ValueError, AttributeError):  # what is damaged may be replaced
        return None


def _replace(target: Path, folder: Path, earlier: Path) -> None:
    """Move a folder to its place and what was there aside; again where another process was quicker.

    Where it is interrupted between the two, what was there is put back.
    """
    try:
        while True:
            with suppress(FileNotFoundError):
                shutil.rmtree(earlier, ignore_errors=True)
                target.rename(earlier)
            try:
                folder.rename(target)
                return
            except OSError as e:
                if e.errno not in (EEXIST, ENOTEMPTY):
                    raise
    except BaseException:
        if earlier.is_dir() and not os.path.lexists(target):
            earlier.rename(target)
        raise


def _nifti(label_map: np.ndarray, affine: np.ndarray, source: str) -> nib.Nifti1Image:
    """The label map as NIfTI; its codes and units are those of `source` where that is NIfTI of the same affine.

    ITK, and what is built on it, refuses an sform whose axes are a little sheared, unless there is a qform.
    """
    result = nib.Nifti1Image(label_map, affine)
    result.header.set_xyzt_units("mm")
    original = nib.load(source) if source.lower().endswith(NIFTI_SUFFIXES) else None
    if isinstance(original, nib.Nifti1Pair):  # no Analyze, which has no codes
        codes = [int(original.header[f"{form}form_code"]) for form in "qs"]
        # what says nothing of sides goes with its image in every program if it says nothing, either
        if codes == [0, 0] or np.allclose(original.affine, affine, atol=1e-4):
            result.set_qform(*original.get_qform(coded=True))
            result.set_sform(*original.get_sform(coded=True))
            if np.allclose(original.header.get_zooms()[:3], result.header.get_zooms()[:3], rtol=1e-4):  # no metres read
                result.header["xyzt_units"] = original.header["xyzt_units"]
    if shear(affine) > _ITK_SHEAR and not result.header["qform_code"]:
        result.set_qform(affine, 1)
        logger.info(
            "%s: the axes of its sform are sheared by %.1e, which ITK refuses: the label map has a qform without, too",
            source,
            shear(affine),
        )
    return result


def _on_grid_of(label_map: np.ndarray, affine: np.ndarray, image: MetaTensor) -> np.ndarray:
    """The label map at the voxel centres of the preprocessed image, nearest neighbour."""
    # The other way round than for restoring: where do the image's voxels lie on the axes of the native grid?
    maps = axis_maps(affine, image.affine.cpu().numpy(), image.shape[1:])
    nearest = [np.rint(p).astype(int).clip(0, n - 1) for (_, p), n in zip(maps, label_map.shape, strict=True)]
    return label_map[np.ix_(*nearest)].transpose(np.argsort([axis for axis, _ in maps]))
