"""What stands in the place of parts of MONAI Label, and of what it imports."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, NoReturn

import torch

from shared.utils import DataError

CONVERSIONS = "monailabel.datastore.utils.convert"


def _register_torchvision() -> None:
    """Have torchvision imported also where its build does not fit torch's, as beside torch for CPUs.

    MONAI Label only draws pictures with it.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(operators)


_kept: list[Any] = []  # a library that is collected takes its operators with it


def _replace_conversions() -> None:
    """Have nothing of MONAI Label's own conversions between DICOM and NIfTI run, which need pydicom-seg and pydicom 2.

    They name organs by their position, code all of them as spleen, and read labels back with other ids, or on another
    grid. `pacs_labels` is in their place; what else would call them is refused.
    """
    module = ModuleType(CONVERSIONS)
    for name in ("binary_to_image", "dicom_to_nifti", "nifti_to_dicom_seg"):
        setattr(module, name, _refuse)
    sys.modules[CONVERSIONS] = module


def _refuse(*_: object, **__: object) -> NoReturn:
    raise DataError(
        "this server takes no raw voxels (.bin) beside an image, and has no XNAT. Send NIfTI, NRRD or MetaImage, and "
        "ask for the result of a DICOM series by output=dicom_seg."
    )


def stand_in() -> None:
    """Put both in place, in a process that has imported nothing of MONAI Label yet."""
    _register_torchvision()
    _replace_conversions()
