"""A second network's opinion of what a detector has found: crops around it, through a classifier of patches."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..data import MPP_TOLERANCE, Region, weights_digest
from ..metrics import MITOTIC, Detections, box_centres
from ..networks import load_classifier, place_network, read_classifier_record, weights_of_classifier
from ..utils import DataError, flag, progress
from ..utils.errors import NO_NUMBER

_MIRRORED = ((), (-1,), (-2,), (-2, -1))  # axes of a batch of crops, by which each is turned around


class CropClassifier:
    """The probability of class 1 at places of an image, by a classifier of patches.

    A crop is cut around each place as the classifier's patches were: `crop_size` pixels of `mpp` µm, resampled to
    `patch_size`. Beyond the file's edges the image is reflected, see `Region.square`.

    Args:
        network: gives logits (B, 1) for crops, float32 (B, 3, patch_size, patch_size); in eval mode, on its device.
        crop_size, patch_size: in pixels.
        mpp: µm a pixel of what it was trained on.
        assumed_mpp: that of images that do not say it; None: as `mpp`.
        image_mean, image_std: of the channels, scaled to 0 to 1, as in training.
        normalizer: of stains, see `shared.transforms.stain_normalizer`, fitted to each image by itself; None: as it is.
        batch_size: crops at a time.
        flips: take the mean of the probabilities of the crop and its three mirror images.
        amp, amp_dtype: mixed precision, and its type.

    Attributes:
        about: what results have to say of it: of one that `crop_classifier` has read its file, the digest of that, how
            its crops are cut, and its record.

    Raises:
        ValueError: when a size or the batch size is less than 1, or a µm a pixel is not positive.
        DataError: when called: the image cannot be decoded, its stains cannot be fitted, or the network gives no
            number.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        crop_size: int = 64,
        patch_size: int = 64,
        mpp: float = 0.25,
        assumed_mpp: float | None = None,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        normalizer: Any = None,
        batch_size: int = 64,
        flips: bool = False,
        amp: bool = False,
        amp_dtype: str = "float16",
    ) -> None:
        if min(crop_size, patch_size, batch_size) < 1 or not mpp > 0 or not (assumed_mpp is None or assumed_mpp > 0):
            raise ValueError(
                "crop_size, patch_size and batch_size must be 1 or more, mpp and assumed_mpp above 0, got "
                f"{crop_size}, {patch_size}, {batch_size}, {mpp} and {assumed_mpp}."
            )
        self.network = network
        self.crop_size, self.patch_size, self.batch_size = crop_size, patch_size, batch_size
        self.mpp, self.assumed_mpp = mpp, mpp if assumed_mpp is None else assumed_mpp
        self.image_mean, self.image_std = image_mean, image_std
        self.normalizer = normalizer
        self.flips = flips
        self.amp, self.amp_dtype = amp, amp_dtype
        self.about: dict[str, Any] = {}

    def scale(self, region: Region) -> float:
        """Pixels of the file to one of a crop before it is resampled; 1 where they differ by no more than scanners."""
        ratio = self.mpp / (region.mpp or self.assumed_mpp)
        return 1.0 if max(ratio, 1 / ratio) <= 1 + MPP_TOLERANCE else ratio

    def crops(self, region: Region, points: np.ndarray) -> Tensor:
        """What the network is to see of these places, (n, 2) in pixels of the region: uint8 (n, 3, patch, patch)."""
        scale, size = self.scale(region), (self.patch_size,) * 2
        cut = [Image.fromarray(region.square(x, y, self.crop_size, scale)) for x, y in points.tolist()]
        if self.patch_size != self.crop_size:
            cut = [crop.resize(size, Image.Resampling.BILINEAR) for crop in cut]
        return torch.from_numpy(np.stack([np.array(crop) for crop in cut])).permute(0, 3, 1, 2)

    @torch.no_grad()
    def __call__(self, region: Region, points: np.ndarray) -> np.ndarray:
        """
        Args:
            region: the image.
            points: x and y of the places, (n, 2), in its pixels; none is fine.

        Returns:
            float32, (n,), in [0, 1].
        """
        recolour = None
        if self.normalizer is not None and len(points):
            recolour = self.normalizer.change(self.normalizer.fit([region]))
        found = [np.empty(0, np.float32)]
        for start in range(0, len(points), self.batch_size):
            crops = self.crops(region, points[start : start + self.batch_size])
            found.append(self._probabilities(crops, recolour, region))
            progress.beat()
        return np.concatenate(found)

    def _probabilities(self, crops: Tensor, recolour: Callable[[Tensor], Tensor] | None, region: Region) -> np.ndarray:
        device = device_of(self.network)
        images = (crops.pin_memory() if device.type == "cuda" else crops).to(device, non_blocking=True)
        images = images if recolour is None else recolour(images)
        images = normalized(images, self.image_mean, self.image_std)
        ways = _MIRRORED if self.flips else _MIRRORED[:1]
        with torch.autocast(device.type, getattr(torch, self.amp_dtype), enabled=self.amp):
            logits = [self.network(images.flip(axes) if axes else images) for axes in ways]
        found = torch.stack([each.float().sigmoid().flatten() for each in logits]).mean(dim=0).cpu().numpy()
        if not np.isfinite(found).all():
            raise DataError(f"{region.path}: the classifier gives no number here. {NO_NUMBER}")
        return found


def combine_scores(detector: np.ndarray, classifier: np.ndarray | float, weight: float) -> np.ndarray:
    """`(1 − weight) · detector + weight · classifier`: probabilities of one thing, by two networks.

    Args:
        detector, classifier: in [0, 1], of one shape, or one number for all.
        weight: in [0, 1].

    Returns:
        float32, of that shape.
    """
    return ((1 - weight) * detector + weight * classifier).astype(np.float32)


class CandidateJudge:
    """Lets a classifier judge what a detector has found, whatever that called it.

    Each detection gets the probability of a mitotic figure that both networks together give it, see `combine_scores`.
    From the threshold on it is a mitotic figure. Below, one that the detector took for a mitotic figure remains a
    candidate, with that as its score; one that it took for something else stays as it is. To save time the classifier
    is not shown what the detector gives a probability below the floor, what even a probability of 1 would not lift to
    the threshold, and with a weight of 0 anything: these count as 0 from it.

    Args:
        classify: see `CropClassifier`.
        weight: of the classifier, in [0, 1].
        threshold: from which on a detection is a mitotic figure, in [0, 1].
        about: what results have to say of the classifier.
        floor: the detector's probability of a mitotic figure from which on the classifier is asked, in [0, 1].

    Raises:
        ValueError: when weight, threshold or floor is out of range.
    """

    def __init__(
        self,
        classify: Callable[[Region, np.ndarray], np.ndarray],
        weight: float = 0.5,
        threshold: float = 0.5,
        about: Mapping[str, Any] | None = None,
        floor: float = 0.0,
    ) -> None:
        if not all(0 <= value <= 1 for value in (weight, threshold, floor)):
            raise ValueError(f"weight, threshold and floor must be in [0, 1], got {weight}, {threshold} and {floor}.")
        self.classify = classify
        self.weight, self.threshold, self.floor = float(weight), float(threshold), float(floor)
        self.about = dict(about or {})

    @property
    def settings(self) -> dict[str, Any]:
        """What the result depends on, see `shared.data.made_with`."""
        return {"classifier": {key: value for key, value in self.about.items() if key != "record"}}

    def __call__(self, region: Region, found: Detections) -> Detections:
        """
        Args:
            region: the image.
            found: in it, with `mitotic`, in pixels of the region.

        Returns:
            The same detections, by descending score.
        """
        within_reach = combine_scores(found["mitotic"], 1.0, self.weight) >= self.threshold
        within_reach &= (self.weight > 0) & (found["mitotic"] >= self.floor)
        judged = np.zeros(len(within_reach), np.float32)
        judged[within_reach] = self.classify(region, box_centres(found["box"][within_reach].astype(np.float64)))
        mitotic = combine_scores(found["mitotic"], judged, self.weight)
        own = (found["label"] == MITOTIC) | (mitotic >= self.threshold)
        score = np.where(own, mitotic, found["score"])
        label = np.where(own, MITOTIC, found["label"])
        order = np.argsort(-score, kind="stable")
        changed = {**found, "score": score, "label": label, "mitotic": mitotic}
        return {key: value[order] for key, value in changed.items()}


class SubtypeCaller:
    """Says of each mitotic figure which of two kinds it is, by a classifier that tells these apart.

    Args:
        classify: see `CropClassifier`.
        names: of its classes 0 and 1.
        threshold: of the detections: from which score on one is a figure, in [0, 1].
        subtype_threshold: from which probability on a figure is of class 1, in [0, 1].
        about: what results have to say of the classifier.

    Raises:
        ValueError: when a threshold is out of range.
    """

    def __init__(
        self,
        classify: Callable[[Region, np.ndarray], np.ndarray],
        names: Sequence[str],
        threshold: float = 0.5,
        subtype_threshold: float = 0.5,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if not (0 <= threshold <= 1 and 0 <= subtype_threshold <= 1):
            raise ValueError(f"thresholds must be in [0, 1], got {threshold} and {subtype_threshold}.")
        self.classify = classify
        self.names = tuple(names)
        self.threshold, self.subtype_threshold = float(threshold), float(subtype_threshold)
        self.about = dict(about or {})

    @property
    def settings(self) -> dict[str, Any]:
        """What the result depends on, see `shared.data.made_with`."""
        return {"subtype_classifier": {key: value for key, value in self.about.items() if key != "record"}}

    def __call__(self, region: Region, found: Detections) -> Detections:
        """The detections with `subtype`, the probability of class 1, NaN of what is no mitotic figure."""
        figures = (found["label"] == MITOTIC) & (found["score"] >= self.threshold)
        subtype = np.full(len(figures), np.nan, np.float32)
        subtype[figures] = self.classify(region, box_centres(found["box"][figures].astype(np.float64)))
        return {**found, "subtype": subtype}

    def names_of(self, subtype: np.ndarray) -> list[str]:
        """The name of each detection's kind, by its probability; "" where it has none."""
        return ["" if np.isnan(p) else self.names[p >= self.subtype_threshold] for p in subtype.tolist()]


def cascade_digest(ckpt_path: str | os.PathLike, classifier: str | os.PathLike = "") -> str | None:
    """SHA-256 of a detector's weights; with a classifier those of both, joined by "+"."""
    files = [Path(ckpt_path), *([weights_of_classifier(classifier)] if classifier else [])]
    digests = [weights_digest(file) for file in files]
    return "+".join(digests) if all(digests) else None


def crop_classifier(
    path: str | os.PathLike,
    device: torch.device | str = "cpu",
    amp: bool | str = False,
    **options: Any,
) -> CropClassifier | None:
    """The classifier in a file, ready for crops that are cut as its record says; None where no file is given ("").

    Args:
        path: see `shared.networks.read_classifier_record`.
        device: where it goes; with the channels last, as crops come.
        amp: mixed precision.
        options: of `CropClassifier` that the record does not have.

    Raises:
        DataError: see `shared.networks.read_classifier_record` and `load_classifier`.
    """
    if not path:
        return None
    record, file = read_classifier_record(path), weights_of_classifier(path)
    network = place_network(load_classifier(path), device, channels_last=True)
    known = ("crop_size", "patch_size", "mpp", "image_mean", "image_std")
    taken = {key: record[key] for key in known if record.get(key) is not None}
    classify = CropClassifier(network, **taken, amp=flag("amp", amp), **options)
    cut = {key: getattr(classify, key) for key in ("flips", "crop_size", "patch_size", "mpp")}
    classify.about = {"file": file.name, "weights": weights_digest(file), **cut, "record": dict(record)}
    return classify


def normalized(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images of 0 to 255, (B, C, H, W), scaled to 0 to 1, less the mean of each channel, by its standard deviation."""
    mean, std = (
        torch.tensor(v, dtype=torch.float32)[:, None, None].to(images.device, non_blocking=True) for v in (mean, std)
    )
    return (images / 255 - mean) / std


def device_of(network: Callable) -> torch.device:
    parameters = network.parameters() if isinstance(network, nn.Module) else iter(())
    first = next(parameters, None)
    return torch.device("cpu") if first is None else first.device
