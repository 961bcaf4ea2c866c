from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor, nn

from ..utils import DataError, read_json_object
from .pretrained import read_state_dict

logger = logging.getLogger(__name__)


class ModelRecord(TypedDict, total=False):
    """What weights were trained on, as `model.json` beside them says it.

    Any key may be missing; further settings of the training, and its key metric, stand beside these.
    """

    name: str  # of the data set
    synthetic: bool  # whether that is made up
    labels: dict[str, int]
    network_overlay: str  # the overlay with the network, "" for that of the training's own configuration
    train_domains: list[str]
    unlabelled_domains: list[str]
    mpp: float  # µm a pixel
    pretrained: dict[str, Any] | None  # `file` and `record` of the weights that they started from
    epoch: int
    versions: dict[str, str]


def read_model_record(ckpt_path: str | Path) -> ModelRecord:
    """What the weights in `ckpt_path` were trained on, from the file beside them (`model.json` for `model.pt`).

    Returns:
        The record, or `{}` when there is no such file: nobody knows.

    Raises:
        DataError: when the file is there and holds no JSON object.
    """
    path = Path(ckpt_path).with_suffix(".json")
    if not path.is_file():
        return {}
    return read_json_object(path, "the record that training writes", "Copy it beside the weights.")


def record_with_history(record: ModelRecord, pretrained: str | Path | None) -> ModelRecord:
    """A record of weights that start from others: what those were trained on has been seen, too.

    Args:
        record: of the training to come, with `train_domains`.
        pretrained: the file that it starts from, or None.

    Returns:
        `record` with `pretrained`, the file and its own record, and the domains of both.
    """
    if not pretrained:
        return {**record, "pretrained": None}
    earlier = read_model_record(pretrained)
    domains = sorted({*record["train_domains"], *earlier.get("train_domains", [])})
    return {**record, "train_domains": domains, "pretrained": {"file": Path(pretrained).name, "record": earlier}}


def load_weights(network: nn.Module, ckpt_path: str | Path, labels: Mapping[str, int] | None = None) -> nn.Module:
    """Fill `network` with the weights in `ckpt_path`, all of them; or take the exported network in its place.

    A record beside the weights that says `synthetic`, or the lack of one, is logged as a warning.

    Args:
        network: changed in place, unless `ckpt_path` is TorchScript.
        ckpt_path: a state dict, alone or under the key `model` of a checkpoint; or the network itself as TorchScript,
            what `monai.bundle ckpt_export` writes, whose parameters must be `network`'s in name and shape.
        labels: name → id of the classes that the network is used for; must be those of the record.

    Returns:
        The network, so that a configuration cannot use it without its weights; or the one in the TorchScript file.

    Raises:
        DataError: when the file is missing or holds no weights, or they belong to another network or other classes.
    """
    path = Path(ckpt_path)
    if not path.is_file():
        raise DataError(
            f"{path}: there are no weights. Train first (configs/train.json), or give the file with --ckpt_path."
        )
    record = read_model_record(path)
    if labels is not None and record and dict(record.get("labels", labels)) != dict(labels):
        raise DataError(
            f"{path}: these weights were trained for the labels {record['labels']}, the configuration has "
            f"{dict(labels)}. Give the `labels` that the weights were trained with."
        )
    exported = _read_torchscript(path)
    source = read_state_dict(path) if exported is None else exported.state_dict()
    _check_fit(path, source, network.state_dict(), record)
    if exported is None:
        network.load_state_dict(source)
    if not record:
        logger.warning(
            "%s: no %s beside it: nobody knows what these weights were trained on", path, f"{path.stem}.json"
        )
    elif record.get("synthetic"):
        logger.warning("%s: trained on synthetic data (%s): not for real scans", path, record.get("name", "unnamed"))
    return network if exported is None else exported


def _check_fit(path: Path, source: Mapping[str, Tensor], target: Mapping[str, Tensor], record: ModelRecord) -> None:
    """Raise DataError unless `source`, the weights in a file, are all those of the network with the state `target`."""
    problems = [f"{key} is missing in the file" for key in target if key not in source]
    problems += [f"{key} has no place in the network" for key in source if key not in target]
    problems += [
        f"{key} is {tuple(value.shape)} in the file and {tuple(target[key].shape)} in the network"
        for key, value in source.items()
        if key in target and value.shape != target[key].shape
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        overlay = record.get("network_overlay")
        hint = (
            f"the overlay {overlay} is missing" if overlay else "an overlay is missing, e.g. configs/variants/demo.json"
        )
        raise DataError(
            f"{path}: these weights belong to another network: {'; '.join(problems[:5])}{more}. Probably {hint}: add "
            "it to --config_file, or give the weights of this network with --ckpt_path."
        )


def _read_torchscript(path: Path) -> nn.Module | None:
    """The network in a TorchScript file, in eval mode; None where the file is something else."""
    try:
        with ZipFile(path) as file:
            if not any(name.endswith("/constants.pkl") for name in file.namelist()):  # torch.save writes none
                return None
    except BadZipFile:
        return None
    try:
        return torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as e:
        raise DataError(f"{path}: cannot be read as TorchScript ({e}). Export it again with ckpt_export.") from e
