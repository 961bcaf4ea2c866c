from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor, nn

from ..utils import DataError
from ..utils.text import first_few
from .archive import check_archive
from .pretrained import read_state_dict
from .record import ABOUT, ModelRecord, check_record, read_model_record

logger = logging.getLogger(__name__)


def load_weights(network: nn.Module, ckpt_path: str | Path, **settings: Any) -> nn.Module:
    """Fill `network` with the weights in `ckpt_path`, all of them; or take the exported network in its place.

    A record beside the weights that says `synthetic`, or the lack of one, is logged as a warning.

    Args:
        network: changed in place, unless `ckpt_path` is TorchScript.
        ckpt_path: a state dict, alone or under the key `model` of a checkpoint; or the network itself as TorchScript,
            what `monai.bundle ckpt_export` writes, whose parameters must be `network`'s in name and shape.
        settings: what the network is used with, by the names of the record (`bundle`, `network_overlay`, `labels`,
            `spacing`, …): where the record has them, they have to agree, see `check_record`; what it lacks is logged.

    Returns:
        The network, so that a configuration cannot use it without its weights; or the one in the TorchScript file.

    Raises:
        DataError: when the file is missing or holds no weights, or NaN, or they belong to another bundle or network, or
            were trained with other settings.
    """
    path = Path(ckpt_path)
    if not path.is_file():
        raise DataError(
            f"{path}: there are no weights. Train first (configs/train.json), or give the file with --ckpt_path."
        )
    record = read_model_record(path)
    check_record(path, record, settings)
    exported = read_torchscript(path)
    source = read_state_dict(path) if exported is None else exported.state_dict()
    _check_fit(path, source, network.state_dict(), record, settings)
    check_finite(path, source)
    if exported is None:
        network.load_state_dict(source)
    _tell_of_origin(path, record, sorted(settings.keys() - record.keys() - ABOUT))
    return network if exported is None else exported


def _tell_of_origin(path: Path, record: ModelRecord, unknown: list[str]) -> None:
    taken = f"; {', '.join(unknown)}: as the configuration has them" if unknown else ""
    if not record:
        logger.warning(
            "%s: no %s beside it: nobody knows what these weights were trained on%s", path, f"{path.stem}.json", taken
        )
        return
    if unknown:
        logger.info("%s: its record does not know everything%s", path, taken)
    if record.get("synthetic"):
        logger.warning("%s: trained on synthetic data (%s): not for real scans", path, record.get("name", "unnamed"))


def check_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    bad = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise DataError(
            f"{path}: the weights hold NaN or infinity, in {first_few(bad, 3)} ({len(bad)} of {len(weights)} tensors). "
            "The file is damaged, or was saved by a training that had failed: copy it again, or train again."
        )


def _check_fit(
    path: Path,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    record: ModelRecord,
    settings: Mapping[str, Any],
) -> None:
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
        hint = f"the overlay {overlay}" if overlay else "an overlay, e.g. configs/variants/demo.json,"
        remedy = (
            f"Probably {hint} is missing: add it to --config_file, or give this network's weights with --ckpt_path."
        )
        if overlay is not None and "network_overlay" in settings:  # they have been found to agree
            remedy = "A setting of the network must differ from the training's: give it as there, or leave it out."
        raise DataError(f"{path}: these weights belong to another network: {'; '.join(problems[:5])}{more}. {remedy}")


def read_torchscript(path: Path) -> nn.Module | None:
    """The network in a TorchScript file, in eval mode; None where the file is something else."""
    try:
        with ZipFile(path) as file:
            if not any(name.endswith("/constants.pkl") for name in file.namelist()):  # torch.save writes none
                return None
    except BadZipFile:
        return None
    check_archive(path, "Export it again with ckpt_export.")
    try:
        return torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as e:
        raise DataError(f"{path}: cannot be read as TorchScript ({e}). Export it again with ckpt_export.") from e
