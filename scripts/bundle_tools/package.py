"""What goes into a package: the weights with their record, the variant in the configs, the metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from torch import nn

from shared.inferers import cascade_digest
from shared.metrics import read_cascade
from shared.networks import (
    ModelRecord,
    check_classifier_labels,
    check_record,
    check_subtype_labels,
    load_classifier,
    load_weights,
    read_classifier_record,
    read_model_record,
    weights_of_classifier,
)
from shared.utils import DataError, fault_list

from .bundle import Bundle, lay_over
from .overlays import recorded_default, recorded_key

WEIGHTS = "models/model.pt"
TRAINED_WITH = {"labels", "spacing", "intensity_range", "roi_size"}  # of the record, as training has them


class Package(NamedTuple):
    """What goes into a package beside the files of its bundle."""

    bundle: Bundle
    variants: tuple[str, ...]
    weights: Path | None
    url: str  # of the weights, which are then not put inside
    record: ModelRecord  # of the weights
    classifiers: Mapping[str, Path] = {}  # of what a detector finds, by their keys in its configs

    @property
    def version(self) -> str:
        return self.bundle.metadata["version"]

    @property
    def title(self) -> str:
        return f"{self.bundle.name}_v{self.version}"

    @property
    def marks(self) -> dict[str, bool | None]:
        """Whether there are weights, and whether they are of synthetic data, if that is known."""
        return {"trained": self.weights is not None, "synthetic": self.record.get("synthetic")}

    @property
    def note(self) -> str:
        """What a user has to know of the weights, in a few sentences."""
        data = self.record.get("name", "a data set without a name")
        if not self.weights:
            text = (
                "This package is untrained: it holds no weights. Train first (configs/train.json); until then "
                "inference, evaluation and exports have nothing to load."
            )
        elif not self.record:
            text = "No record came with the weights of this package: nobody knows what they were trained on."
        elif self.record.get("synthetic"):
            text = f"The weights of this package were trained on synthetic data ({data}): of no use on real images."
        else:
            text = f"The weights of this package were trained on {data}."
        for key, does in (
            ("classifier", "judges what they find"),
            ("subtype_classifier", "names kinds of the figures"),
        ):
            if key in self.classifiers:
                record = read_classifier_record(self.classifiers[key])
                named = "synthetic data" if record.get("synthetic") else record.get("name", "a data set without a name")
                text += f" A classifier, which was trained on {named}, {does}."
        files = {name: file for name in self.variants for file in map(named_file, self.overlay(name).values()) if file}
        return text + "".join(
            f" The variant {name} starts from {file}, which is not in this package." for name, file in files.items()
        )

    def overlay(self, name: str) -> dict[str, Any]:
        return self.bundle.config(f"variants/{name}")

    @property
    def baked(self) -> dict[str, dict[str, Any]]:
        """The variants with what of them becomes part of the configs: all but files that are not in the package."""
        kept = {name: {k: v for k, v in self.overlay(name).items() if not named_file(v)} for name in self.variants}
        return {name: overlay for name, overlay in kept.items() if overlay}


def read_package(
    folder: Path,
    weights: str | Path | None = None,
    variant: str = "",
    url: str = "",
    classifier: str | Path = "",
    subtype_classifier: str | Path = "",
) -> Package:
    """What was asked for, with the record of the weights.

    Raises:
        DataError: when there is no such bundle, variant or file of weights, or a config cannot be read.
    """
    bundle = Bundle(folder)
    parts = filter(None, map(str.strip, variant.split(",")))
    variants = tuple(part.removesuffix(".json").removeprefix("variants/") for part in parts)
    there = [name.removeprefix("variants/") for name in bundle.names if name.startswith("variants/")]
    if bundle.faults:
        raise DataError(f"{bundle.name} cannot be packaged:{fault_list(bundle.faults)}")
    if not bundle.metadata:
        raise DataError(f"{folder}: holds no configs/metadata.json, expected the folder of a bundle.")
    if strange := [name for name in variants if name not in there]:
        raise DataError(f"--variant is {', '.join(strange)}, {bundle.name} has {', '.join(there) or 'none'}.")
    if url and not weights:
        raise DataError("--weights_url is the address of a file; give the file too (--weights), for its hash.")
    if url and not re.match(r"https?://[^\s\"]+$", url):
        raise DataError(f"--weights_url is {url}, expected an address that begins with http:// or https://.")
    if weights and not Path(weights).is_file():
        raise DataError(f"{weights}: there is no such file of weights. Give the model.pt that training writes.")
    path = Path(weights) if weights else None
    record = read_model_record(path) if path else {}
    if path:
        check_record(path, record, {"bundle": bundle.config("train").get("bundle", bundle.name)})
    given = {"classifier": classifier, "subtype_classifier": subtype_classifier}
    files = {key: weights_of_classifier(file) for key, file in given.items() if file}
    for key, file in files.items():
        check_classifier(bundle, path, record, key, file)
    return Package(bundle, variants, path, url, record, files)


def check_classifier(bundle: Bundle, weights: Path | None, record: ModelRecord, key: str, file: Path) -> None:
    """Raise a `DataError` unless a classifier goes with a detector's weights.

    The bundle may have no use for it, weights may be missing, it may not fit, or its weight beside them not be chosen.
    """
    if key not in bundle.config("inference"):
        raise DataError(f"--{key} goes with a bundle that detects, {bundle.name} does not. Leave it out.")
    if weights is None:
        raise DataError(f"--{key} judges what weights find. Give those too (--weights).")
    check = check_classifier_labels if key == "classifier" else check_subtype_labels
    check(file, read_classifier_record(file), record.get("labels") or {"non_mitotic": 0, "mitotic": 1})
    load_classifier(file)
    if key == "classifier":
        read_cascade(weights.with_name("cascade.json"), cascade_digest(weights, file), file)


def classifier_place(key: str) -> str:
    """Where a classifier lies in a package, with its record and what else it needs beside it."""
    return f"models/{key}/model.pt"


def named_file(value: Any) -> str:
    """The file below `models/` that a value of an overlay names, if it is another than the packed weights."""
    found = re.search(r"/(models/[^']+)'", value) if isinstance(value, str) else None
    return found[1] if found and found[1] != WEIGHTS else ""


def taken_over(overlay: Mapping[str, Any], train: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a training's overlay a config takes: the keys in which it repeats `train`, as itself or as a default."""
    plain = {key: key.removeprefix("+") for key in overlay}
    taken = {key: overlay[key] for key in overlay if config.get(plain[key], ...) == train.get(plain[key])}
    for key, value in config.items():
        if (default := recorded_default(key, value)) != value and (source := recorded_key(key, train)) in overlay:
            taken |= from_record(key, overlay[source]) if default == train[source] else {}
    return taken


def from_record(key: str, default: Any) -> dict[str, str]:
    """A key of a config whose value is that of the weights' record, or this one."""
    return {key: f"$@record.get('{key}', {default!r})"}


def baked_configs(package: Package) -> dict[str, dict[str, Any]]:
    """`train`, `evaluate` and `inference` with the variants in them, and the settings of the weights' training.

    An overlay that changes the network goes into training and inference. Of another, inference takes what it repeats
    from training, and so does evaluation, which is run together with training's.
    """
    train, evaluate, inference = (deepcopy(package.bundle.config(name)) for name in ("train", "evaluate", "inference"))
    for name, overlay in package.baked.items():
        if package.bundle.is_for_inference(f"variants/{name}"):
            lay_over(inference, overlay)
            continue
        whole = overlay if "network_def" in overlay else {}
        lay_over(inference, {**whole, **taken_over(overlay, train, inference)})
        lay_over(evaluate, taken_over(overlay, train, evaluate))
        lay_over(train, overlay)
    for key in TRAINED_WITH & package.record.keys():
        if isinstance(train.get(key), dict | list):
            train[key] = package.record[key]
            for config in (evaluate, inference):
                config |= from_record(key, train[key]) if key in config else {}
    overlay = train.get("network_overlay", "")
    recorded = package.record.get("network_overlay", overlay)
    if package.record and recorded != overlay:
        wanted = f"--variant {Path(recorded).stem}" if recorded else "no --variant that changes the network"
        raise DataError(
            f"{package.weights}: its record names the network of {recorded or 'train.json itself'}, the package would "
            f"have that of {overlay or 'train.json itself'}. Give {wanted}."
        )
    for key in package.classifiers:
        for config in (evaluate, inference):
            config |= {key: f"$@bundle_root + '/{classifier_place(key)}'"} if key in config else {}
    return {"train": train, "evaluate": evaluate, "inference": inference}


def build_network(configs: Mapping[str, dict[str, Any]], package: Package) -> nn.Module:
    """The network of the baked configs, in eval mode, with the weights if there are any.

    Raises:
        DataError: when they do not fit, or the file holds anything else beside them.
    """
    network = ConfigParser(dict(configs["inference"])).get_parsed_content("network_def").eval()
    if package.weights:
        try:
            loaded = load_weights(network, package.weights)
        except DataError as e:
            why, other_network, _ = str(e).partition(" Probably ")  # what follows is about configs that are run
            hint = f"the overlays that they were trained with, or weights of {package.bundle.name}"
            raise DataError(f"{why} Give --variant with {hint}." if other_network else why) from None
        plain = package.weights.suffix != ".safetensors" and loaded is network
        if not plain or torch.load(package.weights, "cpu", weights_only=True).keys() != network.state_dict().keys():
            raise DataError(
                f"{package.weights}: holds more than weights, or holds them in another form than models/model.pt. "
                "Give the model.pt that training writes."
            )
    return network


def input_size(train: Mapping[str, Any], record: ModelRecord, known: Sequence[int]) -> list[int]:
    """Of what the network takes at once; `known` where the configs do not say it."""
    if "roi_size" in train:
        return list(train["roi_size"])
    for key, recorded in (("val_tile_size", "tile_size"), ("patch_size", "patch_size")):
        if isinstance(train.get(key), int):
            return [record.get(recorded, train[key])] * len(known)
    return list(known)


def channel_names(pred: Mapping[str, Any], labels: Mapping[str, int], channels: int) -> list[str]:
    """Of the network's output; those known where they are as many, and there are no labels."""
    known, names = list(pred["channel_def"].values()), sorted(labels, key=lambda name: labels[name])
    if labels and pred["format"] == "segmentation":
        known = ["background", *names]
    elif labels and pred["format"] == "classification":
        known = names[-channels:]
    elif labels:
        known = [*names, *known[-4:]]  # the four offsets of a box
    if len(known) != channels:
        raise DataError(
            f"the network has {channels} output channels, the labels {', '.join(names) or 'in metadata.json'} make "
            f"{len(known)}. Give the weights of the network with these labels."
        )
    return known


def listing(names: Sequence[str]) -> str:
    return ", ".join(f"{i} {name.replace('_', ' ')}" for i, name in enumerate(names))


def baked_metadata(package: Package, configs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """metadata.json as the baked configs have it: shapes, channels, classes and what is said of the weights.

    The network takes a random input for it.

    Raises:
        DataError: when it gives anything but finite numbers of the expected channels.
    """
    metadata, base, train = deepcopy(package.bundle.metadata), package.bundle.config("train"), configs["train"]
    formats = metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    old_size, old_names = image["spatial_shape"], list(pred["channel_def"].values())
    size = input_size(train, package.record, old_size)
    with torch.no_grad():
        output = build_network(configs, package)(torch.rand(1, image["num_channels"], *size))
    if not output.isfinite().all():
        raise DataError(f"{package.weights}: with these weights the network gives numbers that are not finite.")
    labels = train["labels"] if isinstance(train.get("labels"), dict) else package.record.get("labels") or {}
    names = channel_names(pred, labels, output.shape[1])
    image["spatial_shape"] = size
    pred["num_channels"], pred["channel_def"] = len(names), {str(i): name for i, name in enumerate(names)}
    pred["spatial_shape"] = list(output.shape[2:]) or pred["spatial_shape"]

    changes = {" x ".join(map(str, old_size)): " x ".join(map(str, size)), listing(old_names): listing(names)}
    changes[f"{len(old_names)} channels"] = f"{len(names)} channels"
    if "mpp" in package.record and (said := re.search(r"[\d.]+ micrometres", metadata["image_classes"])):
        changes[said[0]] = f"{package.record['mpp']} micrometres"
    if "spacing" in train:
        changes[" x ".join(map(str, base["spacing"]))] = " x ".join(map(str, train["spacing"]))
    if pred["format"] == "segmentation":  # the background is none
        changes[f"{len(old_names) - 1} abdominal organs"] = f"{len(names) - 1} abdominal organ{'s' * (len(names) > 2)}"
    for key in ("name", "task", "description", "image_classes", "label_classes", "pred_classes"):
        for old, new in changes.items():
            metadata[key] = metadata[key].replace(old, new)
    if labels and pred["format"] != "segmentation" and sorted(labels) != ["mitotic", "non_mitotic"]:
        metadata["label_classes"] = listing(sorted(labels, key=lambda name: labels[name]))
    return metadata


def tell_of_weights(metadata: dict[str, Any], package: Package) -> dict[str, Any]:
    """What metadata.json says of the weights and of the variants."""
    networks = [name for name, overlay in package.baked.items() if "network_def" in overlay]
    variants = f" The network is that of the variant {networks[-1]}." if networks else ""
    variants += f" Variants that are part of this package: {', '.join(package.baked)}." if package.baked else ""
    if package.weights:
        version, log = metadata["version"], metadata["changelog"]
        if version in log:
            log[version] = log[version].removesuffix(", without weights")
        described = re.sub(r" No weights are shipped[^.]*\.", "", metadata["description"])
        use = re.sub(r": no clinically trained weights are shipped.*$", ".", metadata["intended_use"])
        metadata |= {"description": f"{described} {package.note}", "intended_use": f"{use} {package.note}"}
    metadata["description"] += variants
    return metadata
