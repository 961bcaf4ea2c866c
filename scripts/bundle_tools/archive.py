"""The files of a package, and how they become a zip, a folder, a manifest and a list."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from shared.utils import DataError, atomic_path, fault_list, write_json

from .checks import check_changelog, check_paths, check_requirements
from .overlays import check_references
from .package import (
    BACKUPS,
    COMPANIONS,
    CONTENT,
    IDENTITY,
    SHARED,
    WEIGHTS,
    Package,
    baked_configs,
    baked_metadata,
    described,
    file_digest,
    read_package,
    read_text,
    tell_of_weights,
)
from .zoo import lay_out_pull_request, read_object


def found_files(folder: Path, *patterns: str) -> list[Path]:
    """The files that fit one of the patterns, but hidden ones and backups."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    hidden = [path for path in paths if "/." in f"/{path.relative_to(folder).as_posix()}"]
    return [path for path in paths if path not in hidden and not path.name.endswith(BACKUPS)]


def renamed(text: str) -> str:
    """`text` with the package's new name, where it is named with one of its parts."""
    parts = "|".join(sorted(path.name for path in SHARED.iterdir() if (path / "__init__.py").is_file()))
    return re.sub(rf"(?<![\w./-])shared(?=\.(?:{parts})\b| import )", "scripts", text)


def packed_code(name: str, version: str) -> tuple[dict[str, str], str]:
    """The files of the package `scripts`, and the name that tells it from those of other bundles."""
    files = {str(path.relative_to(SHARED)): renamed(read_text(path)) for path in found_files(SHARED, "**/*.py")}
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:8]
    identity = re.sub(r"\W", "_", f"bundle_{name}_{version}_{digest}")
    files["__init__.py"] += IDENTITY.format(identity=identity, name=name, version=version)
    return {f"scripts/{path}": text for path, text in files.items()}, identity


def packed_card(text: str, package: Package) -> str:
    """The model card, told apart from that of the collection by its first lines."""
    name, metadata = package.bundle.name, package.metadata
    variants = f" It has these variants baked in: {', '.join(package.baked)}." if package.baked else ""
    fetch = f" Fetch the weights first: `python -m monai.bundle download_large_files`, into {WEIGHTS}."
    head = (
        f"**{package.note}**{fetch if package.url else ''}\n\nVersion {metadata['version']}.{variants} Commands run in "
        "this folder, with the versions of configs/metadata.json installed. `scripts` is the bundle's own code; the "
        "command lines that are called scripts/... below belong to the collection that the bundle is part of."
    )
    text = re.sub(r"\[([^\]]*)\]\(\.\./\.\./[^)]*\)", r"\1", renamed(text))  # links to what is not in the package
    text = text.replace(f"in bundles/{name}, with the environment active", "in this folder")
    if package.weights:
        text = re.sub(r"\*\*No clinically trained weights are shipped[^*]*\*\* ?", "", text)
    return re.sub(r"\A(# .*\n)", lambda title: f"{title[1]}\n{head}\n", text)


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
    code, identity = packed_code(bundle.name, package.metadata["version"])
    pictures, texts = {}, code
    for path in found_files(bundle, *CONTENT):
        name = path.relative_to(bundle).as_posix()
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
        line = f'"$from scripts import {identity}"'  # the first import: that of other code ends the run
        texts[name] = re.sub(r'("imports": \[)(\s*)', rf"\1\2{line},\2", renamed(text))
    if package.url:
        texts["large_files.yml"] = large_files(package)
    return pictures | {name: text.encode("utf-8") for name, text in texts.items()}


def refuse_faulty(bundle: Path, folder: Path) -> None:
    """Raise a `DataError` with everything that bars a bundle: what it says of itself, and how it was laid out."""
    faults = [*check_changelog(bundle), *check_requirements(bundle), *check_references(folder), *check_paths(folder)]
    if faults:
        raise DataError(f"{bundle.name} cannot be packaged:{fault_list(faults)}")


def write_tree(package: Package, folder: Path) -> None:
    for name, content in packed_files(package).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if package.weights:
        beside = [package.weights.parent / name for name in COMPANIONS]
        beside[0] = package.weights.with_suffix(".json")
        (folder / "models").mkdir(exist_ok=True)
        for source, name in zip(beside, COMPANIONS, strict=True):
            if source.is_file():
                shutil.copyfile(source, folder / "models" / name)
        if not package.url:
            shutil.copyfile(package.weights, folder / WEIGHTS)


def write_package(package: Package, folder: Path) -> Path:
    """Lay a package out as a folder; see `lay_out`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: there is something already. Choose a new folder, or delete this one first.")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_tree(package, temporary)
        refuse_faulty(package.bundle, temporary)
    return folder


def lay_out(bundle: Path, folder: Path, weights: Path | None = None, variant: str = "", weights_url: str = "") -> Path:
    """Lay a bundle out as a folder that runs anywhere: its files, with the package `shared` inside as `scripts`.

    Args:
        bundle: a folder below `bundles/`.
        folder: a new or empty folder, which becomes the packed bundle.
        weights: the `model.pt` of a training; the record and the threshold beside it go along.
        variant: overlays that the weights were trained with, separated by commas; they become part of the configs.
        weights_url: where the file of weights can be downloaded; it is named then, and not put inside.

    Returns:
        `folder`.

    Raises:
        DataError: when the bundle is faulty, or the weights do not fit the network.
    """
    return write_package(read_package(bundle, weights, variant, weights_url), folder)


def write_zip(folder: Path, path: Path, name: str) -> None:
    """Write the files below `folder` into a zip, below NAME/; the same files give the same bytes.

    They are stored as they are: what a compressor gives depends on its version.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(f"{name}/{file.relative_to(folder).as_posix()}", (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            entry.file_size = file.stat().st_size
            with file.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def manifest(package: Package, folder: Path, archive: Path) -> dict[str, Any]:
    """What is in a package, for people and programs that have not opened it."""
    weights = {**described(package.weights), "url": package.url or None} if package.weights else None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "name": package.bundle.name,
        "version": package.metadata["version"],
        "variants": list(package.variants),
        **marks(package),
        "weights": weights,
        "record": dict(package.record),
        "zip": {"file": archive.name, **described(archive)},
        "files": {path.relative_to(folder).as_posix(): described(path) for path in files},
    }


def marks(package: Package) -> dict[str, bool | None]:
    """Whether there are weights, and whether they are of synthetic data, if that is known."""
    return {"trained": package.weights is not None, "synthetic": package.record.get("synthetic")}


def add_to_list(path: Path, package: Package, archive: Path, base_url: str) -> None:
    """Enter a package in `model_info.json`, from which `monai.bundle` knows what a zoo has.

    The keys and the SHA-1 are those of the model zoo.

    Raises:
        DataError: when the file holds something else.
    """
    content = read_object(path)
    source = f"{base_url.rstrip('/')}/{archive.name}" if base_url else archive.name
    entry = {"checksum": file_digest(archive, "sha1"), "source": source, **marks(package)}
    write_json(path, dict(sorted((content | {package.title: entry}).items())))


def pull_request(package: Package, folder: Path, zoo: Path, report: Path) -> None:
    """Lay out a pull request to the model zoo; print what bars it, and write that to `report`."""
    known = {**marks(package), "record": bool(package.record), "url": package.url}
    bars = lay_out_pull_request(folder, zoo, package.title, package.note, known)
    text = f"Before a pull request with {package.title} to the model zoo:{fault_list(bars)}"
    with atomic_path(report) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")
    print(text)


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
