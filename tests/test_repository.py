"""The house rules that the linter does not know."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from bundle_tools.checks import MACHINE_PATH
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".ci", "bundles/*/configs", "bundles/*/docs", "docs", "scripts", "shared", "tests")
TEXT = {"", ".conf", ".json", ".md", ".py", ".sh", ".toml", ".txt"}


def text_files() -> list[Path]:
    found = [
        *ROOT.iterdir(),
        *(path for pattern in FOLDERS for folder in ROOT.glob(pattern) for path in folder.rglob("*")),
    ]
    return [path for path in found if path.is_file() and path.suffix in TEXT and not path.name.startswith(".")]


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Every absolute import below a node, with the name of the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node, node.module


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def test_no_path_of_one_machine() -> None:
    files = text_files()
    assert ROOT / "pyproject.toml" in files
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "parts", [("cd ", "home", "me", ""), ("x='", "root", "'"), ("(", "work", "z"), ("C:\\", "Users")]
)
def test_machine_paths_are_recognised(parts: tuple[str, ...]) -> None:
    assert MACHINE_PATH.search(("" if "C:\\" in parts else "/").join(parts))


def test_shared_imports_itself_relatively() -> None:
    """So that it can be moved as a whole into a bundle, under another name."""
    assert [
        where(path, node)
        for path in modules("shared")
        for node, name in imports(ast.parse(path.read_text()))
        if name.split(".")[0] == "shared"
    ] == []


def test_shared_reads_json_from_bytes() -> None:
    """So that a byte order mark, of UTF-8 or UTF-16, does no harm."""
    assert [path for path in modules("shared") if re.search(r"json\.loads\([\w.]*read_text", path.read_text())] == []


def test_shared_imports_at_module_level() -> None:
    """An import inside a function fails once MONAI Label has unloaded the bundle's package."""
    functions = [
        (path, function)
        for path in modules("shared")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    found = [
        where(path, node)
        for path, function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert found == []


# From the ground up: a room may import those of the floors below it, `datasets` excepted, which only scripts reach.
FLOORS = (
    ("layers", "utils"),
    ("data", "metrics", "networks"),
    ("datasets", "inferers", "reports"),
    ("dicom", "transforms"),
    ("losses",),
    ("engines", "handlers"),
)
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def allowed(room: str) -> set[str]:
    return {other for other, floor in ROOMS.items() if floor < ROOMS[room] and other != "datasets"}


def relative_imports(path: Path) -> Iterator[tuple[ast.ImportFrom, Path]]:
    """Every relative import of a module in `shared`, with the file or folder that it names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            file = folder.with_suffix(".py")
            yield node, file if file.is_file() else folder


def test_every_room_of_shared_has_its_floor() -> None:
    assert {path.name for path in (ROOT / "shared").iterdir() if (path / "__init__.py").is_file()} == set(ROOMS)


def test_no_room_imports_upwards() -> None:
    found = [
        f"{where(path, node)}: {target.relative_to(ROOT)}"
        for room in ROOMS
        for path in modules(f"shared/{room}")
        for node, target in relative_imports(path)
        if target.relative_to(ROOT / "shared").parts[0] not in allowed(room) | {room}
    ]
    assert found == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_is_in_it_and_what_it_may_import(room: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / "shared" / room / "__init__.py").read_text())) or ""
    said, _, may = text.partition("May import: ")
    words = {"layers": "torch alone", "utils": "no other room"}.get(room, ", ".join(sorted(allowed(room))))
    assert said.strip()
    assert " ".join(may.split()) == f"{words}."


def test_shared_has_no_circle_of_imports() -> None:
    waiting = {path: {target for _, target in relative_imports(path)} for path in modules("shared")}
    waiting = {path: {t if t.suffix else t / "__init__.py" for t in targets} for path, targets in waiting.items()}
    while free := [path for path, targets in waiting.items() if not targets & waiting.keys()]:
        for path in free:
            del waiting[path]
    assert sorted(str(path.relative_to(ROOT)) for path in waiting) == []


def test_no_other_room_needs_the_packages_of_dicom() -> None:
    """They are an extra: whatever a room hands on can be imported without."""
    rooms = [ROOT / "shared" / room / "__init__.py" for room in ROOMS if room != "dicom"]
    reached, waiting = set(), rooms
    while waiting:
        path = waiting.pop()
        found = {t if t.suffix else t / "__init__.py" for _, t in relative_imports(path)} - reached
        reached |= found
        waiting.extend(found)
    assert ROOT / "shared" / "utils" / "errors.py" in reached
    assert [path for path in reached if path.is_relative_to(ROOT / "shared" / "dicom")] == []


def test_configs_name_no_data_set_that_people_prepare() -> None:
    assert [path for path in ROOT.glob("bundles/*/configs/**/*.json") if "shared.datasets" in path.read_text()] == []


def test_layers_need_torch_alone() -> None:
    code = "import sys, shared.layers; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "torch" in loaded
    assert not {"monai", "ignite", "itk", "nibabel", "scipy", "skimage", "matplotlib", "openslide"}.intersection(loaded)


def test_what_stands_on_top_of_scripts_is_a_command_and_nothing_below() -> None:
    """A shell script, or a program that runs what is given on its command line."""
    main = 'if __name__ == "__main__":'
    top = [path for path in (ROOT / "scripts").iterdir() if path.suffix == ".py"]
    assert [path.name for path in top if main not in path.read_text()] == []
    below = [path for path in modules("scripts") if path not in top and main in path.read_text()]
    # Each is a process of its own that a command starts.
    assert {path.relative_to(ROOT / "scripts").as_posix() for path in below} <= {
        "bundle_tools/probe.py",
        "experiments/fork_server.py",
        "experiments/nnunet_steps.py",
        "monai_deploy/segment.py",
        "monai_label/serve.py",
    }


def pinned(requirements: str) -> set[str]:
    return set(re.findall(r"^([\w.-]+)==", (ROOT / requirements).read_text(), flags=re.MULTILINE))


def test_what_is_imported_is_pinned() -> None:
    pins, others = pinned("requirements.txt"), {"monai_label": "monailabel", "nnunet_steps.py": "nnunet"}
    pins_of = {name: pinned(f"requirements-{file}.txt") for name, file in others.items()}  # of a folder, or of a file
    distributions = metadata.packages_distributions()
    folders = (ROOT / "scripts", ROOT / "tests" / "helpers")
    own = {path.stem for folder in folders for path in folder.iterdir()} | {"shared"} | sys.stdlib_module_names
    files = [path for folder in ("shared", "scripts", "tests") for path in modules(folder)]
    missing = [
        f"{where(path, node)}: {name}"
        for path in files
        for node, name in imports(ast.parse(path.read_text()))
        if (top := name.split(".")[0]) not in own
        and pins_of.get(path.name, pins_of.get(path.parent.name, pins)).isdisjoint([top, *distributions.get(top, ())])
    ]
    assert missing == []


@pytest.mark.parametrize("other", ["monailabel", "deploy", "nnunet"])
def test_other_environments_have_the_tested_versions(other: str) -> None:
    pins, others = (
        dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / name).read_text(), flags=re.MULTILINE))
        for name in ("requirements.txt", f"requirements-{other}.txt")
    )
    assert {name for name in pins.keys() & others.keys() if pins[name] != others[name]} == set()


def test_pins_lie_in_the_ranges_of_the_package() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = (project["dependencies"], *project["optional-dependencies"].values())
    ranges = [Requirement(line) for lines in lists for line in lines]
    assert [str(each) for each in ranges if not each.specifier.contains(pins.get(each.name, "0"))] == []
