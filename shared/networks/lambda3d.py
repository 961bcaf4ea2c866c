"""Lambda3D: the shell and the decoder of UNETR around lambda layers, which make small patches affordable.

Willoughby and Voiculescu, arXiv 2406.08217; the shell after Hatamizadeh et al., *UNETR*, arXiv 2103.10504.

Axes: B batch, N tokens of the grid (D, H, W), C hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.blocks import MLPBlock, UnetOutBlock, UnetrBasicBlock, UnetResBlock, UnetrPrUpBlock, UnetrUpBlock
from monai.networks.blocks.dynunet_block import get_conv_layer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import LambdaLayer

Stride = tuple[int, int, int]
Norm = tuple[str, dict[str, Any]] | str
STAGES = 4  # of the decoder


def decoder_strides(patch_size: int | tuple[int, ...] | list[int]) -> list[Stride]:
    """Upsampling of the four stages of the decoder, deepest first: from the grid of patches to the image.

    Every stage doubles an axis or leaves it. Stages that leave all axes come first; an axis that needs fewer doublings
    than another has them in the deeper stages. Patches of (4, 8, 8): (1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 2, 2).

    Args:
        patch_size: in voxels, for all axes or for each; 1, 2, 4, 8 or 16.

    Raises:
        ValueError: for another patch size.
    """
    patch = (patch_size,) * 3 if isinstance(patch_size, int) else tuple(patch_size)
    if len(patch) != 3 or not set(patch) <= {2**n for n in range(STAGES + 1)}:
        raise ValueError(f"patch_size must be 1, 2, 4, 8 or 16, one or three of it, got {patch_size}")
    doublings = [size.bit_length() - 1 for size in patch]
    idle = STAGES - max(doublings)
    d, h, w = ([1] * idle + [2] * n + [1] * (STAGES - idle - n) for n in doublings)
    return list(zip(d, h, w, strict=True))


class Lambda3D(nn.Module):
    """UNETR with lambda layers in place of its transformer blocks: long-range context on small patches.

    The image is cut into patches, each a token. Residual blocks of lambda layers follow; the tokens behind the first,
    second and third quarter of the blocks (3, 6 and 9 of 12) are the skips of the decoder, those behind the last its
    input. The decoder is UNETR's, with strides that fit the patch size (`decoder_strides`). There are no absolute
    positions, so the network works at any size of the image, other than that of training too.

    Shapes: (B, in_channels, D, H, W) to logits (B, out_channels, D, H, W). Multiples of the patch size, but for
    `pad`, and two patches at least.

    Args:
        in_channels: channels of the image.
        out_channels: classes, the background included.
        patch_size: in voxels, for all axes or for each; 1, 2, 4, 8 or 16.
        feature_size: channels of the decoder at full resolution.
        hidden_size: C, a multiple of `num_heads`.
        num_heads: heads of a lambda layer.
        mlp_dim: hidden features of an MLP behind every lambda layer, 3072 in UNETR; 0: none, as in the paper.
        num_layers: number of blocks, 4 or more.
        dim_k: depth of queries and keys, see `LambdaLayer`.
        dim_u: intra-depth, see `LambdaLayer`.
        receptive_field: neighbourhood of the position lambdas in tokens, odd, for all axes or for each.
        norm_name: normalisation in the decoder, `"instance"` or `"batch"`, with arguments if need be, as in UNETR.
        dropout_rate: of the tokens, behind the patch embedding and in every block.
        drop_path_rate: how often a sample skips a block in training; grows linearly from 0 to this in the last one.
        use_checkpoint: keep nothing inside blocks and decoder stages for the backward pass, and compute it again
            there: less memory in training, for a second forward pass.
        pad: pad an image that the patch size does not divide, with zeros behind its last voxels, and crop the logits
            back; otherwise such an image is an error.

    Raises:
        ValueError: when an option is out of its range; when called, for an image of a wrong size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        patch_size: int | tuple[int, int, int] | list[int] = 8,
        feature_size: int = 16,
        hidden_size: int = 768,
        num_heads: int = 12,
        mlp_dim: int = 0,
        num_layers: int = 12,
        dim_k: int = 16,
        dim_u: int = 1,
        receptive_field: int | tuple[int, int, int] | list[int] = 7,
        norm_name: Norm = "instance",
        dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        use_checkpoint: bool = False,
        pad: bool = False,
    ) -> None:
        super().__init__()
        strides = decoder_strides(patch_size)
        if num_layers < STAGES:
            raise ValueError(f"num_layers must be {STAGES} or more, one for each decoder stage, got {num_layers}")
        if not 0 <= dropout_rate < 1 or not 0 <= drop_path_rate < 1:
            raise ValueError(f"dropout_rate and drop_path_rate must be in [0, 1), got {dropout_rate}, {drop_path_rate}")
        self.patch_size = [patch_size] * 3 if isinstance(patch_size, int) else list(patch_size)
        self.pad = pad
        self.taps = [-(-num_layers * i // STAGES) for i in range(1, STAGES)]  # blocks, counted from 1

        self.patch_embedding = nn.Conv3d(in_channels, hidden_size, tuple(self.patch_size), tuple(self.patch_size))
        self.dropout = nn.Dropout(dropout_rate)
        layer = (hidden_size, num_heads, mlp_dim, dim_k, dim_u, receptive_field)
        self.blocks = nn.ModuleList(
            LambdaBlock(*layer, dropout_rate, drop_path_rate * i / (num_layers - 1)) for i in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)

        self._add_decoder(in_channels, out_channels, hidden_size, feature_size, strides, norm_name)
        for module in list(self.modules()):
            if isinstance(module, _Checkpointing):
                module.use_checkpoint = use_checkpoint
            for name, child in module.named_children():
                if isinstance(child, nn.InstanceNorm3d) and not child.track_running_stats:
                    module.add_module(name, _InstanceNorm(child.num_features, child.eps, affine=child.affine))

    def _add_decoder(
        self, in_channels: int, out_channels: int, hidden_size: int, f: int, strides: list[Stride], norm_name: Norm
    ) -> None:
        """UNETR's, with the encoders of its skips; f: channels at full resolution."""
        block = {"spatial_dims": 3, "kernel_size": 3, "norm_name": norm_name, "res_block": True}
        self.encoder1 = _BasicBlock(in_channels=in_channels, out_channels=f, stride=1, **block)
        self.encoder2 = _SkipBlock(hidden_size, 2 * f, strides[:3], norm_name)
        self.encoder3 = _SkipBlock(hidden_size, 4 * f, strides[:2], norm_name)
        self.encoder4 = _SkipBlock(hidden_size, 8 * f, strides[:1], norm_name)
        channels = [hidden_size, 8 * f, 4 * f, 2 * f, f]
        self.decoder5, self.decoder4, self.decoder3, self.decoder2 = (
            _UpBlock(in_channels=deep, out_channels=shallow, upsample_kernel_size=stride, **block)
            for deep, shallow, stride in zip(channels[:-1], channels[1:], strides, strict=True)
        )
        self.out = UnetOutBlock(3, f, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 5:
            raise ValueError(f"Lambda3D got an image of the shape {list(x.shape)}, expected (batch, channels, D, H, W)")
        size = x.shape[2:]
        if self.pad:
            d, h, w = self.patch_size
            x = nn.functional.pad(x, [0, -size[2] % w, 0, -size[1] % h, 0, -size[0] % d])
        if not torch.jit.is_tracing():  # sizes are tensors there
            _check(x.shape, self.patch_size)
        features = self.patch_embedding(x)
        grid = (features.shape[2], features.shape[3], features.shape[4])
        tokens_BNC = self.dropout(features.flatten(2).transpose(1, 2).contiguous())
        skips: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            tokens_BNC = block(tokens_BNC, grid)
            if i + 1 in self.taps:
                skips.append(_volume(tokens_BNC, grid))
        y = self.decoder5(_volume(self.norm(tokens_BNC), grid), self.encoder4(skips[2]))
        y = self.decoder4(y, self.encoder3(skips[1]))
        y = self.decoder3(y, self.encoder2(skips[0]))
        y = self.out(self.decoder2(y, self.encoder1(x)))
        if self.pad:
            y = y[:, :, : size[0], : size[1], : size[2]]
        return y


def _volume(tokens_BNC: Tensor, grid: tuple[int, int, int]) -> Tensor:
    return tokens_BNC.transpose(1, 2).unflatten(-1, grid).contiguous()


def _check(shape: list[int], patch: list[int]) -> None:
    size = [shape[2], shape[3], shape[4]]
    below = [max(size[i] // patch[i], 1) * patch[i] for i in range(3)]
    above = [-(-size[i] // patch[i]) * patch[i] for i in range(3)]
    if size != above:
        raise ValueError(
            f"Lambda3D got an image of the size {size}, which patches of {patch} do not divide. The nearest sizes are "
            f"{below} and {above}: crop or pad the image, or set pad=True."
        )
    if size == patch:
        raise ValueError(f"Lambda3D got an image of the size {size}, a single patch: expected two or more.")


class _Checkpointing(nn.Module):
    """Keeps nothing but its input for the backward pass, if asked to. State keys and exports stay as they are."""

    use_checkpoint = False

    def __call__(self, *args: Any) -> Any:
        if self.use_checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(super().__call__, *args, use_reentrant=False)
        return super().__call__(*args)


class LambdaBlock(_Checkpointing):
    """Pre-norm residual block: a lambda layer and a projection of its heads, and an MLP if `mlp_dim` is not 0.

    Shapes: tokens (B, N, hidden_size) and a grid with N tokens to (B, N, hidden_size). Arguments: see `Lambda3D`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mlp_dim: int,
        dim_k: int,
        dim_u: int,
        receptive_field: int | tuple[int, int, int] | list[int],
        dropout_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.norm = nn.LayerNorm(hidden_size)
        self.lambda_layer = LambdaLayer(hidden_size, num_heads, dim_k, dim_u, receptive_field)
        self.projection = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout_rate)
        self.mlp: nn.Sequential | None = None
        if mlp_dim:
            self.mlp = nn.Sequential(nn.LayerNorm(hidden_size), MLPBlock(hidden_size, mlp_dim, dropout_rate))

    def forward(self, x_BNC: Tensor, grid: tuple[int, int, int]) -> Tensor:
        heads_BNC = self.lambda_layer(self.norm(x_BNC), grid)
        x_BNC = x_BNC + self._drop_path(self.dropout(self.projection(heads_BNC)))
        if self.mlp is not None:
            x_BNC = x_BNC + self._drop_path(self.mlp(x_BNC))
        return x_BNC

    def _drop_path(self, branch_BNC: Tensor) -> Tensor:  # MONAI's DropPath does not script
        if not self.training or self.drop_path_rate == 0:
            return branch_BNC
        kept = nn.functional.dropout(branch_BNC.new_ones((branch_BNC.shape[0], 1, 1)), self.drop_path_rate)
        return branch_BNC * kept


class _InstanceNorm(nn.InstanceNorm3d):
    """On a CPU, a group norm of single channels: the same numbers, in every memory layout and in less time.

    The output of torch's instance norm is a view, and the activation in place behind it makes the backward pass copy
    the gradient twice. On a GPU the group norm would leave mixed precision for float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return nn.functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        return nn.functional.group_norm(x, self.num_features, self.weight, self.bias, self.eps)


class _BasicBlock(_Checkpointing, UnetrBasicBlock):
    """MONAI's block, which may keep nothing."""


class _UpBlock(_Checkpointing, UnetrUpBlock):
    """MONAI's block, which may keep nothing."""


class _SkipBlock(_Checkpointing, UnetrPrUpBlock):
    """From the tokens' grid to a stage of the decoder; MONAI's block, with a stride for each of its upsamplings."""

    def __init__(self, in_channels: int, out_channels: int, strides: list[Stride], norm_name: Norm) -> None:
        first, *others = [stride for stride in strides if max(stride) > 1] or [(1, 1, 1)]
        own = {"num_layer": 0, "conv_block": True, "upsample_kernel_size": first}
        super().__init__(
            3, in_channels, out_channels, kernel_size=3, stride=1, norm_name=norm_name, res_block=True, **own
        )
        for stride in others:
            up = get_conv_layer(3, out_channels, out_channels, kernel_size=stride, stride=stride, is_transposed=True)
            self.blocks.append(nn.Sequential(up, UnetResBlock(3, out_channels, out_channels, 3, 1, norm_name)))
