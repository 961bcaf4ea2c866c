"""The files of a package, and how they become a zip, a folder, a manifest and a list."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from shared.networks import read_model_record
from shared.utils import DataError, atomic_path, fault_list, read_json_object, write_json

from .bundle import PACKED, ROOT, Bundle, find_files
from .checks import check_changelog, check_paths, check_requirements
from .overlays import check_references
from .package import WEIGHTS, Package, baked_configs, baked_metadata, classifier_place, read_package, tell_of_weights

SHARED = ROOT / "shared"
LEFT_OUT = "datasets"  # the room of `shared` that no run needs

# Appended to the packed `scripts/__init__.py`.
IDENTITY = '''
import sys
from pathlib import Path

{identity} = "{name} {version}"  # imported by the configs of this package
package_root = str(Path(__file__).resolve().parents[1])  # their bundle_root, whatever the working folder is


class OtherBundleError(BaseException):
    """The code of another bundle is loaded. No `Exception`: MONAI would put that of an import off, and go on."""


def __getattr__(name: str) -> object:
    if not name.startswith("bundle_"):
        raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")
    places = [Path(entry or ".").resolve() / "scripts" for entry in ("", *sys.path)]
    files = [place / "__init__.py" for place in places if (place / "__init__.py").is_file()]
    meant = [file.parent for file in files if f"{{name}} = " in file.read_text("utf-8", "replace")]
    raise OtherBundleError(
        f"{{Path(__file__).resolve().parent}}: this package `scripts` is loaded, that of {name} {version}; the "
        f"configuration belongs to {{meant[0] if meant else name + ', which is not on sys.path'}}. Two bundles need "
        "two processes; or, before the second, remove `scripts` and all `scripts.*` from sys.modules and put its "
        "folder first on sys.path."
    )
'''

# The first step of a packed configuration. `monai.bundle` puts its folder on sys.path only when it runs, behind this
# step, and MonaiAlgo never: where `scripts` was not found, or is another one, the folder goes there, and all is
# imported anew. The workflow is not at hand in an expression, but it is what evaluates it.
FIND_CODE = (
    "$isinstance({identity}, str) or [flow.parser.parse([*map(sys.modules.pop, [name for name in sys.modules if "
    "name.split('.')[0] == 'scripts']), sys.path.insert(0, str(flow.config_root_path.parent))] != []) for flow in "
    "(frame.f_locals.get('self') for frame, _ in traceback.walk_stack(None)) if 'config_root_path' in "
    "getattr(flow, '__dict__', ())]"
)


def renamed(text: str) -> str:
    """`text` with the package's new name, where it is named with one of its parts."""
    parts = "|".join(sorted(path.parent.name for path in SHARED.glob("*/__init__.py") if path.parent.name != LEFT_OUT))
    return re.sub(rf"(?<![\w./-])shared(?=\.(?:{parts})\b| import )", "scripts", text)


def packed_code(name: str, version: str) -> tuple[dict[str, str], str]:
    """The files of the package `scripts`, and the name that tells it from those of other bundles."""
    paths = {path.relative_to(SHARED): path for path in find_files(SHARED, "**/*.py")}
    files = {str(part): renamed(read_text(path)) for part, path in paths.items() if part.parts[0] != LEFT_OUT}
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:8]
    identity = re.sub(r"\W", "_", f"bundle_{name}_{version}_{digest}")
    files["__init__.py"] += IDENTITY.format(identity=identity, name=name, version=version)
    return {f"scripts/{path}": text for path, text in files.items()}, identity


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, whatever the machine's own encoding is.

    Raises:
        DataError: when it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise DataError(
            f"{path}: byte {e.start} is no UTF-8, expected text in UTF-8. Save the file as that, or take it out."
        ) from e


def packed_card(text: str, package: Package) -> str:
    """The model card, told apart from that of the collection by its first lines."""
    name = package.bundle.name
    variants = f" It has these variants baked in: {', '.join(package.baked)}." if package.baked else ""
    fetch = f" Fetch the weights first: `python -m monai.bundle download_large_files`, into {WEIGHTS}."
    head = (
        f"**{package.note}**{fetch if package.url else ''}\n\nVersion {package.version}.{variants} Commands run in "
        "this folder, with the versions of configs/metadata.json installed. `scripts` is the bundle's own code; the "
        "command lines that are called scripts/... below belong to the collection that the bundle is part of."
    )
    text = re.sub(r"\[([^\]]*)\]\(\.\./\.\./[^)]*\)", r"\1", renamed(text))  # links to what is not in the package
    text = text.replace(f"in bundles/{name}, with the environment active", "in this folder")
    if package.weights:
        text = re.sub(r"\*\*No clinically trained weights are shipped[^*]*\*\* ?", "", text)
    return re.sub(r"\A(# .*\n)", lambda title: f"{title[1]}\n{head}\n", text)


def packed_config(text: str, identity: str) -> str:
    """A config that finds its own code and its own folder; the first import, that of other code, ends the run."""
    imports = (f"from scripts import {identity}", "from scripts import package_root", "import sys", "import traceback")
    lines = "".join(f'"${line}",\\2' for line in imports)
    text = re.sub(r'("imports": \[)(\s*)', rf"\1\2{lines}", text)
    text = re.sub(r'("initialize": \[)(\s*)', rf'\1\2"{FIND_CODE.format(identity=identity)}",\2', text)
    return text.replace('"bundle_root": "."', '"bundle_root": "$package_root"')


def large_files(package: Package) -> str:
    """`large_files.yml`, which `monai.bundle download_large_files` reads."""
    assert package.weights is not None
    lines = {"path": WEIGHTS, "url": package.url, "hash_val": file_digest(package.weights), "hash_type": "sha256"}
    pairs = [f'{key}: "{value}"' for key, value in lines.items()]
    return "large_files:\n- " + "\n  ".join(pairs) + "\n"


def packed_files(package: Package) -> dict[str, bytes]:
    """All files of the package but the weights and what lies beside them."""
    bundle, changed = package.bundle, {}
    if package.variants or package.weights:
        configs = baked_configs(package)
        changed = {f"configs/{name}.json": content for name, content in configs.items() if content}
        changed["configs/metadata.json"] = tell_of_weights(baked_metadata(package, configs), package)
    texts, identity = packed_code(bundle.name, package.version)
    pictures = {}
    for path in find_files(bundle.folder, *PACKED):
        name = path.relative_to(bundle.folder).as_posix()
        if b"\0" in path.read_bytes():
            pictures[name] = path.read_bytes()
            continue
        text = read_text(path)
        if name in changed and changed[name] != json.loads(text):
            text = json.dumps(changed[name], indent=4, ensure_ascii=False) + "\n"
        if name == "docs/README.md":
            text = packed_card(text, package)
        if name == "docs/data_license.txt" and package.weights:
            text = text.replace(
                "No data is shipped with this bundle, and no weights.", "No data is shipped with this bundle."
            )
        texts[name] = packed_config(renamed(text), identity) if name.startswith("configs/") else renamed(text)
    if package.url:
        texts["large_files.yml"] = large_files(package)
    return pictures | {name: text.encode("utf-8") for name, text in texts.items()}


def refuse_faulty(bundle: Bundle, packed: Bundle) -> None:
    """Raise a `DataError` with everything that bars a bundle: what it says of itself, and how it was laid out."""
    faults = [*check_changelog(bundle), *check_requirements(bundle), *check_references(packed), *check_paths(packed)]
    if faults:
        raise DataError(f"{bundle.name} cannot be packaged:{fault_list(faults)}")


def write_tree(package: Package, folder: Path) -> None:
    for name, content in packed_files(package).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if weights := package.weights:
        copy_weights(weights, folder / WEIGHTS, weights_too=not package.url)
        for key, file in package.classifiers.items():
            copy_weights(file, folder / classifier_place(key))
        if "classifier" in package.classifiers:
            shutil.copyfile(weights.with_name("cascade.json"), (folder / WEIGHTS).with_name("cascade.json"))


def copy_weights(source: Path, target: Path, weights_too: bool = True) -> None:
    """Copy weights with their record and threshold and, if they were trained with one, the StainNet beside them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with_stainnet = read_model_record(source).get("stain_norm") == "stainnet"
    beside = {"threshold.json": True, "stainnet.pt": with_stainnet}
    pairs = [(source.with_suffix(".json"), target.with_suffix(".json")), *([(source, target)] if weights_too else [])]
    pairs += [(source.with_name(name), target.with_name(name)) for name, wanted in beside.items() if wanted]
    for old, new in pairs:
        if old.is_file():
            shutil.copyfile(old, new)


def write_package(package: Package, folder: Path) -> Path:
    """Lay a package out as a folder; see `lay_out`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: there is something already. Choose a new folder, or delete this one first.")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_tree(package, temporary)
        refuse_faulty(package.bundle, Bundle(temporary))
    return folder


def lay_out(
    bundle: Path,
    folder: Path,
    weights: Path | None = None,
    variant: str = "",
    weights_url: str = "",
    classifier: str | Path = "",
    subtype_classifier: str | Path = "",
) -> Path:
    """Lay a bundle out as a folder that runs anywhere: its files, with the package `shared` inside as `scripts`.

    Args:
        bundle: a folder below `bundles/`.
        folder: a new or empty folder, which becomes the packed bundle.
        weights: the `model.pt` of a training; the record and the threshold beside it go along.
        variant: overlays that the weights were trained with, separated by commas; they become part of the configs.
        weights_url: where the file of weights can be downloaded; it is named then, and not put inside.
        classifier: of a detector: what judges its detections; it goes inside, with the choice beside the weights.
        subtype_classifier: of a detector: what names kinds of the figures; it goes inside.

    Returns:
        `folder`.

    Raises:
        DataError: when the bundle is faulty, or the weights do not fit the network.
    """
    return write_package(read_package(bundle, weights, variant, weights_url, classifier, subtype_classifier), folder)


def write_zip(folder: Path, path: Path, name: str) -> None:
    """Write the files below `folder` into a zip, below NAME/; the same files give the same bytes.

    They are stored as they are: what a compressor gives depends on its version.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in files_below(folder):
            entry = zipfile.ZipInfo(f"{name}/{file.relative_to(folder).as_posix()}", (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            entry.file_size = file.stat().st_size
            with file.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def file_digest(path: Path, kind: str = "sha256") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def described(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


def manifest(package: Package, folder: Path, archive: Path) -> dict[str, Any]:
    """What is in a package, for people and programs that have not opened it."""
    return {
        "name": package.bundle.name,
        "version": package.version,
        "variants": list(package.variants),
        **package.marks,
        "weights": {**described(package.weights), "url": package.url or None} if package.weights else None,
        "record": dict(package.record),
        "zip": {"file": archive.name, **described(archive)},
        "files": {path.relative_to(folder).as_posix(): described(path) for path in files_below(folder)},
    }


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file.

    Raises:
        DataError: when the file holds something else.
    """
    expected = "an object; correct it, or choose another folder"
    return read_json_object(path, expected, "") if path.is_file() else {}


def add_to_list(path: Path, package: Package, archive: Path, base_url: str) -> None:
    """Enter a package in `model_info.json`, from which `monai.bundle` knows what a zoo has.

    The keys and the SHA-1 are those of the model zoo.

    Raises:
        DataError: when the file holds something else.
    """
    content = read_object(path)
    source = f"{base_url.rstrip('/')}/{archive.name}" if base_url else archive.name
    entry = {"checksum": file_digest(archive, "sha1"), "source": source, **package.marks}
    write_json(path, dict(sorted((content | {package.title: entry}).items())))


def refuse_to_replace(package: Package, archive: Path) -> None:
    """Keep a trained package from being replaced by an untrained one, or by one of other variants.

    Raises:
        DataError: when it would be, or its manifest is broken.
    """
    path = archive.with_suffix(".json")
    there = read_object(path)
    variants = list(package.variants)
    if there.get("trained") and (not package.weights or there.get("variants") != variants):
        new = f"would have {'weights' if package.weights else 'no weights'} and the variants {variants or 'none'}"
        raise DataError(
            f"{path}: tells of a trained package of the variants {there.get('variants') or 'none'}, the new one {new}. "
            f"Raise the version, delete {archive.name} and {path.name} first, or choose another --output_dir."
        )
