"""The app that MONAI Label's server runs: serve.py copies it, as main.py, beside the packed bundles it serves.

It is MONAI Label's own app for bundles, and what that lacks for these: boxes in images of any size, for QuPath and the
Digital Slide Archive; a class beside the probability; weights that have to fit their network; the reason of a failure
in the answer; and a training that leaves the weights that are served alone until it is through.
"""

from __future__ import annotations

import html
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # Its build does not fit torch's, as beside torch for CPUs; MONAI Label only draws pictures with it.
    _operators = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from monai.bundle import ConfigParser
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.generic import get_bundle_models
from monailabel.utils.others.pathology import create_asap_annotations_xml, create_dsa_annotations_json

COLOURS = ((40, 120, 255), (0, 170, 0))  # of class 0 and 1, RGB
RECORDED = ("bundle", "version", "spacing", "intensity_range", "roi_size")  # of a training, beside labels and network
WRITERS = {"asap": create_asap_annotations_xml, "dsa": create_dsa_annotations_json}  # for QuPath; for the archive


class Classifier(BundleInferTask):
    """Of a patch the class, by the bundle's own threshold, and the probability of class 1."""

    def writer(
        self, data: dict[str, Any], extension: str | None = None, dtype: Any = None
    ) -> tuple[None, dict[str, Any]]:
        _, result = super().writer(data, extension, dtype)
        (prediction,) = result["prediction"]
        labels, threshold = (self.bundle_config.get_parsed_content(key) for key in ("labels", "threshold"))
        called = sorted(labels, key=labels.get)[prediction["score"] >= threshold]
        return None, {**result, "class": called, "probability": prediction["score"], "threshold": threshold}


class Detector(BundleInferTask):
    """The boxes in an image, or in the part of it that the request names by `location` and `size`.

    Args:
        path: of the bundle.
        conf: of the app; `mpp`: µm a pixel of images that do not say it, such as what QuPath sends of a remote slide.
    """

    def __init__(self, path: str, conf: Mapping[str, str]) -> None:
        self.mpp = float(conf["mpp"]) if conf.get("mpp") else None
        super().__init__(path, dict(conf), type=InferType.DETECTION, load_strict=True)
        self.labels = self.bundle_config.get_parsed_content("labels")

    def _load_bundle_config(self, path: str, config: str) -> ConfigParser:
        parser = super()._load_bundle_config(path, config)
        parser["mpp"] = self.mpp
        parser["num_workers"] = 0  # a server with threads had better not fork
        return parser

    def run_detector(self, data: dict[str, Any], convert_to_batch: bool = True, device: str = "cuda") -> dict[str, Any]:
        region, size = data[self.input_key], data.get("size") or [0, 0]
        x, y = (data.get("location") or [0, 0]) if any(size) else (0, 0)
        part = region.window(x, y, *size) if any(size) else region
        found = self.inferer(data)(part, self._get_network(device, data))
        return {**data, **found, "box": found["box"] + [x, y, x, y]}

    def writer(
        self, data: dict[str, Any], extension: str | None = None, dtype: Any = None
    ) -> tuple[str | None, dict[str, Any]]:
        threshold = self.bundle_config.get_parsed_content("threshold")
        result = {key: data[key].tolist() for key in ("box", "score", "label")} | {"threshold": threshold}
        write = WRITERS.get(data.get("output"))
        if write is None:
            return None, result
        about = {key: data.get(key) for key in ("model", "location", "size", "latencies")}
        about["description"] = html.escape(data.get("description") or "")  # it goes into XML as it is
        file, _ = write({"name": f"MONAI Label: {about['model']}", **about, "annotations": [self._outlines(result)]})
        return file, result

    def _outlines(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """The figures from the threshold on as MONAI Label's writers take them."""
        elements = [
            {
                "label": name,
                "contours": [
                    [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
                    for (x1, y1, x2, y2), score, label in zip(found["box"], found["score"], found["label"], strict=True)
                    if label == number and score >= found["threshold"]
                ],
            }
            for name, number in self.labels.items()
        ]
        colours = {name: COLOURS[number] for name, number in self.labels.items()}
        return {"annotation": {"labels": colours, "elements": elements}}


class Trainer(BundleTrainTask):
    """Train a segmentation bundle on the studies whose labels were submitted (`labels/final`).

    It goes on from the weights that are served, or anew with `"pretrained": false`. The run is kept in the bundle's
    folder `training`; when it is through, its best weights are served.
    """

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        trained, served = Path(self.bundle_path, "training"), Path(self.bundle_path, "models")
        for name in ("model.json", "model.pt"):  # those of an earlier run must not be served for this one's
            (trained / name).unlink(missing_ok=True)
        try:
            result = super().__call__(request, datastore)
        finally:  # the folders of a run that never started are locked, and a server that trains by itself lives on
            if locks := sys.modules.get("scripts.utils.locks"):
                for folder in (trained, Path(self.bundle_path, "output")):
                    locks.unlock_folder(folder)
        for name in ("model.json", "model.pt"):  # the server looks at the latter's time of change
            shutil.copyfile(trained / name, served / f"{name}.new")
            os.replace(served / f"{name}.new", served / name)
        return result

    def _run_command(self, cmd: list[str], env: dict[str, str]) -> None:
        """For more processes than one. MONAI Label's own takes a failed run for a finished one."""
        subprocess.run(cmd, env=env, check=True)

    def _fetch_datalist(self, request: dict[str, Any], datastore: Datastore) -> list[dict[str, str]]:
        labels = self.bundle_config["labels"]
        for image in datastore.get_labeled_images():
            info = datastore.get_label_info(image, DefaultLabelTag.FINAL)
            drawn = {entry["name"]: entry["idx"] for entry in info.get("label_info", []) if "idx" in entry}
            if wrong := {name: value for name, value in drawn.items() if labels.get(name) != value}:
                raise ValueError(
                    f"{image}: the segments were submitted as {wrong}, expected {labels}. Name and order them like "
                    "that, with empty segments for organs that are not there, and submit the label again."
                )
        return super()._fetch_datalist(request, datastore)

    def _partition_datalist(
        self, datalist: list[dict[str, str]], request: dict[str, Any], shuffle: bool = False
    ) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        parts = super()._partition_datalist(datalist, request, shuffle)
        if not all(parts):
            raise ValueError(
                f"{len(datalist)} studies with a submitted label make {len(parts[0])} for training and "
                f"{len(parts[1] or [])} for validation (val_split {request.get('val_split', 0.2)}); expected one of "
                "each at least. Submit more labels, or set val_split to 0.5."
            )
        return parts

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[Any]) -> None:
        if pretrained:  # MONAI Label's own method fails where it is not
            super()._load_checkpoint(model_pytorch, pretrained, train_handlers)

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        pretrained = any(
            isinstance(h, dict) and h["_target_"] == "CheckpointLoader" for h in overrides["train#handlers"]
        )
        earlier = _record(Path(self.bundle_path, "models", "model.json")) if pretrained else {}
        known = [key for key in RECORDED if key in self.bundle_config]  # an older package may have fewer
        overrides |= {
            "max_epochs": overrides["train#trainer#max_epochs"],  # the schedule's length, too
            "ckpt_dir": str(Path(self.bundle_path, "training")),
            "overwrite": True,
            "leakage": [],  # there is no datalist to look at
            "record": {
                "name": "labels submitted to MONAI Label",
                "synthetic": earlier.get("synthetic", False),
                "labels": "@labels",
                "network_overlay": "@network_overlay",
                "pretrained": {"file": "model.pt", "record": earlier} if pretrained else None,
                **{key: f"@{key}" for key in known},
            },
        }
        return overrides


def request_faults(request: Mapping[str, Any]) -> list[str]:
    """What is wrong with `mpp`, `location` and `size`, in a sentence each."""
    faults, mpp = [], request.get("mpp")
    location, size = request.get("location") or [0, 0], request.get("size") or [0, 0]
    if mpp is not None and not (type(mpp) in (int, float) and 0 < mpp < math.inf):
        faults.append(f"mpp is {mpp!r}, expected a positive number: µm a pixel.")
    if not _is_pair(location):
        faults.append(f"location is {location!r}, expected [x, y] in whole pixels.")
    if not (_is_pair(size) and (min(size) > 0 or not any(size))):
        faults.append(f"size is {size!r}, expected [width, height] in whole pixels, or [0, 0] for the whole image.")
    return faults


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and [type(part) for part in value] == [int, int]


def _record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


class BundleApp(MONAILabelApp):
    """The bundles in the folder `model`, each by what its folder is called."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.models = get_bundle_models(app_dir, conf)
        super().__init__(app_dir, studies, conf, name="MONAI bundles", description="Packed bundles, served as they are")

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
        self._refuse_faulty(request, datastore or self.datastore())
        try:
            return super().infer(request, datastore)
        except Exception as error:
            # each bundle brings its own class of this name; its message is written for who gave the image
            if type(error).__name__ == "DataError":
                raise HTTPException(422, detail=str(error)) from error
            raise

    def _refuse_faulty(self, request: dict[str, Any], datastore: Datastore) -> None:
        model, image, faults = request.get("model"), request.get("image"), request_faults(request)
        if model not in self._infers:
            faults.append(f"{model}: there is no such model, expected one of {', '.join(self._infers)}.")
        if isinstance(image, str) and not os.path.exists(image) and not datastore.get_image_uri(image):
            faults.append(f"{image}: is not among the studies. Give the id of one, or send the image as a file.")
        if faults:
            raise HTTPException(422, detail=" ".join(faults))

    def infer_wsi(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """What QuPath and the Digital Slide Archive ask for: one answer for the part of a slide that is selected.

        MONAI Label would cut the slide into tiles first, and figures on their borders; the bundle does that better.
        """
        task = self._infers.get(request.get("model", ""))
        if task and not isinstance(task, Detector):
            raise HTTPException(422, detail=f"{request['model']}: gives no outlines in slides. Ask /infer instead.")
        return self.infer(request, datastore)
