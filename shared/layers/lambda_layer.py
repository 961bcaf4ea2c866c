"""Lambda layer: every token of a 3D grid sees the others through small matrices, without attention between tokens.

Bello, *LambdaNetworks: Modeling Long-Range Interactions Without Attention*, ICLR 2021; here on three axes.

Axes: B batch, N tokens of the grid (D, H, W), C hidden size, h heads, k key depth, u intra-depth, v value depth C / h.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NORMS = ("layer", "batch", "none")


def apply_lambdas(
    query_BNhk: Tensor, key_BNuk: Tensor, value_BNuv: Tensor, position_kurrr: Tensor, grid: tuple[int, int, int]
) -> Tensor:
    """Summarise the tokens in matrices of k × v, the lambdas, and apply each token's to its queries.

        content     lambda_c   = sum over m of K_m^T V_m                for all tokens the same
        position    lambda_p_n = sum over m of E_(m - n)^T V_m          m in the neighbourhood of n
        output      y_n        = (lambda_c + lambda_p_n)^T q_n          for each head

    E is zero beyond the neighbourhood, and there are no tokens beyond the grid. So a neighbourhood of 2 · size - 1 on
    every axis is the global form.

    Args:
        query_BNhk: the queries.
        key_BNuk: the keys, normalised over the tokens already.
        value_BNuv: the values.
        position_kurrr: E, by offset; odd sizes, the offset 0 in the middle.
        grid: D, H and W with D · H · W = N, the last axis varying fastest.

    Returns:
        y (B, N, h, v).
    """
    value_depth = value_BNuv.shape[3]
    depth, height, width = position_kurrr.shape[2], position_kurrr.shape[3], position_kurrr.shape[4]
    content_Bvk = value_BNuv.flatten(1, 2).transpose(1, 2) @ key_BNuk.flatten(1, 2)
    # E knows no value channel: each is a volume of its own, and all share one small convolution. Its offsets along D
    # are channels here, and channels are last: a convolution of u channels alone takes far longer to go back through.
    volumes_DHWu = value_BNuv.permute(0, 3, 1, 2).flatten(0, 1).unflatten(1, grid)
    padded_DHWu = nn.functional.pad(volumes_DHWu, (0, 0, 0, 0, 0, 0, depth // 2, depth // 2))
    offsets_DHWur = padded_DHWu.unfold(1, depth, 1)
    lambda_kDHW = nn.functional.conv3d(
        offsets_DHWur.flatten(4).contiguous().permute(0, 4, 1, 2, 3),
        position_kurrr.flatten(1, 2).unsqueeze(2),
        padding=(0, height // 2, width // 2),
    )
    lambda_kDHW += content_Bvk.flatten(0, 1)[:, :, None, None, None]
    lambda_BvNk = lambda_kDHW.flatten(2).transpose(1, 2).unflatten(0, (-1, value_depth))
    # In this order k is the last axis of the lambdas and of their gradient alike: nothing has to be transposed.
    return (lambda_BvNk.transpose(1, 2) @ query_BNhk.transpose(2, 3)).transpose(2, 3)


class LambdaLayer(nn.Module):
    """Multi-head lambda layer on the tokens of a 3D grid: content of the whole grid, positions of a neighbourhood.

    Time and memory grow with the number of tokens, not with its square. One set of weights works on any grid, and
    there are no absolute positions: moving what is in the grid moves the output. Keys go through a softmax over the
    tokens, queries and values through `norm`; all heads share keys and values. As in the paper, the heads are
    concatenated and no projection follows.

    Shapes: (B, N, hidden_size) and a grid with N tokens to (B, N, hidden_size).

    Args:
        hidden_size: C, a multiple of `num_heads`.
        num_heads: h.
        dim_k: k, depth of queries and keys.
        dim_u: u, intra-depth: keys and values for each token.
        receptive_field: r, size of the neighbourhood in tokens, for all axes or for each; odd. With 2 · size - 1 of
            the grid it is global; what lies beyond the grid costs time and has no effect.
        norm: of queries and values. `"layer"`: for each token and head, over the depth. `"batch"` (the paper):
            for each channel, over batch and tokens. `"none"`.

    Raises:
        ValueError: when an option is out of its range; when called, if grid, tokens and hidden size do not fit.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int = 12,
        dim_k: int = 16,
        dim_u: int = 1,
        receptive_field: int | tuple[int, int, int] | list[int] = 7,
        norm: str = "layer",
    ) -> None:
        super().__init__()
        if min(hidden_size, num_heads, dim_k, dim_u) < 1:
            raise ValueError(
                "hidden_size, num_heads, dim_k and dim_u must be at least 1, got "
                f"{hidden_size}, {num_heads}, {dim_k} and {dim_u}"
            )
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size must be a multiple of num_heads, got {hidden_size} for {num_heads} heads")
        field = (receptive_field,) * 3 if isinstance(receptive_field, int) else tuple(receptive_field)
        if len(field) != 3 or any(r < 1 or r % 2 == 0 for r in field):
            raise ValueError(f"receptive_field must be odd and positive, one or three of it, got {receptive_field}")
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.dim_k = dim_k
        self.dim_u = dim_u
        self.dim_v = hidden_size // num_heads
        self.receptive_field = field
        self.norm = norm
        self.scale = dim_k**-0.5
        # One product instead of three: the tokens are read once, and so is their gradient written.
        self.sizes = [num_heads * dim_k, dim_u * dim_k, dim_u * self.dim_v]
        self.qkv = nn.Linear(hidden_size, sum(self.sizes), bias=False)
        self.query_norm = _norm(norm, num_heads, dim_k)
        self.value_norm = _norm(norm, dim_u, self.dim_v)
        self.position = nn.Parameter(torch.empty(dim_k, dim_u, *field))
        # The sum over u · r³ normalised values then has a variance of 1; with 1 it would drown the content.
        nn.init.normal_(self.position, std=self.position[0].numel() ** -0.5)

    def forward(self, x_BNC: Tensor, grid: tuple[int, int, int]) -> Tensor:
        if not torch.jit.is_tracing():  # sizes are tensors there
            self._check(x_BNC, grid)
        query, key, value = self.qkv(x_BNC).split(self.sizes, dim=-1)
        query_BNhk = self.query_norm(query.unflatten(-1, (self.num_heads, self.dim_k))) * self.scale
        key_BNuk = key.unflatten(-1, (self.dim_u, self.dim_k)).softmax(dim=1)
        value_BNuv = self.value_norm(value.unflatten(-1, (self.dim_u, self.dim_v)))
        return apply_lambdas(query_BNhk, key_BNuk, value_BNuv, self.position, grid).flatten(2)

    def _check(self, x_BNC: Tensor, grid: tuple[int, int, int]) -> None:
        tokens = grid[0] * grid[1] * grid[2]
        if x_BNC.ndim != 3 or x_BNC.shape[1] != tokens or x_BNC.shape[2] != self.hidden_size:
            raise ValueError(
                f"LambdaLayer got features of the shape {list(x_BNC.shape)} for the grid {grid}, expected "
                f"(batch, {tokens} tokens, {self.hidden_size} channels)"
            )

    def extra_repr(self) -> str:
        return (
            f"hidden_size={self.hidden_size}, num_heads={self.num_heads}, dim_k={self.dim_k}, dim_u={self.dim_u}, "
            f"receptive_field={self.receptive_field}, norm={self.norm!r}"
        )


class _BatchNorm(nn.Module):
    """Batch norm of (B, N, groups, depth), each of the groups · depth channels by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(2).flatten(0, 1)).view_as(x)


def _norm(norm: str, groups: int, depth: int) -> nn.Module:
    if norm == "layer":
        return nn.LayerNorm(depth)
    return _BatchNorm(groups * depth) if norm == "batch" else nn.Identity()
