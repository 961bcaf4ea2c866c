"""The app that MONAI Label's server runs.

It is MONAI Label's own app for bundles, and what that lacks for these: images that come from the datastore or with the
request alone, also as DICOM; results as DICOM SEG; a PACS in which nothing is misnamed; and the reason of a failure in
the answer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pydicom
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.utils.others.generic import get_bundle_models

from shared.data.dicom_headers import DicomHeader, read_header
from shared.data.sources import weights_digest
from shared.data.volumes import read_volume
from shared.data.zipped import unpack
from shared.dicom import DicomWeb, Origin, SourceSeries, read_source
from shared.networks import read_model_record
from shared.utils import DataError, parse_json

from .datastore import DicomWebDatastore
from .guard import request_file, request_folder
from .pacs_labels import PacsLabels, segment
from .tasks import Classifier, Detector, Trainer

VOLUMES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha")  # endings of label maps that are written
DICOM_SEG = "dicom_seg"


def request_faults(request: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options of a request, in a sentence each."""
    faults, mpp = [], request.get("mpp")
    location, size = request.get("location") or [0, 0], request.get("size") or [0, 0]
    if mpp is not None and not (type(mpp) in (int, float) and 0 < mpp < math.inf):
        faults.append(f"mpp is {mpp!r}, expected a positive number: µm a pixel.")
    if not _is_pair(location):
        faults.append(f"location is {location!r}, expected [x, y] in whole pixels.")
    if not (_is_pair(size) and (min(size) > 0 or not any(size))):
        faults.append(f"size is {size!r}, expected [width, height] in whole pixels, or [0, 0] for the whole image.")
    if (ending := request.get("result_extension")) and ending not in VOLUMES:
        faults.append(f"result_extension is {ending!r}, expected one of {', '.join(VOLUMES)}.")
    if request.get("save_label") and request.get("label_tag") == DefaultLabelTag.FINAL.value:
        faults.append("label_tag is 'final', which is for labels that somebody submits, by PUT /datastore/label.")
    return faults


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and [type(part) for part in value] == [int, int]


class BundleApp(MONAILabelApp):
    """The bundles in the folder `model`, each by what its folder is called."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.models = get_bundle_models(app_dir, conf)
        super().__init__(app_dir, studies, conf, name="MONAI bundles", description="Packed bundles, served as they are")

    def _init_dicomweb_datastore(self) -> Datastore:
        about = [
            parse_json(Path(path, "configs", "metadata.json"))
            for name, path in self.models.items()
            if "segmentation" in name
        ]
        codes = {name: code for each in about for name, code in each["dicom_codes"].items()}
        classes = [_classes(each) for each in about]
        place = settings.MONAI_LABEL_DATASTORE_CACHE_PATH or settings.MONAI_LABEL_DICOMWEB_CACHE_PATH
        pacs = PacsLabels(
            DicomWeb(self.studies),
            Path(place or Path(self.app_dir, "pacs"), hashlib.sha256(self.studies.encode()).hexdigest()[:16]),
            codes,
            classes[0] if classes and all(each == classes[0] for each in classes) else None,
            {key: text for key, text in settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER.items() if key != "Modality"},
            metadata.version("monailabel"),
        )
        return DicomWebDatastore(pacs)

    def init_infers(self) -> dict[str, InferTask]:
        return {name: self._infer_task(name, path) for name, path in self.models.items()}

    def _infer_task(self, name: str, path: str) -> InferTask:
        if "detection" in name:
            return Detector(path, self.conf)
        if "classification" in name:
            return Classifier(path, self.conf, load_strict=True)
        return BundleInferTask(path, self.conf, load_strict=True)

    def init_trainers(self) -> dict[str, TrainTask]:
        bundles = {name: path for name, path in self.models.items() if "segmentation" in name}
        return {name: Trainer(path, self.conf, load_strict=True) for name, path in bundles.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        return {"random": Random(), "first": First()}

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """What a bundle makes of an image, which is one of the datastore or came with the request or its session.

        With `output` dicom_seg in the request, which has to be for a DICOM series then, the file is a SEG.
        """
        datastore = datastore or self.datastore()
        image, given = request.get("image") or "", self._path_of(request, datastore)
        sent = self._is_sent(image)
        try:
            path = str(unpack(Path(given), request_folder())) if given.lower().endswith(".zip") else given
            answer = self._answer(request, path, datastore)
        except Exception as error:
            # each bundle brings its own class of this name; its message is written for who gave the image
            if type(error).__name__ == "DataError":
                shown = "the image" if sent else image
                why = str(error).replace(given, shown).replace(given.removesuffix(".zip"), shown)
                raise HTTPException(422, detail=why) from error
            raise
        if request.get("save_label") and not sent and isinstance(answer["file"], str):
            tag, about = answer["tag"], {"model": request["model"], "params": answer["params"]}
            answer["label"] = datastore.save_label(image, answer["file"], request.get("label_tag") or tag, about)
        return answer

    def _answer(self, request: dict[str, Any], path: str, datastore: Datastore) -> dict[str, Any]:
        """What a bundle makes of the image at a path, as a volume's label map or as DICOM SEG."""
        ending = next((end for end in VOLUMES if path.lower().endswith(end)), ".nii.gz")
        asked = {"result_extension": ending, **request, "image": path, "save_label": False}
        if request.get("output") != DICOM_SEG:
            return super().infer(asked, datastore)
        answer = super().infer({**asked, "result_extension": ".nii.gz"}, datastore)
        from_pacs = isinstance(datastore, DicomWebDatastore) and not self._is_sent(request["image"])
        series = datastore.dicom_folder(request["image"]) if from_pacs else path
        source = read_source(series, request.get("series"))
        file = self._as_dicom(request["model"], answer["file"], source)
        return {**answer, "file": file, "label": file}

    def _path_of(self, request: Mapping[str, Any], datastore: Datastore) -> str:
        """Where the image of a request lies."""
        model, image, faults = request.get("model"), request.get("image") or "", request_faults(request)
        if model not in self._infers:
            faults.append(f"{model}: there is no such model, expected one of {', '.join(self._infers)}.")
        path = image if self._is_sent(image) else datastore.get_image_uri(image)
        if not path or not Path(path).exists():
            faults.append(f"{image}: is not among the studies. Give the id of one, or send the image as a file.")
        elif self._is_sent(image) and Path(path).is_file() and _is_slice(Path(path)):
            faults.append("the image is a single DICOM slice. Send all slices of the series, as a zip.")
        if faults:
            raise HTTPException(422, detail=" ".join(faults))
        return path

    def _is_sent(self, image: str) -> bool:
        """Whether an image came with the request, or is that of a session. No request can name such a path itself."""
        places = [request_folder(), *([] if self.sessions() is None else [self.sessions().store_path])]
        return any(place and Path(image).is_relative_to(place) for place in places)

    def _as_dicom(self, model: str, label_map: str, source: SourceSeries) -> str:
        """The result of a segmentation bundle as DICOM SEG, by its own names and codes.

        Raises:
            DataError: when the bundle segments nothing, or has found nothing.
        """
        about = parse_json(Path(self.models[model], "configs", "metadata.json"))
        weights, config = Path(self.models[model], "models", "model.pt"), self._infers[model].bundle_config
        if "dicom_codes" not in about:
            raise DataError(f"{model}: segments nothing, so that there is no DICOM SEG of its results.")
        origin = Origin(
            config["bundle"], about["version"], {"weights": weights_digest(weights)}, read_model_record(weights)
        )
        voxels, grid = read_volume(label_map)
        classes = config.get_parsed_content("classes")
        made = segment(source, voxels, grid.affine, classes, about["dicom_codes"], origin)
        file = request_file(suffix=".dcm")
        pydicom.dcmwrite(file, made, enforce_file_format=True)
        return str(file)

    def infer_wsi(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """What QuPath and the Digital Slide Archive ask for: one answer for the part of a slide that is selected.

        MONAI Label would cut the slide into tiles first, and figures on their borders; the bundle does that better.
        """
        task = self._infers.get(request.get("model", ""))
        if task and not isinstance(task, Detector):
            raise HTTPException(422, detail=f"{request['model']}: gives no outlines in slides. Ask /infer instead.")
        return self.infer(request, datastore)


def _is_slice(path: Path) -> bool:
    header = read_header(path)
    return isinstance(header, DicomHeader) and header.frames == 1


def _classes(about: Mapping[str, Any]) -> dict[str, int]:
    """Name → id of the classes of a bundle, from its metadata."""
    (pred,) = about["network_data_format"]["outputs"].values()
    return {name: int(i) for i, name in pred["channel_def"].items() if i != "0"}
