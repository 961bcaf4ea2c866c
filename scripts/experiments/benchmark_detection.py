"""Measure what detection in a region costs beside the network: suppression, reading, merging, and the peak memory."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tifffile
import torch
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.bundle import ConfigParser
from monai.data.box_utils import batched_nms, box_iou
from monai.losses.focal_loss import sigmoid_focal_loss
from torch import Tensor, nn

from shared.data import Region, RegionTiles, read_rgb
from shared.data.tissue import MASK_SIZE
from shared.datasets.synthetic_histology import make_synthetic_histology
from shared.inferers import CropClassifier, RegionInferer, suppress_within_radius
from shared.losses import RetinaNetLoss
from shared.networks import PyramidAnchors, StainNet, fusestyle_resnet, fusestyle_retinanet, place_network
from shared.networks.resnet import NAMES
from shared.transforms import NormalizeByStainNet, NormalizeStain, NormalizeStaind
from shared.transforms.stain_norm import METHODS, Normalizer
from shared.utils import write_json
from shared.utils.values import Choice, Number, Several, Whole

from .runs import BUNDLES, AtLeastOne
from .timing import Device, chosen_device, in_own_process, in_turns, peak_memory, seconds_of, show_quartiles

CONFIGS = BUNDLES / "mitosis_retinanet_fusestyle" / "configs"
RADIUS, IOU = 25.0, 0.4  # of the suppression, in pixels; of the challenge's reference inference, for one tile


def made_up_candidates(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of 50 px, about four for each cell, as neighbouring anchors give them; scores and two classes."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(-(-count // 4), 2, generator=generator) * torch.tensor([7000.0, 5000.0])
    centres = cells.repeat(4, 1)[:count] + 6 * torch.randn(count, 2, generator=generator)
    boxes = torch.cat([centres - 25, centres + 25], dim=1)
    return boxes, torch.rand(count, generator=generator), torch.randint(2, (count,), generator=generator)


def suppression(candidates: int, rounds: int) -> dict[str, Any]:
    """Our suppression against MONAI's: once the latter, it takes so long. And what the two keep."""
    boxes, scores, classes = made_up_candidates(candidates)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    points = (centres.numpy(), scores.numpy(), RADIUS)
    found: list[Tensor] = []
    slow = seconds_of(lambda: found.append(batched_nms(boxes, scores, classes, IOU)))
    seconds = np.array([seconds_of(lambda: suppress_within_radius(*points)) for _ in range(rounds)])
    theirs = set(found[0].tolist())
    # With the classes together, as ours has them, what is left of the difference is the shape: a circle or an IoU.
    one_class = set(batched_nms(boxes, scores, torch.zeros_like(classes), IOU).tolist())
    kept = set(suppress_within_radius(*points).tolist())
    counts = {
        "ours": len(kept),
        "batched_nms": len(theirs),
        "both": len(kept & theirs),
        "ours alone": len(kept - theirs),
        "batched_nms alone": len(theirs - kept),
        "batched_nms without classes": len(one_class),
        "both, without classes": len(kept & one_class),
    }
    print(f"of {candidates} candidates are kept: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
    name = "time batched_nms / suppress_within_radius"
    result = {"candidates": candidates, "radius": RADIUS, "iou": IOU, "kept": counts}
    return {**result, "seconds_batched_nms": slow, name: show_quartiles(name, slow / seconds, 100.0, at_least=True)}


def monai_loss(anchors: Tensor, output: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """The same loss image by image, of MONAI's functions, which check each box."""
    losses, coder = [], BoxCoder((1.0, 1.0, 1.0, 1.0))
    for values, own, classes in zip(output, boxes, labels, strict=True):
        iou = box_iou(own, anchors)
        best, match = iou.max(dim=0)
        positive = best >= 0.5
        positive[iou.argmax(dim=1)], match[iou.argmax(dim=1)] = True, torch.arange(len(own))
        place, box = positive.nonzero().flatten(), match[positive]
        there = torch.zeros_like(values[:-4])
        there[classes[box], place] = 1
        focal = sigmoid_focal_loss(values[:-4], there, 2.0, 0.25) * (positive | (best < 0.4))
        wanted = coder.encode_single(own[box], anchors[place])
        offsets = nn.functional.smooth_l1_loss(values[-4:, place].T, wanted, reduction="sum", beta=1 / 9)
        losses.append((focal.sum() + offsets) / len(place))
    return torch.stack(losses).mean()


def loss_of_tiles(tiles: int, rounds: int) -> dict[str, Any]:
    """Forward and backward of the loss of tiles of 512 pixels with a few figures each, against MONAI's functions."""
    generator, size = torch.Generator().manual_seed(0), (512, 512)
    anchors = PyramidAnchors()
    output = torch.randn(tiles, 6, len(anchors(size)), generator=generator).requires_grad_()
    corners = [462 * torch.rand(1 + i % 3, 2, generator=generator) for i in range(tiles)]
    boxes = [torch.cat([corner, corner + 50], dim=1) for corner in corners]
    labels, loss = [torch.arange(len(own)) % 2 for own in boxes], RetinaNetLoss(anchors)
    both = {
        "monai": lambda: monai_loss(anchors(size), output, boxes, labels),
        "ours": lambda: loss(output, boxes, labels, size),
    }
    torch.testing.assert_close(both["monai"](), both["ours"]())
    steps = {name: lambda of=of: seconds_of(lambda: of().backward()) for name, of in both.items()}
    found = in_turns(steps, rounds)
    name = "time of the loss of MONAI's functions / ours"
    medians = {f"seconds_{name}": float(np.median(seconds)) for name, seconds in found.items()}
    return {"tiles": tiles, **medians, name: show_quartiles(name, found["monai"] / found["ours"], 1.0, at_least=True)}


def make_region(path: Path, width: int, height: int, tissue: list[np.ndarray]) -> Path:
    """A tiled TIFF of 0.25 µm a pixel in JPEG, as scanners write it: pictures of tissue side by side."""
    side = len(tissue[0])
    choice = np.random.default_rng(0).integers(len(tissue), size=(-(-height // side), -(-width // side)))
    pixels = np.concatenate([np.concatenate([tissue[i] for i in row], axis=1) for row in choice])[:height, :width]
    tifffile.imwrite(
        path,
        pixels,
        tile=(256, 256),
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": 90},
        resolution=(40000, 40000),
        resolutionunit="CENTIMETER",
    )
    return path


def made_up_tissue(folder: Path) -> list[np.ndarray]:
    make_synthetic_histology(folder, slides=3, patches_per_slide=2, tiles_per_slide=1, processes=1)
    tiles = json.loads((folder / "tiles.json").read_text())
    return [np.asarray(read_rgb(folder / entry["image"])) for entry in tiles["training"]]


class Stub(nn.Module):
    """In place of a network: sleeps for each tile, then finds about forty figures in it, the same in every one."""

    def __init__(self, inferer: RegionInferer, milliseconds: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        anchors = len(inferer.anchors([inferer.tile_size] * 2))
        logits = -5.8 + 1.2 * torch.randn(2, anchors, generator=generator)
        self.output = torch.cat([logits, 0.1 * torch.randn(4, anchors, generator=generator)])
        self.milliseconds = milliseconds
        self.seconds = 0.0

    def forward(self, image: Tensor) -> Tensor:
        start = time.perf_counter()
        time.sleep(self.milliseconds / 1000 * len(image))
        self.seconds += time.perf_counter() - start
        return self.output.expand(len(image), -1, -1)


class Clock(nn.Module):
    """A network, or another change of images, and the time that it takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seconds = 0.0

    def forward(self, image: Tensor) -> Tensor:
        start = time.perf_counter()
        output = self.network(image)
        if image.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        return output


def bundle_inferer(num_workers: int | None = None) -> RegionInferer:
    """As inference.json has it."""
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "inference.json"))
    parser["record"] = {}
    if num_workers is not None:
        parser["num_workers"] = num_workers
    inferer = parser.get_parsed_content("inferer")
    inferer.progress = False
    return inferer


def timed(inferer: RegionInferer, region: Region, network: Stub | Clock) -> tuple[float, float]:
    """Seconds of the whole region, and those of the network."""
    network.seconds = 0.0
    start = time.perf_counter()
    inferer(region, network)
    return time.perf_counter() - start, network.seconds


def sequential_read(inferer: RegionInferer, region: Region) -> float:
    """Seconds to read the same tiles one after the other, and do nothing with them."""
    settings = {"scale": inferer.scale(region), "min_tissue": inferer.min_tissue}
    tiles = RegionTiles([{"image": region, "case": "a"}], inferer.tile_size, inferer.overlap, **settings)
    start = time.perf_counter()
    for i, tile in tiles.tiles:
        scale = tiles.scales[i]
        region.read(tile.x * scale, tile.y * scale, inferer.tile_size, inferer.tile_size, scale)
    return time.perf_counter() - start


def outside_the_network(region: Region, milliseconds: float, rounds: int, num_workers: int | None) -> dict[str, Any]:
    inferer = bundle_inferer(num_workers)
    network = Stub(inferer, milliseconds)
    own: list[float] = []

    def infer() -> float:
        seconds, of_network = timed(inferer, region, network)
        own.append(of_network)
        return seconds

    found = in_turns({"read": lambda: sequential_read(inferer, region), "infer": infer}, rounds, uncounted=0)
    name = "time outside the network / sequential read"
    return {
        "size": list(region.size),
        "num_workers": inferer.num_workers,
        "network_milliseconds_a_tile": milliseconds,
        "seconds_sequential_read": float(np.median(found["read"])),
        "seconds_region": float(np.median(found["infer"])),
        "seconds_network": float(np.median(own)),
        name: show_quartiles(name, (found["infer"] - own) / found["read"], 1.5),
    }


def share_outside(region: Region, backbone: str, device: str, rounds: int, num_workers: int | None) -> dict[str, Any]:
    """The share of the time in which the network, a real one, does not run; on a GPU in mixed precision."""
    network = Clock(fusestyle_retinanet(backbone).to(device).eval())
    inferer = bundle_inferer(num_workers)

    def share() -> float:
        with torch.autocast(device, enabled=device == "cuda"):
            seconds, of_network = timed(inferer, region, network)
        return 1 - of_network / seconds

    name = "share of the time outside the network"
    shares = in_turns({name: share}, rounds, uncounted=1)[name]
    return {"device": device, "backbone": backbone, name: show_quartiles(name, shares)}


def cost_of_stains(path: str, backbone: str, device: str, rounds: int, num_workers: int | None) -> dict[str, Any]:
    """The time of a region whose stains are normalised, the fit included, against that of the same run without.

    What fit and changes of colours take is timed inside the run: two runs of a minute differ by more than that.
    """
    network, inferer = fusestyle_retinanet(backbone).to(device).eval(), bundle_inferer(num_workers)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(StainNet().state_dict(), Path(folder) / "stainnet.pt")
        normalizers = {method: NormalizeStain(method) for method in METHODS}
        normalizers["stainnet"] = NormalizeByStainNet(Path(folder) / "stainnet.pt")

    def ratio(normalizer: Normalizer) -> float:
        region, transform = Region(path), NormalizeStaind("image", normalizer)
        overview = seconds_of(lambda: region.thumbnail(MASK_SIZE))  # for the fit, and for where the tissue is anyway
        start = time.perf_counter()
        recoloured = transform({"image": region})["image"]
        fit, change = time.perf_counter() - start, Clock(recoloured.recolour)
        with torch.autocast(device, enabled=device == "cuda"):
            whole = overview + seconds_of(lambda: inferer(recoloured.recoloured(change), network))
        return (whole + fit) / (whole - change.seconds)

    steps = {name: lambda by=by: ratio(by) for name, by in normalizers.items()}
    found = in_turns(steps, rounds, uncounted=1)
    names = {method: f"time with stains normalised by {method} / without" for method in normalizers}
    return {"device": device, "backbone": backbone} | {
        name: show_quartiles(name, found[method], 1.1) for method, name in names.items()
    }


def cost_of_candidates(region: Region, backbone: str, device: str, rounds: int) -> dict[str, Any]:
    """How many candidates a classifier judges in a fifth of the time that the detector takes for a tile.

    Both of the same backbone; reading and cutting of the crops, of the bundle's size, is the classifier's.
    """
    detector, inferer = fusestyle_retinanet(backbone).to(device).eval(), bundle_inferer(0)
    network = place_network(fusestyle_resnet(backbone, num_classes=1).eval(), device, channels_last=True)
    classify = CropClassifier(network, amp=device == "cuda")
    tiles = torch.zeros(inferer.batch_size, 3, inferer.tile_size, inferer.tile_size, device=device)
    points = np.random.default_rng(0).uniform(0, region.size, (classify.batch_size, 2))

    def detect() -> float:
        with torch.no_grad(), torch.autocast(device, enabled=device == "cuda"):
            return seconds_of(lambda: detector(tiles).cpu()) / len(tiles)

    found = in_turns({"tile": detect, "candidate": lambda: seconds_of(lambda: classify(region, points))}, rounds)
    name = "candidates that cost a fifth of a tile's time"
    counts = 0.2 * found["tile"] / (found["candidate"] / len(points))
    return {"device": device, "backbone": backbone, name: show_quartiles(name, counts)}


def memory_of_region(path: str, num_workers: int) -> tuple[int, int]:
    """The peak memory in bytes of this process and of the largest of its workers, for a region and a stub."""
    inferer = bundle_inferer(num_workers)
    inferer(Region(path), Stub(inferer, 0.0))
    return peak_memory(), peak_memory(resource.RUSAGE_CHILDREN)


def memory(paths: list[Path], num_workers: int) -> dict[str, Any]:
    """Peak memory of a small and of a large region, each in a process of its own."""
    peaks = [in_own_process(memory_of_region, str(path), num_workers) for path in paths]
    (small, small_worker), (large, large_worker) = peaks
    ratios = {"memory large / small": large / small}
    if small_worker:
        ratios["memory of a worker large / small"] = large_worker / small_worker
    sizes = [list(Region(path).size) for path in paths]
    return {"sizes": sizes, "bytes": peaks} | {name: show_quartiles(name, ratio, 1.1) for name, ratio in ratios.items()}


def benchmark_detection(
    output: str = "",
    candidates: AtLeastOne = 10_000,
    width: AtLeastOne = 7000,
    height: AtLeastOne = 5000,
    sides: Annotated[Sequence[int], Several(Whole(1), 2)] = (2000, 8000),
    milliseconds: Annotated[float, Number(0)] = 5.0,
    rounds: AtLeastOne = 7,
    num_workers: Annotated[int, Whole(0)] | None = None,
    backbone: Annotated[str, Choice(NAMES)] = "",
    device: Device = "",
) -> None:
    """Time the loss and the suppression, then inference in a made-up region with a stub for the network; then memory.

    The inferer is the bundle's. The aims that are printed hold for the default sizes.

    Args:
        output: JSON file for the result.
        candidates: boxes for the suppression.
        width, height: of the region in pixels.
        sides: of the two square regions whose peak memory is compared.
        milliseconds: that the stub takes for a tile.
        rounds: measurements of each.
        num_workers: processes that read tiles; by default the bundle's.
        backbone: with its name, the share of the time outside of a real network is measured too, what a classifier
            adds that judges candidates, and what it costs to normalise stains; by default where there is a GPU, with
            resnet50.
        device: cpu or cuda; cuda where there is one.
    """
    device = chosen_device(device)
    backbone = backbone or ("resnet50" if device == "cuda" else "")
    result = {"loss": loss_of_tiles(6, 10 * rounds), "suppression": suppression(candidates, rounds)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tissue = made_up_tissue(folder / "tissue")
        region = Region(make_region(folder / "region.tif", width, height, tissue))
        result["region"] = outside_the_network(region, milliseconds, rounds, num_workers)
        if backbone:
            result["network"] = share_outside(region, backbone, device, rounds, num_workers)
            result["candidates"] = cost_of_candidates(region, backbone, device, rounds)
            result["stains"] = cost_of_stains(region.path, backbone, device, rounds, num_workers)
        squares = [make_region(folder / f"{side}.tif", side, side, tissue) for side in sides]
        result["memory"] = memory(squares, result["region"]["num_workers"])
    if output:
        write_json(Path(output), result)
