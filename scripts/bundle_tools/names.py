"""Whether what a config names is there."""

from __future__ import annotations

import ast
import builtins
import functools
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from monai.bundle import ComponentLocator, ReferenceResolver

from .bundle import code_folder, package_name

ALWAYS_THERE = {"monai", "torch", "np", "numpy", *dir(builtins)}  # in the expressions of a config


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
