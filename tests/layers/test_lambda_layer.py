from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.layers import LambdaLayer, apply_lambdas

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CUDA = pytest.param("cuda", marks=[pytest.mark.cuda, NO_GPU])

# grid, receptive field, heads, k, u, norm
SETTINGS = (
    ((3, 4, 2), 3, 3, 4, 1, "layer"),
    ((3, 4, 2), 3, 2, 5, 2, "layer"),
    ((2, 3, 4), (1, 3, 5), 1, 3, 2, "batch"),
    ((3, 2, 4), (5, 3, 7), 3, 4, 1, "layer"),  # global: 2 * size - 1
    ((3, 2, 2), (5, 3, 3), 2, 2, 3, "none"),  # the same
    ((2, 1, 3), 9, 3, 4, 2, "layer"),  # beyond the grid
)


def layer_of(
    field: Any, heads: int = 3, k: int = 4, u: int = 1, norm: str = "layer", hidden: int = 12, seed: int = 0
) -> LambdaLayer:
    """In float64, with the parameters of the norms away from where they start."""
    torch.manual_seed(seed)
    layer = LambdaLayer(hidden, heads, k, u, field, norm).double()
    with torch.no_grad():
        for norms in (layer.query_norm, layer.value_norm):
            for parameter in norms.parameters():
                parameter += torch.randn_like(parameter) / 2
    return layer


def tokens(grid: tuple[int, int, int], batch: int = 2, hidden: int = 12, seed: int = 0) -> Tensor:
    n = grid[0] * grid[1] * grid[2]
    return torch.randn(batch, n, hidden, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normalised(x: Tensor, norm: str, module: nn.Module) -> Tensor:
    """x is (B, N, groups, depth)."""
    if norm == "none":
        return x
    if norm == "layer":
        centred = x - x.mean(3, keepdim=True)
        return centred / (centred.square().mean(3, keepdim=True) + 1e-5).sqrt() * module.weight + module.bias
    centred = x - x.mean((0, 1))
    weight, bias = (p.view(x.shape[2:]) for p in module.parameters())
    return centred / (centred.square().mean((0, 1)) + 1e-5).sqrt() * weight + bias


def by_the_definition(layer: LambdaLayer, x: Tensor, grid: tuple[int, int, int], everywhere: bool = False) -> Tensor:
    """Two loops over the positions. `everywhere`: E is asked for every offset there is, as in the global form."""
    B, N, C = x.shape
    h, k, u, v = layer.num_heads, layer.dim_k, layer.dim_u, C // layer.num_heads
    E, middle = layer.position, [r // 2 for r in layer.receptive_field]
    W_q, W_k, W_v = layer.qkv.weight.split([h * k, u * k, u * v])
    q = normalised((x @ W_q.T).view(B, N, h, k), layer.norm, layer.query_norm) / k**0.5
    K = (x @ W_k.T).view(B, N, u, k).exp()
    K = K / K.sum(1, keepdim=True)
    V = normalised((x @ W_v.T).view(B, N, u, v), layer.norm, layer.value_norm)
    positions = list(itertools.product(*(range(size) for size in grid)))
    y = []
    for b in range(B):
        for n, at in enumerate(positions):
            lam = torch.zeros(k, v, dtype=x.dtype)
            for m, other in enumerate(positions):
                d, e, f = (j - i + c for i, j, c in zip(at, other, middle, strict=True))
                lam = lam + K[b, m].T @ V[b, m]
                inside = all(0 <= o < r for o, r in zip((d, e, f), layer.receptive_field, strict=True))
                assert inside or not everywhere
                if inside:
                    lam = lam + E[:, :, d, e, f] @ V[b, m]
            y.append(torch.cat([lam.T @ q[b, n, head] for head in range(h)]))
    return torch.stack(y).view(B, N, C)


@pytest.mark.parametrize(("grid", "field", "heads", "k", "u", "norm"), SETTINGS)
def test_values_and_gradients_are_those_of_the_definition(
    grid: tuple[int, int, int], field: Any, heads: int, k: int, u: int, norm: str
) -> None:
    layer = layer_of(field, heads, k, u, norm)
    everywhere = all(r >= 2 * size - 1 for r, size in zip(layer.receptive_field, grid, strict=True))
    weights, found = tokens(grid, seed=1), []
    for forward in (
        lambda x: layer(x, grid),
        lambda x: by_the_definition(layer, x, grid, everywhere),
    ):
        x = tokens(grid).requires_grad_()
        y = forward(x)
        found.append((y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])))
    for ours, literal in zip(*found, strict=True):
        assert literal.abs().max() > 1e-3
        torch.testing.assert_close(ours, literal, rtol=1e-11, atol=1e-12)


def reach(field: tuple[int, int, int], grid: tuple[int, int, int], at: int) -> Tensor:
    """Which tokens the position lambda of the token `at` sees, as a volume."""
    n = grid[0] * grid[1] * grid[2]
    value = torch.randn(1, n, 1, 3).requires_grad_()
    y = apply_lambdas(torch.ones(1, n, 1, 2), torch.zeros(1, n, 1, 2), value, torch.ones(2, 1, *field), grid)
    y[0, at].sum().backward()
    return value.grad[0, :, 0].abs().sum(1).view(grid) > 0


def test_the_receptive_field_is_what_it_says() -> None:
    grid = (5, 4, 6)
    seen = reach((3, 1, 5), grid, at=(2 * 4 + 1) * 6 + 3)  # the token (2, 1, 3)
    expected = torch.zeros(grid, dtype=torch.bool)
    expected[1:4, 1:2, 1:6] = True
    assert torch.equal(seen, expected)
    assert reach((9, 7, 11), grid, at=0).all()  # 2 * size - 1 is global
    assert reach((9, 7, 11), grid, at=119).all()
    assert not reach((7, 7, 11), grid, at=0).all()


def test_a_field_beyond_the_grid_changes_nothing() -> None:
    grid, x = (3, 2, 2), tokens((3, 2, 2))
    exact, wider = layer_of((5, 3, 3)), layer_of((7, 7, 3))
    state = exact.state_dict()
    state["position"] = nn.functional.pad(state["position"], (0, 0, 2, 2, 1, 1), value=7.0)
    wider.load_state_dict(state)
    torch.testing.assert_close(wider(x, grid), exact(x, grid))


def test_content_alone_does_not_know_the_order_of_the_tokens() -> None:
    grid, x, layer = (3, 2, 4), tokens((3, 2, 4)), layer_of(3)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(layer(x[:, order], grid), layer(x, grid)[:, order])
    nn.init.zeros_(layer.position)
    torch.testing.assert_close(layer(x[:, order], grid), layer(x, grid)[:, order])
    torch.testing.assert_close(layer(x, grid), layer(x, (24, 1, 1)))


def test_moving_the_tokens_moves_the_output() -> None:
    """Away from the border; rolled, the same tokens are there for the content."""
    grid = (7, 6, 8)
    x, layer = tokens(grid), layer_of((3, 3, 5))
    moved = x.unflatten(1, grid).roll((1, 1, 1), (1, 2, 3)).flatten(1, 3)
    y, y_moved = (layer(z, grid).unflatten(1, grid) for z in (x, moved))
    torch.testing.assert_close(y_moved[:, 2:6, 2:5, 3:6], y[:, 1:5, 1:4, 2:5])
    assert not torch.allclose(y_moved[:, 0], y[:, -1])


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_samples_do_not_see_each_other(norm: str) -> None:
    grid, x, layer = (3, 2, 4), tokens((3, 2, 4), batch=3), layer_of(3, norm=norm).eval()
    alone = torch.cat([layer(x[i : i + 1], grid) for i in range(3)])
    torch.testing.assert_close(layer(x, grid), alone)


def test_heads_differ_in_their_queries_alone() -> None:
    grid, x, layer = (3, 2, 4), tokens((3, 2, 4)), layer_of(3, heads=3, k=4)
    with torch.no_grad():
        layer.qkv.weight[4:8] = layer.qkv.weight[:4]
    first, second, third = layer(x, grid).chunk(3, dim=-1)
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, third)


@pytest.mark.parametrize(("field", "u"), [(7, 1), (5, 4), ((3, 7, 5), 2)])
def test_positions_start_as_large_as_the_content(field: Any, u: int) -> None:
    torch.manual_seed(0)
    layer = LambdaLayer(768, 12, 16, u, field)
    taps = layer.position[0].numel()
    assert layer.position.shape == (16, u, *layer.receptive_field)
    assert layer.position.std().item() == pytest.approx(taps**-0.5, rel=0.05)
    value = nn.functional.layer_norm(torch.randn(1, 9**3, u, 64), [64])
    no_keys, query = torch.zeros(1, 9**3, u, 16), torch.eye(16).expand(1, 9**3, 16, 16)
    lambdas = apply_lambdas(query, no_keys, value, layer.position, (9, 9, 9))
    assert lambdas.unflatten(1, (9, 9, 9))[0, 4, 4, 4].std().item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_every_parameter_gets_a_gradient(norm: str) -> None:
    layer = layer_of(3, u=2, norm=norm)
    y = layer(tokens((3, 2, 4)), (3, 2, 4))
    (y * tokens((3, 2, 4), seed=1)).sum().backward()
    assert [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.any()] == []


class OfVolumes(nn.Module):
    def __init__(self, layer: LambdaLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3], x.shape[4]))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")  # deprecated, and still in use
@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_script_trace_and_export_at_any_size(norm: str) -> None:
    network = OfVolumes(layer_of((3, 5, 3), u=2, norm=norm)).eval()
    x, other = torch.randn(2, 12, 3, 4, 2).double(), torch.randn(3, 12, 5, 2, 6).double()
    size = {0: torch.export.Dim.AUTO, **dict.fromkeys((2, 3, 4), torch.export.Dim.AUTO)}
    for exported in (
        torch.jit.script(network),
        torch.jit.trace(network, x),
        torch.export.export(network, (x,), dynamic_shapes=(size,)).module(),
    ):
        for z in (x, other):
            torch.testing.assert_close(exported(z), network(z))


@pytest.mark.slow
def test_compiles_without_a_break() -> None:
    network, x = OfVolumes(layer_of(3)), torch.randn(2, 12, 3, 4, 2).double()
    try:
        assert torch._dynamo.explain(copy.deepcopy(network))(x).graph_break_count == 0
        torch._dynamo.reset()
        compiled = torch.compile(copy.deepcopy(network), backend="aot_eager")
        torch.testing.assert_close(compiled(x), network(x))
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.bfloat16), *(pytest.param("cuda", d, marks=CUDA.marks) for d in (torch.float16, torch.bfloat16))],
)
def test_mixed_precision_is_finite_and_near_full_precision(device: str, dtype: torch.dtype) -> None:
    grid = (4, 5, 6)
    layer, x = layer_of(3).float().to(device), (tokens(grid) * 100).float().to(device).requires_grad_()
    with torch.autocast(device, dtype=dtype):
        y = layer(x, grid)
    y.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in (x, *layer.parameters()))
    full = layer(x, grid)
    assert (y.float() - full).abs().max() < 0.05 * full.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 100}, "hidden_size must be a multiple of num_heads, got 100 for 12 heads"),
        ({"dim_k": 0}, "must be at least 1, got 768, 12, 0 and 1"),
        ({"receptive_field": 4}, "receptive_field must be odd and positive, one or three of it, got 4"),
        ({"receptive_field": (3, 5, 6)}, r"must be odd and positive, one or three of it, got \(3, 5, 6\)"),
        ({"receptive_field": [3, 5]}, r"one or three of it, got \[3, 5\]"),
        ({"receptive_field": -1}, "odd and positive, .* got -1"),
        ({"norm": "group"}, "norm must be one of layer, batch, none, got 'group'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LambdaLayer(**{"hidden_size": 768, **options})


@pytest.mark.parametrize(("shape", "grid"), [((2, 24, 12), (3, 2, 3)), ((2, 18, 11), (3, 2, 3)), ((18, 12), (3, 2, 3))])
def test_wrong_sizes_are_refused_with_what_fits(shape: tuple[int, ...], grid: tuple[int, int, int]) -> None:
    layer, x = layer_of(3).float(), torch.rand(shape)
    found = rf"features of the shape \[{', '.join(map(str, shape))}\] for the grid \(3, 2, 3\)"
    message = found + r", expected \(batch, 18 tokens, 12 channels\)"
    with pytest.raises(ValueError, match=message):
        layer(x, grid)
    with pytest.raises(torch.jit.Error, match=message):
        torch.jit.script(layer)(x, grid)


def test_print_names_the_options() -> None:
    assert "hidden_size=24, num_heads=2, dim_k=16, dim_u=1, receptive_field=(3, 5, 7), norm='layer'" in repr(
        LambdaLayer(24, 2, receptive_field=[3, 5, 7])
    )
