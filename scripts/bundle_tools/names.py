"""Whether what a config names is there."""

from __future__ import annotations

import ast
import builtins
import functools
import pkgutil
import symtable
from importlib.util import resolve_name
from pathlib import Path

from monai.bundle import ComponentLocator, ReferenceResolver

from .bundle import Bundle

ALWAYS_THERE = {"monai", "torch", "np", "numpy", *dir(builtins)}  # in the expressions of a config


def find_name(dotted: str, bundle: Bundle) -> str:
    """Why a dotted name leads to nothing; empty where it leads to something.

    A name of the bundle's own package is looked up in its files, which are not imported; the others are imported.
    """
    if dotted.partition(".")[0] in ("shared", "scripts"):
        own = dotted.startswith(f"{bundle.package}.") or dotted == bundle.package
        return find_in_files(bundle.root, dotted) if own else f"the bundle's package is {bundle.package}"
    return find_by_import(dotted)


@functools.cache
def find_by_import(dotted: str) -> str:
    """`find_name` of a package that is installed."""
    try:
        pkgutil.resolve_name(dotted)
    except AttributeError as e:
        return f"{getattr(e.obj, '__name__', type(e.obj).__name__)} has no {e.name}"
    except (ImportError, ValueError):
        return f"there is no module {dotted.partition('.')[0]}"
    return ""


def find_in_files(folder: Path, dotted: str) -> str:
    """`find_name` in the files of a package below `folder`."""
    place, parts = folder, dotted.split(".")
    while parts and ((place / parts[0]).is_dir() or (place / f"{parts[0]}.py").is_file()):
        place = place / parts.pop(0)
    if place == folder:
        return f"there is no package {parts[0]}"
    if not parts:
        return ""
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    names = bound_names(file, ".".join(file.parent.relative_to(folder).parts), file.stat().st_mtime_ns)
    if parts[0] not in names:
        return f"{file.relative_to(folder)} has no {parts[0]}"
    return find_in_files(folder, names[parts[0]]) if names[parts[0]] else ""


@functools.lru_cache(maxsize=1024)
def bound_names(file: Path, package: str, changed: int) -> dict[str, str]:
    """The names that a module binds, and what of its package each stands for, if it is imported from there.

    Args:
        file: the module.
        package: the name of the package that it is in.
        changed: when it was, so that a changed file is read anew.
    """
    text = file.read_text(encoding="utf-8")
    symbols = symtable.symtable(text, str(file), "exec").get_symbols()
    names = {s.get_name(): "" for s in symbols if s.is_assigned() or s.is_imported() or s.is_namespace()}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            source = resolve_name("." * node.level + (node.module or ""), package)
            names |= {alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names}
    return names


@functools.cache
def monai_locator() -> ComponentLocator:
    return ComponentLocator()


def import_faults(statement: str, bundle: Bundle) -> tuple[dict[str, str], list[str]]:
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


def expression_faults(expression: str, known: dict[str, str], bundle: Bundle) -> list[str]:
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


def target_fault(target: str, bundle: Bundle) -> str:
    """Why a `_target_` that is no expression leads to nothing; empty where it leads to something."""
    if "." in target:
        return find_name(target, bundle)
    return "" if monai_locator().get_component_module_name(target) else "MONAI has no component of this name"
