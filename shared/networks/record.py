"""What weights were trained on and with, as `model.json` beside them says it, and whether a configuration agrees."""

from __future__ import annotations

import logging
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypedDict

from ..utils import DataError, read_json_object
from ..utils.bundle_run import command_line
from ..utils.settings import SETTINGS

logger = logging.getLogger(__name__)

# What a configuration takes from a record, and so has to be able to use.
TAKEN = ("labels", "label_ids", "network_overlay", "spacing", "intensity_range", "roi_size", "image_mean", "image_std")
TAKEN += ("crop_size", "patch_size", "tile_size", "tile_overlap", "suppress_radius", "mpp", "train_domains")
TAKEN += ("val_split", "val_domains", "stain_norm", "stain_reference")
ABOUT = {"bundle", "network_overlay"}  # of a record, what a configuration knows of itself
MAY_DIFFER = ("label_ids",)  # those of other data
BASES = ("train.json", "evaluate.json", "inference.json")


class ModelRecord(TypedDict, total=False):
    """What weights were trained on, as `model.json` beside them says it.

    Any key may be missing; further settings of the training, and its key metric, stand beside these.
    """

    name: str  # of the data set
    synthetic: bool  # whether that is made up
    leakage: list[str]  # what the training saw and was scored by, too
    bundle: str  # the name of the bundle that was trained
    version: str  # of that
    labels: dict[str, int]
    label_ids: dict[str, Any] | None  # the ids in the label files, where these are others
    network_overlay: str  # the overlay with the network, "" for that of the training's own configuration
    spacing: list[float]  # mm
    intensity_range: list[float]  # HU that became 0 and 1
    train_domains: list[str]
    val_split: str  # the list of the datalist that the epoch was chosen by
    val_domains: list[str]  # and the domains of what was taken from it
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
        DataError: when the file is there and holds no JSON object, or something in it that no training writes.
    """
    path = Path(ckpt_path).with_suffix(".json")
    remedy = "Copy it beside the weights."
    if not path.is_file():
        return {}
    record = read_json_object(path, "the record that training writes", remedy)
    for key in TAKEN:
        if key in record and not (kind := SETTINGS[key][0]).accepts(record[key]):
            raise DataError(
                f"{path}: {key} is {record[key]!r}, expected {kind.expected}. Training writes this file: copy it "
                "beside the weights again."
            )
    return record


def record_with_history(record: ModelRecord, pretrained: str | Path | None) -> ModelRecord:
    """A record of weights that start from others: what those were trained on has been seen, too.

    Args:
        record: of the training to come, with `train_domains`.
        pretrained: the file that it starts from, or None.

    Returns:
        `record` with `pretrained`, the file and its own record, and the domains of both, of the training and of the
        choice of the epoch.
    """
    if not pretrained:
        return {**record, "pretrained": None}
    earlier = read_model_record(pretrained)
    domains = {
        key: sorted({*record[key], *earlier.get(key, [])}) for key in ("train_domains", "val_domains") if key in record
    }
    return {**record, **domains, "pretrained": {"file": Path(pretrained).name, "record": earlier}}


def known_domains(record: ModelRecord) -> list[str] | None:
    """The domains that took part in the training or in the choice of its epoch; None where the record has none."""
    trained = record.get("train_domains")
    return None if trained is None else sorted({*trained, *(record.get("val_domains") or [])})


def joint_domains(record: ModelRecord, *others: ModelRecord) -> list[str] | None:
    """The domains that one of several networks was trained on; None where one of the records does not say it.

    Args:
        record: of the first.
        others: of those that work together with it; an empty one stands for no network.
    """
    trained = [each.get("train_domains") for each in (record, *filter(None, others))]
    return None if None in trained else sorted({name for names in trained for name in names})


def check_record(path: Path, record: ModelRecord, settings: Mapping[str, Any]) -> None:
    """Raise a `DataError` unless weights were trained with these settings, as far as their record says it.

    Args:
        path: of the weights.
        record: of them.
        settings: of a configuration that uses the weights, by the names of the record. Numbers may differ by 1e-6;
            `label_ids` may differ, which the log says.
    """
    known = {key: value for key, value in settings.items() if key in record}
    if "bundle" in known and known["bundle"] != record["bundle"]:
        theirs = f"{record['bundle']} {record.get('version', '')}".rstrip()
        raise DataError(
            f"{path}: these are weights of {theirs}, this is {known['bundle']}. Give weights that a training of "
            f"{known['bundle']} wrote."
        )
    if "network_overlay" in known and known["network_overlay"] != record["network_overlay"]:
        raise DataError(f"{path}: {_other_overlay(record['network_overlay'], known['network_overlay'])}")
    for key in sorted(known.keys() - ABOUT):
        if _is_same(known[key], record[key]):
            continue
        if key in MAY_DIFFER:
            logger.info("%s is %s; the weights were trained with %s", key, known[key], record[key])
            continue
        raise DataError(
            f"{path}: {key} is {_plain(known[key])}, these weights were trained with {_plain(record[key])}. Leave "
            f'--{key} out, or give --{key} "{_plain(record[key])}" where an overlay says it otherwise.'
            + " A datalist with other classes does not fit these weights."
            * (key == "labels")
        )


def _plain(value: Any) -> Any:
    """A value of a configuration as it is typed."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _is_same(one: Any, other: Any) -> bool:
    one, other = _plain(one), _plain(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=0, abs_tol=1e-6)
    return bool(one == other)


def _other_overlay(recorded: str, given: str) -> str:
    """What to say where the weights are of another overlay's network than the configuration's."""
    here = f"the network of {given}" if given else "the bundle's own network"
    if recorded:
        text = f"these weights are of the network of {recorded}, the configuration has {here}."
        remedy = f"Add {recorded} to --config_file" + f" in place of {given}" * bool(given)
    else:
        text = f"these weights are of the bundle's own network, the configuration has {here}."
        remedy = f"Leave {given} out of --config_file"
    command = _rewritten_command(recorded, given)
    return f"{text} {remedy}" + (f": {command}" if command else ".")


def _rewritten_command(add: str, drop: str) -> str:
    """The command of this process with one overlay more behind the bundle's own configs, or one less.

    Empty where it is no `python -m monai.bundle run`, or does not name that overlay; of torchrun its --config_file.
    """
    line = command_line()
    files = [] if line is None else list(line.files)
    bases = [i for i, file in enumerate(files) if PurePath(file).name in BASES]
    if line is None or not bases or (drop and not any(file.endswith(drop) for file in files)):
        return ""
    if add:
        files.insert(bases[-1] + 1, str(PurePath(files[bases[0]]).parent.parent / add))
    config = line.config_option([file for file in files if not drop or not file.endswith(drop)])
    if "LOCAL_RANK" in os.environ:
        return config
    options = [f"--{key} {_quoted(str(value))}" for key, value in line.options.items()]
    return " ".join(["python -m monai.bundle run", config, *options])


def _quoted(text: str) -> str:
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)
