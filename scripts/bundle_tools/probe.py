"""The checks of a bundle that run its code, for `verify_bundles.py`: a process of its own, in the bundle's folder.

One process a bundle, because packed bundles all call their package `scripts`, and Python keeps the first that it meets.
Nothing here imports the package `shared` of the collection, which a packed bundle must not see.
"""

from __future__ import annotations

import inspect
import json
import pydoc
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import monai.bundle
import nibabel as nib
import numpy as np
import torch
from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser, ConfigWorkflow, ckpt_export, verify_net_in_out
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
from torch.nn.modules.module import register_module_forward_hook

from .bundle import (
    code_folder,
    combinations,
    config,
    leaves,
    one_line,
    package_name,
    read_json,
    strings,
    try_merged,
)
from .card import SHOWN, Command, card_commands

META, INFERENCE = "configs/metadata.json", "configs/inference.json"
WEIGHTS = Path("models/model.pt")
# The least that an option can do, of those that a bundle has.
LEAST = {"max_epochs": 1, "val_interval": 1, "num_workers": 0, "batch_size": 4, "tiles_per_epoch": 8, "bootstrap": 10}
LEAST |= {"mpp": 0.25, "amp": False, "cache": "memory", "warmup_epochs": 1}


def main(output: str, run_commands: bool = True) -> None:
    """Check the bundle in the working folder, and write what was found for each check as JSON.

    Args:
        output: the file, written anew after each check, so that a crash leaves what there is.
        run_commands: whether to run the commands of the model card, at the size of the demo.
    """
    bundle = Path.cwd()
    own = package_name(bundle)
    if own == "scripts":
        sys.modules["shared"] = None  # type: ignore[assignment]  # any import of it fails
    sys.path.insert(0, str(code_folder(bundle)))
    torch.manual_seed(0)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        tempfile.tempdir = name  # where MONAI's exports leave theirs
        work = Path(name)
        checks: dict[str, Callable[[], tuple[list[str], str]]] = {
            "code": lambda: check_code(bundle),
            "weights": check_weights,
            "shapes": check_shapes,
            "torchscript": lambda: check_torchscript(work),
        }
        if run_commands:  # before the properties: these include a network with weights
            checks["commands"] = lambda: check_commands(bundle, work)
        checks["properties"] = lambda: check_properties(bundle, work, run_commands)
        for check, function in checks.items():
            start = time.monotonic()
            try:
                faults, note = function()
            except (Exception, SystemExit) as e:
                faults, note = [f"{check}: {one_line(e)}"], ""
            seconds = round(time.monotonic() - start, 1)
            found[check] = {"faults": faults, "note": note, "seconds": seconds}
            Path(output).write_text(json.dumps(found), encoding="utf-8")


def check_code(bundle: Path) -> tuple[list[str], str]:
    """All components import, the bundle's own from its own package, and take the arguments that the configs give."""
    faults, locator = [], ComponentLocator()
    components: dict[str, Any] = {}
    for names in combinations(bundle):
        parser = ConfigParser(try_merged(bundle, names)[0])
        for key, target in leaves(parser.get()):
            if not key.endswith("_target_") or not isinstance(target, str) or target.startswith("$"):
                continue
            content = parser[key.removesuffix("#_target_")]
            if target not in components:
                components[target] = pydoc.locate(ConfigComponent(content, locator=locator).resolve_module_name())
            where = f"configs/{names[-1]}.json: {key}: {target}"
            faults += [f"{where} {fault}" for fault in component_faults(components[target], content)]
    own = sys.modules.get(package_name(bundle))
    if own is not None and not Path(own.__file__ or "").is_relative_to(code_folder(bundle)):
        faults.append(f"the package {own.__name__} is that of {own.__file__}, not the bundle's own")
    return list(dict.fromkeys(faults)), f"{len(components)} components"


def component_faults(component: Any, content: dict[str, Any]) -> list[str]:
    """What is wrong with a component and the arguments that a config gives it."""
    if component is None:
        return ["cannot be imported"]
    parameters = inspect.signature(component).parameters
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    return [f"takes no {name}" for name in sorted(set(content) - ConfigComponent.non_arg_keys - set(parameters))]


def network_of(*names: str) -> torch.nn.Module:
    """The network that these configs define, its weights at random."""
    parser = ConfigParser()
    parser.read_config([f"configs/{name}.json" for name in names])
    parser.read_meta(META)
    return parser.get_parsed_content("network_def")


def check_weights() -> tuple[list[str], str]:
    """Weights that are there fit the network, and say what they were trained on."""
    faults = []
    if (train := config(Path(), "train")) and "network_def" in train:
        ours, theirs = (
            {key: tuple(value.shape) for key, value in network_of(name).state_dict().items()}
            for name in ("train", "inference")
        )
        differ = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
        faults += (
            [f"{INFERENCE}: the network has other weights than that of train.json: {min(differ)}"] if differ else []
        )
    if not WEIGHTS.is_file():
        listed = [path for path in Path().glob("large_files.*") if str(WEIGHTS) in path.read_text(encoding="utf-8")]
        return faults, f"to be downloaded, {listed[0]}" if listed else "untrained"
    network_of("inference").load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
    record = WEIGHTS.with_suffix(".json")
    if not record.is_file():
        return [*faults, f"{WEIGHTS}: there is no {record} that says what the weights were trained on"], ""
    content, inference = read_json(record), config(Path(), "inference")
    faults += [f"{record}: says nothing of {key}" for key in ("name", "network_overlay") if key not in content]
    overlays = [found.get("network_overlay") or "" for found in (content, inference)]
    if overlays[0] != overlays[1]:
        faults.append(f"{record}: network_overlay is {overlays[0]!r}, {INFERENCE} has {overlays[1]!r}")
    labels = [found.get("labels") for found in (content, inference)]
    if all(isinstance(found, dict) for found in labels) and labels[0] != labels[1]:
        faults.append(f"{record}: the weights were trained for the labels {labels[0]}, {INFERENCE} has {labels[1]}")
    return faults, "synthetic data" if content.get("synthetic") else str(content.get("name", ""))


def check_shapes() -> tuple[list[str], str]:
    """The network takes and gives what metadata.json says; MONAI looks at channels and types only."""
    outputs: list[Any] = []
    handle = register_module_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        verify_net_in_out("network_def", META, INFERENCE, device="cpu")
    finally:
        handle.remove()
    formats = config(Path(), "metadata")["network_data_format"]["outputs"]
    promised, found = next(iter(formats.values()))["spatial_shape"], list(outputs[-1].shape[2:]) or [1]
    fixed = [size if isinstance(size, int) else None for size in promised]  # the others are expressions
    differ = len(fixed) != len(found) or any(a not in (None, b) for a, b in zip(fixed, found, strict=True))
    note = " x ".join(map(str, outputs[-1].shape))
    return [f"{META}: the network's output has shape {found}, spatial_shape says {promised}"] * differ, note


def check_torchscript(work: Path) -> tuple[list[str], str]:
    """The weights, or random ones, become a TorchScript file that loads and computes what the network does."""
    network, weights, exported = network_of("inference").eval(), WEIGHTS, work / "model.ts"
    if WEIGHTS.is_file():
        network.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
    else:
        weights = work / "random.pt"
        torch.save(network.state_dict(), weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ckpt_export("network_def", str(exported), str(weights), META, INFERENCE)
        script = torch.jit.load(exported)
        if WEIGHTS.with_suffix(".ts").is_file():
            torch.jit.load(WEIGHTS.with_suffix(".ts"))
    tensor = next(iter(config(Path(), "metadata")["network_data_format"]["inputs"].values()))
    image = torch.rand(1, tensor["num_channels"], *tensor["spatial_shape"])
    with torch.no_grad():
        difference = (script(image) - network(image)).abs().max().item()
    for path in (exported, work / "random.pt"):
        path.unlink(missing_ok=True)
    fault = f"{INFERENCE}: the exported network differs from the network by {difference:.1e}"
    return [fault] * (not difference <= 1e-4), f"difference {difference:.0e}"


def check_properties(bundle: Path, work: Path, with_data: bool) -> tuple[list[str], str]:
    """MONAI's own check of what tools look for in train.json and inference.json; by name alone without data."""
    faults = []
    for name, properties in (("train", TrainProperties), ("inference", InferProperties)):
        where, wanted = f"configs/{name}.json", properties | MetaProperties
        if not (bundle / where).is_file():
            continue
        if not with_data:
            parser = ConfigParser(try_merged(bundle, [name])[0])
            lacking = [p["id"] for p in wanted.values() if p["required"] and p["id"] not in parser]
            faults += [f"{where}: MONAI's property {key.replace('::', '#')} is missing" for key in lacking]
            continue
        files, options = at_demo_size(bundle, [where], work)
        flow = ConfigWorkflow(files, META, False, workflow_type=name, **options)
        flow.parser["initialize"] = []  # which may change how this process ends
        flow.initialize()
        try:
            faults += [f"{where}: MONAI's property {key} is missing or wrong" for key in flow.check_properties() or []]
        except (KeyError, TypeError) as e:
            faults.append(f"{where}: MONAI's check of properties fails: {one_line(e)}")
    return faults, "" if with_data else "by name"


def at_demo_size(
    bundle: Path, files: list[str], work: Path, given: dict[str, str] | None = None
) -> tuple[list[str], dict[str, Any]]:
    """Configs with the demo's overlays, and options that point to synthetic data and do little."""
    files = [file for file in files if not needs_a_file(bundle / file)]
    demo = ["configs/variants/demo.json"]
    if "configs/train.json" in files and "configs/evaluate.json" not in files:
        demo.append("configs/variants/demo_schedule.json")
    files += [file for file in demo if (bundle / file).is_file() and file not in files]
    content = try_merged(bundle, [file.removeprefix("configs/").removesuffix(".json") for file in files])[0]
    datalist, image = synthetic_data(bundle, work / "data")
    models = work / "models"
    options = LEAST | {
        "dataset_dir": str(datalist.parent),
        "datalist": str(datalist),
        "input": str(image),
        "ckpt_dir": str(models),
    }
    options |= {"output_dir": str(work / "output"), "ckpt_path": str(models / "model.pt"), "overwrite": True}
    options |= {"device": "$torch.device('cpu')", "cache_dir": str(work / "cache")}
    if content.get("mpp") is not None:
        options.pop("mpp")
    return files, (given or {}) | {key: value for key, value in options.items() if key in content}


def needs_a_file(path: Path) -> bool:
    """Whether an overlay is about weights that neither the bundle nor this check has."""
    content = read_json(path)
    return any("/models/" in text for text in strings(content)) and path.parent.name == "variants"


def synthetic_data(bundle: Path, folder: Path) -> tuple[Path, Path]:
    """The datalist that fits the bundle, and an image for inference; made by its package where it is not there yet."""
    metadata = config(bundle, "metadata")
    image = next(iter(metadata["network_data_format"]["inputs"].values()))
    own = package_name(bundle)
    if image["modality"] == "CT":
        path = folder / "dataset.json"
        if not path.is_file():
            coarse(pydoc.locate(f"{own}.data").make_synthetic_ct(folder, 3, processes=1))
            relabel(path, config(bundle, "train").get("labels", {}))
    else:
        path = folder / ("tiles.json" if metadata["task"].startswith("Detection") else "dataset.json")
        if not path.is_file():
            pydoc.locate(f"{own}.data").make_synthetic_histology(folder, 3, 2, 1, processes=1)
    return path, folder / read_json(path)["test"][0]["image"]


def coarse(datalist: Path) -> None:
    """Keep every third voxel along each axis: a few voxels are enough to run on."""
    for path in datalist.parent.rglob("*.nii.gz"):
        volume = nib.load(path)
        nib.save(nib.Nifti1Image(volume.dataobj[::3, ::3, ::3], volume.slicer[::3, ::3, ::3].affine), path)


def relabel(datalist: Path, labels: dict[str, int]) -> None:
    """Give a data set other labels than its organs, each of them a slab of the voxels that have any."""
    content = read_json(datalist)
    names = {"0": "background"} | {str(value): name for name, value in labels.items()}
    if not labels or content["labels"] == names:
        return
    values = np.array(sorted(labels.values()), np.uint8)
    for case in content["training"] + content["validation"] + content["test"]:
        path = datalist.parent / case["label"]
        image = nib.load(path)
        array = np.asarray(image.dataobj).astype(np.uint8)
        marked = array > 0
        array[marked] = values[np.arange(marked.sum()) * len(values) // marked.sum()]
        nib.save(nib.Nifti1Image(array, image.affine), path)
    datalist.write_text(json.dumps(content | {"labels": names}), encoding="utf-8")


def check_commands(bundle: Path, work: Path) -> tuple[list[str], str]:
    """The commands of the model card run one after another, on synthetic data and at the size of the demo."""
    if not (bundle / "configs/variants/demo.json").is_file():
        return [], "not run: there is no configs/variants/demo.json"
    faults = []
    commands = {what: next((c for c in card_commands(bundle) if fits(c, *key)), None) for what, key in SHOWN.items()}
    for what, command in commands.items():
        try:
            if command is not None:  # else the card has a fault of its own
                execute(command, bundle, work)
        except (Exception, SystemExit) as e:
            faults.append(f"docs/README.md: the command to {what} fails at the size of the demo: {one_line(e)}")
    return faults, f"{sum(command is not None for command in commands.values())} run"


def fits(command: Command, name: str, file: str) -> bool:
    alone = file != "configs/train.json" or not {"configs/evaluate.json", "configs/multi_gpu_train.json"} & set(
        command.files
    )
    return command.name == name and file in command.files and alone and "torchrun" not in command.line


def execute(command: Command, bundle: Path, work: Path) -> None:
    """A command as `python -m monai.bundle` takes it, without a process of its own."""
    files, options = at_demo_size(bundle, command.files, work, command.options)
    models = work / "models"
    if command.name != "run":
        exported = models / ("model.onnx" if command.name == "onnx_export" else "model.ts")
        options = command.options | {"ckpt_file": str(models / "model.pt"), "filepath": str(exported)}
        size = try_merged(bundle, ["inference", "variants/demo"])[0]
        tensor = next(iter(size["_meta_"]["network_data_format"]["inputs"].values()))
        options["input_shape"] = str([1, tensor["num_channels"], *size.get("roi_size", tensor["spatial_shape"])])
    line = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    fire.Fire(getattr(monai.bundle, command.name), ["--config_file", str(files), *line], command.name)
    if command.name != "run" and not exported.is_file():
        raise FileNotFoundError(f"{exported.name} was not written")


if __name__ == "__main__":
    fire.Fire(main)
