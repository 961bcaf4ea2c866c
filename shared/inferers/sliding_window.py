"""Windows that go along one axis of a volume, and labels of what they have left behind: logits of a few planes alone.

Shape suffixes: C classes, X Y Z the preprocessed grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer
from monai.inferers.utils import _get_scan_interval
from monai.utils import ensure_tuple, ensure_tuple_rep, fall_back_tuple
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

from ..utils import DataError
from ..utils.errors import NO_NUMBER
from .restore import NativeLabels

Window = tuple[slice, slice, slice]


class SlidingWindowLabelInferer(SlidingWindowInferer):
    """Sliding windows whose logits become labels as soon as no window adds to them any more.

    In place of MONAI's `SlidingWindowInferer`, with any network whose output has the grid of its input. Windows,
    weights and batches are MONAI's, but the windows go along one axis; held are the logits of as many planes as a
    window is deep, and one more. The labels are those of argmax over classes on the grid of the image file, see
    `restore_label_map`, or on that of the input.

    Args:
        roi_size: of a window, in voxels.
        sw_batch_size, overlap, mode, sigma_scale, padding_mode, cval, sw_device, progress: as for MONAI's.
        device: where logits are added up and restored; None: that of the input.
        buffer_dim: spatial axis along which the windows go. 0 is the order of MONAI's: sums and labels are then the
            same to the bit. By default the last one, the slices of a scan in RAS.
        native: whether labels are on the grid of the file, which a `MetaTensor` knows; else on that of the input.
        slab: see `NativeLabels`.

    Raises:
        ValueError: when `overlap` or `buffer_dim` is out of its range.

    Example::

        inferer = SlidingWindowLabelInferer(roi_size=(96, 96, 96), sw_batch_size=4)
        labels = inferer(image[None], network)  # (1, 1, x, y, z), uint8, on the grid of the image's file
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        mode: str = "gaussian",
        sigma_scale: Sequence[float] | float = 0.125,
        padding_mode: str = "constant",
        cval: float = 0.0,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        buffer_dim: int = -1,
        native: bool = True,
        slab: int = 16,
    ) -> None:
        super().__init__(
            roi_size, sw_batch_size, overlap, mode, sigma_scale, padding_mode, cval, sw_device, device, progress
        )
        if not -3 <= buffer_dim < 3:
            raise ValueError(f"buffer_dim must be one of the three spatial axes, -3 to 2, got {buffer_dim}.")
        if not all(0 <= share < 1 for share in ensure_tuple(overlap)):
            raise ValueError(f"overlap must be 0 or more and less than 1, got {overlap}.")
        self.buffer_dim = buffer_dim % 3
        self.native = native
        self.slab = slab

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The labels of a volume.

        Args:
            inputs: (1, channels, X, Y, Z); a `MetaTensor` that still knows affine and shape of its file where `native`
                labels are wanted.
            network: gives logits (B, C, …), C ≤ 256, for windows (B, channels, …).
            args, kwargs: more that the network takes.

        Returns:
            uint8 (1, 1, x, y, z), on the CPU where `native`, else on `device`.

        Raises:
            ValueError: for an input of another shape, or one that does not know its file; when the network's output
                has another grid than its input or more than 256 classes.
            DataError: when the network's output holds NaN or +infinity.
        """
        if inputs.ndim != 5 or len(inputs) != 1:
            raise ValueError(f"expected one volume, (1, channels, X, Y, Z), got shape {tuple(inputs.shape)}.")
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        shape = tuple(image.shape[2:])
        device = torch.device(self.device or image.device)
        if self.native:
            labels = _native_labels(inputs, self.buffer_dim, self.slab)
        else:
            labels = _GridLabels(shape, self.buffer_dim, device)
        roi = fall_back_tuple(self.roi_size, shape)
        short = [max(size - n, 0) for size, n in zip(roi, shape, strict=True)]
        before = [n // 2 for n in short]
        pads = [pad for n, half in zip(short[::-1], before[::-1], strict=True) for pad in (half, n - half)]
        padded = F.pad(image, pads, mode=self.padding_mode, value=self.cval) if any(pads) else image
        place = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
        planes = _Planes(self.buffer_dim, roi, padded.shape[2:], device, image.dtype)
        weights = self._weights(roi, image)
        for windows, output in self._outputs(padded, roi, network, args, kwargs):
            if output.shape[2:] != roi:
                raise ValueError(f"the network made {tuple(output.shape[2:])} of a window of {roi}: not the same grid.")
            if output.shape[1] > 256:
                raise ValueError(f"the network has {output.shape[1]} classes, and labels of 8 bits hold 256.")
            for window, values in zip(windows, output, strict=True):
                planes.finish(window[self.buffer_dim].start, place, labels)
                planes.add(window, values, weights)
        planes.finish(padded.shape[2 + self.buffer_dim], place, labels)
        if not self.native and not labels.finite:
            file = getattr(inputs, "meta", {}).get("filename_or_obj") or "a volume"
            raise DataError(f"{file}: the network gives no number here. {NO_NUMBER}")
        return labels.labels[None, None]

    def _weights(self, roi: tuple[int, ...], image: Tensor) -> Tensor:
        device = torch.device(self.sw_device or image.device)
        return compute_importance_map(roi, self.mode, self.sigma_scale, device, image.dtype).to(device, image.dtype)

    def _outputs(
        self, image: Tensor, roi: tuple[int, ...], network: Callable[..., Tensor], args: Any, kwargs: Any
    ) -> Iterator[tuple[list[Window], Tensor]]:
        """Some windows and what the network makes of them; windows that begin on an earlier plane come before."""
        overlap = ensure_tuple_rep(self.overlap, 3)
        windows = dense_patch_slices(image.shape[2:], roi, _get_scan_interval(image.shape[2:], roi, 3, overlap))
        windows = sorted(windows, key=lambda window: window[self.buffer_dim].start)
        for start in trange(0, len(windows), self.sw_batch_size, disable=not self.progress):
            chosen = windows[start : start + self.sw_batch_size]
            batch = torch.cat([image[(slice(None), slice(None), *window)] for window in chosen])
            yield chosen, network(batch.to(self.sw_device or image.device), *args, **kwargs)


class _GridLabels:
    """Labels on the grid of the input itself, see `NativeLabels`.

    Attributes:
        finite: whether each voxel had a number; asked once, for the host waits for a GPU's answer.
    """

    def __init__(self, shape: Sequence[int], axis: int, device: torch.device) -> None:
        self.labels = torch.zeros(tuple(shape), dtype=torch.uint8, device=device)
        self.axis = axis
        self.finite = torch.ones((), dtype=torch.bool, device=device)

    def add(self, logits: Tensor, first: int) -> None:
        found = logits.argmax(0)
        self.finite &= logits.amax(0).isfinite().all()  # a class may have −infinity, as one that is masked out
        self.labels.narrow(self.axis, first, found.shape[self.axis]).copy_(found)


def _native_labels(inputs: Tensor, axis: int, slab: int) -> NativeLabels:
    """What becomes the labels on the grid of the file of a volume, (1, channels, X, Y, Z)."""
    meta = inputs.meta if isinstance(inputs, MetaTensor) else {}
    if lacking := [key for key in ("original_affine", "spatial_shape") if key not in meta]:
        raise ValueError(
            f"the volume does not say its file's {lacking[0]}, as a MetaTensor that LoadImaged has loaded does. Take "
            "native=False for labels on its own grid."
        )
    affine, original = (
        np.asarray(a.cpu() if isinstance(a, Tensor) else a, float).reshape(-1, 4, 4)[0]
        for a in (inputs.affine, meta["original_affine"])
    )
    native_shape = np.asarray(meta["spatial_shape"]).reshape(-1)[:3].tolist()
    return NativeLabels(affine, original, native_shape, inputs.shape[2:], axis, slab)


class _Planes:
    """Logits on the planes that windows still add to, and on the last one that is finished.

    Args:
        axis: across which the planes lie.
        roi: of a window.
        shape: of the whole grid.
        device, dtype: of the sums.
    """

    def __init__(
        self, axis: int, roi: Sequence[int], shape: Sequence[int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.axis = axis
        self.shape = [roi[axis] + 1 if i == axis else n for i, n in enumerate(shape)]
        self.logits = torch.zeros((0, *self.shape), dtype=dtype, device=device)
        self.weights = torch.zeros(self.shape, dtype=dtype, device=device)
        self.first = 0  # index on the grid of the first plane that is held
        self.finished = 0  # of the first that is not finished

    def add(self, window: Window, values: Tensor, weights: Tensor) -> None:
        """Add logits (C, …) of a window, which begins where the planes do that are not finished, or behind it."""
        if not len(self.logits):
            self.logits = self.logits.new_zeros((len(values), *self.shape))
        at = list(window)
        at[self.axis] = slice(window[self.axis].start - self.first, window[self.axis].stop - self.first)
        # in the precision of the network's output, as MONAI's inferer has it
        weighted = (values * weights).to(values.dtype)
        self.logits[(slice(None), *at)] += weighted.to(self.logits.device)
        self.weights[tuple(at)] += weights.to(self.weights.device)

    def finish(self, end: int, place: Window, labels: NativeLabels | _GridLabels) -> None:
        """Make labels of the planes before `end`, which no window adds to any more, and let them go but for the last.

        Args:
            end: index on the grid.
            place: where the volume lies on it.
            labels: what takes the logits.
        """
        if end <= self.finished:
            return
        done = (self.axis - 3, self.finished - self.first, end - self.finished)
        self.logits.narrow(*done).div_(self.weights.narrow(*done))
        low, high = max(self.first, place[self.axis].start), min(end, place[self.axis].stop)
        at = list(place)
        at[self.axis] = slice(low - self.first, high - self.first)
        labels.add(self.logits[(slice(None), *at)], low - place[self.axis].start)
        if end - 1 > self.first:
            self._drop(end - 1 - self.first)
        self.first, self.finished = end - 1, end

    def _drop(self, count: int) -> None:
        """Let the first planes go: the others move to their places, piece by piece, since they overlap."""
        for held in (self.logits.movedim(self.axis + 1, 0), self.weights.movedim(self.axis, 0)):
            for start in range(count, len(held), count):
                piece = held[start : start + count]
                held[start - count : start - count + len(piece)] = piece
            held[len(held) - count :] = 0
