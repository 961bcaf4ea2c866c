from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from ..utils import DataError
from .archive import check_archive

logger = logging.getLogger(__name__)

# A best score beside the weights, as many training scripts keep it. These types can do no harm.
_NUMPY_SCALARS = [np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType]
_NUMPY_SCALARS += [(np.float64().__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")]

# What checkpoints written with early versions of MONAI hold and its UNETR of today has no place for (`cls_token`
# never took part in UNETR's output; `conv3` and `norm3` stood unused in residual blocks that keep their channels), and
# what it has now and they lack: a norm of the unused cross attention.
_LEGACY_UNUSED = re.compile(r"cls_token$|\.conv3\.|\.norm3\.")
_NEVER_TRAINED = re.compile(r"\.norm_cross_attn\.|\.cross_attn\.|\.num_batches_tracked$")
# How the names of the last layer's parameters begin in UNETR and Lambda3D, BasicUNet, and DynUNet.
SEGMENTATION_HEADS = ("out.", "final_conv.", "output_block.")
# The same of a RetinaNet, with what its file may hold beyond the levels asked for, and a classifier's last layer.
DETECTION_HEADS = (
    "head.classification_head.cls_logits.",
    "head.regression_head.bbox_reg.",
    "fpn.layer_blocks.",
    "fpn.extra_blocks.",
    "fc.",
)
# A classifier's last layer: ResNet's and DenseNet's.
CLASSIFICATION_HEADS = ("fc.", "class_layers.out.")
# Under which a network's weights stand in the checkpoints of a larger one.
_PREFIXES = ("module.", "model.", "network.", "backbone.", "encoder.", "resnet.")
# Where a ResNet stands in a detector.
_BODY = "backbone.body."
# torchvision's detectors before 0.13, and its published weights: convolutions without a block around them.
_FPN_CONV = re.compile(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$")
_HEAD_CONV = re.compile(r"(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)$")
# torchvision's DenseNet, "norm.1" in its published weights and "norm1" in its state dicts; MONAI's has "layers.norm1".
_DENSE_LAYER = re.compile(r"(\.denselayer\d+)\.(norm|conv)\.?([12])\.")
_DENSE_HEAD = re.compile(r"^classifier\.")


def load_pretrained(
    network: nn.Module, path: str | Path, head: str | tuple[str, ...] = SEGMENTATION_HEADS
) -> dict[str, list[str]]:
    """Start `network` from the weights in a local file: our own, the public UNETR checkpoint for BTCV, torchvision's.

    The file holds a state dict, alone or under the key `model` or `state_dict`, or is a `.safetensors` file; prefixes
    such as `module.` and `backbone.` are stripped. Legacy UNETR keys are mapped: patch embeddings stored as a linear
    layer ("perceptron") become the equal convolution, parameters without a place are dropped. The older names in
    torchvision's detectors are mapped, too, as are those in its DenseNets. A head (`head`) for another number of
    classes, or one that the file lacks, stays as initialised, one that the network lacks is dropped. The file of a
    ResNet fills the backbone of a detector, whose other parts stay as initialised. Everything else must match.

    Args:
        network: changed in place.
        path: of the file.
        head: how the names of the head's parameters begin, `"fc."` in ResNet; several where any may be meant.

    Returns:
        `{"dropped": [...], "missing": [...]}`: keys of the file that were not used, keys of the network that the
        file did not fill. Both are logged too.

    Raises:
        DataError: when there is no such file, it holds no weights, or keys or shapes differ otherwise.
    """
    path = Path(path)
    target = network.state_dict()
    source = _adapt_patch_embedding(_strip_prefixes(path, read_state_dict(path), target), target)
    dropped = [key for key in source if key not in target]
    other_head = [k for k in source if k.startswith(head) and k in target and source[k].shape != target[k].shape]
    used = {key: value for key, value in source.items() if key in target and key not in other_head}
    missing = [key for key in target if key not in used]
    part = _BODY if used and all(key.startswith(_BODY) for key in used) else ""

    problems = [
        f"{key}: not part of the network"
        for key in dropped
        if not _LEGACY_UNUSED.search(key) and not key.startswith(head)
    ]
    problems += [
        f"{key}: missing in the file"
        for key in missing
        if key.startswith(part) and not key.startswith(head) and not _NEVER_TRAINED.search(key)
    ]
    problems += [
        f"{key}: {tuple(value.shape)} in the file, {tuple(target[key].shape)} in the network"
        for key, value in used.items()
        if value.shape != target[key].shape
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise DataError(
            f"{path}: these weights do not fit {type(network).__name__}: {'; '.join(problems[:5])}{more}. Give the "
            "network the arguments that the weights were trained with, or leave `pretrained` out."
        )
    network.load_state_dict(used, strict=False)
    dropped += other_head
    logger.info(
        "started from %s: %d of %d tensors; dropped: %s; as initialised: %s",
        path,
        len(used),
        len(target),
        ", ".join(dropped) or "none",
        ", ".join(missing) or "none",
    )
    return {"dropped": dropped, "missing": missing}


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """The weights in a `.safetensors` file, or in one of torch's: a state dict, or one under `model` or `state_dict`.

    Raises:
        DataError: when there is no such file or it holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file. Give the path of a file with weights (.pt, .safetensors).")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        check_archive(path, "Copy it again, or take another file of the run.")
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except Exception as e:  # torch raises half a dozen types here, the pickle module more
        raise DataError(
            f"{path}: cannot be read as weights ({type(e).__name__}). Expected a file written by torch.save that "
            "holds tensors only, or a .safetensors file; it may be cut short: copy it again."
        ) from e
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise DataError(f"{path}: holds no state dict (found {type(content).__name__}). Give a file with weights.")
    if not content:
        raise DataError(f"{path}: holds no weights, the state dict in it is empty. Give a file with weights.")
    return {key.removeprefix("module."): value for key, value in content.items()}


def _strip_prefixes(
    path: Path, source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    names: dict[str, str] = {}
    for key in source:
        stripped = [key]
        while prefix := next((p for p in _PREFIXES if stripped[-1].startswith(p)), None):
            stripped.append(stripped[-1].removeprefix(prefix))
        renamed = [_current_name(name) for name in stripped]
        candidates = [*stripped, *renamed, *(_BODY + name for name in stripped)]
        name = next((name for name in candidates if name in target), stripped[-1])
        if name in names:
            raise DataError(
                f"{path}: holds two candidates for {name}: {names[name]} and {key}. Save the weights of the one "
                "network that is wanted in a file of their own."
            )
        names[name] = key
    return {name: source[key] for name, key in names.items()}


def _current_name(name: str) -> str:
    """The name in our networks of a parameter of torchvision's older detectors and DenseNets; others keep theirs."""
    name = _DENSE_HEAD.sub("class_layers.out.", _DENSE_LAYER.sub(r"\1.layers.\2\3.", name))
    name = _FPN_CONV.sub(r"\1.0.\2", name)
    return _HEAD_CONV.sub(lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}", name)  # every other one was a ReLU


def _adapt_patch_embedding(
    source: dict[str, torch.Tensor], target: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Turn a linear patch embedding into the convolution that computes the same."""
    adapted = dict(source)
    for kind in ("weight", "bias"):
        linear = f"vit.patch_embedding.patch_embeddings.1.{kind}"
        conv = f"vit.patch_embedding.patch_embeddings.{kind}"
        if linear not in source or conv not in target:
            continue
        value = adapted.pop(linear)
        if kind == "weight":
            hidden, channels, *patch = target[conv].shape
            if value.numel() == target[conv].numel():
                # the linear layer reads a patch with the channels last
                value = value.reshape(hidden, *patch, channels).movedim(-1, 1)
        adapted[conv] = value
    return adapted
