from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from grids import full_computation, make_grids, peak_bytes
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from shared.inferers import SlidingWindowLabelInferer, restore_label_map
from shared.utils import DataError

ROI = (12, 10, 8)


def network(classes: int = 5) -> Callable[[Tensor], Tensor]:
    """Logits that depend on the whole window, so that neighbouring windows disagree."""
    weight = torch.randn(classes, 1, 3, 3, 3, generator=torch.Generator().manual_seed(0))

    def logits(x: Tensor) -> Tensor:
        return 3 * F.conv3d(x, weight, padding=1) + x.mean(dim=(2, 3, 4), keepdim=True)

    return logits


def volume(codes: str = "RAS", native_shape: tuple[int, ...] = (23, 31, 20), crop: int = 0) -> MetaTensor:
    affine, native_affine, shape = make_grids(codes, native_shape, crop)
    image = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    meta = {"original_affine": native_affine, "spatial_shape": np.array(native_shape)}
    return MetaTensor(image, affine=torch.from_numpy(affine), meta=meta)


def monais(image: MetaTensor, net: Callable[[Tensor], Tensor], **options: Any) -> Tensor:
    """The logits of the whole volume."""
    inferer = SlidingWindowInferer(ROI, **{"mode": "gaussian", "sw_batch_size": 4} | options)
    return inferer(image, net).as_tensor()[0]


def whole(image: MetaTensor, net: Callable[[Tensor], Tensor], **options: Any) -> Tensor:
    """Those, restored."""
    return restore_label_map(monais(image, net, **options), *grids(image))


def grids(image: MetaTensor) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    return image.affine.numpy(), image.meta["original_affine"], tuple(image.meta["spatial_shape"].tolist())


def ours(image: Tensor, net: Callable[[Tensor], Tensor], **options: Any) -> Tensor:
    return SlidingWindowLabelInferer(ROI, **{"sw_batch_size": 4} | options)(image, net)[0, 0]


CASES: list[tuple[str, tuple[int, ...], int]] = [
    ("RAS", (23, 31, 20), 0),
    ("LPS", (28, 37, 19), 3),
    ("SRA", (50, 29, 33), 2),
    ("PIL", (9, 60, 11), 0),  # smaller than the window, too
    ("ASR", (5, 6, 7), 0),
]


@pytest.mark.parametrize(("codes", "shape", "crop"), CASES)
@pytest.mark.parametrize("overlap", [0.25, (0.0, 0.5, 0.9)])
def test_in_the_order_of_monais_windows_labels_are_the_same(
    codes: str, shape: tuple[int, ...], crop: int, overlap: Any
) -> None:
    image, net = volume(codes, shape, crop), network()
    expected = whole(image, net, overlap=overlap)
    assert torch.equal(ours(image, net, overlap=overlap, buffer_dim=0), expected)
    assert len(expected.unique()) > 3


@pytest.mark.parametrize(("codes", "shape", "crop"), CASES)
@pytest.mark.parametrize("mode", ["gaussian", "constant"])
@pytest.mark.parametrize("buffer_dim", [1, 2])
def test_in_another_order_labels_differ_where_two_are_as_likely(
    codes: str, shape: tuple[int, ...], crop: int, mode: str, buffer_dim: int
) -> None:
    image, net = volume(codes, shape, crop), network()
    expected, tie = full_computation(monais(image, net, mode=mode), *grids(image))
    found = ours(image, net, mode=mode, buffer_dim=buffer_dim, slab=3)
    assert ((found == expected) | tie).all()
    assert tie.float().mean() < 0.01


@pytest.mark.parametrize(
    "options", [{"padding_mode": "replicate"}, {"cval": 3.0}, {"sigma_scale": 0.5}, {"mode": "constant"}]
)
def test_options_are_those_of_monais(options: dict[str, Any]) -> None:
    image, net = volume("PIL", (5, 60, 11)), network()  # narrower than the window: padded
    found = ours(image, net, buffer_dim=0, **options)
    assert torch.equal(found, whole(image, net, **options))
    assert not torch.equal(found, ours(image, net, buffer_dim=0))


def test_on_its_own_grid() -> None:
    image, net = volume(), network()
    expected = SlidingWindowInferer(ROI, 4, mode="gaussian")(image, net).argmax(1)[0]
    for buffer_dim in (0, -1):
        found = ours(image.as_tensor(), net, native=False, buffer_dim=buffer_dim)
        assert found.dtype == torch.uint8
        assert torch.equal(found, expected.as_tensor())


def test_half_precision_is_weighted_as_by_monai() -> None:
    image, net = volume(), network()

    def half(x: Tensor) -> Tensor:
        return (0.01 * net(x) + 1).half()  # so close together that rounding decides

    assert torch.equal(ours(image, half, buffer_dim=0), whole(image, half))
    assert not torch.equal(ours(image, net, buffer_dim=0), ours(image, half, buffer_dim=0))


def test_a_collated_volume_and_more_arguments() -> None:
    image = volume("LPI")
    batch = image.clone()
    batch.meta = {
        "original_affine": torch.from_numpy(image.meta["original_affine"])[None],
        "spatial_shape": torch.from_numpy(image.meta["spatial_shape"])[None],
    }
    batch.affine = image.affine[None]
    net = network()
    doubled = SlidingWindowLabelInferer(ROI)(batch, lambda x, by, plus: net(x) * by + plus, 2.0, plus=1.0)
    assert torch.equal(doubled[0, 0], ours(image, lambda x: net(x) * 2 + 1))


@pytest.mark.parametrize("native", [True, False])
def test_what_is_held_does_not_grow_with_the_planes(native: bool) -> None:
    def peak(planes: int) -> int:
        meta = {"original_affine": np.eye(4), "spatial_shape": np.array([16, 16, planes])}
        image = MetaTensor(torch.zeros(1, 1, 16, 16, planes), affine=torch.eye(4), meta=meta)
        inferer = SlidingWindowLabelInferer((8, 8, 8), native=native)
        return peak_bytes(lambda: inferer(image, lambda x: x.expand(-1, 20, -1, -1, -1))) - 256 * planes  # the labels

    few, many = peak(40), peak(400)
    assert few > 20 * 16 * 16 * 8 * 4  # the record is not empty
    assert many <= 1.05 * few


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_no_number_is_no_label(value: str, native: bool) -> None:
    def overflows(x: Tensor) -> Tensor:
        logits = x.expand(-1, 5, -1, -1, -1).clone()
        logits[-1, 2, 3, 4, 5] = float(value)
        return logits

    image = volume()
    image.meta["filename_or_obj"] = "some/ct.nii.gz"
    with pytest.raises(DataError, match=rf"^{'The' if native else 'some/ct.nii.gz: the'} network gives no number here"):
        ours(image, overflows, native=native)
    excluded = ours(image, lambda x: torch.cat([x, x - float("inf")], 1), native=native)
    assert not excluded.any()


@pytest.mark.parametrize(
    ("image", "net", "message"),
    [
        (torch.zeros(1, 1, 9, 9), None, r"expected one volume.*\(1, 1, 9, 9\)"),
        (torch.zeros(2, 1, 9, 9, 9), None, "expected one volume"),
        (torch.zeros(1, 1, 9, 9, 9), None, "does not say its file's original_affine.*native=False"),
        (volume(), lambda x: x[..., ::2], "not the same grid"),
        (volume(), lambda x: x.expand(-1, 257, -1, -1, -1), "257 classes, and labels of 8 bits hold 256"),
    ],
)
def test_what_cannot_be_done_is_said(image: Tensor, net: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours(image, net)
    with pytest.raises(ValueError, match="buffer_dim must be one of"):
        SlidingWindowLabelInferer(ROI, buffer_dim=3)
    for overlap in (1.0, (0.5, -0.25, 0.5)):
        with pytest.raises(ValueError, match="overlap must be 0 or more and less than 1, got"):
            SlidingWindowLabelInferer(ROI, overlap=overlap)
