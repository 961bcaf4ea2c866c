"""Says what the Python environment lacks to run this project; the exit status is 1 if anything is missing or broken."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements.txt"
# Installed is not usable: a package of compiled code may still fail to load. (ITK loads its parts when they are used.)
MODULES = ("torch", "monai", "ignite.engine", "nibabel", "itk", "scipy.ndimage", "matplotlib", "fire")


def read_pins(path: Path) -> dict[str, str]:
    """The exact versions in a requirements file: distribution name -> version."""
    return dict(re.findall(r"^([\w.-]+)==([\w.+-]+)", path.read_text(), flags=re.MULTILINE))


def differences(pins: dict[str, str]) -> tuple[list[str], list[str]]:
    """The packages that are not installed, and a line for each that is there in another version than pinned."""
    missing, others = [], []
    for name, version in pins.items():
        try:
            found = metadata.version(name).partition("+")[0]  # torch 2.13.0+cpu is 2.13.0
        except metadata.PackageNotFoundError:
            missing.append(f"{name}=={version}")
            continue
        if found != version:
            others.append(f"{name} {found} (tested with {version})")
    return missing, others


def broken_modules(modules: tuple[str, ...]) -> list[str]:
    """A line for each module that cannot be imported."""
    broken = []
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as e:  # OSError: a shared library that does not load
            broken.append(f"import {module}: {e}")
    return broken


def shared_is_of(root: Path) -> bool:
    """Whether `import shared` takes the package in this checkout, and not another checkout's or a copy."""
    spec = importlib.util.find_spec("shared")
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve().is_relative_to(root)


def main() -> int:
    missing, others = differences(read_pins(REQUIREMENTS))
    if missing:
        print(f"Error: {sys.executable} lacks {', '.join(missing)}.", file=sys.stderr)
        print(f"Install them: {sys.executable} -m pip install -r '{REQUIREMENTS}'", file=sys.stderr)
        return 1
    broken = broken_modules(MODULES)
    if broken:
        print(f"Error: {sys.executable} cannot import all that is needed:", *broken, sep="\n  ", file=sys.stderr)
        return 1
    if not shared_is_of(ROOT):
        print(f"Error: `import shared` in {sys.executable} does not give the package in {ROOT}.", file=sys.stderr)
        print(f"Install it: {sys.executable} -m pip install --no-deps -e '{ROOT}'", file=sys.stderr)
        return 1
    if others:
        print(f"Note: other versions than the tested ones: {'; '.join(others)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
