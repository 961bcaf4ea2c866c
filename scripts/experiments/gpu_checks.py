"""The parts of scripts/check_gpu.py, each run in a process of its own."""

from __future__ import annotations

import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from shared.utils import write_json
from shared.utils.errors import innermost, last_line

from .benchmark_lambda3d import benchmark_lambda3d
from .benchmark_steps import benchmark_steps
from .runs import BUNDLES, ROOT, bundle_run, run_step

UNETR, LAMBDA, CLASSIFY, DETECT = BUNDLE_NAMES = (
    *("abdominal_unetr_cbs", "abdominal_lambda3d_cbs"),
    *("mitosis_fusestyle_cls", "mitosis_retinanet_fusestyle"),
)
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SLOWER = 1.0 if CUDA else 3.0  # how much longer a part may take than on an H200
PRECISIONS = ("float32", "float16", "bfloat16") if CUDA else ("float32",)
# By a part of the card's name: 10¹² operations a second in float32 and half precision without sparsity, and GB/s.
PEAKS = {
    "H200": (67, 989, 4800),
    "H100": (67, 989, 3350),
    "A100": (19.5, 312, 2039),
    "L40S": (91.6, 362, 864),
    "RTX 4090": (82.6, 165, 1008),
}
WARM, TIMED, WATCHED = (10, 20, 4) if CUDA else (1, 2, 1)  # steps
BATCHES = 4  # that the steps take turns with


class Measurements:
    """What a part finds, written as it comes: name → values, or why there are none."""

    def __init__(self, file: Path) -> None:
        self.file, self.found = file, dict[str, Any]()
        file.unlink(missing_ok=True)

    def take(self, name: str, measure: Callable[..., Mapping[str, Any]], *arguments: Any) -> None:
        try:
            self.found[name] = dict(measure(*arguments))
        except Exception as e:  # whatever it is, the other measurements go on
            traceback.print_exc()
            self.found[name] = {"failed": last_line(innermost(e))[:500]}
        write_json(self.file, self.found)


def text_of(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {text_of(one)}" for key, one in value.items()) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def configs(bundle: str, *names: str, small: bool = not CUDA) -> list[str]:
    return [f"configs/{name}.json" for name in (*names, *(["variants/demo"] if small else []))]


def data_options(bundle: str, folder: Path) -> dict[str, str]:
    if bundle in (UNETR, LAMBDA):
        return {"dataset_dir": str(folder / "ct"), "cache_dir": str(folder / "cache")}
    data = folder / "histology"
    return {"dataset_dir": str(data), **({"datalist": str(data / "tiles.json")} if bundle == DETECT else {})}


def workflow(bundle: str, files: list[str], **options: Any) -> ConfigWorkflow:
    """In this process, initialised, with nothing of what changes how the process ends."""
    paths = [str(BUNDLES / bundle / name) for name in files]
    flow = ConfigWorkflow(config_file=paths, logging_file=False, bundle_root=str(BUNDLES / bundle), **options)
    kept = [step for step in flow.parser["initialize"] if "prepare_device" in step or "manual_seed" in step]
    flow.parser["initialize"] = kept
    flow.initialize()
    return flow


def machine(folder: Path, found: Measurements) -> None:
    """What there is."""
    found.take("software", lambda: {"python": platform.python_version(), "torch": torch.__version__})
    found.take("processor", lambda: {"cores": len(os.sched_getaffinity(0))})
    if CUDA:
        found.take("libraries", lambda: {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()})
        names = ("name", "driver_version", "memory.total", "utilization.gpu")
        query = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
        for i, line in enumerate(subprocess.check_output(query, text=True).splitlines()):
            found.take(f"gpu {i}", lambda line: dict(zip(names, line.split(", "), strict=True)), line)


def data(folder: Path, found: Measurements) -> None:
    """Made up; that of an earlier check is kept."""
    found.take("ct", make_data, folder / "ct", {"cases": 4})
    sizes = (4, 60, 4) if CUDA else (3, 8, 1)
    options = dict(zip(("slides", "patches_per_slide", "tiles_per_slide"), sizes, strict=True))
    found.take("histology", make_data, folder / "histology", options)


def make_data(place: Path, options: dict[str, int]) -> dict[str, int]:
    if not (place / "dataset.json").is_file():
        shutil.rmtree(place, ignore_errors=True)
        run_step(place.name, "scripts/make_synthetic.py", place.name, output_dir=place, **options)
    return options


def tests(folder: Path, found: Measurements) -> None:
    """Those of the marker `cuda`."""
    found.take("tests", run_tests)


def run_tests() -> dict[str, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-n", "0", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    said = done.stdout.strip().splitlines()[-1]
    if done.returncode:
        raise AssertionError(said)
    return {"pytest -m cuda": said}


class Probe:
    """Follows a training: after some steps it times others, then looks at where the host waits and the GPU idles."""

    def __init__(self) -> None:
        self.began, self.found, self.profile = 0.0, dict[str, Any](), None
        self.caught = warnings.catch_warnings(record=True)

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=WARM), self._time)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=WARM + TIMED), self._watch_waits)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=WARM + TIMED + WATCHED), self._watch_gpu)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=WARM + TIMED + 2 * WATCHED), self._end)

    def _time(self) -> None:
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        wait()
        self.began = time.perf_counter()

    def _watch_waits(self) -> None:
        wait()
        self.found["ms"] = 1000 * (time.perf_counter() - self.began) / TIMED
        if CUDA:
            self.found["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
            self.warned = self.caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def _watch_gpu(self) -> None:
        if not CUDA:
            return
        torch.cuda.set_sync_debug_mode("default")
        self.caught.__exit__(None, None, None)
        places = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in self.warned if "synchroniz" in str(w.message))
        self.found["waits a step"] = places.total() / WATCHED
        self.found["waits"] = dict(places.most_common(6))
        self.profile = profile(activities=[ProfilerActivity.CUDA])
        self.profile.__enter__()
        wait()
        self.began = time.perf_counter()

    def _end(self) -> None:
        if self.profile:
            wait()
            seconds = time.perf_counter() - self.began
            self.profile.__exit__(None, None, None)
            self.found |= {"gpu works": busy(self.profile) / seconds, "profiled ms": 1000 * seconds / WATCHED}


def busy(profiled: profile) -> float:
    """Seconds in which at least one kernel ran."""
    events = [e.time_range for e in profiled.events() if "cuda" in str(e.device_type).lower()]
    total = end = 0.0
    for span in sorted(events, key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, end))
        end = max(end, span.end)
    return total * 1e-6


def steps(folder: Path, found: Measurements) -> None:
    """Of each bundle, as its train.json has it, by its own trainer with all handlers; batches are loaded before."""
    for bundle in BUNDLE_NAMES:
        for precision in PRECISIONS:
            found.take(f"{bundle} {precision}", step, bundle, precision, folder)


def step(bundle: str, precision: str, folder: Path) -> dict[str, Any]:
    place = folder / "steps" / bundle
    shutil.rmtree(place, ignore_errors=True)
    held = free_memory()
    options = {"output_dir": str(place), "ckpt_dir": str(place), **data_options(bundle, folder)}
    options |= {"amp": precision != "float32", "amp_dtype": "float16" if precision == "float32" else precision}
    small = {} if CUDA else {"num_workers": 0, "batch_size": 2}
    small |= {"tile_size": 128, "val_tile_size": 128} if bundle == DETECT and small else {}
    flow = workflow(bundle, configs(bundle, "train"), **options, **small)
    trainer, probe = flow.parser.get_parsed_content("train#trainer"), Probe()
    began = time.perf_counter()
    batches = list(islice(trainer.data_loader, BATCHES))
    loading = (time.perf_counter() - began) / len(batches)
    count = WARM + TIMED + 2 * WATCHED
    trainer.data_loader = [batches[i % len(batches)] for i in range(count)]
    trainer.state.epoch_length, trainer.state.max_epochs = count, 1
    probe.attach(trainer)
    # the last step alone: neither a validation nor a checkpoint is of interest here
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=count), lambda engine: engine.terminate())
    trainer.run()
    loss = float(trainer.state.output["loss"])
    if not np.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss}")
    return {**probe.found, "GB of earlier steps": held, "first batches, ms each": 1000 * loading}


def free_memory() -> float:
    """Let go of what earlier workflows hold, which refer to themselves; the GB that are still taken on the GPU."""
    gc.collect()
    if not CUDA:
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 1e9


def ratios(folder: Path, found: Measurements) -> None:
    """What FuseStyle and Lambda3D cost beside their alternatives, and the share of what the card can do at most."""
    name = torch.cuda.get_device_name() if CUDA else ""
    single, half, bandwidth = next((peaks for card, peaks in PEAKS.items() if card in name), (0, 0, 0))
    peaks = {"tflops": single, "tflops_half": half, "gigabytes": bandwidth}
    small = {} if CUDA else {"size": 32, "feature_size": 8, "hidden_size": 48}
    tiny = {} if CUDA else {"network": "resnet10", "batch": 4, "rounds": 1}
    file = folder / "ratio.json"

    def fusestyle() -> dict[str, Any]:
        benchmark_steps("fusestyle", str(file), **{"batch": 256, "rounds": 8, **tiny})
        return {name: each["time"]["median"] for name, each in json.loads(file.read_text())["variants"].items()}

    def lambda3d(crops: int) -> dict[str, Any]:
        grids, rounds = ((12, 24), 5) if CUDA else ((4,), 1)
        benchmark_lambda3d(str(file), grids=grids, rounds=rounds, batch=crops, **small, **peaks)
        modes = {key: value for key, value in json.loads(file.read_text()).items() if isinstance(value, dict)}
        wanted = ("time lambda3d / unetr", "time lambda_layer", "share of the floor")
        return {
            f"{mode} {key}": value["median"]
            for mode, values in modes.items()
            for key, value in values.items()
            if key.startswith(wanted)
        }

    found.take("FuseStyle, a step / without it", fusestyle)
    for crops in (1, 4) if CUDA else (1,):
        found.take(f"Lambda3D, {crops} crops", lambda3d, crops)


NAMES, EPOCHS = ("whole", "again", "stopped"), 4 if CUDA else 2


def resume(folder: Path, found: Measurements, bundle: str) -> None:
    """A run that was stopped and resumed beside one that was not, at the demo's size: the largest difference."""
    for variant in ([], ["variants/deterministic"]):
        found.take(" ".join([bundle, *variant]), resumed, folder, bundle, variant)


def resumed(folder: Path, bundle: str, variant: list[str]) -> dict[str, float]:
    place = folder / "resume" / "_".join([bundle, *map(os.path.basename, variant)])
    shutil.rmtree(place, ignore_errors=True)
    files = configs(bundle, "train", "variants/demo", "variants/demo_schedule", *variant, small=False)
    options = {**data_options(bundle, folder), "max_epochs": EPOCHS, "val_interval": 1, "num_workers": 2 * CUDA}
    options |= {"warmup_epochs": 1} if bundle in (UNETR, LAMBDA) else {}
    options |= {"tiles_per_epoch": 48 if CUDA else 12} if bundle == DETECT else {}
    for name in NAMES:
        options |= {"output_dir": str(place / name), "ckpt_dir": str(place / name), "resume": False}
        if name == "stopped":
            stopped = workflow(bundle, files, **options)
            trainer = stopped.parser.get_parsed_content("train#trainer")
            trainer.add_event_handler(Events.EPOCH_COMPLETED(once=EPOCHS // 2), lambda engine: engine.terminate())
            stopped.run()
            options["resume"] = True
        workflow(bundle, files, **options).run()
    last = {name: torch.load(place / name / "last.pt", "cpu", weights_only=True)["model"] for name in NAMES}
    return {f"{name} - whole": largest_difference(last["whole"], last[name]) for name in NAMES[1:]}


def largest_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


def inference(folder: Path, found: Measurements) -> None:
    """Of a CT of 512 x 512 x 300 voxels and a region of 7000 x 5000 pixels, by untrained weights."""
    shape, size = ((512, 512, 300), (7000, 5000)) if CUDA else ((64, 64, 40), (600, 500))
    rng = np.random.default_rng(0)
    inputs = {"ct": folder / "inputs" / "ct.nii.gz", "region": folder / "inputs" / "region.png"}
    inputs["ct"].parent.mkdir(parents=True, exist_ok=True)
    volume = rng.integers(-150, 200, shape, dtype=np.int16)
    nib.save(nib.Nifti1Image(volume, np.diag([0.8, 0.8, 1.5, 1] if CUDA else [6, 6, 6, 1])), inputs["ct"])
    pixels = rng.normal((210, 160, 200), 20, (size[1], size[0], 3)).clip(0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(inputs["region"], compress_level=1)
    for bundle, kind in ((UNETR, "ct"), (LAMBDA, "ct"), (DETECT, "region")):
        found.take(f"{bundle}, {kind}", infer, bundle, inputs[kind], folder)


def untrained(bundle: str, folder: Path) -> Path:
    """A file of weights for the bundle, saved on this device."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLES / bundle / name) for name in configs(bundle, "train")])
    torch.manual_seed(0)
    file = folder / "untrained" / bundle / "model.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(parser.get_parsed_content("network_def").to(DEVICE).state_dict(), file)
    labels = {"non_mitotic": 0, "mitotic": 1} if bundle in (CLASSIFY, DETECT) else dict(parser["labels"])
    write_json(file.with_suffix(".json"), {"name": "untrained", "synthetic": True, "labels": labels})
    return file


def infer(bundle: str, source: Path, folder: Path) -> dict[str, Any]:
    place = folder / "inference" / bundle
    shutil.rmtree(place, ignore_errors=True)
    options = {"input": str(source), "output_dir": str(place), "ckpt_path": str(untrained(bundle, folder)), "amp": CUDA}
    options |= {"mpp": 0.25, "threshold": 0.5} if bundle == DETECT else {}
    flow = workflow(bundle, configs(bundle, "inference"), **options)
    free_memory()
    with profile(activities=[ProfilerActivity.CUDA if CUDA else ProfilerActivity.CPU]) as profiled:
        began = time.perf_counter()
        flow.run()
        wait()
        seconds = time.perf_counter() - began
    more = {"gpu works": busy(profiled) / seconds, "peak GB": torch.cuda.max_memory_allocated() / 1e9} if CUDA else {}
    return {"s": seconds, **more}


def exports(folder: Path, found: Measurements, bundle: str) -> None:
    """TorchScript, made where there is no GPU, of weights that were saved on this device."""
    found.take(bundle, exported, folder, bundle)


def exported(folder: Path, bundle: str) -> dict[str, Any]:
    weights = untrained(bundle, folder / "exports")
    script = weights.with_suffix(".ts")
    command = [sys.executable, "-m", "monai.bundle", "ckpt_export", "--config_file", str(configs(bundle, "inference"))]
    command += ["--ckpt_file", str(weights), "--filepath", str(script)]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, cwd=BUNDLES / bundle, env=hidden, check=True)
    parser = ConfigParser()
    parser.read_config([str(BUNDLES / bundle / name) for name in configs(bundle, "inference")])
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(weights, "cpu", weights_only=True))
    side = {UNETR: (1, 96, 96, 96) if CUDA else (1, 32, 32, 32), CLASSIFY: (3, 64, 64), DETECT: (3, 256, 256)}
    image = torch.rand(1, *side[UNETR if bundle == LAMBDA else bundle])
    gaps = {}
    with torch.no_grad():
        expected = network(image)
        for device in {torch.device("cpu"), DEVICE}:
            given = torch.jit.load(script, device)(image.to(device)).cpu()
            gaps[f"gap on {device.type}"] = float((given - expected).abs().max())
    if max(gaps.values()) > 1e-2 * float(expected.abs().max()):  # TF32 is off; convolutions may take another algorithm
        raise ArithmeticError(f"the exported network gives something else: {gaps}")
    return gaps


def several_gpus(folder: Path, found: Measurements) -> None:
    """A training on all cards by NCCL, at the demo's size."""
    count = torch.cuda.device_count()
    if count < 2:
        found.take("left out", lambda: {"gpus": count})
        return
    for bundle in (UNETR, DETECT):
        found.take(bundle, train_on, count, bundle, folder)


def train_on(count: int, bundle: str, folder: Path) -> dict[str, Any]:
    place = folder / "several_gpus" / bundle
    shutil.rmtree(place, ignore_errors=True)
    options = {"output_dir": place, "ckpt_dir": place, **data_options(bundle, folder), "max_epochs": 2}
    files = configs(bundle, "train", "variants/demo", "variants/demo_schedule", "multi_gpu_train", small=False)
    began = time.perf_counter()
    bundle_run(BUNDLES / bundle, files, folder / f"several_gpus_{bundle}.log", options, count)
    return {"gpus": count, "s": time.perf_counter() - began}


def run_part(part: str, folder: str, *bundle: str) -> None:
    """A function of this file, by its name, whose measurements go to FOLDER/PART[_BUNDLE].json."""
    place = Path(folder)
    globals()[part](place, Measurements(place / f"{'_'.join([part, *bundle])}.json"), *bundle)
