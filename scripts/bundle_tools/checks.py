"""Checks of a bundle's folder that start no process and do not run the bundle's code.

Each takes the folder and gives a line for each fault, none where all is well. The folder is one below `bundles/`, whose
code is the package `shared` of the collection, or a packed one anywhere, whose code is its own package `scripts`.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from jsonschema import Draft201909Validator

from .bundle import ROOT, code_folder, config, config_names, leaves, package_name, read_json, text_files

SCHEMA = Path(__file__).parent / "metadata_schema.json"
# A folder that one machine has and others have not. /path/to is what documents say for a path of the reader's own.
MACHINE_PATH = re.compile(
    r"(?:file://|(?<![\w./}\-]))/(?:home|root|Users|work|workspace|tmp|mnt|media|scratch)/|\b[A-Z]:\\{1,2}(?:Users|[\w.-]+\\)"
)
ABSOLUTE_PATH = re.compile(r"/(?!path/to\b)|~/|[A-Za-z]:[\\/]")  # at the start of a value in a config


def check_files(bundle: Path) -> list[str]:
    """What the model zoo and people need a bundle to have: licences, metadata, a config for inference, a model card."""
    wanted = ("LICENSE", "docs/data_license.txt", "docs/README.md", "configs/metadata.json", "configs/inference.json")
    empty = "is missing or empty"
    faults = [f"{name} {empty}" for name in wanted if not non_empty(bundle / name)]
    if non_empty(ROOT / "LICENSE") and non_empty(bundle / "LICENSE"):
        ours, theirs = ((folder / "LICENSE").read_text(encoding="utf-8") for folder in (ROOT, bundle))
        faults += ["LICENSE differs from that of the collection"] * (ours != theirs)
    return faults


def non_empty(path: Path) -> bool:
    return path.is_file() and bool(path.read_bytes().strip())


def check_json(bundle: Path) -> list[str]:
    """Every config is JSON, and none has a key twice: the reader would keep the last and say nothing."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        faults.extend(f"{where}: {name} is there twice" for name in sorted(set(names)) if names.count(name) > 1)
        return dict(pairs)

    faults: list[str] = []
    for path in sorted((bundle / "configs").rglob("*.json")):
        where = path.relative_to(bundle)
        try:
            content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
            faults += [f"{where}: holds {type(content).__name__}, expected an object"] * (not isinstance(content, dict))
        except ValueError as e:
            faults.append(f"{where}: {e}")
    return faults


Check = Callable[[Path], list[str]]


def of_configs(check: Check) -> Check:
    """A check that gives the faults of `check_json` instead of its own where there are any: it could not go on."""

    @functools.wraps(check)
    def checked(bundle: Path) -> list[str]:
        return check_json(bundle) or check(bundle)

    return checked


@of_configs
def check_changelog(bundle: Path) -> list[str]:
    """`version` of metadata.json is the newest of its changelog."""
    metadata, where = config(bundle, "metadata"), "configs/metadata.json"
    if faults := [f"{where}: {key} is missing" for key in ("version", "changelog") if key not in metadata]:
        return faults
    named, versions = metadata["version"], list(metadata["changelog"] or {})
    if named not in versions:
        return [f"{where}: version {named} is not in changelog ({', '.join(versions) or 'empty'})"]
    newest = max(versions, key=lambda text: [int(number) for number in re.findall(r"\d+", text)])
    return [] if named == newest else [f"{where}: version is {named}, changelog goes on to {newest}"]


def pins(bundle: Path) -> tuple[dict[str, str], str]:
    """Versions by the name of the package, and where they are from: requirements.txt, or what is installed."""
    for folder in (code_folder(bundle), ROOT):
        if (folder / "requirements.txt").is_file():
            text = (folder / "requirements.txt").read_text(encoding="utf-8")
            return dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, flags=re.MULTILINE)), "requirements.txt"
    return {name: installed(name) for name in named_versions(bundle)}, "this environment"


@functools.cache
def installed_distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def installed(name: str) -> str:
    try:
        return version(name).partition("+")[0]  # 2.13.0+cpu
    except PackageNotFoundError:
        return ""


def named_versions(bundle: Path) -> dict[str, str]:
    """The versions of packages that metadata.json names."""
    metadata = config(bundle, "metadata")
    keys = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    named = {name: metadata.get(key, "") for name, key in keys.items()}
    return named | (metadata.get("required_packages_version") or {})


@of_configs
def check_requirements(bundle: Path) -> list[str]:
    """The versions in metadata.json are the tested ones, and all that the bundle's package imports is among them."""
    named, (tested, source), where = named_versions(bundle), pins(bundle), "configs/metadata.json"
    faults = [
        f"{where}: {name} is {found or 'missing'}, {source} has {tested.get(name) or 'none'}"
        for name, found in named.items()
        if not found or tested.get(name) != found
    ]
    own, distributions = package_name(bundle), installed_distributions()
    unnamed = [
        module
        for module in imported_modules(code_folder(bundle) / own)
        if not named.keys() & {module, *distributions.get(module, [])}
    ]
    return faults + [f"{where}: required_packages_version lacks {m}, which {own} imports" for m in unnamed]


def imported_modules(package: Path) -> list[str]:
    """Top-level modules outside the standard library that the files of a package import."""
    modules = [ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in sorted(package.rglob("*.py"))]
    nodes = [node for module in modules for node in ast.walk(module)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return sorted({name.partition(".")[0] for name in names} - sys.stdlib_module_names - {package.name})


def check_paths(bundle: Path) -> list[str]:
    """No file of the bundle names a folder of one machine."""
    faults = [
        f"{path.relative_to(bundle)}:{number}: a path of one machine, {match[0]}..."
        for path, text in text_files(bundle)
        for number, line in enumerate(text.splitlines(), 1)
        if (match := MACHINE_PATH.search(line))
    ]
    if check_json(bundle):
        return faults
    return faults + [
        f"configs/{name}.json: {key}: a path of one machine, {value}"
        for name in ("metadata", *config_names(bundle))
        for key, value in leaves(config(bundle, name))
        if isinstance(value, str) and ABSOLUTE_PATH.match(value) and not MACHINE_PATH.search(value)
    ]


@of_configs
def check_metadata(bundle: Path) -> list[str]:
    """metadata.json is what the MONAI Bundle specification asks for, and names each channel of each tensor."""
    content, where = config(bundle, "metadata"), "configs/metadata.json"
    errors = Draft201909Validator(read_json(SCHEMA)).iter_errors(content)
    if faults := [f"{where}: {error.json_path[2:] or 'all'}: {error.message}" for error in errors]:
        return faults
    formats = content["network_data_format"]
    return [
        f"{where}: {name} has {tensor['num_channels']} channels, channel_def names {list(tensor['channel_def'])}"
        for name, tensor in [*formats["inputs"].items(), *formats["outputs"].items()]
        if list(tensor["channel_def"]) != [str(i) for i in range(tensor["num_channels"])]
    ]
