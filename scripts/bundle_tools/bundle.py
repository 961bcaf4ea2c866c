"""What a bundle's folder holds, and what its configs come to."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

ROOT = Path(__file__).resolve().parents[2]
OVERLAID = {"evaluate": ["train"], "multi_gpu_train": ["train"], "multi_gpu_evaluate": ["train", "evaluate"]}
# What is a bundle's own in its folder, where runs leave their results too.
CONTENT = ("LICENSE", "configs/**/*", "docs/**/*", "scripts/**/*", "models/*.json", "large_files.*")


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
