"""A trained classifier of patches whose network is known by its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..utils import DataError
from .densenet import NAMES as DENSENETS
from .densenet import fusestyle_densenet
from .pretrained import read_state_dict
from .record import ModelRecord, read_model_record
from .resnet import NAMES as RESNETS
from .resnet import fusestyle_resnet
from .weights import check_finite, read_torchscript

CLASSIFIER = "mitosis_fusestyle_cls"


def weights_of_classifier(path: str | Path) -> Path:
    """The file of weights that is meant by a path: itself, or `model.pt` of a training's folder or of a bundle's."""
    path = Path(path).expanduser()
    if not path.is_dir() or (path / "model.pt").is_file():
        return path / "model.pt" if path.is_dir() else path
    return path / "models" / "model.pt"


def read_classifier_record(path: str | Path) -> ModelRecord:
    """The record of a trained classifier of patches; empty where no path is given ("").

    Args:
        path: of its weights, or of a folder with `model.pt` or `models/model.pt`.

    Raises:
        DataError: when there is no such file, or no record beside it, or it is of another bundle, or has no two labels.
    """
    if not path:
        return {}
    file = weights_of_classifier(path)
    wanted = f"Give the model.pt that a training of {CLASSIFIER} wrote, with the model.json beside it."
    if file.suffix == ".zip":
        raise DataError(f"{file}: is a zip. Unzip the package, and give its folder.")
    if file.suffix == ".json":
        raise DataError(f"{file}: is no file of weights. {wanted}")
    if not file.is_file():
        raise DataError(f"{file}: there is no such classifier. {wanted}")
    record = read_model_record(file)
    if not record:
        raise DataError(
            f"{file}: there is no {file.stem}.json beside it, which says how patches are cut for this classifier. "
            f"{wanted}"
        )
    if (bundle := record.get("bundle")) != CLASSIFIER:
        raise DataError(f"{file}: these are weights of {bundle or 'no known bundle'}, and no classifier. {wanted}")
    if sorted((record.get("labels") or {}).values()) != [0, 1]:
        raise DataError(
            f"{file}: its record has the labels {record.get('labels')}, expected two classes, 0 and 1. {wanted}"
        )
    return record


def check_classifier_labels(path: str | Path, record: ModelRecord, labels: Mapping[str, int]) -> None:
    """Raise a `DataError` unless a classifier, where one is given, tells the detector's classes apart."""
    if path and dict(record["labels"]) != dict(labels):
        theirs, ours = (" and ".join(sorted(names, key=names.get)) for names in (record["labels"], dict(labels)))
        raise DataError(
            f"{path}: this classifier tells {theirs} apart, and the detector {ours}. Give one that was trained on "
            "patches of the detector's classes."
        )


def check_subtype_labels(path: str | Path, record: ModelRecord, labels: Mapping[str, int]) -> None:
    """Raise a `DataError` where a classifier of subtypes is given that tells the detector's own classes apart."""
    if path and dict(record["labels"]) == dict(labels):
        names = " and ".join(sorted(labels, key=labels.get))
        raise DataError(
            f"{path}: this classifier tells {names} apart, as the detector does, and no kinds of mitotic figures. Give "
            "it with --classifier."
        )


def load_classifier(path: str | Path) -> nn.Module:
    """The network of a trained classifier of patches, with its weights, in eval mode, in main memory.

    Which network it is, is told by the names and shapes of the weights: one of MONAI's ResNets or DenseNets with one
    logit, whose weights are the same wherever FuseStyle stood in training. A network of another kind can be given as
    the TorchScript that `monai.bundle ckpt_export` makes of it.

    Args:
        path: as for `read_classifier_record`.

    Raises:
        DataError: when the file cannot be read, holds weights of no such network, or NaN.
    """
    file = weights_of_classifier(path)
    exported = read_torchscript(file)
    weights = read_state_dict(file) if exported is None else exported.state_dict()
    check_finite(file, weights)
    if exported is not None:
        return exported
    network = _network_of(weights)
    if network is None:
        some = ", ".join(f"{key} {tuple(value.shape)}" for key, value in [*weights.items()][:3])
        raise DataError(
            f"{file}: its {len(weights)} tensors ({some}, …) are those of no ResNet or DenseNet with one logit. Export "
            "the network as TorchScript (monai.bundle ckpt_export), and give that, with the model.json beside it."
        )
    network.load_state_dict(weights)
    return network.eval()


def _network_of(weights: Mapping[str, Tensor]) -> nn.Module | None:
    """The network with these weights' names and shapes, freshly made."""
    shapes = {key: value.shape for key, value in weights.items()}
    makers: list[tuple[Callable[..., nn.Module], tuple[str, ...]]] = [
        (fusestyle_resnet, RESNETS),
        (fusestyle_densenet, DENSENETS),
    ]
    for make, names in makers:
        for name in names:
            with torch.device("meta"):  # nothing is allocated
                network = make(name, num_classes=1, places=())
            if {key: value.shape for key, value in network.state_dict().items()} == shapes:
                return make(name, num_classes=1, places=())
    return None
