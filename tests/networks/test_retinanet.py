from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from shared.layers import FuseStyle
from shared.losses import RetinaNetLoss
from shared.networks import (
    DETECTION_HEADS,
    PyramidAnchors,
    adapt_batch_norm,
    decode_detections,
    fusestyle_resnet,
    fusestyle_retinanet,
    load_pretrained,
)
from shared.utils import DataError

ALL = (3, 4, 5, 6, 7)


def net(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return fusestyle_retinanet(**{"backbone": "resnet10", "channels": 32, **options})


def images(count: int = 2, size: tuple[int, int] = (64, 96), seed: int = 0) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def torchvision_shapes(classes: int, kinds: int) -> dict[str, tuple[int, ...]]:
    """Of `retinanet_resnet50_fpn`, written down from its module tree (release 0.13 and later)."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.{k}": (channels,) for k in ("weight", "bias", "running_mean", "running_var")})

    def conv(name: str, out_channels: int, in_channels: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (out_channels, in_channels, kernel, kernel)
        shapes[f"{name}.bias"] = (out_channels,)

    body = "backbone.body"
    shapes[f"{body}.conv1.weight"] = (64, 3, 7, 7)
    norm(f"{body}.bn1", 64)
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        width = 32 * 2**stage
        for i in range(blocks):
            block = f"{body}.layer{stage}.{i}"
            for n, shape in enumerate(((width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)), 1):
                shapes[f"{block}.conv{n}.weight"] = shape
                norm(f"{block}.bn{n}", shape[0])
            if i == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * width, channels, 1, 1)
                norm(f"{block}.downsample.1", 4 * width)
            channels = 4 * width
    for i, channels in enumerate((512, 1024, 2048)):
        conv(f"backbone.fpn.inner_blocks.{i}.0", 256, channels, 1)
        conv(f"backbone.fpn.layer_blocks.{i}.0", 256, 256, 3)
    for name in ("p6", "p7"):
        conv(f"backbone.fpn.extra_blocks.{name}", 256, 256, 3)
    for head, last, values in (("classification_head", "cls_logits", classes), ("regression_head", "bbox_reg", 4)):
        for i in range(4):
            conv(f"head.{head}.conv.{i}.0", 256, 256, 3)
        conv(f"head.{head}.{last}", kinds * values, 256, 3)
    return shapes


def test_parameters_are_named_and_shaped_as_in_torchvision() -> None:
    network = fusestyle_retinanet(num_classes=91, num_anchors=9, levels=ALL, norm="frozen")
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    counters = {name for name in shapes if name.endswith("num_batches_tracked")}
    assert {name: shape for name, shape in shapes.items() if name not in counters} == torchvision_shapes(91, 9)
    assert sum(p.numel() for p in network.parameters()) == 34_014_999  # as torchvision states for COCO_V1


def test_default_levels_hold_a_part_of_torchvisions_parameters() -> None:
    shapes = {n: tuple(v.shape) for n, v in fusestyle_retinanet().state_dict().items()}
    last = ("head.classification_head.cls_logits.", "head.regression_head.bbox_reg.")
    known = torchvision_shapes(91, 9)
    assert {name for name in shapes if name not in known} == {n for n in shapes if n.endswith("num_batches_tracked")}
    assert all(shapes[name] == known[name] for name in known if name in shapes and not name.startswith(last))
    absent = {".".join(name.split(".")[:4]) for name in known if name not in shapes}
    fpn = "backbone.fpn"
    assert absent == {f"{fpn}.{n}" for n in ("layer_blocks.1", "layer_blocks.2", "extra_blocks.p6", "extra_blocks.p7")}


def test_the_heads_norm_is_named_as_in_torchvisions_second_version() -> None:
    names = {n for n in net(head_norm="group").state_dict() if n.startswith("head.classification_head.conv.")}
    parts = ("0.weight", "1.weight", "1.bias")
    assert names == {f"head.classification_head.conv.{i}.{part}" for i in range(4) for part in parts}


@pytest.mark.parametrize("levels", [(3,), (4, 5), (3, 6), (7,), ALL])
@pytest.mark.parametrize("size", [(64, 96), (100, 77)])
def test_one_column_for_each_anchor(levels: tuple[int, ...], size: tuple[int, int]) -> None:
    anchors = PyramidAnchors([[50, 70]] * len(levels), [0.5, 1, 2], levels)(size)
    network = net(num_classes=3, levels=levels, num_anchors=6).eval()
    with torch.no_grad():
        assert network(images(2, size)).shape == (2, 7, len(anchors))


def test_columns_stand_in_the_order_of_the_anchors() -> None:
    """Last layers that tell where they are: the features give the row and the column, the biases the kind."""
    network = net(num_classes=2, num_anchors=3, levels=(3, 4))
    levels = [torch.zeros(1, 32, 4, 6), torch.zeros(1, 32, 2, 3)]
    for level, features in enumerate(levels):
        _, _, height, width = features.shape
        place = torch.arange(height * width).view(height, width)
        features[0, 0] = 1000 * (level + 1) + 10 * place
    network.backbone = nn.Module()
    network.backbone.forward = lambda x: levels
    for name, head in network.head.items():
        last = head[1]
        head.conv = nn.Identity()
        nn.init.zeros_(last.weight)
        last.weight.data[:, 0, 1, 1] = 1.0
        values = 2 if name == "classification_head" else 4
        last.bias.data = torch.tensor([kind + 0.1 * value for kind in range(3) for value in range(values)])
    found = network(images(1))[0]
    for row, value in [*enumerate((0, 0.1)), *enumerate((0, 0.1, 0.2, 0.3), start=2)]:
        wanted = [1000 + 10 * s + kind + value for s in range(24) for kind in range(3)]
        wanted += [2000 + 10 * s + kind + value for s in range(6) for kind in range(3)]
        torch.testing.assert_close(found[row], torch.tensor(wanted).float())


def test_classes_are_improbable_before_training() -> None:
    with torch.no_grad():
        output = net(num_classes=3).eval()(images())
    torch.testing.assert_close(output[:, :3].sigmoid(), torch.full_like(output[:, :3], 0.01), rtol=0.1, atol=0)
    assert output[:, 3:].abs().max() < 0.1


def test_eval_mode_is_the_plain_network() -> None:
    plain, mixing = net(places=()).eval(), net(places=(1, 4), p=1.0).eval()
    torch.testing.assert_close(mixing(images()), plain(images()), rtol=0, atol=0)
    assert list(mixing.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_every_place_of_fusestyle_reaches_the_output_of_level_3(place: int) -> None:
    x = images(4)
    plain, mixing = net(places=(), norm="frozen").train(), net(places=(place,), p=1.0, norm="frozen").train()
    assert type(list(mixing.backbone.body.get_submodule(f"layer{place}").children())[-1]) is FuseStyle
    (wanted,), (found,) = plain.backbone(x), mixing.backbone(x)
    assert (found - wanted).abs().mean() > 0.01 * wanted.std()
    torch.testing.assert_close(mixing(x[:1]), plain(x[:1]))  # a sample alone has no partner


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
@pytest.mark.parametrize(("levels", "head_norm"), [((3,), None), ((4, 6), "group"), (ALL, None), ((3,), "batch")])
def test_every_trainable_parameter_gets_a_gradient(norm: str, levels: tuple[int, ...], head_norm: str | None) -> None:
    network = net(norm=norm, levels=levels, head_norm=head_norm).train()
    y = network(images(size=(128, 128)))
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert [name for name, p in named.items() if p.grad is None or not p.grad.any()] == []
    norms = [name for name in named if ".bn" in name]
    assert bool(norms) == (norm != "frozen")


def test_frozen_norm_keeps_its_statistics_and_computes_what_batch_norm_does_in_eval_mode() -> None:
    batch, frozen = net(norm="batch").train(), net(norm="frozen").train()
    for seed in range(3):
        batch(images(seed=seed))
    frozen.load_state_dict(batch.state_dict())
    before = copy.deepcopy(frozen.state_dict())
    found = frozen(images())
    adapt_batch_norm(frozen, [images()])
    torch.testing.assert_close(dict(frozen.state_dict()), dict(before), rtol=0, atol=0)
    torch.testing.assert_close(found, batch.eval()(images()))


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As in torchvision's files for download: no blocks around convolutions, frozen norms without counters."""
    old = {}
    for key, value in state.items():
        if "_blocks." in key and "extra" not in key:
            key = key.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        for i in range(4):
            key = key.replace(f"_head.conv.{i}.0.", f"_head.conv[{2 * i}].")
        if not key.endswith("num_batches_tracked"):
            old[key.replace("[", ".").replace("]", "")] = value
    return old


@pytest.mark.parametrize("naming", [dict, published, lambda s: {f"module.{k}": v for k, v in s.items()}])
def test_weights_of_a_detector_for_other_classes_and_levels(tmp_path: Path, naming: Any) -> None:
    source = net(seed=1, num_classes=5, num_anchors=9, levels=ALL).state_dict()
    torch.save(naming(source), tmp_path / "w.pt")
    network, fresh = net(pretrained=tmp_path / "w.pt").state_dict(), net(norm="frozen").state_dict()
    assert "backbone.fpn.layer_blocks.0.0.weight" in network
    for key, value in network.items():
        other = key.startswith(("head.classification_head.cls_logits.", "head.regression_head.bbox_reg."))
        torch.testing.assert_close(value, (fresh if other else source)[key], rtol=0, atol=0)


def test_published_names_differ() -> None:
    names = set(published(net().state_dict()))
    assert {"backbone.fpn.inner_blocks.2.weight", "head.regression_head.conv.6.bias"} <= names
    assert "head.regression_head.conv.3.0.bias" not in names


@pytest.mark.parametrize("prefix", ["", "module.", "encoder."])
def test_weights_of_a_classifier_fill_the_backbone(tmp_path: Path, prefix: str) -> None:
    source = fusestyle_resnet("resnet10", num_classes=7).state_dict()
    torch.save({prefix + key: value for key, value in source.items()}, tmp_path / "w.pt")
    network, fresh = net(), net().state_dict()
    lists = load_pretrained(network, tmp_path / "w.pt", DETECTION_HEADS)
    assert lists["dropped"] == ["fc.weight", "fc.bias"]
    assert {key.split(".")[1] for key in lists["missing"]} == {"fpn", "classification_head", "regression_head"}
    for key, value in network.state_dict().items():
        wanted = source[key.removeprefix("backbone.body.")] if key.startswith("backbone.body.") else fresh[key]
        torch.testing.assert_close(value, wanted, rtol=0, atol=0)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = net().state_dict()
    del state["backbone.fpn.inner_blocks.0.0.weight"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"do not fit RetinaNet: backbone.fpn.inner_blocks.0.0.weight: missing"):
        net(pretrained=tmp_path / "w.pt")
    torch.save(fusestyle_resnet("resnet18").state_dict(), tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"do not fit RetinaNet: layer1.1.conv1.weight: not part"):
        net(pretrained=tmp_path / "w.pt")
    torch.save({}, tmp_path / "w.pt")
    for build in (net, fusestyle_resnet):
        with pytest.raises(DataError, match=r"holds no weights"):
            build(pretrained=tmp_path / "w.pt")


EXPORTED = (
    {},
    {"norm": "frozen", "levels": (3, 4), "num_anchors": 2},
    {"norm": "group", "head_norm": "group", "levels": ALL},
)
SIZES = ((64, 96), (100, 77))


@pytest.mark.parametrize("options", EXPORTED)
@pytest.mark.filterwarnings("ignore:`torch.jit.trace")  # deprecated, and still in use
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn.functional")  # torch's own checks
def test_script_and_trace_at_any_size(options: dict[str, Any]) -> None:
    network = net(**options).eval()
    with torch.no_grad():
        for exported in (torch.jit.script(network), torch.jit.trace(network, images())):
            for size in SIZES:
                torch.testing.assert_close(exported(images(3, size)), network(images(3, size)))


@pytest.mark.slow
@pytest.mark.parametrize("options", EXPORTED)
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")  # torch's exporter
def test_onnx_at_any_size(options: dict[str, Any]) -> None:
    network = net(**options).eval()
    axes = ({0: "batch", 2: "height", 3: "width"},)
    program = torch.onnx.export(network, (images(),), input_names=["image"], dynamic_shapes=axes, verbose=False)
    assert not any("Random" in node.op_type for node in program.model_proto.graph.node)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for size in SIZES:
            (y,) = session.run(None, {"image": images(3, size).numpy()})
            torch.testing.assert_close(torch.from_numpy(y), network(images(3, size)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
def test_mixed_precision_is_finite(norm: str) -> None:
    network, x = net(norm=norm, p=1.0, head_norm="group").train(), images() * 10
    loss = RetinaNetLoss(PyramidAnchors())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = network(x)
        value = loss(
            y, [torch.tensor([[10.0, 5, 60, 55]]), torch.zeros(0, 4)], [torch.tensor([1]), torch.zeros(0)], (64, 96)
        )
    assert (y.dtype, value.dtype) == (torch.bfloat16, torch.float32)
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_one_figure_is_learnt_by_heart(box_loss: str) -> None:
    torch.manual_seed(0)
    box, label = torch.tensor([[9.0, 14, 55, 62]]), torch.tensor([1])
    image = 0.1 * images(1, (64, 64))
    image[0, :, 20:56, 15:49] += 1
    network = net(norm="group", head_norm="group").train()
    anchors = PyramidAnchors()
    loss = RetinaNetLoss(anchors, box_loss)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(network(image), [box], [label], (64, 64))
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.1 * losses[0]
    with torch.no_grad():
        boxes, scores, classes = decode_detections(network.eval()(image)[0], anchors((64, 64)))
    assert classes[0] == 1
    assert scores[0] > 0.5
    assert (boxes[0] - box).abs().max() < 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, "norm must be one of frozen, batch, group, got 'layer'"),
        ({"levels": (2, 3)}, r"levels must be some of 3, 4, 5, 6, 7, ascending, got \[2, 3\]"),
        ({"levels": (4, 3)}, r"levels must be .* got \[4, 3\]"),
        ({"levels": ()}, r"levels must be .* got \[\]"),
        ({"places": (5,)}, "places must be different stages"),
        ({"reference": "cosine"}, "reference must be one of dot"),
        ({"partners": "same_label"}, "partners are same_label, and an image of a detector has no label"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        net(**options)


def test_an_image_without_a_batch_is_refused() -> None:
    network = net().eval()
    for call, error in ((network, ValueError), (torch.jit.script(network), torch.jit.Error)):
        with pytest.raises(error, match=r"shape \[3, 64, 64\], expected \(batch, channels, H, W\)"):
            call(torch.zeros(3, 64, 64))
