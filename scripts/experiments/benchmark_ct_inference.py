"""Measure CT inference beside the network: its time against the zoo's pipeline, and its memory over slices."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import monai.transforms as mt
import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from shared.inferers import SlidingWindowLabelInferer
from shared.utils import write_json
from shared.utils.values import Number, Several, Whole

from .runs import BUNDLES, AtLeastOne
from .timing import in_own_process, in_turns, peak_memory, show_quartiles

CONFIG = BUNDLES / "abdominal_unetr_cbs" / "configs" / "inference.json"
ROI = (96, 96, 96)


class Stub(nn.Module):
    """In place of a network: sleeps for each window, as one on a GPU lets the CPU go, then finds the same in each."""

    def __init__(self, classes: int, milliseconds: float, roi: Sequence[int] = ROI) -> None:
        super().__init__()
        coarse = torch.randn(1, classes, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        self.output = 4 * nn.functional.interpolate(coarse, tuple(roi), mode="trilinear")
        self.milliseconds = milliseconds
        self.seconds = 0.0

    def forward(self, image: Tensor) -> Tensor:
        start = time.perf_counter()
        output = self.output.repeat(len(image), 1, 1, 1, 1)
        time.sleep(self.milliseconds / 1000 * len(image))
        self.seconds += time.perf_counter() - start
        return output


def make_scans(folder: Path, cases: int, size: int, slices: int) -> list[Path]:
    """A cylinder of soft tissue in air, at 0.75 × 0.75 × 2 mm."""
    x = np.linspace(-1, 1, size)
    body = (x[:, None] ** 2 / 0.8 + x**2 / 0.5 < 1)[..., None]
    files = []
    for i in range(cases):
        hu = np.where(body, np.random.default_rng(i).normal(40, 15, (size, size, slices)), -1000).astype(np.int16)
        files.append(folder / f"ct_{i}.nii.gz")
        nib.save(nib.Nifti1Image(hu, np.diag([0.75, 0.75, 2.0, 1])), files[-1])
    return files


def bundle_evaluator(folder: Path, network: nn.Module, output_dir: Path) -> Callable[[], Any]:
    """The inference of the bundle for all scans of a folder, with another network."""
    parser = ConfigParser(ConfigParser.load_config_file(CONFIG))
    places = {"bundle_root": str(BUNDLES / "abdominal_unetr_cbs"), "input": str(folder), "output_dir": str(output_dir)}
    for key, value in {**places, "record": {}, "made_with": {}, "network": network, "device": "cpu"}.items():
        parser[key] = value
    parser["evaluator#progress"] = False
    return parser.get_parsed_content("evaluator").run


def zoo_evaluator(files: Sequence[Path], network: nn.Module, output_dir: Path) -> Callable[[], Any]:
    """The pipeline of the model zoo's CT bundles: MONAI's transforms, windows, and all channels inverted."""
    before = mt.Compose(
        [
            mt.LoadImaged("image", ensure_channel_first=True),
            mt.Orientationd("image", axcodes="RAS", labels=None),
            mt.Spacingd("image", pixdim=(1.5, 1.5, 2.0), mode="bilinear"),
            mt.ScaleIntensityRanged("image", -175, 250, 0, 1, clip=True),
            mt.EnsureTyped("image"),
        ]
    )
    after = mt.Compose(
        [
            mt.Activationsd("pred", softmax=True),
            mt.Invertd("pred", before, "image", nearest_interp=False, to_tensor=True),
            mt.AsDiscreted("pred", argmax=True),
            mt.SaveImaged("pred", output_dir=output_dir, output_dtype=np.uint8, print_log=False),
        ]
    )
    loader = DataLoader(Dataset([{"image": file} for file in files], before), batch_size=1)
    inferer = SlidingWindowInferer(ROI, sw_batch_size=4, overlap=0.25, mode="gaussian")
    return SupervisedEvaluator(torch.device("cpu"), loader, network, inferer=inferer, postprocessing=after).run


def outside_the_network(size: int, slices: int, cases: int, classes: int, milliseconds: float, rounds: int) -> Any:
    """Seconds a case that the network does not run, for a single case and for several, against the zoo's pipeline."""
    network, result = Stub(classes, milliseconds), {}

    def outside(evaluator: Callable[..., Callable[[], Any]], scans: Any, of: int) -> float:
        with tempfile.TemporaryDirectory() as out:  # what is there already would not be done again
            run = evaluator(scans, network, Path(out))
            network.seconds, start = 0.0, time.perf_counter()
            run()
            return (time.perf_counter() - start - network.seconds) / of

    with tempfile.TemporaryDirectory() as folder:
        for count in (1, cases):
            (scans := Path(folder) / f"scans{count}").mkdir()
            files = make_scans(scans, count, size, slices)
            steps = {
                "ours": partial(outside, bundle_evaluator, scans, count),
                "zoo": partial(outside, zoo_evaluator, files, count),
            }
            found = in_turns(steps, rounds, uncounted=0)
            name = f"time outside of the network / the zoo's, {count} case(s)"
            medians = {f"seconds_a_case_{kind}": float(np.median(seconds)) for kind, seconds in found.items()}
            result[str(count)] = {**medians, name: show_quartiles(name, found["ours"] / found["zoo"], 0.25)}
    return result


def memory_of_inferer(side: int, slices: int, classes: int, whole: bool) -> int:
    """Peak bytes of windows over a volume beside image and labels; `whole`: of MONAI's inferer and its argmax."""
    image = torch.zeros(1, 1, side, side, slices)
    meta = {"original_affine": np.eye(4), "spatial_shape": np.array(image.shape[2:])}
    volume, network = MetaTensor(image, affine=torch.eye(4), meta=meta), Stub(classes, 0.0)
    network(image[..., :96, :96, :96])  # what a window takes is the network's
    start = peak_memory()
    if whole:
        SlidingWindowInferer(ROI, overlap=0.25, mode="gaussian")(volume, network).argmax(1)
    else:
        SlidingWindowLabelInferer(ROI, overlap=0.25)(volume, network)
    return peak_memory() - start - image.numel()


def memory(side: int, depths: Sequence[int], classes: Sequence[int]) -> dict[str, Any]:
    """Peaks over slices and classes, each in a process of its own, beside the logits of the whole volume."""
    few, many = classes
    peaks = {
        f"{c} classes, {d} slices": in_own_process(memory_of_inferer, side, d, c, False)
        for c in classes
        for d in depths
    }
    short, long = depths
    flat = peaks[f"{few} classes, {long} slices"] / peaks[f"{few} classes, {short} slices"]
    logits = 4 * side * side * long * many
    ratios = {
        f"memory {long} slices / {short}": show_quartiles(f"memory {long} slices / {short}", flat, 1.1),
        "memory / whole logits": show_quartiles(
            f"memory / logits of {many} classes, {long} slices", peaks[f"{many} classes, {long} slices"] / logits, 0.25
        ),
    }
    linear = peaks[f"{many} classes, {long} slices"] / peaks[f"{few} classes, {long} slices"]
    print(f"memory {many} classes / {few}: {linear:.2f}")
    return {"side": side, "bytes": peaks, "whole_logits": logits, f"memory {many} classes / {few}": linear, **ratios}


def benchmark_ct_inference(
    output: str = "",
    size: Annotated[int, Whole(64)] = 512,
    slices: Annotated[int, Whole(64)] = 150,
    cases: AtLeastOne = 5,
    classes: Annotated[Sequence[int], Several(Whole(2), 2)] = (14, 104),
    depths: Annotated[Sequence[int], Several(Whole(64), 2)] = (150, 900),
    side: Annotated[int, Whole(64)] = 256,
    milliseconds: Annotated[float, Number(0)] = 50.0,
    rounds: AtLeastOne = 3,
) -> None:
    """Time a bundle's inference with a stub for the network against the zoo's pipeline in turns; then its memory.

    Args:
        output: JSON file for the result.
        size: width and height of the made-up scans, in voxels of 0.75 mm.
        slices: of 2 mm.
        cases: scans one after the other; a single one is measured too.
        classes: fewest and most, background included; time is that of the fewest.
        depths: slices of the volumes whose memory is compared.
        side: their width and height.
        milliseconds: that the stub takes for a window.
        rounds: measurements of the times.
    """
    logging.getLogger().setLevel(logging.ERROR)
    result = {
        "time": outside_the_network(size, slices, cases, classes[0], milliseconds, rounds),
        "memory": memory(side, depths, classes),
    }
    if output:
        write_json(Path(output), {"size": size, "slices": slices, "classes": list(classes), **result})
