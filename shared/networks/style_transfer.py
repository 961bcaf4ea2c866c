"""An image in the style of another: features of the one get mean and deviation of the other's, channel by channel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..utils import DataError
from .pretrained import read_state_dict

EPSILON = 1e-5  # of the variance
Moments = tuple[Tensor, Tensor]  # mean and standard deviation, (B, C, 1, 1) each


def feature_moments(features: Tensor) -> Moments:
    """Mean, and the root of the unbiased variance + 1e-5, of each channel of (B, C, H, W)."""
    variance, mean = torch.var_mean(features, dim=(2, 3), keepdim=True)
    return mean, (variance + EPSILON).sqrt()


def adain(content: Tensor, own: Moments, style: Moments, alpha: float = 1.0) -> Tensor:
    """Adaptive instance normalisation, equation 8 of Huang and Belongie, arXiv 1703.06868, mixed with its input (14).

        (1 − α) x + α (σ(s) (x − μ(x)) / σ(x) + μ(s))

    Args:
        content: x, (B, C, H, W).
        own: moments of x, or of the whole of which it is a part.
        style: moments of s.
        alpha: from 0, as it was, to 1.
    """
    (mean, std), (style_mean, style_std) = own, style
    scale = 1 + alpha * (style_std / std - 1)
    return content * scale + alpha * (style_mean - mean * (style_std / std))


class StyleTransfer(nn.Module):
    """What draws an image anew by the moments of its features.

    Attributes:
        grid: height and width of its images are multiples of this many pixels.
        margin: no pixel depends on what is further away, in pixels, but for the moments.
    """

    grid: int
    margin: int

    def features(self, image: Tensor) -> list[Tensor]:
        """Of images (B, 3, H, W), RGB from 0 to 1: several tensors (B, C, H / n, W / n), n a divisor of `grid`."""
        raise NotImplementedError

    def render(self, features: Sequence[Tensor]) -> Tensor:
        """Images of features."""
        raise NotImplementedError

    def moments(self, image: Tensor) -> list[Moments]:
        return [feature_moments(part) for part in self.features(image)]

    def forward(
        self, image: Tensor, style: Sequence[Moments], own: Sequence[Moments] | None = None, alpha: float = 1.0
    ) -> Tensor:
        """Images in other styles.

        Args:
            image: (B, 3, H, W), RGB from 0 to 1.
            style: moments of pictures in the style, of one for all images or of one for each.
            own: moments of what the images are parts of; None: they are wholes.
            alpha: from 0, nothing but what features keep of the image, to 1.

        Returns:
            the same shape, from 0 to 1.
        """
        features = self.features(image)
        own = own or [feature_moments(part) for part in features]
        drawn = [adain(part, m, s, alpha) for part, m, s in zip(features, own, style, strict=True)]
        return self.render(drawn).clamp(0, 1)


class AdaINNetwork(StyleTransfer):
    """Style transfer of Huang and Belongie, *Arbitrary style transfer in real-time with adaptive instance
    normalization*, ICCV 2017 (arXiv 1703.06868): VGG-19 up to relu4_1, and its mirror image as decoder.

    Names and shapes of the parameters are those of naoto0804/pytorch-AdaIN's `vgg_normalised.pth`, whose layers behind
    relu4_1 are not used, and `decoder.pth`. Images are RGB from 0 to 1: the first layer of that VGG scales them.

    Args:
        encoder, decoder: files of weights.

    Raises:
        DataError: when one is missing or holds another network.
    """

    grid, margin = 8, 96  # 37 pixels on the way in, 37 on the way back

    def __init__(self, encoder: str | Path | None = None, decoder: str | Path | None = None) -> None:
        super().__init__()
        self.encoder, self.decoder = vgg_until_relu4_1(), mirrored_decoder()
        for part, path in ((self.encoder, encoder), (self.decoder, decoder)):
            if path is not None:
                _load_all(part, Path(path))

    def features(self, image: Tensor) -> list[Tensor]:
        return [self.encoder(image)]

    def render(self, features: Sequence[Tensor]) -> Tensor:
        (deepest,) = features
        return self.decoder(deepest)


def _convolution(channels: int, filters: int) -> list[nn.Module]:
    return [nn.ReflectionPad2d(1), nn.Conv2d(channels, filters, 3), nn.ReLU()]


def vgg_until_relu4_1() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
    for block in ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256, 256), (256, 512)):
        for channels, filters in pairwise(block):
            layers += _convolution(channels, filters)
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers[:-1])


def mirrored_decoder() -> nn.Sequential:
    layers: list[nn.Module] = []
    for block in ((512, 256), (256, 256, 256, 256, 128), (128, 128, 64), (64, 64, 3)):
        for channels, filters in pairwise(block):
            layers += _convolution(channels, filters)
        layers.append(nn.Upsample(scale_factor=2))
    return nn.Sequential(*layers[:-2])  # without a ReLU at the end


def _load_all(network: nn.Module, path: Path) -> None:
    source, own = read_state_dict(path), network.state_dict()
    wrong = [
        f"{key} {tuple(source[key].shape) if key in source else 'is missing'}, expected {tuple(value.shape)}"
        for key, value in own.items()
        if key not in source or source[key].shape != value.shape
    ]
    if wrong:
        raise DataError(
            f"{path}: holds no weights in the layout of pytorch-AdaIN's vgg_normalised.pth and decoder.pth: "
            f"{'; '.join(wrong[:3])}{f' (and {len(wrong) - 3} more)' if len(wrong) > 3 else ''}. Is it the other of "
            "the two?"
        )
    network.load_state_dict({key: source[key] for key in own})


class PyramidTransfer(StyleTransfer):
    """Style transfer in a Laplacian pyramid, which needs no weights: mean and deviation of each band of the image
    become those of the style's, channel by channel. Ours; of no paper.

    The pyramid is that of Burt and Adelson, IEEE Trans. Commun. 31(4), 1983, with their filter of five binomial weights
    on the way down and bilinear interpolation on the way up: `render(features(x))` is x but for rounding.

    Args:
        levels: bands, of which each is half as fine as the one before; the mean of what is left is the colour.
    """

    margin = 96

    def __init__(self, levels: int = 4) -> None:
        super().__init__()
        self.levels, self.grid = levels, 2**levels
        weights = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        self.register_buffer("kernel", torch.outer(weights, weights).expand(3, 1, 5, 5).clone(), persistent=False)

    def features(self, image: Tensor) -> list[Tensor]:
        bands = []
        for _ in range(self.levels):
            smaller = F.conv2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), self.kernel, stride=2, groups=3)
            bands.append(image - _enlarge(smaller))
            image = smaller
        return [*bands, image]

    def render(self, features: Sequence[Tensor]) -> Tensor:
        *bands, image = features
        for band in reversed(bands):
            image = band + _enlarge(image)
        return image


def _enlarge(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
