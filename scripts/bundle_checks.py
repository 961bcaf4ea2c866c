"""Checks of a bundle's folder that start no process and do not run the bundle's code.

Each takes the folder and gives a line for each fault, none where all is well. The folder is one below `bundles/`, whose
code is the package `shared` of the collection, or a packed one anywhere, whose code is its own package `scripts`.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import itertools
import json
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import monai
from jsonschema import Draft201909Validator
from monai.bundle import ComponentLocator, ConfigParser, ReferenceResolver

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = Path(__file__).parent / "metadata_schema.json"
OVERLAID = {"evaluate": ["train"], "multi_gpu_train": ["train"], "multi_gpu_evaluate": ["train", "evaluate"]}
ALWAYS_THERE = {"monai", "torch", "np", "numpy", *dir(builtins)}  # in the expressions of a config
# A folder that one machine has and others have not. /path/to is what documents say for a path of the reader's own.
MACHINE_PATH = re.compile(
    r"(?:file://|(?<![\w./}\-]))/(?:home|root|Users|work|workspace|tmp|mnt|media|scratch)/|\b[A-Z]:\\{1,2}(?:Users|[\w.-]+\\)"
)
ABSOLUTE_PATH = re.compile(r"/(?!path/to\b)|~/|[A-Za-z]:[\\/]")  # at the start of a value in a config
# What is a bundle's own in its folder, where runs leave their results too.
CONTENT = ("LICENSE", "configs/**/*", "docs/**/*", "scripts/**/*", "models/*.json", "large_files.*")


# ---- what a bundle's folder holds


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def one_line(error: BaseException) -> str:
    """The innermost cause of an exception, where MONAI wraps it."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def config(bundle: Path, name: str) -> dict[str, Any]:
    """The content of `configs/NAME.json`; empty where there is none."""
    path = bundle / "configs" / f"{name}.json"
    return read_json(path) if path.is_file() else {}


def code_folder(bundle: Path) -> Path:
    """The folder that holds the bundle's package: itself where it is packed, else the root of the collection."""
    if (bundle / "scripts" / "__init__.py").is_file():
        return bundle
    root = bundle.resolve().parent.parent
    return root if (root / "shared" / "__init__.py").is_file() else ROOT


def package_name(bundle: Path) -> str:
    return "scripts" if code_folder(bundle) == bundle else "shared"


def config_names(bundle: Path) -> list[str]:
    """All configs below `configs/` but the metadata, without their suffix; the variants last."""
    folder = bundle / "configs"
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.json")]
    return sorted(set(names) - {"metadata"}, key=lambda name: (name.count("/"), name))


def combinations(bundle: Path) -> list[list[str]]:
    """The configs as they are run: the two that stand alone, and each overlay behind what it is laid over."""
    names = config_names(bundle)
    alone = [[name] for name in ("train", "inference") if name in names]
    train, inference = config(bundle, "train"), config(bundle, "inference")
    found = list(alone)
    for name in names:
        keys = set(config(bundle, name))
        if name.startswith("variants/"):
            found += [[*base, name] for base in alone if base == ["train"] or "network_def" in keys or not train]
            found += [["train", "evaluate", name]] * ("network_def" in keys and {"train", "evaluate"} <= set(names))
        elif name not in ("train", "inference"):
            known = OVERLAID.get(name) or (["inference"] if keys <= set(inference) else ["train"])
            found += [[*known, name]] if train or known == ["inference"] else [["inference", name]]
    return found


def merged(bundle: Path, names: list[str]) -> dict[str, Any]:
    """The configs merged as MONAI merges them, with the metadata where expressions look for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a `+key` without its key, which is a fault of its own here
        content = ConfigParser.load_config_files([bundle / "configs" / f"{name}.json" for name in names])
    return content | {ConfigParser.meta_key: config(bundle, "metadata")}


def try_merged(bundle: Path, names: list[str]) -> tuple[dict[str, Any], str]:
    """`merged`, or nothing and why these configs cannot be merged."""
    where = f"configs/{names[-1]}.json"
    if absent := [name for name in names if not (bundle / "configs" / f"{name}.json").is_file()]:
        return {}, f"{where}: goes over {' and '.join(f'configs/{name}.json' for name in absent)}, not there"
    try:
        return merged(bundle, names), ""
    except (KeyError, ValueError, IndexError, TypeError) as e:
        return {}, f"{where}: cannot be laid over {' and '.join(names[:-1])}: {e}"


def leaves(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below `content` that is neither a dictionary nor a list, with its id."""
    if isinstance(content, dict | list):
        for name, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(value, f"{key}#{name}" if key else str(name))
    else:
        yield key, content


def strings(content: Any) -> list[str]:
    return [value for _, value in leaves(content) if isinstance(value, str)]


def has(content: Any, key: str) -> bool:
    """Whether a config holds an id; its parts are separated by `#` or `::`."""
    return key == "" or key in ConfigParser(content)


def text_files(bundle: Path) -> Iterator[tuple[Path, str]]:
    """Every file of the bundle's own that is text, and its content."""
    for path in sorted({path for pattern in CONTENT for path in bundle.glob(pattern)}):
        if path.is_file() and "__pycache__" not in path.parts and b"\0" not in (content := path.read_bytes()):
            yield path, content.decode(errors="replace")


# ---- names of Python


def find_name(dotted: str, bundle: Path) -> str:
    """Why a dotted name leads to nothing; empty where it leads to something.

    A name of the bundle's own package is looked up in its files, which are not imported; the others are imported.
    """
    first = dotted.partition(".")[0]
    if first in ("shared", "scripts"):
        own = package_name(bundle)
        return find_in_files(code_folder(bundle), dotted) if first == own else f"the bundle's package is {own}"
    module, rest = import_longest(dotted)
    if module is None:
        return f"there is no module {first}"
    for part in rest:
        if not isinstance(module, ModuleType | type):
            break
        if not hasattr(module, part):
            return f"{module.__name__} has no {part}"
        module = getattr(module, part)
    return ""


@functools.cache
def import_longest(dotted: str) -> tuple[Any, list[str]]:
    """The innermost module that a dotted name goes through, and the parts behind it."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        try:
            if find_spec(name) is not None:
                return import_module(name), parts[end:]
        except (ImportError, ValueError):
            continue
    return None, parts


def find_in_files(folder: Path, dotted: str) -> str:
    """`find_name` in the files of a package below `folder`."""
    place, parts = folder, dotted.split(".")
    while parts and (is_module(place / parts[0])):
        place = place / parts.pop(0)
    if place == folder:
        return f"there is no package {parts[0]}"
    if not parts:
        return ""
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    names = bound_names(file, file.stat().st_mtime_ns)
    if parts[0] not in names:
        return f"{file.relative_to(folder)} has no {parts[0]}"
    source = names[parts[0]]
    if not source:
        return ""
    package = file.parent.relative_to(folder).parts  # `.` in an import; each further dot goes up by one
    level = len(source) - len(source.lstrip("."))
    return find_in_files(folder, ".".join([*package[: len(package) - level + 1], source.lstrip(".")]).rstrip("."))


def is_module(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()


@functools.lru_cache(maxsize=1024)
def bound_names(file: Path, changed: int) -> dict[str, str]:
    """The names that a module binds, and from where in the same package it imports each, if it does.

    Args:
        file: the module.
        changed: when it was, so that a changed file is read anew.
    """
    names: dict[str, str] = {}
    for node in statements(ast.parse(file.read_text(encoding="utf-8"), str(file)).body):
        if isinstance(node, ast.ImportFrom):
            source = "." * node.level + (f"{node.module}." if node.module else "")
            names |= {alias.asname or alias.name: f"{source}{alias.name}" * bool(node.level) for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {(alias.asname or alias.name).partition(".")[0]: "" for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = ""
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {name.id: "" for name in ast.walk(node) if isinstance(name, ast.Name)}
    return names


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module's own level, also below `if` and `try`."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from statements([*node.body, *node.orelse, *getattr(node, "finalbody", [])])
            yield from statements([line for handler in getattr(node, "handlers", []) for line in handler.body])


@functools.cache
def monai_locator() -> ComponentLocator:
    return ComponentLocator()


def import_faults(statement: str, bundle: Path) -> tuple[dict[str, str], list[str]]:
    """The name that an import line of a config gives to its expressions, for what, and what is wrong with the line."""
    try:
        node, *others = ast.parse(statement).body
    except SyntaxError as e:
        return {}, [f"{statement}: {e.msg}"]
    assert isinstance(node, ast.Import | ast.ImportFrom)
    first = node.names[0]
    meant = f"{node.module}.{first.name}" if isinstance(node, ast.ImportFrom) else first.name
    faults = [fault for fault in [find_name(meant, bundle)] if fault]
    if others or len(node.names) > 1:
        faults.append("MONAI takes the first name only; give each a line of its own")
    if isinstance(node, ast.Import) and "." in first.name and not first.asname:
        faults.append("expressions cannot use a name with a dot; write `from ... import ...` or `... as ...`")
    return {first.asname or first.name: meant}, [f"{statement}: {fault}" for fault in faults]


def expression_faults(expression: str, known: dict[str, str], bundle: Path) -> list[str]:
    """What an expression uses that is not there. `known` is what the names of the import lines stand for."""
    code = ReferenceResolver.update_refs_pattern(expression, ReferenceResolver.match_refs_pattern(expression))[1:]
    try:
        nodes = list(ast.walk(ast.parse(code.strip(), mode="eval")))
    except SyntaxError as e:
        return [f"{expression}: {e.msg}"]
    bound = {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    used = {node.id for node in nodes if isinstance(node, ast.Name)} - bound
    missing = used - known.keys() - ALWAYS_THERE - {ReferenceResolver._vars}
    faults = [f"no import line gives {name}" for name in sorted(missing)]
    known = {name: meant for name, meant in known.items() if name not in bound}
    faults += [fault for chain in attribute_chains(nodes, known) if (fault := find_name(chain, bundle))]
    return [f"{expression}: {fault}" for fault in faults]


def attribute_chains(nodes: list[ast.AST], known: dict[str, str]) -> list[str]:
    """`torch.cuda.is_available` for such an attribute of what an import line gives."""
    found = []
    for node in nodes:
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in known:
            found.append(".".join([known[node.id], *reversed(parts)]))
    return found


def target_fault(target: str, bundle: Path) -> str:
    """Why a `_target_` that is no expression leads to nothing; empty where it leads to something."""
    if "." in target:
        return find_name(target, bundle)
    return "" if monai_locator().get_component_module_name(target) else "MONAI has no component of this name"


# ---- checks


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
def check_references(bundle: Path) -> list[str]:
    """Every key, component, import, reference, macro and file that the configs name exists, in all combinations."""
    faults = overlay_faults(bundle)
    for names in combinations(bundle):
        content, wrong = try_merged(bundle, names)
        faults += [wrong] * bool(wrong)
        earlier = set(faults)
        faults += [
            f"configs/{names[-1]}.json: {fault}"
            for fault in content_faults(content, bundle)
            # a fault of a base shows in everything that is laid over it
            if not any(f"configs/{name}.json: {fault}" in earlier for name in names)
        ]
    return list(dict.fromkeys(faults))


def overlay_faults(bundle: Path) -> list[str]:
    """Keys of overlays that replace nothing and that nothing reads: mistyped ones, which MONAI accepts silently."""
    faults = []
    for *base, name in combinations(bundle):
        if not base or not (under := try_merged(bundle, base)[0]):
            continue
        content = config(bundle, name)
        text = " ".join(strings(content))
        for key in content:
            plain = key.removeprefix("+").replace("::", "#")
            parent = plain.rpartition("#")[0]
            component = bool(parent) and has(under, parent) and is_component(ConfigParser(under)[parent])
            read = re.search(rf"@{re.escape(plain)}(?!\w)", text) and not name.startswith("variants/")
            if not (has(under, plain) or read or component):
                faults.append(f"configs/{name}.json: {key} is not in {' and '.join(base)}, and nothing reads it")
    return faults


def content_faults(content: dict[str, Any], bundle: Path) -> list[str]:
    """What merged configs name that is not there."""
    parser, faults, known = ConfigParser(content), [], {"torch": "torch", "monai": "monai", "np": "numpy"}
    own = {key: value for key, value in content.items() if key != ConfigParser.meta_key}
    values = [(key, value) for key, value in leaves(own) if isinstance(value, str)]
    for key, value in values:
        if is_import(value):
            given, wrong = import_faults(value[1:], bundle)
            known |= given
            faults += [f"{key}: {fault}" for fault in wrong]
    for key, value in values:
        value = ConfigParser.resolve_relative_ids(key, value)
        references = ReferenceResolver.match_refs_pattern(value)
        missing = [f"@{name.replace('::', '#')} is not there" for name in references if name not in parser]
        if value.startswith("%"):
            missing += macro_faults(value, parser, bundle)
        elif value.startswith("$") and not is_import(value):
            missing += expression_faults(value, known, bundle)
        elif key.endswith("_target_") and (fault := target_fault(value, bundle)):
            missing.append(f"{value}: {fault}")
        elif value.startswith("configs/") and not (bundle / value).is_file():
            missing.append(f"{value} is not in the bundle")
        faults += [f"{key}: {fault}" for fault in missing]
    return faults


def is_component(content: Any) -> bool:
    return isinstance(content, dict) and "_target_" in content


def is_import(value: str) -> bool:
    return re.match(r"\$\s*(import|from)\s", value) is not None


def macro_faults(value: str, parser: ConfigParser, bundle: Path) -> list[str]:
    """What is wrong with a `%id`, or a `%file#id`, whose file MONAI looks for from the working folder."""
    path, key = ConfigParser.split_path_id(value[1:])
    if not path:
        return [] if key in parser else [f"{value}: there is no {key}"]
    if not (bundle / path).is_file():
        return [f"{value}: there is no {path} in the bundle"]
    return [] if has(read_json(bundle / path), key) else [f"{value}: {path} has no {key}"]


@of_configs
def check_overlays(bundle: Path) -> list[str]:
    """A variant replaces whole top-level keys; one that changes the network fits training and inference alike.

    Only so do the weights of such a variant work in both, and does their record name the overlay that they need.
    """
    faults = []
    train, inference = config(bundle, "train"), config(bundle, "inference")
    for name in config_names(bundle):
        content, where = config(bundle, name), f"configs/{name}.json"
        if not name.startswith("variants/"):
            continue
        faults += [f"{where}: is empty"] * (not content)
        faults += [f"{where}: {key} is not a top-level key" for key in content if "#" in key or "::" in key]
        if "network_def" in content:
            absent = [key for key in content if not (key in train and key in inference)]
            faults += [f"{where}: changes the network, but {key} is not in both train and inference" for key in absent]
            found = content.get("network_overlay")
            faults += [f"{where}: network_overlay is {found!r}, expected {where!r}"] * (found != where)
    return faults


# What the layers that only act in training are given; a network has the same weights and the same output without them.
TRAINING_ONLY = {"fusestyle_places", "fusestyle_p", "fusestyle_alpha", "fusestyle_reference"}
# Where results go and how much is done at once, which training and inference may each have their own way.
RUN_ONLY = {"bundle_root", "output_dir", "ckpt_path", "device", "batch_size", "num_workers", "record"}


@of_configs
def check_drift(bundle: Path) -> list[str]:
    """Training and inference have the same network, the same deterministic steps before it, and the same values."""
    train, inference = config(bundle, "train"), config(bundle, "inference")
    if not train or not inference:
        return []
    where, faults = "configs/inference.json", []
    if train.get("network_def") != inference.get("network_def"):
        faults.append(f"{where}: network_def differs from that of train.json")
    roots = ["network_def", "preprocessing", "inferer"]
    keys = what_is_read(inference, [*roots, "network_overlay"]) - RUN_ONLY - TRAINING_ONLY - set(roots)
    for key in sorted(keys & train.keys()):
        theirs = recorded_default(key, inference[key])
        ours = train[key if theirs == inference[key] else recorded_key(key, train)]
        if theirs is not None and ours != theirs:  # null: as the image's file says
            faults.append(f"{where}: {key} is {json.dumps(theirs)}, train.json has {json.dumps(ours)}")
    if "image_mean" in what_is_read(inference, ["inferer"]):
        return faults  # the inferer reads and normalises by itself, as it needs
    theirs = steps_on_image(inference, "preprocessing")
    for ours, source in (
        (steps_on_image(train, "validate#preprocessing"), "train.json"),
        (steps_on_image(try_merged(bundle, ["train", "evaluate"])[0], "validate#preprocessing"), "evaluate.json"),
    ):
        for i, (a, b) in enumerate(itertools.zip_longest(ours, theirs)):
            if ours and a != b:
                faults.append(f"{where}: step {i} of preprocessing is {b}, {source} validates with {a}")
                break
    return faults


def what_is_read(content: dict[str, Any], keys: list[str]) -> set[str]:
    """These keys of a config and all top-level keys that they refer to, however many references away."""
    found, left = set(), [key for key in keys if key in content]
    while left:
        found.add(key := left.pop())
        references = [name for text in strings(content[key]) for name in ReferenceResolver.match_refs_pattern(text)]
        left += [name.partition("::")[0] for name in references if name.partition("::")[0] in content.keys() - found]
    return found


def recorded_default(key: str, value: Any) -> Any:
    """VALUE of `$@record.get('KEY', VALUE)`, which the weights' record may change; anything else as it is."""
    match = re.fullmatch(rf"\$@record\.get\('{key}', (.+)\)", value) if isinstance(value, str) else None
    return ast.literal_eval(match[1]) if match else value


def recorded_key(key: str, train: dict[str, Any]) -> str:
    """Which key of train.json the weights' record holds under `key`: another where `settings` says so."""
    source = train.get("settings", {}).get(key, "")
    return source[1:] if isinstance(source, str) and source[1:] in train else key


def steps_on_image(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The transforms of a pipeline as they act on the image: without what they do to the label, and without types."""
    if not has(content, key):
        return []
    steps = listed(content, key)
    plain = [{k: v for k, v in step.items() if k not in ("keys", "label_key", "labels")} for step in steps]
    return [
        {k: v[0] if k == "mode" and isinstance(v, list) else v for k, v in step.items()}
        for step in plain
        if step["_target_"] != "EnsureTyped"
    ]


def listed(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The transforms under a key, those that it refers to included, in their order."""
    found = ConfigParser(content)[key]
    if isinstance(found, dict):
        found = found.get("transforms", [found])
    if isinstance(found, list):
        return [step for step in found if isinstance(step, dict)]
    names = ReferenceResolver.match_refs_pattern(found) if isinstance(found, str) else {}
    return [step for name in names if has(content, name) for step in listed(content, name)]


@of_configs
def check_metrics(bundle: Path) -> list[str]:
    """Every metric that the configs name is computed: it is a key of the engines' metrics, or the package has it."""
    package = code_folder(bundle) / package_name(bundle)
    code = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    literals = set(re.findall(r"['\"](\w+)['\"]", code))
    faults = []
    for names in combinations(bundle):
        content, _ = try_merged(bundle, names)
        computed = {
            name
            for engine in (content.get("train"), content.get("validate"), content)
            for key in ("key_metric", "additional_metrics", "train_metrics")
            if isinstance(engine, dict) and isinstance(engine.get(key), dict)
            for name in engine[key]
        }
        for key, value in leaves(content):
            value = content.get(value[1:], value) if isinstance(value, str) and value.startswith("@") else value
            wanted = [value] if re.search(r"#(metric_name|metrics#\d+)$", key) else []
            wanted += re.findall(r"metrics\[['\"](\w+)['\"]\]", value) if isinstance(value, str) else []
            missing = [name for name in wanted if name not in computed | literals]
            faults += [f"configs/{names[-1]}.json: {key} wants {name}, which nothing computes" for name in missing]
    return list(dict.fromkeys(faults))


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
    names = [Path(file).relative_to("configs").with_suffix("").as_posix() for file in command.files]
    content, own = try_merged(bundle, names)[0], inspect.signature(getattr(monai.bundle, command.name)).parameters
    unknown = [key for key in command.options if key not in own and not has(content, key)]
    return [f"no config has the key {key} of --{key}" for key in unknown]
