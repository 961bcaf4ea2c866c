from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..utils import DataError
from .pretrained import read_state_dict

_PIECE = 2**14  # pixels at a time on a CPU: what its cache holds is changed several times as fast


class StainNet(nn.Module):
    """A stain normaliser of three 1 × 1 convolutions with ReLU between them (Kang et al., Front. Med. 2021, StainNet).

    What a pixel becomes depends on its colour alone, so that tiles fit together without seams. The names of its
    parameters are those of the published checkpoints.

    Shapes: (B, 3, H, W), RGB from −1 to 1, to the same, from −1 to 1 but for what it has not learned.

    Args:
        channels: between the convolutions.
        pretrained: a file of weights, such as a published checkpoint.

    Raises:
        DataError: when the file is missing or holds another network.
    """

    def __init__(self, channels: int = 32, pretrained: str | Path | None = None) -> None:
        super().__init__()
        self.rgb_trans = nn.Sequential(
            nn.Conv2d(3, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, 3, 1)
        )
        if pretrained is not None:
            self._load(Path(pretrained))

    def _load(self, path: Path) -> None:
        source, own = read_state_dict(path), self.state_dict()
        shapes = {name: tuple(value.shape) for name, value in source.items()}
        wanted = {name: tuple(value.shape) for name, value in own.items()}
        if shapes != wanted:
            raise DataError(
                f"{path}: is no StainNet with {own['rgb_trans.0.bias'].numel()} channels. Expected {wanted}, found "
                f"{dict(list(shapes.items())[:6])}."
            )
        self.load_state_dict(source)

    def forward(self, x: Tensor) -> Tensor:
        return self.rgb_trans(x)

    @torch.no_grad()
    def normalize(self, image: Tensor) -> Tensor:
        """The same for an image as it is read.

        Args:
            image: uint8 (3, H, W) or (B, 3, H, W), RGB, where the network is.

        Returns:
            uint8 of the same shape.
        """
        channels = image.movedim(-3, 0)
        pixels = channels.flatten(1)
        changed = torch.empty_like(pixels)
        most = _PIECE if image.device.type == "cpu" else pixels.shape[1]
        for piece, target in zip(pixels.split(most, dim=1), changed.split(most, dim=1), strict=True):
            with torch.autocast(image.device.type, enabled=False):  # half precision is a grey level off
                scaled = self((piece.float() / 127.5 - 1)[None, :, None])[0, :, 0]
            target.copy_((scaled * 127.5 + 127.5).round_().clamp_(0, 255))
        return changed.view(channels.shape).movedim(0, -3).contiguous()
