from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from feature_maps import CUDA, SHAPES, features
from torch import Tensor, nn

from shared.layers import DSU, perturb_statistics


def drawn(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.randn(2, *shape[:2], generator=torch.Generator().manual_seed(seed)).double()


def by_the_equations(x: Tensor, noise: Tensor, floor: float | None, eps: float) -> Tensor:
    """Sample by sample and channel by channel; the statistics are constants."""
    out, (samples, channels) = torch.empty_like(x), x.shape[:2]
    mu = [[x[i, c].detach().mean().item() for c in range(channels)] for i in range(samples)]
    sigma = [[(x[i, c].detach().var().item() + eps) ** 0.5 for c in range(channels)] for i in range(samples)]

    def spread(of: list[list[float]], c: int) -> float:
        column = [row[c] for row in of]
        mean = sum(column) / samples
        return (sum((value - mean) ** 2 for value in column) / (samples - 1) + eps) ** 0.5

    for i in range(samples):
        for c in range(channels):
            beta = mu[i][c] + noise[0, i, c].item() * spread(mu, c)
            gamma = sigma[i][c] + noise[1, i, c].item() * spread(sigma, c)
            if floor is not None:
                gamma = max(gamma, floor * sigma[i][c])
            out[i, c] = gamma * (x[i, c] - mu[i][c]) / sigma[i][c] + beta
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("floor", [None, 0.0, 0.2])
def test_values_and_gradients_are_those_of_the_equations(shape: tuple[int, ...], floor: float | None) -> None:
    x, noise = features(shape), 3 * drawn(shape)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, literal = perturb_statistics(a, noise, floor), by_the_equations(b, noise, floor, 1e-6)
    torch.testing.assert_close(ours, literal, rtol=1e-12, atol=1e-12)
    weights = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for output in (ours, literal):
        (output * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


def test_without_noise_nothing_changes_and_alike_samples_hardly_do() -> None:
    x = features()
    torch.testing.assert_close(perturb_statistics(x, torch.zeros(2, 5, 3)), x)
    alike = x[:1].expand_as(x)
    torch.testing.assert_close(perturb_statistics(alike, drawn(x.shape)), alike, rtol=0, atol=0.02)  # of eps alone


def test_a_floor_keeps_sigma_from_vanishing_and_changing_its_sign() -> None:
    x, noise = features(), torch.full((2, 5, 3), -50.0)
    std = x.std((2, 3))
    torch.testing.assert_close(perturb_statistics(x, noise, 0.2).std((2, 3)), 0.2 * std, rtol=1e-4, atol=1e-6)
    turned = perturb_statistics(x, noise)
    assert ((turned - turned.mean((2, 3), keepdim=True)) * (x - x.mean((2, 3), keepdim=True))).sum() < 0


def test_identity_in_eval_for_one_sample_and_without_luck() -> None:
    x = features()
    assert DSU(p=1).eval()(x) is x
    assert DSU(p=1).train()(x[:1]).data_ptr() == x.data_ptr()
    assert DSU(p=0).train()(x) is x
    assert not torch.allclose(DSU(p=1).train()(x), x)


def test_the_layer_draws_a_number_for_each_sample_and_channel() -> None:
    torch.manual_seed(3)
    layer, x = DSU(p=0.5, floor=0.2).train(), features()
    found = [layer(x) for _ in range(40)]
    torch.manual_seed(3)
    for output in found:
        if torch.rand(()) >= 0.5:
            assert output is x
        else:
            torch.testing.assert_close(output, perturb_statistics(x, torch.randn(2, 5, 3), 0.2))
    assert 8 < sum(output is x for output in found) < 32


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_seed_reproduces_it_on_every_device(device: str) -> None:
    layer, outputs = DSU().train(), []
    for place in (device, "cpu"):
        torch.manual_seed(3)
        outputs.append([layer(features().to(place)).cpu() for _ in range(6)])
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b)
    assert len({o.sum().item() for o in outputs[0]}) > 2


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("device", [CUDA])
def test_nothing_waits_for_the_gpu(device: str) -> None:
    x = features().float().to(device).requires_grad_()
    layer = DSU(p=1, floor=0.2).train()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_a_small_spread_on_a_large_mean(dtype: torch.dtype) -> None:
    x = (features((4, 8, 16, 16)) + 100).to(dtype)
    x[1, 3] = 7.0  # a constant channel
    noise = drawn(x.shape)
    found = perturb_statistics(x.requires_grad_(), noise)
    assert found.dtype == dtype
    exact = perturb_statistics(x.detach().double(), noise)
    torch.testing.assert_close(found.detach().double(), exact.to(dtype).double(), rtol=1e-2, atol=0.05)
    found.float().mean().backward()
    assert x.grad.isfinite().all()


def test_backward_keeps_nothing_larger_than_the_statistics() -> None:
    x, saved = features((4, 6, 8, 8)).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        DSU(p=1).train()(x)
    assert saved
    assert max(saved) <= 4 * 6


@pytest.mark.parametrize(
    ("shape", "layout"), [((4, 6, 8, 8), torch.channels_last), ((3, 6, 4, 4, 4), torch.channels_last_3d)]
)
def test_the_memory_layout_is_kept(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    x, noise = features(shape), drawn(shape)
    outputs = [perturb_statistics(z, noise) for z in (x, x.to(memory_format=layout))]
    torch.testing.assert_close(*outputs)
    assert outputs[1].is_contiguous(memory_format=layout)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), DSU(p=1, floor=0.2), nn.Conv2d(4, 2, 3))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiles_with_at_most_one_graph_break() -> None:
    plain, x = network().train(), torch.randn(4, 2, 9, 9)
    assert torch._dynamo.explain(copy.deepcopy(plain))(x).graph_break_count <= 1
    torch._dynamo.reset()
    compiled, outputs = torch.compile(copy.deepcopy(plain), backend="aot_eager"), []
    for net in (plain, compiled):
        torch.manual_seed(1)
        outputs.append(net(x))
    torch.testing.assert_close(*outputs)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated")  # the default of MONAI's ckpt_export
def test_exports_as_the_identity() -> None:
    net, x = network().eval(), torch.randn(4, 2, 9, 9)
    plain = nn.Sequential(net[0], net[2])
    torch.testing.assert_close(torch.jit.script(net)(x), plain(x))
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), plain(x))
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert "p=1, floor=0.2" in repr(net)


def test_one_position_is_left_alone_with_a_warning() -> None:
    x = torch.rand(4, 3, 1, 1)
    with pytest.warns(UserWarning, match=r"DSU got features of the shape \(4, 3, 1, 1\): a single position"):
        assert DSU(p=1).train()(x) is x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.5}, r"p must be in \[0, 1\], got 1.5"),
        ({"eps": 0}, "eps must be above 0, got 0"),
        ({"floor": 1.0}, r"floor must be in \[0, 1\), or None, got 1.0"),
        ({"floor": -0.1}, r"floor must be in \[0, 1\), or None, got -0.1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DSU(**options)


def test_wrong_features_are_refused_with_their_shape() -> None:
    for call in (DSU(), DSU().eval()):
        with pytest.raises(ValueError, match=r"DSU got torch.float32 of the shape \(4, 3\), expected floating point"):
            call(torch.rand(4, 3))
    with pytest.raises(ValueError, match=r"of the shape \(4, 3, 1\), expected .* 2 positions or more"):
        perturb_statistics(torch.rand(4, 3, 1), torch.zeros(2, 4, 3))
    for x, noise in ((torch.rand(1, 3, 4), torch.zeros(2, 1, 3)), (torch.rand(4, 3, 4), torch.zeros(2, 4))):
        with pytest.raises(ValueError, match=r"expected two samples or more and noise \(2, batch, channels\)"):
            perturb_statistics(x, noise)
