"""The commands of a model card: found, parsed, checked against the configs."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from typing import NamedTuple

import monai

from .bundle import ALONE, CARD, Bundle, config_name, has


class Command(NamedTuple):
    """A command of `monai.bundle` in a model card."""

    line: str
    name: str  # run, ckpt_export, ...
    files: list[str]  # of --config_file
    options: dict[str, str]  # the others, by name


def card_commands(bundle: Bundle) -> list[Command]:
    """The commands of `monai.bundle` in the card, those in its blocks of code and those within its text."""
    text = bundle.card.replace("\\\n", " ")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]*-m monai\.bundle [^`\n]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [parsed_command(line) for line in lines if "-m monai.bundle " in line]


def parsed_command(line: str) -> Command:
    try:
        parts = shlex.split(line.partition("-m monai.bundle ")[2], comments=True)
    except ValueError as e:
        raise ValueError(f"{CARD}: {line.strip()}: {e}") from None
    parts = [part for part in parts if part != "…"]
    name, arguments, options = parts[0], parts[1:], {}
    free = iter(inspect.signature(getattr(monai.bundle, name)).parameters) if hasattr(monai.bundle, name) else iter(())
    while arguments:
        first = arguments.pop(0)
        if first.startswith("--"):
            key, _, value = first[2:].partition("=")
            options[key] = value or (arguments.pop(0) if arguments and not arguments[0].startswith("--") else "True")
        else:
            options[next(free, first)] = first
    files = options.pop("config_file", "")
    return Command(
        line.strip(), name, ast.literal_eval(files) if files.startswith("[") else [files] * bool(files), options
    )


# What the card shows how to do: the command, and a config that it runs.
SHOWN = {
    "train": ("run", "configs/train.json"),
    "evaluate": ("run", "configs/evaluate.json"),
    "infer": ("run", "configs/inference.json"),
    "export to TorchScript": ("ckpt_export", "configs/inference.json"),
    "export to ONNX": ("onnx_export", "configs/inference.json"),
}


def check_card(bundle: Bundle) -> list[str]:
    """The model card has the commands that people need, and their files and options, and its links, lead somewhere."""
    where, commands = CARD, card_commands(bundle)
    faults = [
        f"{where}: has no command to {what} ({name} with {file})"
        for what, (name, file) in SHOWN.items()
        if (bundle.folder / file).is_file() and not any(c.name == name and file in c.files for c in commands)
    ]
    for command in commands:
        faults += [f"{where}: {command.line[:60]}...: {fault}" for fault in command_faults(command, bundle)]
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", bundle.card):
        if not re.match(r"\w+:", target) and not (bundle.folder / "docs" / target).exists():
            faults.append(f"{where}: links to {target}, which is not there")
    if bundle.is_packed:  # its `scripts` is another: the command lines that are called so belong to the collection
        return faults
    called = dict.fromkeys(re.findall(r"(?<![\w/])scripts/[\w/]+\.(?:py|sh)", bundle.card))
    return faults + [f"{where}: there is no {script}" for script in called if not (bundle.root / script).is_file()]


def command_faults(command: Command, bundle: Bundle) -> list[str]:
    """What a command names that is not there."""
    if not hasattr(monai.bundle, command.name):
        return [f"monai.bundle has no command {command.name}"]
    configs = [file for file in command.files if not file.startswith("/path/to/")]  # those are the reader's own
    files = [*configs, *(value for key, value in command.options.items() if key == "meta_file")]
    if missing := [file for file in files if not (bundle.folder / file).is_file()]:
        return [f"there is no {file}" for file in missing]
    names = [config_name(file) for file in configs]
    if late := [name for name in names[1:] if name in ALONE]:
        return [f"configs/{late[0]}.json replaces what configs/{names[0]}.json, before it, says; overlays go last"]
    content, own = bundle.try_merged(names)[0], inspect.signature(getattr(monai.bundle, command.name)).parameters
    unknown = [key for key in command.options if key not in own and not has(content, key)]
    return [f"no config has the key {key} of --{key}" for key in unknown]
