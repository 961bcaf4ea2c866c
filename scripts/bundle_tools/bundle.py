"""What a bundle's folder holds, and what its configs come to."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = ROOT / "bundles"
METADATA, CARD = "configs/metadata.json", "docs/README.md"
ALONE = ("train", "inference")  # the configs that are no overlays
OVERLAID = {"evaluate": ["train"], "multi_gpu_train": ["train"], "multi_gpu_evaluate": ["train", "evaluate"]}
OVERLAID["cascade"] = ["train", "evaluate"]
BACKUPS = ("~", ".swp", ".bak", ".orig")  # what editors leave behind
# What is a bundle's own in its folder, where runs leave their results too; and what of it goes into a package.
CONTENT = ("LICENSE", "configs/**/*", "docs/**/*", "scripts/**/*", "models/*.json", "large_files.*")
PACKED = ("LICENSE", "configs/logging.conf", "configs/**/*.json", "docs/**/*")


class Bundle:
    """A bundle's folder, below `bundles/` or packed and anywhere, with its configs as they are now.

    Attributes:
        configs: the content of each file by its name below `configs/` without the suffix.
        faults: what of `configs/` is no JSON object, or has a key twice, of which a reader would take the last.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.configs: dict[str, dict[str, Any]] = {}
        self.faults: list[str] = []
        for path in sorted((folder / "configs").rglob("*.json")):
            where = path.relative_to(folder)
            try:
                content, twice = read_unique(path)
            except ValueError as e:
                self.faults.append(f"{where}: {e}")
                continue
            self.faults += [f"{where}: {name} is there twice" for name in twice]
            if isinstance(content, dict):
                self.configs[config_name(where.as_posix())] = content
            else:
                self.faults.append(f"{where}: holds {type(content).__name__}, expected an object")

    def config(self, name: str) -> dict[str, Any]:
        """The content of `configs/NAME.json`; empty where there is none."""
        return self.configs.get(name, {})

    @property
    def metadata(self) -> dict[str, Any]:
        return self.config("metadata")

    @property
    def card(self) -> str:
        """The model card; empty where there is none."""
        return (self.folder / CARD).read_text(encoding="utf-8") if (self.folder / CARD).is_file() else ""

    @property
    def names(self) -> list[str]:
        """All configs but the metadata; the variants last."""
        return sorted(self.configs.keys() - {"metadata"}, key=lambda name: (name.count("/"), name))

    @cached_property
    def root(self) -> Path:
        """The folder that holds the bundle's package: itself where it is packed, else the root of the collection."""
        if (self.folder / "scripts" / "__init__.py").is_file():
            return self.folder
        root = self.folder.resolve().parent.parent
        return root if (root / "shared" / "__init__.py").is_file() else ROOT

    @property
    def is_packed(self) -> bool:
        return self.root == self.folder

    @property
    def package(self) -> str:
        return "scripts" if self.is_packed else "shared"

    def code(self) -> Iterator[tuple[Path, str]]:
        """The modules of the bundle's package and their text."""
        for path in sorted((self.root / self.package).rglob("*.py")):
            yield path, path.read_text(encoding="utf-8")

    def combinations(self) -> list[list[str]]:
        """The configs as they are run: the two that stand alone, and each overlay behind what it is laid over."""
        names, train, inference = self.names, self.config("train"), self.config("inference")
        alone = [[name] for name in ALONE if name in names]
        found = list(alone)
        for name in names:
            keys = set(self.config(name))
            if self.is_for_inference(name):
                found.append(["inference", name])
            elif name.startswith("variants/"):
                found += [[*base, name] for base in alone if base == ["train"] or "network_def" in keys or not train]
                found += [["train", "evaluate", name]] * ("network_def" in keys and {"train", "evaluate"} <= set(names))
            elif name not in ALONE:
                known = OVERLAID.get(name) or (["inference"] if keys <= set(inference) else ["train"])
                found += [[*known, name]] if train or known == ["inference"] else [["inference", name]]
        return found

    def is_for_inference(self, name: str) -> bool:
        """Whether a variant is of inference alone: training has not all of its keys, and inference has."""
        keys = {key.removeprefix("+") for key in self.config(name)}
        train, inference = self.config("train").keys(), self.config("inference").keys()
        return name.startswith("variants/") and bool(train) and not keys <= train and keys <= inference

    def merged(self, names: Iterable[str]) -> dict[str, Any]:
        """The configs merged as MONAI merges them, with the metadata where expressions look for it.

        Raises:
            KeyError, ValueError, IndexError, TypeError: when they cannot be.
        """
        parser = ConfigParser({})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a `+key` without its key, which is a fault of its own here
            for name in names:
                lay_over(parser, self.configs[name])
        return parser.get() | {ConfigParser.meta_key: self.metadata}

    def try_merged(self, names: list[str]) -> tuple[dict[str, Any], str]:
        """`merged`, or nothing and why these configs cannot be merged."""
        where = f"configs/{names[-1]}.json"
        if absent := [name for name in names if name not in self.configs]:
            return {}, f"{where}: goes over {' and '.join(f'configs/{name}.json' for name in absent)}, not there"
        try:
            return self.merged(names), ""
        except (KeyError, ValueError, IndexError, TypeError) as e:
            return {}, f"{where}: cannot be laid over {' and '.join(names[:-1])}: {e}"

    def texts(self) -> Iterator[tuple[Path, str]]:
        """Every file of the bundle's own that is text, and its content."""
        for path in find_files(self.folder, *CONTENT):
            if b"\0" not in (content := path.read_bytes()):
                yield path, content.decode(errors="replace")


def bundle_names(folder: Path) -> list[str]:
    """The names of the bundles below a folder."""
    return sorted(path.parents[1].name for path in folder.glob(f"*/{METADATA}"))


def config_name(path: str) -> str:
    """`variants/demo` for `configs/variants/demo.json`."""
    return path.removeprefix("configs/").removesuffix(".json")


def read_unique(path: Path) -> tuple[Any, list[str]]:
    """The content of a JSON file, and the keys that an object in it has twice."""
    twice: list[str] = []

    def read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice.extend(sorted({name for name in names if names.count(name) > 1}))
        return dict(pairs)

    return json.loads(path.read_bytes(), object_pairs_hook=read_object), twice


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def find_files(folder: Path, *patterns: str) -> list[Path]:
    """The files that fit one of the patterns, but hidden ones and backups."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    hidden = [path for path in paths if "/." in f"/{path.relative_to(folder).as_posix()}"]
    return [path for path in paths if path not in hidden and not path.name.endswith(BACKUPS)]


def lay_over(config: MutableMapping[str, Any] | ConfigParser, overlay: Mapping[str, Any]) -> None:
    """Put an overlay into a config as MONAI does it: what `+key` holds goes behind what `key` has."""
    for key, value in overlay.items():
        merge_kv(config, key, deepcopy(value))


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
