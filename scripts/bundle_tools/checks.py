"""Checks of a bundle's folder that start no process and do not run the bundle's code.

Each takes a bundle, whose configs can be read, and gives a line for each fault, none where all is well. The bundle is
one below `bundles/`, whose code is the package `shared` of the collection, or a packed one anywhere, whose code is its
own package `scripts`.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import TypedDict

from check_env import read_pins
from jsonschema import Draft201909Validator

from .bundle import METADATA, ROOT, Bundle, leaves, read_json

SCHEMA = Path(__file__).parent / "metadata_schema.json"
# A folder that one machine has and others have not. /path/to is what documents say for a path of the reader's own.
MACHINE_PATH = re.compile(
    r"(?:file://|(?<![\w./}\-]))/(?:home|root|Users|work|workspace|tmp|mnt|media|scratch)/|\b[A-Z]:\\{1,2}(?:Users|[\w.-]+\\)"
)
ABSOLUTE_PATH = re.compile(r"/(?!path/to\b)|~/|[A-Za-z]:[\\/]")  # at the start of a value in a config


class Result(TypedDict):
    """What a check found."""

    faults: list[str]
    note: str  # for the table, where there is no fault
    seconds: float


Found = dict[str, Result]  # by the name of the check


def run_check(check: Callable[[], tuple[list[str], str]], where: str) -> Result:
    """The faults and the note that a check gives; an exception is a fault, so that the other checks go on."""
    start = time.monotonic()
    try:
        faults, note = check()
    except (Exception, SystemExit) as e:
        faults, note = [f"{where}: {one_line(e)}"], ""
    return Result(faults=faults, note=note, seconds=round(time.monotonic() - start, 1))


def one_line(error: BaseException) -> str:
    """The innermost cause of an exception, where MONAI wraps it."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def check_files(bundle: Bundle) -> list[str]:
    """What the model zoo and people need a bundle to have: licences, metadata, a config for inference, a model card."""
    wanted = ("LICENSE", "docs/data_license.txt", "docs/README.md", "configs/metadata.json", "configs/inference.json")
    empty = "is missing or empty"
    faults = [f"{name} {empty}" for name in wanted if not non_empty(bundle.folder / name)]
    if non_empty(ROOT / "LICENSE") and non_empty(bundle.folder / "LICENSE"):
        ours, theirs = ((folder / "LICENSE").read_text(encoding="utf-8") for folder in (ROOT, bundle.folder))
        faults += ["LICENSE differs from that of the collection"] * (ours != theirs)
    return faults


def non_empty(path: Path) -> bool:
    return path.is_file() and bool(path.read_bytes().strip())


def check_changelog(bundle: Bundle) -> list[str]:
    """`version` of metadata.json is the newest of its changelog."""
    metadata = bundle.metadata
    if faults := [f"{METADATA}: {key} is missing" for key in ("version", "changelog") if key not in metadata]:
        return faults
    named, versions = metadata["version"], list(metadata["changelog"] or {})
    if named not in versions:
        return [f"{METADATA}: version {named} is not in changelog ({', '.join(versions) or 'empty'})"]
    newest = max(versions, key=lambda text: [int(number) for number in re.findall(r"\d+", text)])
    return [] if named == newest else [f"{METADATA}: version is {named}, changelog goes on to {newest}"]


def pins(bundle: Bundle) -> tuple[dict[str, str], str]:
    """Versions by the name of the package, and where they are from: requirements.txt, or what is installed."""
    for folder in (bundle.root, ROOT):
        if (folder / "requirements.txt").is_file():
            return read_pins(folder / "requirements.txt"), "requirements.txt"
    return {name: installed(name) for name in named_versions(bundle)}, "this environment"


distributions_of = functools.cache(packages_distributions)


def installed(name: str) -> str:
    try:
        return version(name).partition("+")[0]  # 2.13.0+cpu
    except PackageNotFoundError:
        return ""


def named_versions(bundle: Bundle) -> dict[str, str]:
    """The versions of packages that metadata.json names."""
    metadata = bundle.metadata
    keys = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    named = {name: metadata.get(key, "") for name, key in keys.items()}
    lists = ("required_packages_version", "extra_packages_version")  # the second: what a part alone needs
    return named | {name: version for key in lists for name, version in (metadata.get(key) or {}).items()}


def check_requirements(bundle: Bundle) -> list[str]:
    """The versions in metadata.json are the tested ones, and all that the bundle's package imports is among them."""
    named, (tested, source) = named_versions(bundle), pins(bundle)
    faults = [
        f"{METADATA}: {name} is {found or 'missing'}, {source} has {tested.get(name) or 'none'}"
        for name, found in named.items()
        if not found or tested.get(name) != found
    ]
    unnamed = [m for m in imported_modules(bundle) if not named.keys() & {m, *distributions_of().get(m, [])}]
    return faults + [
        f"{METADATA}: required_packages_version lacks {m}, which {bundle.package} imports" for m in unnamed
    ]


def imported_modules(bundle: Bundle) -> list[str]:
    """Top-level modules outside the standard library that the files of the bundle's package import."""
    nodes = [node for path, text in bundle.code() for node in ast.walk(ast.parse(text, str(path)))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return sorted({name.partition(".")[0] for name in names} - sys.stdlib_module_names - {bundle.package})


def check_paths(bundle: Bundle) -> list[str]:
    """No file of the bundle names a folder of one machine."""
    faults = [
        f"{path.relative_to(bundle.folder)}:{number}: a path of one machine, {match[0]}..."
        for path, text in bundle.texts()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := MACHINE_PATH.search(line))
    ]
    return faults + [
        f"configs/{name}.json: {key}: a path of one machine, {value}"
        for name in ("metadata", *bundle.names)
        for key, value in leaves(bundle.config(name))
        if isinstance(value, str) and ABSOLUTE_PATH.match(value) and not MACHINE_PATH.search(value)
    ]


def check_metadata(bundle: Bundle) -> list[str]:
    """metadata.json is what the MONAI Bundle specification asks for, and names each channel of each tensor."""
    errors = Draft201909Validator(read_json(SCHEMA)).iter_errors(bundle.metadata)
    if faults := [f"{METADATA}: {error.json_path[2:] or 'all'}: {error.message}" for error in errors]:
        return faults
    formats = bundle.metadata["network_data_format"]
    return [
        f"{METADATA}: {name} has {tensor['num_channels']} channels, channel_def names {list(tensor['channel_def'])}"
        for name, tensor in [*formats["inputs"].items(), *formats["outputs"].items()]
        if list(tensor["channel_def"]) != [str(i) for i in range(tensor["num_channels"])]
    ]
