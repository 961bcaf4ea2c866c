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
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import fire
import monai.bundle
import torch
from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser, ConfigWorkflow, ckpt_export, verify_net_in_out
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
from torch.nn.modules.module import register_module_forward_hook

from .bundle import CARD, METADATA, Bundle, config_name, has, leaves, read_json, strings
from .card import SHOWN, Command, card_commands
from .checks import Found, one_line, run_check
from .overlays import is_component, recorded_default

INFERENCE = "configs/inference.json"
WEIGHTS = Path("models/model.pt")
# The least that an option can do, of those that a bundle has.
LEAST = {"max_epochs": 1, "val_interval": 1, "num_workers": 0, "batch_size": 4, "tiles_per_epoch": 8, "bootstrap": 10}
LEAST |= {"mpp": 0.25, "amp": False, "cache": "memory", "warmup_epochs": 1}


def main(output: str, data: dict[str, str] | None = None) -> None:
    """Check the bundle in the working folder, and write what was found for each check as JSON.

    Args:
        output: the file, written anew after each check, so that a crash leaves what there is.
        data: options that name made-up data, with which to run the commands of the model card, at the demo's size.
    """
    bundle = Bundle(Path.cwd())
    if bundle.is_packed:
        sys.modules["shared"] = None  # type: ignore[assignment]  # any import of it fails
    sys.path.insert(0, str(bundle.root))
    torch.manual_seed(0)
    found: Found = {}
    with tempfile.TemporaryDirectory() as name:
        tempfile.tempdir = name  # where MONAI's exports leave theirs
        work = Path(name)
        checks: dict[str, Callable[[], tuple[list[str], str]]] = {
            "code": lambda: check_code(bundle),
            "weights": lambda: check_weights(bundle),
            "shapes": lambda: check_shapes(bundle),
            "torchscript": lambda: check_torchscript(bundle, work),
        }
        if data:  # the commands before the properties, which include a network with weights
            trial = Trial(bundle, work, data)
            checks |= {"commands": trial.check_commands, "properties": trial.check_properties}
        else:
            checks["properties"] = lambda: name_properties(bundle)
        for check, function in checks.items():
            found[check] = run_check(function, check)
            Path(output).write_text(json.dumps(found), encoding="utf-8")


def check_code(bundle: Bundle) -> tuple[list[str], str]:
    """All components import, the bundle's own from its own package, and take the arguments that the configs give."""
    faults, locator = [], ComponentLocator()
    components: dict[str, Any] = {}
    for names in bundle.combinations():
        parser = ConfigParser(bundle.try_merged(names)[0])
        for key, target in leaves(parser.get()):
            if not key.endswith("_target_") or not isinstance(target, str) or target.startswith("$"):
                continue
            content = parser[key.removesuffix("#_target_")]
            if target.startswith("@"):  # a callable that stands elsewhere, and is given more arguments here
                if not is_component(found := parser.get(target[1:])):
                    continue
                content, target = {**found, **content, "_target_": found["_target_"]}, found["_target_"]
            if target not in components:
                components[target] = pydoc.locate(ConfigComponent(content, locator=locator).resolve_module_name())
            where = f"configs/{names[-1]}.json: {key}: {target}"
            faults += [f"{where} {fault}" for fault in component_faults(components[target], content)]
    own = sys.modules.get(bundle.package)
    if own is not None and not Path(own.__file__ or "").is_relative_to(bundle.root):
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


def network_of(bundle: Bundle, name: str) -> torch.nn.Module:
    """The network that a config defines, its weights at random."""
    return ConfigParser(bundle.merged([name])).get_parsed_content("network_def")


def check_weights(bundle: Bundle) -> tuple[list[str], str]:
    """Weights that are there fit the network, and say what they were trained on."""
    faults, inference = [], bundle.config("inference")
    if "network_def" in bundle.config("train"):
        ours, theirs = (
            {key: tuple(value.shape) for key, value in network_of(bundle, name).state_dict().items()}
            for name in ("train", "inference")
        )
        if differ := [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]:
            faults.append(f"{INFERENCE}: the network has other weights than that of train.json: {min(differ)}")
    if not WEIGHTS.is_file():
        named = [path for path in Path().glob("large_files.*") if str(WEIGHTS) in path.read_text(encoding="utf-8")]
        return faults, f"to be downloaded, {named[0]}" if named else "untrained"
    network_of(bundle, "inference").load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
    record = WEIGHTS.with_suffix(".json")
    if not record.is_file():
        return [*faults, f"{WEIGHTS}: there is no {record} that says what the weights were trained on"], ""
    content = read_json(record)
    faults += [f"{record}: says nothing of {key}" for key in ("name", "network_overlay") if key not in content]
    overlays = [found.get("network_overlay") or "" for found in (content, inference)]
    if overlays[0] != overlays[1]:
        faults.append(f"{record}: network_overlay is {overlays[0]!r}, {INFERENCE} has {overlays[1]!r}")
    labels = [content.get("labels"), recorded_default("labels", inference.get("labels"))]
    if all(isinstance(found, dict) for found in labels) and labels[0] != labels[1]:
        faults.append(f"{record}: the weights were trained for the labels {labels[0]}, {INFERENCE} has {labels[1]}")
    return faults, "synthetic data" if content.get("synthetic") else str(content.get("name", ""))


def check_shapes(bundle: Bundle) -> tuple[list[str], str]:
    """The network takes and gives what metadata.json says; MONAI looks at channels and types only."""
    outputs: list[Any] = []
    handle = register_module_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        verify_net_in_out("network_def", METADATA, INFERENCE, device="cpu")
    finally:
        handle.remove()
    formats = bundle.metadata["network_data_format"]["outputs"]
    promised, found = next(iter(formats.values()))["spatial_shape"], list(outputs[-1].shape[2:]) or [1]
    fixed = [size if isinstance(size, int) else None for size in promised]  # the others are expressions
    differ = len(fixed) != len(found) or any(a not in (None, b) for a, b in zip(fixed, found, strict=True))
    note = " x ".join(map(str, outputs[-1].shape))
    return [f"{METADATA}: the network's output has shape {found}, spatial_shape says {promised}"] * differ, note


def check_torchscript(bundle: Bundle, work: Path) -> tuple[list[str], str]:
    """The weights, or random ones, become a TorchScript file that loads and computes what the network does."""
    network, weights, exported = network_of(bundle, "inference").eval(), WEIGHTS, work / "model.ts"
    if WEIGHTS.is_file():
        network.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
    else:
        weights = work / "random.pt"
        torch.save(network.state_dict(), weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ckpt_export("network_def", str(exported), str(weights), METADATA, INFERENCE)
        script = torch.jit.load(exported)
        if WEIGHTS.with_suffix(".ts").is_file():
            torch.jit.load(WEIGHTS.with_suffix(".ts"))
    tensor = next(iter(bundle.metadata["network_data_format"]["inputs"].values()))
    image = torch.rand(1, tensor["num_channels"], *tensor["spatial_shape"])
    with torch.no_grad():
        difference = (script(image) - network(image)).abs().max().item()
    for path in (exported, work / "random.pt"):
        path.unlink(missing_ok=True)
    fault = f"{INFERENCE}: the exported network differs from the network by {difference:.1e}"
    return [fault] * (not difference <= 1e-4), f"difference {difference:.0e}"


PROPERTIES = {"train": TrainProperties | MetaProperties, "inference": InferProperties | MetaProperties}


def name_properties(bundle: Bundle) -> tuple[list[str], str]:
    """What tools look for in train.json and inference.json is there by name."""
    return [
        f"configs/{name}.json: MONAI's property {wanted['id'].replace('::', '#')} is missing"
        for name, properties in PROPERTIES.items()
        if name in bundle.configs
        for wanted in properties.values()
        if wanted["required"] and not has(bundle.merged([name]), wanted["id"])
    ], "by name"


class Trial(NamedTuple):
    """Runs of a bundle at the demo's size."""

    bundle: Bundle
    work: Path  # a folder for what they write
    data: dict[str, str]  # options that name made-up data

    def check_commands(self) -> tuple[list[str], str]:
        """The commands of the model card run one after another."""
        if "variants/demo" not in self.bundle.configs:
            return [], "not run: there is no configs/variants/demo.json"
        faults, known = [], card_commands(self.bundle)
        commands = {what: next((c for c in known if fits(c, *key)), None) for what, key in SHOWN.items()}
        for what, command in commands.items():
            try:
                if command is not None:  # else the card has a fault of its own
                    self.execute(command)
            except (Exception, SystemExit) as e:
                faults.append(f"{CARD}: the command to {what} fails at the size of the demo: {one_line(e)}")
        return faults, f"{sum(command is not None for command in commands.values())} run"

    def check_properties(self) -> tuple[list[str], str]:
        """MONAI's own check of what tools look for in train.json and inference.json."""
        faults = []
        for name in [name for name in PROPERTIES if name in self.bundle.configs]:
            where = f"configs/{name}.json"
            files, options = self.at_demo_size([where])
            flow = ConfigWorkflow(files, METADATA, False, workflow_type=name, **options)
            flow.parser["initialize"] = []  # which may change how this process ends
            flow.initialize()
            try:
                missing = flow.check_properties() or []
                faults += [f"{where}: MONAI's property {key} is missing or wrong" for key in missing]
            except (KeyError, TypeError) as e:
                faults.append(f"{where}: MONAI's check of properties fails: {one_line(e)}")
        return faults, ""

    def at_demo_size(self, files: list[str], given: dict[str, str] | None = None) -> tuple[list[str], dict[str, Any]]:
        """Configs with the demo's overlays, and options that point to synthetic data and do little."""
        names = [name for name in map(config_name, files) if not self.needs_a_file(name)]
        demo = ["variants/demo"]
        if "train" in names and "evaluate" not in names:
            demo.append("variants/demo_schedule")
        names += [name for name in demo if name in self.bundle.configs and name not in names]
        content, models = self.bundle.try_merged(names)[0], self.work / "models"
        options = LEAST | self.data | {"ckpt_dir": str(models), "ckpt_path": str(models / "model.pt")}
        options |= {"output_dir": str(self.work / "output"), "cache_dir": str(self.work / "cache")}
        options |= {"overwrite": True, "device": "$torch.device('cpu')"}
        if content.get("mpp") is not None:
            options.pop("mpp")
        options = (given or {}) | {key: value for key, value in options.items() if key in content}
        return [f"configs/{name}.json" for name in names], options

    def needs_a_file(self, name: str) -> bool:
        """Whether an overlay is about weights that neither the bundle nor this check has."""
        texts = strings(self.bundle.config(name))
        return name.startswith("variants/") and any("/models/" in text for text in texts)

    def execute(self, command: Command) -> None:
        """A command as `python -m monai.bundle` takes it, without a process of its own."""
        files, options = self.at_demo_size(command.files, command.options)
        if command.name != "run":
            models = self.work / "models"
            exported = models / ("model.onnx" if command.name == "onnx_export" else "model.ts")
            options = command.options | {"ckpt_file": str(models / "model.pt"), "filepath": str(exported)}
            size = self.bundle.merged(["inference", "variants/demo"])
            tensor = next(iter(self.bundle.metadata["network_data_format"]["inputs"].values()))
            options["input_shape"] = str([1, tensor["num_channels"], *size.get("roi_size", tensor["spatial_shape"])])
        line = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        fire.Fire(getattr(monai.bundle, command.name), ["--config_file", str(files), *line], command.name)
        if command.name != "run" and not exported.is_file():
            raise FileNotFoundError(f"{exported.name} was not written")


def fits(command: Command, name: str, file: str) -> bool:
    """Whether a command is that of `monai.bundle` with this config, in one process."""
    more = {"configs/evaluate.json", "configs/multi_gpu_train.json"} if file == "configs/train.json" else set()
    right = command.name == name and file in command.files and not more & set(command.files)
    return right and "torchrun" not in command.line


if __name__ == "__main__":
    fire.Fire(main)
