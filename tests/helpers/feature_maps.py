"""Features for tests of layers that act on their statistics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

SHAPES = ((5, 3, 4, 6), (4, 2, 3, 4, 5), (3, 4, 7))
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CUDA = pytest.param("cuda", marks=[pytest.mark.cuda, NO_GPU])


def features(shape: tuple[int, ...] = (5, 3, 4, 6), seed: int = 0) -> Tensor:
    """(B, C, spatial...), float64, whose means and deviations differ by sample and channel."""
    generator = torch.Generator().manual_seed(seed)
    scale, shift = (torch.rand((*shape[:2], *[1] * (len(shape) - 2)), generator=generator) for _ in range(2))
    return (torch.randn(shape, generator=generator) * (0.2 + scale) + 3 * shift).double()
