"""An application of MONAI Deploy's App SDK: a DICOM series in, the label map of a packed CT bundle out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType, Operator, OperatorSpec
from monai.deploy.operators import (
    DICOMDataLoaderOperator,
    DICOMSeriesSelectorOperator,
    DICOMSeriesToVolumeOperator,
    IOMapping,
    MonaiBundleInferenceOperator,
)


class SaveNiftiOperator(Operator):
    """Write the label map that it receives as `image`, (z, y, x), on the grid of the series."""

    def __init__(self, fragment: Application, *args: Any, output_dir: Path, **kwargs: Any) -> None:
        self.output_dir = output_dir
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("image")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        image = op_input.receive("image")
        affine = np.asarray(image.metadata()["original_affine"])
        self.output_dir.mkdir(parents=True, exist_ok=True)
        label_map = nib.Nifti1Image(image.asnumpy().astype(np.uint8).transpose(2, 1, 0), affine)
        nib.save(label_map, self.output_dir / "segmentation.nii.gz")


class SegmentSeries(Application):
    """Segment the first series of a folder.

    Args:
        bundle: folder of a packed CT bundle.
        series: folder of DICOM files.
        output_dir: where `segmentation.nii.gz` goes.
    """

    def __init__(self, bundle: Path, series: Path, output_dir: Path) -> None:
        self.bundle, self.series, self.output_dir = bundle, series, output_dir
        super().__init__([])

    def compose(self) -> None:
        once = CountCondition(self, 1)
        load = DICOMDataLoaderOperator(self, once, input_folder=self.series, name="load")
        select = DICOMSeriesSelectorOperator(self, name="select")
        convert = DICOMSeriesToVolumeOperator(self, name="convert")
        segment = MonaiBundleInferenceOperator(
            self,
            app_context=AppContext({}),
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=self.bundle,
            name="segment",
        )
        save = SaveNiftiOperator(self, output_dir=self.output_dir, name="save")
        self.add_flow(load, select, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(select, convert, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(convert, segment, {("image", "image")})
        self.add_flow(segment, save, {("pred", "image")})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("bundle", "series", "output_dir"):
        parser.add_argument(name, type=lambda text: Path(text).resolve())
    SegmentSeries(**vars(parser.parse_args())).run()
