"""The commands of a model card: found, parsed, checked against the configs."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import monai

from .bundle import has, try_merged
from .checks import of_configs


class Command(NamedTuple):
    """A command of `monai.bundle` in a model card."""

    line: str
    name: str  # run, ckpt_export, ...
    files: list[str]  # of --config_file
    options: dict[str, str]  # the others, by name


def card_commands(bundle: Path) -> list[Command]:
    """The commands of `monai.bundle` in the card, those in its blocks of code and those within its text."""
    card = bundle / "docs" / "README.md"
    text = card.read_text(encoding="utf-8").replace("\\\n", " ") if card.is_file() else ""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]*-m monai\.bundle [^`\n]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [parsed_command(line) for line in lines if "-m monai.bundle " in line]


def parsed_command(line: str) -> Command:
    try:
        parts = shlex.split(line.partition("-m monai.bundle ")[2], comments=True)
    except ValueError as e:
        raise ValueError(f"docs/README.md: {line.strip()}: {e}") from None
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


ALONE = ("configs/train.json", "configs/inference.json")  # the configs that go first, since they are no overlays


@of_configs
def check_card(bundle: Path) -> list[str]:
    """The model card has the commands that people need, and their files and options, and its links, lead somewhere."""
    where, commands = "docs/README.md", card_commands(bundle)
    faults = [
        f"{where}: has no command to {what} ({name} with {file})"
        for what, (name, file) in SHOWN.items()
        if (bundle / file).is_file() and not any(c.name == name and file in c.files for c in commands)
    ]
    for command in commands:
        faults += [f"{where}: {command.line[:60]}...: {fault}" for fault in command_faults(command, bundle)]
    card = bundle / "docs" / "README.md"
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", card.read_text(encoding="utf-8") if card.is_file() else ""):
        if not re.match(r"\w+:", target) and not (card.parent / target).exists():
            faults.append(f"{where}: links to {target}, which is not there")
    return faults


def command_faults(command: Command, bundle: Path) -> list[str]:
    """What a command names that is not there."""
    if not hasattr(monai.bundle, command.name):
        return [f"monai.bundle has no command {command.name}"]
    files = [*command.files, *(value for key, value in command.options.items() if key == "meta_file")]
    if missing := [file for file in files if not (bundle / file).is_file()]:
        return [f"there is no {file}" for file in missing]
    if late := [file for file in files[1:] if file in ALONE]:
        return [f"{late[0]} replaces what {files[0]}, before it, says; an overlay goes last"]
    names = [Path(file).relative_to("configs").with_suffix("").as_posix() for file in command.files]
    content, own = try_merged(bundle, names)[0], inspect.signature(getattr(monai.bundle, command.name)).parameters
    unknown = [key for key in command.options if key not in own and not has(content, key)]
    return [f"no config has the key {key} of --{key}" for key in unknown]
