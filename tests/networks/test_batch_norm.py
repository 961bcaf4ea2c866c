from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from shared.layers import FuseStyle
from shared.networks import adapt_batch_norm, fusestyle_resnet


def images(count: int = 6, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale, shift = torch.rand(2, 1, channels, 1, 1, generator=generator)
    return torch.randn(count, channels, 4, 5, generator=generator) * (0.3 + scale) + 3 * shift


def assert_same_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(network.state_dict()), state, rtol=0, atol=0)


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_statistics_of_one_batch() -> None:
    x = images().double()
    norm = nn.BatchNorm2d(3).double()
    norm(images(seed=5).double())  # leaves statistics of something else
    assert adapt_batch_norm(norm, [x]) == 6
    for c in range(3):
        values = x[:, c].flatten().tolist()
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        assert norm.running_mean[c].item() == pytest.approx(mean, rel=1e-12)
        assert norm.running_var[c].item() == pytest.approx(variance, rel=1e-12)


def test_every_image_weighs_the_same_in_batches_of_any_size() -> None:
    batches = [images(n, seed=n).double() for n in (5, 1, 2, 7)]
    norm = nn.BatchNorm2d(3).double()
    assert adapt_batch_norm(norm, iter(batches)) == 15
    torch.testing.assert_close(norm.running_mean, torch.cat(batches).mean((0, 2, 3)))
    variances = [x.transpose(0, 1).flatten(1).var(dim=1) * len(x) for x in batches]
    torch.testing.assert_close(norm.running_var, torch.stack(variances).sum(0) / 15)


def test_later_layers_see_what_the_adapted_earlier_ones_give() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)).double()
    x = images().double()
    adapt_batch_norm(network, [x])
    hidden = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    hidden = network[1](hidden).relu()
    torch.testing.assert_close(network[3].running_mean, hidden.mean((0, 2, 3)).detach())
    torch.testing.assert_close(network[3].running_var, hidden.var((0, 2, 3)).detach())


def test_another_scanner_is_brought_back() -> None:
    """Its colours are scaled and shifted ones: with its own statistics, the same comes out."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(60, 2)).double()
    x = images(32).double()
    adapt_batch_norm(network, x.split(16))
    network.eval()
    wanted = network(x)
    scale, shift = torch.tensor([2.0, 0.7, 1.4])[:, None, None], torch.tensor([0.4, -0.8, 2.0])[:, None, None]
    other = x * scale + shift
    assert (network(other) - wanted).abs().mean() > 0.2
    adapt_batch_norm(network, other.split(16))
    torch.testing.assert_close(network(other), wanted, rtol=1e-4, atol=1e-4)  # epsilon is not scaled


def test_nothing_else_that_trains_takes_part() -> None:
    seen: list[list[bool]] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append([dropout.training, mix.training, self.training, torch.is_grad_enabled()])
            return x

    dropout, mix = nn.Dropout(0.5), FuseStyle(p=1.0)
    network = nn.Sequential(dropout, mix, Spy(), nn.BatchNorm2d(3))
    x = images()
    state = torch.random.get_rng_state()
    adapt_batch_norm(network, [x])
    assert seen == [[False, False, False, False]]
    torch.testing.assert_close(network[3].running_mean, x.mean((0, 2, 3)))
    assert torch.equal(torch.random.get_rng_state(), state)


def mixed_network() -> nn.Sequential:
    """Part of it frozen in eval mode, with momenta of its own."""
    network = nn.Sequential(
        nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(), nn.Sequential(nn.BatchNorm2d(3, momentum=None), nn.Dropout())
    )
    network[2].eval()
    network[1].eval()
    return network


@pytest.mark.parametrize("training", [True, False])
def test_modes_momenta_and_weights_stay(training: bool) -> None:
    network = mixed_network()
    if not training:
        network.eval()
    before = [module.training for module in network.modules()]
    weights = [parameter.clone() for parameter in network.parameters()]
    adapt_batch_norm(network, [images()])
    assert [module.training for module in network.modules()] == before
    assert [network[0].momentum, network[2][0].momentum] == [0.3, None]
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def broken() -> Iterator[Tensor]:
    yield images()
    raise OSError("disk lost")


def interrupted() -> Iterator[Tensor]:
    yield images()
    raise KeyboardInterrupt("stop")


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (broken, OSError, "disk lost"),
        (interrupted, KeyboardInterrupt, "stop"),
        (lambda: [images(channels=4)], RuntimeError, "running_mean"),
        (lambda: [], ValueError, "there is no image"),
        (lambda: iter([torch.empty(0, 3, 1, 1)]), ValueError, "there is no image"),
    ],
)
def test_after_an_exception_all_is_as_before(batches: object, error: type, message: str) -> None:
    network = mixed_network()
    network(images(seed=3))
    state, modes = state_of(network), [module.training for module in network.modules()]
    with pytest.raises(error, match=message):
        adapt_batch_norm(network, batches())
    assert_same_state(network, state)
    assert [module.training for module in network.modules()] == modes
    assert [network[0].momentum, network[2][0].momentum] == [0.3, None]


def test_empty_batches_are_passed_over() -> None:
    x, empty = images(), torch.empty(0, 3, 1, 1)
    with_empty, without = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    assert adapt_batch_norm(with_empty, [empty, x[:4], empty, x[4:], empty]) == 6
    adapt_batch_norm(without, [x[:4], x[4:]])
    assert_same_state(with_empty, state_of(without))


def test_networks_without_statistics_stay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False))
    state = state_of(network)
    assert adapt_batch_norm(network, [images()]) == 6
    assert_same_state(network, state)


def test_a_resnet_gives_in_eval_mode_what_batch_statistics_give() -> None:
    torch.manual_seed(0)
    network = fusestyle_resnet("resnet10", places=(1, 4), p=1.0).eval()
    x = torch.randn(8, 3, 96, 96) * 0.4 + 1
    plain = copy.deepcopy(network)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    wanted = plain(x)
    adapt_batch_norm(network, [x])
    found = network(x)
    assert not network.training
    # running variances are unbiased, a batch's own are not
    correlation = torch.corrcoef(torch.stack([found.flatten(), wanted.flatten()]))[0, 1]
    assert correlation > 0.99
