from __future__ import annotations

import copy
from typing import Any

import onnxruntime
import pytest
import torch
from monai.networks.nets import UNETR
from torch import Tensor, nn

from shared.networks import Lambda3D
from shared.networks.lambda3d import LambdaBlock, decoder_strides

SMALL = {"feature_size": 2, "hidden_size": 24, "num_heads": 3, "num_layers": 4, "dim_k": 4, "receptive_field": 3}
ONE, TWO = (1, 1, 1), (2, 2, 2)


def net(seed: int = 0, **options: Any) -> Lambda3D:
    torch.manual_seed(seed)
    return Lambda3D(1, 3, **{**SMALL, **options})


def image(size: tuple[int, int, int] = (16, 24, 16), batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, 1, *size, generator=torch.Generator().manual_seed(seed))


def gradients(network: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    network.zero_grad()
    y = network(x)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)).sum().backward()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize(
    ("patch", "strides"),
    [
        (16, [TWO, TWO, TWO, TWO]),
        (8, [ONE, TWO, TWO, TWO]),
        ([8, 8, 8], [ONE, TWO, TWO, TWO]),
        (4, [ONE, ONE, TWO, TWO]),
        ((2, 2, 2), [ONE, ONE, ONE, TWO]),
        (1, [ONE, ONE, ONE, ONE]),
        ((4, 8, 8), [ONE, TWO, TWO, (1, 2, 2)]),
        ((1, 16, 16), [(1, 2, 2)] * 4),
        ((8, 2, 4), [ONE, TWO, (2, 1, 2), (2, 1, 1)]),
        ((2, 4, 16), [TWO, (1, 2, 2), (1, 1, 2), (1, 1, 2)]),
    ],
)
def test_strides_of_the_decoder(patch: Any, strides: list[tuple[int, int, int]]) -> None:
    assert decoder_strides(patch) == strides


@pytest.mark.parametrize(
    ("patch", "skips"),
    [
        (16, {"encoder4": [TWO], "encoder3": [TWO, TWO], "encoder2": [TWO, TWO, TWO]}),
        (8, {"encoder4": [ONE], "encoder3": [TWO], "encoder2": [TWO, TWO]}),
        (2, {"encoder4": [ONE], "encoder3": [ONE], "encoder2": [ONE]}),
        ((2, 4, 16), {"encoder4": [TWO], "encoder3": [TWO, (1, 2, 2)], "encoder2": [TWO, (1, 2, 2), (1, 1, 2)]}),
    ],
)
def test_skips_pass_the_stages_that_upsample(patch: Any, skips: dict[str, list[tuple[int, int, int]]]) -> None:
    network = net(patch_size=patch)
    for name, strides in skips.items():
        ups = [m for m in network.get_submodule(name).modules() if isinstance(m, nn.ConvTranspose3d)]
        assert [up.stride for up in ups] == strides


def test_patches_of_16_give_the_decoder_of_unetr_behind_blocks_3_6_9_and_12() -> None:
    network = net(patch_size=16, num_layers=12).eval()
    unetr = UNETR(1, 3, (32, 32, 32), feature_size=2, hidden_size=24, num_heads=3, mlp_dim=8).eval()
    decoder = {key: value for key, value in unetr.state_dict().items() if not key.startswith("vit.")}
    missing, unexpected = network.load_state_dict(decoder, strict=False)
    assert unexpected == []
    assert {key.split(".")[0] for key in missing} == {"patch_embedding", "blocks", "norm"}

    states: list[Tensor] = []
    for block in network.blocks:
        block.register_forward_hook(lambda block, args, output: states.append(output))
    with torch.no_grad():
        found = network(image((32, 32, 32)))
        counted_from_0 = [None, None, None, states[2], None, None, states[5], None, None, states[8]]

        class Encoder(nn.Module):
            def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
                return network.norm(states[11]), counted_from_0

        unetr.vit = Encoder()
        torch.testing.assert_close(found, unetr(image((32, 32, 32))))


@pytest.mark.parametrize(("layers", "taps"), [(12, [3, 6, 9]), (4, [1, 2, 3]), (5, [2, 3, 4]), (6, [2, 3, 5])])
def test_skips_stand_behind_the_quarters_of_the_blocks(layers: int, taps: list[int]) -> None:
    assert net(num_layers=layers).taps == taps


def test_number_of_parameters() -> None:
    def parameters(**options: Any) -> int:
        return sum(p.numel() for p in Lambda3D(1, 14, **options).parameters())

    assert parameters() == 12_825_198
    assert parameters(mlp_dim=3072) - parameters() == 12 * (2 * 768 * 3072 + 3072 + 768 + 2 * 768)


def test_a_block_adds_projected_heads_and_an_mlp() -> None:
    torch.manual_seed(0)
    block, x, grid = LambdaBlock(24, 3, 8, 4, 1, 3, 0.0, 0.0).double(), torch.randn(2, 8, 24).double(), (2, 2, 2)
    heads = block.lambda_layer(nn.functional.layer_norm(x, [24]), grid)
    y = x + heads @ block.projection.weight.T + block.projection.bias
    mlp = block.mlp[1]
    hidden = nn.functional.gelu(nn.functional.layer_norm(y, [24]) @ mlp.linear1.weight.T + mlp.linear1.bias)
    torch.testing.assert_close(block(x, grid), y + hidden @ mlp.linear2.weight.T + mlp.linear2.bias)


def test_the_instance_norm_of_the_decoder_gives_the_numbers_of_torchs() -> None:
    network = net(norm_name=("instance", {"affine": True, "eps": 0.1}))
    norm, x = network.decoder2.conv_block.norm1, image((4, 6, 5), batch=2).expand(2, 2, 4, 6, 5) + 3
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    assert type(norm) is not nn.InstanceNorm3d
    torch.testing.assert_close(norm(x), nn.InstanceNorm3d.forward(norm, x))


def test_drop_path_leaves_samples_out_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    block, grid = LambdaBlock(24, 3, 0, 4, 1, 3, 0.0, 0.25), (2, 1, 1)
    x = torch.randn(1, 2, 24).expand(400, 2, 24)
    branch = block.eval()(x, grid) - x
    factors = ((block.train()(x, grid) - x) / branch).mean((1, 2))
    assert all(min(abs(f), abs(f - 4 / 3)) < 1e-3 for f in factors.tolist())
    assert 0.6 < (factors > 0.5).float().mean() < 0.9
    assert [b.drop_path_rate for b in net(drop_path_rate=0.3).blocks] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_dropout_acts_in_training_alone() -> None:
    plain, network, x = net(mlp_dim=8).train(), net(mlp_dim=8, dropout_rate=0.5), image()
    assert not torch.allclose(network.train()(x), network(x))
    torch.testing.assert_close(network.eval()(x), plain(x))


def test_dropout_acts_behind_the_embedding_and_in_the_blocks() -> None:
    network, zeros = net(dropout_rate=0.25).train(), []
    network.blocks[0].register_forward_hook(lambda block, args, y: zeros.extend(((args[0] == 0), (y == args[0]))))
    network(image((32, 32, 32)))
    assert [z.float().mean().item() for z in zeros] == pytest.approx([0.25, 0.25], abs=0.05)


OPTIONS = (
    {},
    {"mlp_dim": 8, "dim_u": 2},
    {"patch_size": (4, 8, 8)},
    {"patch_size": 16},
    {"patch_size": 2},
    {"num_layers": 6},
)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    found = gradients(net(**options).train(), image((16, 16, 32) if options.get("patch_size") == 16 else (8, 16, 8)))
    assert [name for name, grad in found.items() if grad is None or not grad.any()] == []


def test_samples_do_not_see_each_other() -> None:
    network, x = net().train(), image(batch=3)
    torch.testing.assert_close(network(x), torch.cat([network(x[i : i + 1]) for i in range(3)]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patch", [16, 8, 2, (4, 8, 8), (2, 4, 16)])
@pytest.mark.parametrize("size", [(16, 16, 32), (48, 32, 16)])
def test_one_network_takes_every_size(patch: Any, size: tuple[int, int, int]) -> None:
    with torch.no_grad():
        y = net(patch_size=patch).eval()(image(size, batch=2))
    assert y.shape == (2, 3, *size)
    assert y.isfinite().all()


def test_there_are_no_absolute_positions() -> None:
    """Without the relative ones, patches in other places give the same tokens in those places."""
    network, found = net().eval(), []
    network.norm.register_forward_hook(lambda norm, args, y: found.append(y.unflatten(1, (3, 2, 4))))
    x = image((24, 16, 32))
    with torch.no_grad():
        for block in network.blocks:
            nn.init.zeros_(block.lambda_layer.position)
        network(x)
        network(x.roll((8, 8, 8), (2, 3, 4)))
    torch.testing.assert_close(found[1], found[0].roll((1, 1, 1), (1, 2, 3)))
    assert not torch.allclose(found[1], found[0])


def test_far_voxels_reach_each_other_through_the_tokens_alone() -> None:
    """Without a block's branch, only the norms of the decoder see the whole image, and they are taken out here."""
    network = net(num_layers=8).eval()
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm3d):
            module.forward = lambda z: z
    x = image((8, 8, 64))
    changed = x.clone()
    changed[..., -8:] += 1
    with torch.no_grad():
        assert not torch.allclose(network(changed)[..., :8], network(x)[..., :8])
        for block in network.blocks:
            nn.init.zeros_(block.projection.weight)
        torch.testing.assert_close(network(changed)[..., :8], network(x)[..., :8])


@pytest.mark.parametrize("patch", [8, (4, 8, 8)])
def test_padding_is_zeros_behind_the_image_and_is_cropped_again(patch: Any) -> None:
    padding, plain = net(patch_size=patch, pad=True).eval(), net(patch_size=patch).eval()
    x = image((13, 24, 17))
    padded = torch.zeros(1, 1, 16, 24, 24)
    padded[..., :13, :24, :17] = x
    with torch.no_grad():
        torch.testing.assert_close(padding(x), plain(padded)[..., :13, :24, :17])
        torch.testing.assert_close(padding(padded), plain(padded))


@pytest.mark.parametrize("patch", [8, (2, 4, 16)])
def test_checkpointing_computes_twice_and_gives_the_same_gradients(patch: Any) -> None:
    options = {"patch_size": patch, "dropout_rate": 0.2, "drop_path_rate": 0.2, "mlp_dim": 8}
    plain, saving = (net(use_checkpoint=use, **options).double().train() for use in (False, True))
    assert list(saving.state_dict()) == list(plain.state_dict())
    x, calls, found = image((8, 8, 32), batch=2).double(), [], []
    inner = (
        saving.blocks[0].lambda_layer,
        saving.encoder1.layer,
        saving.encoder2.blocks[0],
        saving.decoder2.conv_block,
    )
    for module in inner:
        module.register_forward_pre_hook(lambda module, args: calls.append(module))
    for network in (plain, saving):
        torch.manual_seed(5)
        found.append(gradients(network, x))
    torch.testing.assert_close(found[1], found[0])
    assert [calls.count(module) for module in inner] == [2, 2, 2, 2]
    calls.clear()
    saving.eval()(x).sum().backward()
    assert [calls.count(module) for module in inner] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pad": True},
        {"patch_size": (2, 4, 8), "use_checkpoint": True},
        {"mlp_dim": 8, "drop_path_rate": 0.1, "dropout_rate": 0.1},
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.trace")  # deprecated, and still in use
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn.modules.instancenorm")  # torch's own checks
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn.functional")
def test_script_and_trace_at_any_size(options: dict[str, Any]) -> None:
    network, x = net(**options).eval(), image()
    others = [image((24, 16, 32), batch=2), *([image((21, 15, 30))] if options.get("pad") else [])]
    with torch.no_grad():
        for exported in (torch.jit.script(network), torch.jit.trace(network, x)):
            for z in (x, *others):
                torch.testing.assert_close(exported(z), network(z))


@pytest.mark.parametrize("options", [{}, {"pad": True}])
def test_export_at_any_size(options: dict[str, Any]) -> None:
    network = net(**options).eval()
    sizes = {axis: 8 * torch.export.Dim(f"patches_{axis}", min=2, max=64) for axis in (2, 3, 4)}
    shapes = {0: torch.export.Dim("batch", max=16), **sizes}
    exported = torch.export.export(network, (image(batch=2),), dynamic_shapes=(shapes,)).module()
    with torch.no_grad():
        for z in (image(batch=2), image((24, 16, 40), batch=3)):
            torch.testing.assert_close(exported(z), network(z))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"pad": True, "patch_size": (2, 4, 8), "mlp_dim": 8}])
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")  # torch's exporter
def test_onnx_at_any_size(options: dict[str, Any]) -> None:
    network = net(**options).eval()
    axes = ({0: "batch", 2: "depth", 3: "height", 4: "width"},)
    program = torch.onnx.export(network, (image(),), input_names=["image"], dynamic_shapes=axes, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for z in (image(), image((24, 16, 40), batch=3), *([image((21, 15, 30))] if options.get("pad") else [])):
            (y,) = session.run(None, {"image": z.numpy()})
            torch.testing.assert_close(torch.from_numpy(y), network(z), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_compiles_without_a_break(use_checkpoint: bool) -> None:
    network, x = net(use_checkpoint=use_checkpoint).train(), image((8, 16, 16))
    try:
        assert torch._dynamo.explain(copy.deepcopy(network))(x).graph_break_count == 0
        torch._dynamo.reset()
        compiled = torch.compile(copy.deepcopy(network), backend="aot_eager")
        found = {name.removeprefix("_orig_mod."): value for name, value in gradients(compiled, x).items()}
        torch.testing.assert_close(found, gradients(network, x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-5)
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("options", [{}, {"mlp_dim": 8, "use_checkpoint": True}])
def test_mixed_precision_is_finite(options: dict[str, Any]) -> None:
    # torch 2.13: the gradient of a bfloat16 Conv3d over as few as 2 x 3 x 2 voxels holds memory that nobody has written
    network, x = net(**options).train(), image((32, 48, 32)) * 100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = network(x)
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert (y.float() - network(x)).abs().mean() < 0.1 * network(x).abs().mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 6}, "patch_size must be 1, 2, 4, 8 or 16, one or three of it, got 6"),
        ({"patch_size": (8, 8, 32)}, r"patch_size must be .* got \(8, 8, 32\)"),
        ({"patch_size": [8, 8]}, r"one or three of it, got \[8, 8\]"),
        ({"num_layers": 3}, "num_layers must be 4 or more, one for each decoder stage, got 3"),
        ({"dropout_rate": 1.5}, r"dropout_rate and drop_path_rate must be in \[0, 1\), got 1.5, 0.0"),
        ({"drop_path_rate": -0.1}, r"must be in \[0, 1\), got 0.0, -0.1"),
        ({"num_heads": 5}, "hidden_size must be a multiple of num_heads, got 24 for 5 heads"),
        ({"receptive_field": 4}, "receptive_field must be odd"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        net(**options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (1, 1, 100, 96, 3),
            r"size \[100, 96, 3\], which patches of \[8, 8, 8\] do not divide. The nearest sizes are \[96, 96, 8\] and "
            r"\[104, 96, 8\]: crop or pad the image, or set pad=True",
        ),
        ((1, 16, 16, 16), r"an image of the shape \[1, 16, 16, 16\], expected \(batch, channels, D, H, W\)"),
        ((1, 1, 8, 8, 8), r"size \[8, 8, 8\], a single patch: expected two or more"),
    ],
)
def test_wrong_images_are_refused_with_what_fits(shape: tuple[int, ...], message: str) -> None:
    network = net().eval()
    for call, error in ((network, ValueError), (torch.jit.script(network), torch.jit.Error)):
        with pytest.raises(error, match=message):
            call(torch.zeros(shape))


def test_a_padding_network_names_an_image_without_channels_too() -> None:
    network = Lambda3D(1, 2, patch_size=8, feature_size=4, hidden_size=12, num_heads=2, num_layers=4, pad=True)
    with pytest.raises(ValueError, match=r"shape \[1, 16, 16, 16\], expected \(batch, channels, D, H, W\)"):
        network(torch.zeros(1, 16, 16, 16))
