from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shared.networks import AdaINNetwork, PyramidTransfer
from shared.networks.style_transfer import EPSILON, adain, feature_moments
from shared.utils import DataError

# file → layer → shape of its weights, as they are published
ENCODER = {0: (3, 3, 1, 1), 2: (64, 3), 5: (64, 64), 9: (128, 64), 12: (128, 128), 16: (256, 128), 19: (256, 256)}
ENCODER |= {22: (256, 256), 25: (256, 256), 29: (512, 256)}
DECODER = {1: (256, 512), 5: (256, 256), 8: (256, 256), 11: (256, 256), 14: (128, 256), 18: (128, 128), 21: (64, 128)}
DECODER |= {25: (64, 64), 28: (3, 64)}


def layout(layers: dict[int, tuple[int, ...]]) -> dict[str, Tensor]:
    shapes = {i: shape if len(shape) == 4 else (*shape, 3, 3) for i, shape in layers.items()}
    weights = {f"{i}.weight": torch.randn(shape) / math.sqrt(shape[1] * 9) for i, shape in shapes.items()}
    return weights | {f"{i}.bias": torch.zeros(shape[0]) for i, shape in shapes.items()}


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def by_hand(x: Tensor, s: Tensor, alpha: float) -> Tensor:
    """Equations 8 and 14, channel by channel."""
    out = torch.empty_like(x)
    for b in range(len(x)):
        for c in range(x.shape[1]):
            own, style = x[b, c].flatten().tolist(), s[b, c].flatten().tolist()
            (mu, sigma), (mu_s, sigma_s) = (
                (
                    sum(v) / len(v),
                    math.sqrt(sum((e - sum(v) / len(v)) ** 2 for e in v) / (len(v) - 1) + EPSILON),
                )
                for v in (own, style)
            )
            t = sigma_s * (x[b, c] - mu) / sigma + mu_s
            out[b, c] = (1 - alpha) * x[b, c] + alpha * t
    return out


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_adain_is_that_of_the_paper(alpha: float) -> None:
    x, s = images(2, 3, 5, 7).double(), 3 * images(2, 3, 6, 4).double()
    torch.testing.assert_close(adain(x, feature_moments(x), feature_moments(s), alpha), by_hand(x, s, alpha))


def test_the_network_has_the_published_layout(tmp_path: Path) -> None:
    """The encoder's file goes on behind relu4_1."""
    torch.manual_seed(0)
    torch.save(layout(ENCODER | {32: (512, 512)}), tmp_path / "vgg.pth")
    torch.save(layout(DECODER), tmp_path / "decoder.pth")
    network = AdaINNetwork(tmp_path / "vgg.pth", tmp_path / "decoder.pth").eval()
    assert {key: value.shape for key, value in network.decoder.state_dict().items()} == {
        key: value.shape for key, value in layout(DECODER).items()
    }
    (deepest,) = network.features(images(1, 3, 32, 48))
    assert deepest.shape == (1, 512, 4, 6)
    assert deepest.min() == 0, "behind the ReLU"
    assert network.render([deepest]).shape == (1, 3, 32, 48)
    assert network.render([deepest]).min() < 0, "without a ReLU at its end"
    for wrong in ({"encoder": tmp_path / "decoder.pth"}, {"decoder": tmp_path / "vgg.pth"}):
        with pytest.raises(DataError, match=r"\.pth: holds no weights in the layout .*Is it the other"):
            AdaINNetwork(**wrong)


def test_a_pyramid_gives_back_what_it_is_made_of() -> None:
    network, x = PyramidTransfer(), images(2, 3, 64, 96)
    torch.testing.assert_close(network.render(network.features(x)), x)
    torch.testing.assert_close(network(x, network.moments(x)), x)
    torch.testing.assert_close(network(x, network.moments(images(1, 3, 64, 64)), alpha=0.0), x)
    assert (network(x, network.moments(images(1, 3, 64, 64) ** 4)) - x).abs().mean() > 0.1


def test_each_band_takes_over_mean_and_deviation_of_the_style() -> None:
    """Before values beyond 0 and 1 are cut off; by a pyramid of loops."""
    network, x, s = PyramidTransfer(levels=2), 10 * images(1, 3, 16, 24), 3 * images(1, 3, 32, 32)
    for own, found in zip(bands_by_hand(x[0], 2), network.features(x), strict=True):
        torch.testing.assert_close(found[0], own)
    drawn = [adain(f, feature_moments(f), m) for f, m in zip(network.features(x), network.moments(s), strict=True)]
    for band, style in zip(drawn, network.features(s), strict=True):
        torch.testing.assert_close(band.mean((2, 3)), style.mean((2, 3)))
        torch.testing.assert_close(band.std((2, 3)), style.std((2, 3)), rtol=1e-3, atol=1e-4)


def bands_by_hand(image: Tensor, levels: int) -> list[Tensor]:
    """Five binomial weights in both directions on the way down, bilinear on the way up, edges repeated."""
    bands, weights = [], [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]
    for _ in range(levels):
        height, width = image.shape[1:]

        def at(source: Tensor, y: int, x: int) -> Tensor:
            return source[:, min(max(y, 0), source.shape[1] - 1), min(max(x, 0), source.shape[2] - 1)]

        small, large = torch.zeros(3, height // 2, width // 2), torch.zeros_like(image)
        for y in range(height // 2):
            for x in range(width // 2):
                for i, v in enumerate(weights):
                    for j, w in enumerate(weights):
                        small[:, y, x] += v * w * at(image, 2 * y + i - 2, 2 * x + j - 2)
        for y in range(height):
            for x in range(width):
                sides = [(n // 2, n // 2 + (1 if n % 2 else -1)) for n in (y, x)]
                for p, v in zip(sides[0], (0.75, 0.25), strict=True):
                    for q, w in zip(sides[1], (0.75, 0.25), strict=True):
                        large[:, y, x] += v * w * at(small, p, q)
        bands.append(image - large)
        image = small
    return [*bands, image]
