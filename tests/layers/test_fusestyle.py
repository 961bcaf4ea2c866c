from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import two_ranks
from feature_maps import CUDA, SHAPES, features
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shared.layers import FuseStyle, fuse_style, reference_indices, tell_batch

REFERENCES = ("dot", "random", "euclidean", "kl", "style")


def by_the_equations(x: Tensor, partners: list[int], lam: list[float], eps: float) -> Tensor:
    """Equations 2 to 4, sample by sample and channel by channel; the statistics are constants."""
    out = torch.empty_like(x)
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            z, other = x[i, c].detach(), x[partners[i], c].detach()
            n = z.numel()
            mu, mu_other = z.sum() / n, other.sum() / n
            sigma = (((z - mu) ** 2).sum() / (n - 1) + eps) ** 0.5
            sigma_other = (((other - mu_other) ** 2).sum() / (n - 1) + eps) ** 0.5
            gamma = lam[i] * sigma + (1 - lam[i]) * sigma_other
            beta = lam[i] * mu + (1 - lam[i]) * mu_other
            out[i, c] = gamma * (x[i, c] - mu) / sigma + beta
    return out


def styles_by_the_equations(x: Tensor, eps: float) -> list[list[float]]:
    """mu and log sigma of all channels, each number standardised over the batch."""
    numbers = []
    for sample in x:
        numbers.append([c.mean().item() for c in sample] + [math.log((c.var().item() + eps) ** 0.5) for c in sample])
    standardised = []
    for column in zip(*numbers, strict=True):
        mean = sum(column) / len(column)
        variance = sum((value - mean) ** 2 for value in column) / (len(column) - 1)
        standardised.append([(value - mean) / (variance + eps) ** 0.5 for value in column])
    return [list(row) for row in zip(*standardised, strict=True)]


def partners_by_the_equations(x: Tensor, reference: str, normalize: bool, eps: float) -> list[int]:
    partners, styles = [], styles_by_the_equations(x, eps)
    for i in range(len(x)):
        scores = {}
        for j in range(len(x)):
            if i == j:
                continue
            a, b = x[i], x[j]
            if reference == "dot":
                if normalize:
                    a, b = (torch.stack([(c - c.mean()) / (c.var() + eps).sqrt() for c in sample]) for sample in (a, b))
                scores[j] = (a * b).sum().item()
            elif reference == "euclidean":
                scores[j] = -((a - b) ** 2).sum().sqrt().item()
            elif reference == "style":
                scores[j] = -(sum(((styles[i][k] - styles[j][k]) ** 2) for k in range(2 * x.shape[1])) ** 0.5)
            else:
                p, q = a.flatten().softmax(0), b.flatten().softmax(0)
                scores[j] = -(p * (p / q).log()).sum().item()
        partners.append(min(scores, key=scores.__getitem__))
    return partners


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_the_equations(shape: tuple[int, ...]) -> None:
    x, eps = features(shape), 1e-6
    partners = torch.arange(len(x)).roll(1)
    lam = torch.linspace(0, 1, len(x), dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, literal = fuse_style(a, partners, lam, eps), by_the_equations(b, partners.tolist(), lam.tolist(), eps)
    torch.testing.assert_close(ours, literal, rtol=1e-12, atol=1e-12)
    weights = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for output in (ours, literal):
        (output * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("reference", "normalize"), [("dot", True), ("dot", False), ("euclidean", True), ("kl", True), ("style", True)]
)
def test_partners_are_those_of_the_equations(
    shape: tuple[int, ...], seed: int, reference: str, normalize: bool
) -> None:
    x = features(shape, seed)
    found = reference_indices(x, reference, normalize)
    assert found.dtype == torch.int64
    assert found.tolist() == partners_by_the_equations(x, reference, normalize, 1e-6)


def by_the_authors_code(x: Tensor, lam: Tensor, eps: float) -> tuple[list[int], Tensor]:
    """Normalise, seek the least product among all samples, the sample itself included, restyle what is normalised."""
    space = tuple(range(2, x.ndim))
    mu = x.mean(space, keepdim=True).detach()
    sigma = (x.var(space, keepdim=True) + eps).sqrt().detach()
    normed = (x - mu) / sigma
    partners = [min(range(len(x)), key=[(one * other).sum().item() for other in normed].__getitem__) for one in normed]
    lam = lam.view(-1, *[1] * (x.ndim - 1))
    gamma, beta = (lam * own + (1 - lam) * own[partners] for own in (sigma, mu))
    return partners, normed * gamma + beta


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_dot_is_what_the_authors_code_computes(shape: tuple[int, ...], seed: int) -> None:
    """That code lets a sample be its own partner: its product with itself is its greatest, so it never is."""
    x, eps = features(shape, seed), 1e-6
    lam = torch.rand(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    partners = reference_indices(a, "dot", eps=eps)
    ours, (theirs, literal) = fuse_style(a, partners, lam, eps), by_the_authors_code(b, lam, eps)
    assert partners.tolist() == theirs
    torch.testing.assert_close(ours, literal, rtol=1e-12, atol=1e-12)
    weights = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for output in (ours, literal):
        (output * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


def test_a_constant_sample_alone_would_be_its_own_partner_in_the_authors_code() -> None:
    x = features()
    x[0] = 2.0  # all its products are 0
    theirs, _ = by_the_authors_code(x, torch.full((5,), 0.5), 1e-6)
    ours = reference_indices(x, "dot").tolist()
    assert theirs[0] == 0 != ours[0]
    assert theirs[1:] == ours[1:]


@pytest.mark.parametrize("reference", ["dot", "euclidean", "kl", "style"])
def test_partners_under_autocast_are_those_without(reference: str) -> None:
    x = features((64, 3, 8, 8)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = reference_indices(x, reference)
    assert torch.equal(found, reference_indices(x, reference))


def test_euclidean_partners_do_not_suffer_from_a_large_mean() -> None:
    x = features((64, 3, 8, 8)) + 1000
    assert torch.equal(reference_indices(x.float(), "euclidean"), reference_indices(x, "euclidean"))


def test_random_partners_are_a_permutation() -> None:
    torch.manual_seed(0)
    drawn = [reference_indices(features(), "random").tolist() for _ in range(20)]
    assert all(sorted(d) == [0, 1, 2, 3, 4] for d in drawn)
    assert len({tuple(d) for d in drawn}) > 10


def test_raw_features_make_the_dimmest_sample_everybodys_partner() -> None:
    """Why the features are normalised by default."""
    x = torch.rand(6, 4, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    x[2] *= 0.1
    assert reference_indices(x, normalize=False).tolist()[:2] == [2, 2]
    assert len(set(reference_indices(x).tolist())) > 2


def test_lambda_of_1_changes_nothing_and_of_0_takes_the_partners_statistics() -> None:
    x = features()
    partners = torch.tensor([1, 2, 3, 4, 0])
    torch.testing.assert_close(fuse_style(x, partners, torch.ones(5)), x)
    swapped = fuse_style(x, partners, torch.zeros(5))
    torch.testing.assert_close(swapped.mean((2, 3)), x[partners].mean((2, 3)))
    torch.testing.assert_close(swapped.std((2, 3)), x[partners].std((2, 3)), rtol=1e-4, atol=1e-6)


def test_spatial_mean_is_beta_exactly() -> None:
    """What a network sees that pools right behind the layer (methods: layer 4)."""
    x, partners, lam = features(), torch.tensor([1, 2, 3, 4, 0]), torch.rand(5).double()
    beta = lam[:, None] * x.mean((2, 3)) + (1 - lam[:, None]) * x[partners].mean((2, 3))
    torch.testing.assert_close(fuse_style(x, partners, lam).mean((2, 3)), beta)


@pytest.mark.parametrize("reference", REFERENCES)
def test_identity_in_eval_for_one_sample_and_without_luck(reference: str) -> None:
    x = features()
    assert FuseStyle(p=1, reference=reference).eval()(x) is x
    assert FuseStyle(p=1, reference=reference).train()(x[:1]).data_ptr() == x.data_ptr()
    assert FuseStyle(p=0, reference=reference).train()(x) is x
    assert not torch.allclose(FuseStyle(p=1, reference=reference).train()(x), x)


def test_probability() -> None:
    torch.manual_seed(0)
    layer, x = FuseStyle(p=0.3).train(), features((2, 1, 2, 2))
    mixed = sum(layer(x) is not x for _ in range(1000))
    assert 250 < mixed < 350


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("reference", REFERENCES)
def test_a_seed_reproduces_it_on_every_device(reference: str, device: str) -> None:
    layer, outputs = FuseStyle(reference=reference).train(), []
    for place in (device, device, "cpu"):
        torch.manual_seed(3)
        outputs.append([layer(features().to(place)) for _ in range(6)])
    assert all(torch.equal(a, b) for a, b in zip(*outputs[:2], strict=True))
    for a, b in zip(*outputs[1:], strict=True):
        torch.testing.assert_close(a.cpu(), b)
    assert len({o.sum().item() for o in outputs[0]}) > 2


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("reference", REFERENCES)
def test_nothing_waits_for_the_gpu(reference: str, device: str) -> None:
    x = features().float().to(device).requires_grad_()
    layer = FuseStyle(p=1, reference=reference).train()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
        fuse_style(x, reference_indices(x, reference), torch.ones(len(x), device=device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_neither_overflows_nor_gives_nan(
    reference: str, dtype: torch.dtype, autocast: bool, device: str
) -> None:
    torch.manual_seed(0)
    x = (features((4, 64, 16, 16)) * 100).to(device, dtype)  # a self product is above the greatest float16
    x[1, 3] = 7.0  # a constant channel
    x.requires_grad_()
    layer = FuseStyle(p=1, reference=reference).train()
    with torch.autocast(device, dtype=dtype, enabled=autocast):
        output = layer(x)
    assert output.dtype == dtype
    assert output.isfinite().all()
    output.float().mean().backward()
    assert x.grad.isfinite().all()


def test_half_precision_keeps_a_small_spread_on_a_large_mean() -> None:
    x = (features((4, 8, 16, 16)) + 100).half()
    partners, lam = torch.tensor([1, 2, 3, 0]), torch.full((4,), 0.5)
    exact = fuse_style(x.double(), partners, lam.double())
    assert (fuse_style(x, partners, lam).double() - exact).abs().max() < 0.04  # half of float16's step at 100 is 0.03


def test_single_precision_keeps_a_small_spread_on_a_large_mean() -> None:
    x = (features((4, 8, 16, 16)) + 1000).float()
    partners, lam = torch.tensor([1, 2, 3, 0]), torch.full((4,), 0.5)
    exact = fuse_style(x.double(), partners, lam.double())
    assert (fuse_style(x, partners, lam).double() - exact).abs().max() < 1e-3  # float32's step at 1000 is 6e-5


@pytest.mark.parametrize("reference", REFERENCES)
def test_constant_channels_stay_finite(reference: str) -> None:
    x = features().float()
    x[:, 1] = 2.0
    x[3] = -1.0
    output = FuseStyle(p=1, reference=reference).train()(x)
    assert output.isfinite().all()


def test_one_position_is_left_alone_with_one_warning() -> None:
    layer, x = FuseStyle(p=1).train(), torch.rand(4, 3, 1, 1)
    with pytest.warns(UserWarning, match=r"features of the shape \(4, 3, 1, 1\): a single position has no variance"):
        assert layer(x) is x
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layer(x) is x


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize(
    ("shape", "layout"), [((4, 6, 8, 8), torch.channels_last), ((3, 6, 4, 4, 4), torch.channels_last_3d)]
)
def test_the_memory_layout_is_kept(shape: tuple[int, ...], layout: torch.memory_format, reference: str) -> None:
    x = features(shape)
    layer, outputs = FuseStyle(p=1, reference=reference).train(), []
    for z in (x, x.to(memory_format=layout)):
        torch.manual_seed(0)
        outputs.append(layer(z))
    torch.testing.assert_close(*outputs)
    assert outputs[0].is_contiguous()
    assert outputs[1].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_keeps_nothing_larger_than_the_statistics(reference: str, dtype: torch.dtype) -> None:
    x = features((4, 6, 8, 8)).to(dtype).requires_grad_()
    layer, saved = FuseStyle(p=1, reference=reference).train(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        layer(x)
    assert saved
    assert max(saved) <= 4 * 6


def network(reference: str, p: float = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), FuseStyle(p, reference=reference), nn.Conv2d(4, 2, 3))


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # torch's compiler, where it goes on after a break
@pytest.mark.parametrize("reference", REFERENCES)
def test_compiles_with_at_most_one_graph_break(reference: str) -> None:
    plain, x = network(reference).train(), torch.randn(4, 2, 9, 9)
    explanation = torch._dynamo.explain(copy.deepcopy(plain))(x)
    assert explanation.graph_break_count <= 1
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(plain), backend="aot_eager")
    outputs = []
    for net in (plain, compiled):
        torch.manual_seed(1)
        outputs.append(net(x))
    torch.testing.assert_close(*outputs)
    torch._dynamo.reset()


def train_on_a_rank(rank: int, folder: str) -> None:
    net = network("dot", p=0.5).train()
    before = [p.detach().clone() for p in net.parameters()]
    calls: list[list[Tensor]] = []
    net[1].register_forward_pre_hook(lambda layer, args: calls.append([torch.get_rng_state(), args[0].detach()]))
    net[1].register_forward_hook(lambda layer, args, output: calls[-1].append(output.detach()))
    parallel = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.manual_seed(rank)
    for _ in range(4):
        optimizer.zero_grad()
        parallel(torch.randn(4, 2, 9, 9)).square().mean().backward()
        optimizer.step()
    torch.save({"before": before, "after": [p.detach() for p in net.parameters()], "calls": calls}, f"{folder}/{rank}")


@pytest.mark.slow
def test_two_ranks_mix_each_its_own_batch_and_stay_equal(tmp_path: Path) -> None:
    two_ranks(__file__, "toy.train_on_a_rank(rank, folder)", tmp_path)
    zero, one = (torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2))
    for before, after, other in zip(zero["before"], zero["after"], one["after"], strict=True):
        assert torch.equal(after, other)
        assert not torch.equal(after, before)
    mixed = []
    for calls in (zero["calls"], one["calls"]):
        mixed.append([not torch.equal(x, output) for _, x, output in calls])
        for rng_state, x, output in calls:  # one process does the same, which has this rank's batch alone
            torch.set_rng_state(rng_state)
            torch.testing.assert_close(FuseStyle().train()(x), output)
    assert {(True, False), (True, True)} <= set(zip(*mixed, strict=True))  # one may mix where the other does not


@pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated")  # the default of MONAI's ckpt_export
def test_exports_as_the_identity() -> None:
    net, x = network("dot").eval(), torch.randn(4, 2, 9, 9)
    torch.testing.assert_close(torch.jit.script(net)(x), net(x))
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), net(x))


def test_no_key_of_a_state_dict_changes() -> None:
    stage = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3))
    keys = list(stage.state_dict())
    stage.append(FuseStyle())
    assert list(stage.state_dict()) == keys
    assert "p=0.5, alpha=0.3, reference='dot', normalize=True" in repr(stage)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.5}, r"p must be in \[0, 1\], got 1.5"),
        ({"alpha": 0}, "alpha and extrapolation must be above 0, got 0 and None"),
        ({"extrapolation": -1.0}, "alpha and extrapolation must be above 0, got 0.3 and -1.0"),
        ({"eps": -1.0}, "eps must be above 0, got -1.0"),
        ({"reference": "cosine"}, "reference must be one of dot, random, euclidean, kl, style, got 'cosine'"),
        ({"partners": "all"}, "partners must be one of any, same_label, other_domain, got 'all'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FuseStyle(**options)


@pytest.mark.parametrize("x", [torch.rand(4, 3), torch.ones(4, 3, 2, 2, dtype=torch.int64)])
def test_wrong_features_are_refused_with_their_shape(x: Tensor) -> None:
    for call in (FuseStyle(), FuseStyle().eval(), reference_indices):
        with pytest.raises(ValueError, match=rf"got {x.dtype} of the shape \({x.shape[0]}, {x.shape[1]}"):
            call(x)
    with pytest.raises(ValueError, match="of the shape"):
        fuse_style(x, torch.arange(4), torch.ones(4))


def test_functions_refuse_what_they_cannot_do() -> None:
    with pytest.raises(ValueError, match="reference must be one of"):
        reference_indices(features(), "cosine")
    with pytest.raises(ValueError, match=r"shape \(1, 3, 4, 6\): one sample has no partner"):
        reference_indices(features()[:1])
    for call in (reference_indices, lambda x: fuse_style(x, torch.arange(5), torch.ones(5))):
        with pytest.raises(ValueError, match=r"shape \(5, 3, 1, 1\), expected .* with 2 positions or more"):
            call(features()[..., :1, :1])
    with pytest.raises(ValueError, match=r"allowed has the shape \(5, 4\), expected \(5, 5\)"):
        reference_indices(features(), allowed=torch.ones(5, 4, dtype=torch.bool))
    for partners, lam in ((torch.zeros(1).long(), torch.ones(5)), (torch.arange(5), torch.ones(1))):
        with pytest.raises(ValueError, match="expected one value for each of the 5 samples"):
            fuse_style(features(), partners, lam)


def extrapolated_by_the_equations(x: Tensor, partners: list[int], lam: list[float], eps: float, e: float) -> Tensor:
    out = torch.empty_like(x)
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            z, other = x[i, c].detach(), x[partners[i], c].detach()
            sigma, sigma_other = (((a - a.mean()) ** 2).sum() / (a.numel() - 1) + eps for a in (z, other))
            ratio = min(max(math.sqrt(sigma_other / sigma), 0.1), 10)
            gamma = math.sqrt(sigma) * ratio ** (e * (1 - lam[i]))
            beta = z.mean() + e * (1 - lam[i]) * (other.mean() - z.mean())
            out[i, c] = gamma * (x[i, c] - z.mean()) / math.sqrt(sigma) + beta
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("e", [0.5, 1, 2])
def test_extrapolated_values_and_gradients_are_those_of_the_equations(shape: tuple[int, ...], e: float) -> None:
    x, eps = features(shape), 1e-6
    x[0, 0], x[1, 1] = x[0, 0] * 1e-3, 2.0  # farther from the others than a ratio of 10
    partners, lam = torch.arange(len(x)).roll(1), torch.linspace(0, 1, len(x), dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours = fuse_style(a, partners, lam, eps, e)
    literal = extrapolated_by_the_equations(b, partners.tolist(), lam.tolist(), eps, e)
    torch.testing.assert_close(ours, literal, rtol=1e-11, atol=1e-11)
    weights = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for output in (ours, literal):
        (output * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-11)


def test_extrapolation_by_1_ends_at_the_partner_and_by_2_as_far_behind() -> None:
    x, partners, lam = features(), torch.tensor([1, 2, 3, 4, 0]), torch.zeros(5)
    (mean, std), (other_mean, other_std) = ((z.mean((2, 3)), (z.var((2, 3)) + 1e-6).sqrt()) for z in (x, x[partners]))
    for e, beta, gamma in ((1, other_mean, other_std), (2, 2 * other_mean - mean, other_std**2 / std)):
        found = fuse_style(x, partners, lam, extrapolation=e)
        torch.testing.assert_close(found.mean((2, 3)), beta)
        torch.testing.assert_close(found.std((2, 3)), gamma, rtol=1e-4, atol=1e-6)
    assert torch.equal(fuse_style(x, partners, torch.ones(5), extrapolation=2), x)


def test_extrapolation_stays_finite_in_half_precision_where_a_channel_is_constant() -> None:
    x = (features((4, 8, 16, 16)) * 10).half()
    x[1, 3], x[2, 5] = 7.0, 0.0
    x[2, 5, 0, 0] = 0.5  # a single pixel
    found = fuse_style(x, torch.tensor([1, 2, 1, 0]), torch.zeros(4), extrapolation=2)
    assert found.isfinite().all()
    assert found.abs().max() < 1000


LABELS, DOMAINS = torch.tensor([0, 1, 0, 1, 1]), ["CS", "XR", "CS", "XR", "CS"]
ALLOWED = {
    "same_label": [[2], [3, 4], [0], [1, 4], [1, 3]],
    "other_domain": [[1, 3], [0, 2, 4], [1, 3], [0, 2, 4], [1, 3]],
}


def layer_of(partners: str, reference: str = "dot", **options: Any) -> FuseStyle:
    return FuseStyle(p=1, reference=reference, partners=partners, **options).train()


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("partners", ALLOWED)
def test_partners_are_the_best_of_those_allowed(partners: str, reference: str, device: str) -> None:
    x = features().to(device)
    allowed = torch.zeros(5, 5, dtype=torch.bool)
    for i, others in enumerate(ALLOWED[partners]):
        allowed[i, others] = True
    layer, seen = layer_of(partners, reference), set()
    for seed in range(20):
        torch.manual_seed(seed)
        tell_batch(nn.Sequential(layer), LABELS.to(device), DOMAINS)
        layer(x)
        found = layer.last_partners.tolist()
        seen.add(tuple(found))
        assert all(j in others for j, others in zip(found, ALLOWED[partners], strict=True))
    if reference == "random":
        assert len(seen) > (2 if partners == "same_label" else 10)  # of 8 and 72
        return
    assert seen == {tuple(reference_indices(x, reference, allowed=allowed.to(device)).tolist())}
    for i, j in enumerate(next(iter(seen))):  # the same as if the others were not there
        if reference in ("dot", "kl"):  # which look at two samples alone
            own = [i, *ALLOWED[partners][i]]
            assert own[reference_indices(x[own], reference)[0]] == j


def test_random_partners_among_those_allowed_are_equally_probable() -> None:
    torch.manual_seed(0)
    x, allowed = features(), torch.ones(5, 5, dtype=torch.bool)
    allowed[0, 3] = False
    drawn = torch.stack([reference_indices(x, "random", allowed=allowed) for _ in range(2000)])
    shares = torch.stack([(drawn == j).float().mean(0) for j in range(5)], 1)
    expected = torch.full((5, 5), 0.25).fill_diagonal_(0)
    expected[0] = torch.tensor([0, 1 / 3, 1 / 3, 0, 1 / 3])
    torch.testing.assert_close(shares, expected, atol=0.04, rtol=0)


@pytest.mark.parametrize("extrapolation", [None, 2.0])
@pytest.mark.parametrize("reference", REFERENCES)
def test_a_sample_without_an_allowed_partner_stays_exactly_as_it_is(
    reference: str, extrapolation: float | None
) -> None:
    torch.manual_seed(0)
    x, layer = features((40, 6, 4, 6)).float(), layer_of("same_label", reference, extrapolation=extrapolation)
    labels = torch.arange(40)
    labels[:3] = 39
    tell_batch(layer, labels)
    found = layer(x)
    assert layer.last_partners.tolist()[3:39] == [*range(3, 39)]
    assert torch.equal(found[3:39], x[3:39])
    assert not torch.allclose(found[[0, 1, 2, 39]], x[[0, 1, 2, 39]])


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0.1, 0.9, 0.4, 0.6, 1.0]),
        torch.tensor([[0.1], [0.9], [0.4], [0.6], [1.0]]),
        torch.tensor([[0], [7], [0], [7], [7]]),
        torch.tensor([[0.5, 0.1, 0.4], [0.3, 0.4, 0.3], [0.4, 0.35, 0.25], [0, 1, 0], [0.2, 0.5, 0.3]]),
    ],
)
def test_of_soft_labels_the_larger_counts(labels: Tensor) -> None:
    found = []
    for told in (labels, LABELS):
        layer = layer_of("same_label")
        tell_batch(layer, told)
        layer(features())
        found.append(layer.last_partners.tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("p", [0, 1])
@pytest.mark.parametrize(("partners", "what"), [("same_label", "labels"), ("other_domain", "domains")])
def test_a_layer_uses_what_it_was_told_once_and_for_that_batch_alone(partners: str, what: str, p: float) -> None:
    layer, x = FuseStyle(p=p, partners=partners).train(), features()
    untold = rf"partners='{partners}' was not told of a batch of 5: call tell_batch\(.*\) with its {what} before"
    with pytest.raises(ValueError, match=untold):
        layer(x)
    tell_batch(layer, LABELS, DOMAINS)
    layer(x)
    with pytest.raises(ValueError, match=untold):
        layer(x)
    tell_batch(layer, LABELS, DOMAINS)
    with pytest.raises(ValueError, match="was told of 5 samples for a batch of 4"):
        layer(x[:4])
    tell_batch(layer)
    with pytest.raises(ValueError, match=untold):
        layer(x)
    assert layer.eval()(x) is x


def test_layers_without_need_are_told_nothing() -> None:
    net, x = network("dot").train(), torch.randn(4, 2, 9, 9)
    torch.manual_seed(1)
    expected = net(x)
    tell_batch(net, LABELS, DOMAINS)  # of another batch
    torch.manual_seed(1)
    assert torch.equal(net(x), expected)


def test_the_last_partners_are_none_where_nothing_was_mixed() -> None:
    layer, x = FuseStyle(p=1).train(), features()
    layer(x)
    assert torch.equal(layer.last_partners, reference_indices(x))
    layer.eval()(x)
    assert layer.last_partners is not None
    layer.train()(x[:1])
    assert layer.last_partners is None
    layer(x)
    layer.p = 0
    layer(x)
    assert layer.last_partners is None


@pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated")
def test_what_was_told_is_in_no_export() -> None:
    net, x = network("dot").eval(), torch.randn(4, 2, 9, 9)
    net[1] = layer_of("same_label")
    net.train()
    tell_batch(net, torch.tensor([0, 1, 0, 1]))
    net(x)
    tell_batch(net, torch.tensor([0, 1, 0, 1]))
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    torch.testing.assert_close(torch.export.export(net.eval(), (x,)).module()(x), net(x))
    torch.testing.assert_close(torch.jit.script(net)(x), net(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("partners", ALLOWED)
def test_compiles_with_partners_that_are_told_of(partners: str) -> None:
    plain, x = network("style").train(), torch.randn(4, 2, 9, 9)
    plain[1] = layer_of(partners, "style", extrapolation=2.0)
    compiled, outputs = torch.compile(copy.deepcopy(plain), backend="aot_eager"), []
    for step in range(3):
        for net in (plain, compiled):
            tell_batch(net, LABELS[:4].roll(step), (2 * DOMAINS)[step : step + 4])
            torch.manual_seed(step)
            outputs.append(net(x))
        torch.testing.assert_close(*outputs[-2:])
    torch._dynamo.reset()
