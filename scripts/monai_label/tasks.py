"""What the app does with a bundle: answer with it, and train it.

These are MONAI Label's own tasks for bundles, and what they lack for these: boxes in images of any size, for QuPath and
the Digital Slide Archive; a class beside the probability; weights that have to fit their network; and a training that
leaves the weights that are served alone until it is through.
"""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.pathology import create_asap_annotations_xml, create_dsa_annotations_json

from . import TRAINED_HERE

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
        if "subtype" in data:  # JSON knows no NaN
            result["subtype"] = [p if p == p else None for p in data["subtype"].tolist()]
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
                "name": TRAINED_HERE,
                "synthetic": earlier.get("synthetic", False),
                "labels": "@labels",
                "network_overlay": "@network_overlay",
                "pretrained": {"file": "model.pt", "record": earlier} if pretrained else None,
                **{key: f"@{key}" for key in known},
            },
        }
        return overrides


def _record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
