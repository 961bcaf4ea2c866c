"""Package bundles: a zip each that runs anywhere, a manifest, and the list of a model zoo of one's own."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fire
import torch
from bundle_checks import (
    check_changelog,
    check_paths,
    check_references,
    check_requirements,
    recorded_default,
    recorded_key,
)
from monai.bundle import ConfigParser
from torch import nn
from zoo_layout import lay_out_pull_request, read_object, refuse_zoo

from shared.networks import load_weights, read_model_record
from shared.utils import DataError, atomic_path, fault_list, show_errors_briefly, write_json

ROOT = Path(__file__).resolve().parent.parent
BUNDLES, SHARED = ROOT / "bundles", ROOT / "shared"
CONTENT = ("LICENSE", "configs/logging.conf", "configs/**/*.json", "docs/**/*")
WEIGHTS = "models/model.pt"
COMPANIONS = ("model.json", "threshold.json")  # which training writes beside the weights
BACKUPS = ("~", ".swp", ".bak", ".orig")  # what editors leave behind
# Appended to the packed `scripts/__init__.py`.
IDENTITY = '''
import sys
from pathlib import Path

{identity} = "{name} {version}"  # imported by the configs of this package


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


class Package(NamedTuple):
    """What goes into a package beside the files of its bundle."""

    bundle: Path
    variants: tuple[str, ...] = ()
    weights: Path | None = None
    url: str = ""  # of the weights, which are then not put inside
    record: Mapping[str, Any] = {}  # of the weights

    @property
    def metadata(self) -> dict[str, Any]:
        return read_config(self.bundle, "metadata")

    @property
    def title(self) -> str:
        return f"{self.bundle.name}_v{self.metadata['version']}"

    @property
    def note(self) -> str:
        """What a user has to know of the weights, in a few sentences."""
        data = self.record.get("name", "a data set without a name")
        if not self.weights:
            text = (
                "This package is untrained: it holds no weights. Train first (configs/train.json); until then "
                "inference, evaluation and exports have nothing to load."
            )
        elif not self.record:
            text = "No record came with the weights of this package: nobody knows what they were trained on."
        elif self.record.get("synthetic"):
            text = f"The weights of this package were trained on synthetic data ({data}): of no use on real images."
        else:
            text = f"The weights of this package were trained on {data}."
        files = {name: file for name in self.variants for file in map(named_file, self.overlay(name).values()) if file}
        return text + "".join(
            f" The variant {name} starts from {file}, which is not in this package." for name, file in files.items()
        )

    def overlay(self, name: str) -> dict[str, Any]:
        return read_config(self.bundle, f"variants/{name}")

    @property
    def baked(self) -> dict[str, dict[str, Any]]:
        """The variants with what of them becomes part of the configs: all but files that are not in the package."""
        kept = {name: {k: v for k, v in self.overlay(name).items() if not named_file(v)} for name in self.variants}
        return {name: overlay for name, overlay in kept.items() if overlay}


def read_package(bundle: Path, weights: str | Path | None = None, variant: Any = "", url: str = "") -> Package:
    """What was asked for, with the record of the weights.

    Raises:
        DataError: when there is no such bundle, variant or file of weights.
    """
    parts = variant if isinstance(variant, list | tuple) else str(variant).split(",")  # fire makes a tuple of `a,b`
    variants = tuple(str(part).removesuffix(".json").removeprefix("variants/") for part in parts if part)
    there = sorted(path.stem for path in (bundle / "configs" / "variants").glob("*.json"))
    if not (bundle / "configs" / "metadata.json").is_file():
        raise DataError(f"{bundle}: holds no configs/metadata.json, expected the folder of a bundle.")
    if strange := [name for name in variants if name not in there]:
        raise DataError(f"--variant is {', '.join(strange)}, {bundle.name} has {', '.join(there) or 'none'}.")
    if url and not weights:
        raise DataError("--weights_url is the address of a file; give the file too (--weights), for its hash.")
    if url and not re.match(r"https?://[^\s\"]+$", url):
        raise DataError(f"--weights_url is {url}, expected an address that begins with http:// or https://.")
    if weights and not Path(weights).is_file():
        raise DataError(f"{weights}: there is no such file of weights. Give the model.pt that training writes.")
    path = Path(weights) if weights else None
    return Package(bundle, variants, path, url, read_model_record(path) if path else {})


# ---- the variant in the configs


def read_config(bundle: Path, name: str) -> dict[str, Any]:
    path = bundle / "configs" / f"{name}.json"
    return json.loads(read_text(path)) if path.is_file() else {}


def named_file(value: Any) -> str:
    """The file below `models/` that a value of an overlay names, if it is another than the packed weights."""
    found = re.search(r"/(models/[^']+)'", value) if isinstance(value, str) else None
    return found[1] if found and found[1] != WEIGHTS else ""


def taken_over(overlay: Mapping[str, Any], train: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a training's overlay a config takes: the keys in which it repeats `train`, as itself or as a default."""
    taken = {key: overlay[key] for key in overlay if key in config and config[key] == train.get(key)}
    for key, value in config.items():
        if (default := recorded_default(key, value)) != value and (source := recorded_key(key, train)) in overlay:
            taken |= {key: f"$@record.get('{key}', {overlay[source]!r})"} if default == train[source] else {}
    return taken


def baked_configs(package: Package) -> dict[str, dict[str, Any]]:
    """`train`, `evaluate` and `inference` with the variants in them, and the labels that the weights were trained with.

    An overlay that changes the network goes into training and inference. Of another, inference takes what it repeats
    from training, and so does evaluation, which is run together with training's.
    """
    train, evaluate, inference = (read_config(package.bundle, name) for name in ("train", "evaluate", "inference"))
    for overlay in package.baked.values():
        inference |= overlay if "network_def" in overlay else taken_over(overlay, train, inference)
        evaluate |= taken_over(overlay, train, evaluate)
        train |= overlay
    if isinstance(train.get("labels"), dict) and package.record.get("labels"):
        train["labels"] = inference["labels"] = package.record["labels"]
    overlay = train.get("network_overlay", "")
    recorded = package.record.get("network_overlay", overlay)
    if package.record and recorded != overlay:
        wanted = f"--variant {Path(recorded).stem}" if recorded else "no --variant that changes the network"
        raise DataError(
            f"{package.weights}: its record names the network of {recorded or 'train.json itself'}, the package would "
            f"have that of {overlay or 'train.json itself'}. Give {wanted}."
        )
    return {"train": train, "evaluate": evaluate, "inference": inference}


def build_network(configs: Mapping[str, dict[str, Any]], package: Package) -> nn.Module:
    """The network of the baked configs, in eval mode, with the weights if there are any.

    Raises:
        DataError: when they do not fit, or the file holds anything else beside them.
    """
    network = ConfigParser(dict(configs["inference"])).get_parsed_content("network_def").eval()
    if package.weights:
        try:
            loaded = load_weights(network, package.weights)
        except DataError as e:
            why, other_network, _ = str(e).partition(" Probably ")  # what follows is about configs that are run
            hint = " Give --variant with the overlays that they were trained with." if other_network else ""
            raise DataError(why + hint) from None
        plain = package.weights.suffix != ".safetensors" and loaded is network
        if not plain or torch.load(package.weights, "cpu", weights_only=True).keys() != network.state_dict().keys():
            raise DataError(
                f"{package.weights}: holds more than weights, or holds them in another form than models/model.pt. "
                "Give the model.pt that training writes."
            )
    return network


# ---- metadata


def input_size(train: Mapping[str, Any], record: Mapping[str, Any], known: Sequence[int]) -> list[int]:
    """Of what the network takes at once; `known` where the configs do not say it."""
    if "roi_size" in train:
        return list(train["roi_size"])
    for key, recorded in (("val_tile_size", "tile_size"), ("patch_size", "patch_size")):
        if isinstance(train.get(key), int):
            return [record.get(recorded, train[key])] * len(known)
    return list(known)


def channel_names(pred: Mapping[str, Any], labels: Mapping[str, int], channels: int) -> list[str]:
    """Of the network's output; those known where they are as many, and there are no labels."""
    known, names = list(pred["channel_def"].values()), sorted(labels, key=lambda name: labels[name])
    if labels and pred["format"] == "segmentation":
        known = ["background", *names]
    elif labels and pred["format"] == "classification":
        known = names[-channels:]
    elif labels:
        known = [*names, *known[-4:]]  # the four offsets of a box
    if len(known) != channels:
        raise DataError(
            f"the network has {channels} output channels, the labels {', '.join(names) or 'in metadata.json'} make "
            f"{len(known)}. Give the weights of the network with these labels."
        )
    return known


def listing(names: Sequence[str]) -> str:
    return ", ".join(f"{i} {name.replace('_', ' ')}" for i, name in enumerate(names))


def baked_metadata(package: Package, configs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """metadata.json as the baked configs have it: shapes, channels, classes and what is said of the weights.

    The network takes a random input for it.

    Raises:
        DataError: when it gives anything but finite numbers of the expected channels.
    """
    metadata, base, train = package.metadata, read_config(package.bundle, "train"), configs["train"]
    formats = metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    old_size, old_names = image["spatial_shape"], list(pred["channel_def"].values())
    size = input_size(train, package.record, old_size)
    with torch.no_grad():
        output = build_network(configs, package)(torch.rand(1, image["num_channels"], *size))
    if not output.isfinite().all():
        raise DataError(f"{package.weights}: with these weights the network gives numbers that are not finite.")
    labels = train["labels"] if isinstance(train.get("labels"), dict) else package.record.get("labels") or {}
    names = channel_names(pred, labels, output.shape[1])
    image["spatial_shape"] = size
    pred["num_channels"], pred["channel_def"] = len(names), {str(i): name for i, name in enumerate(names)}
    pred["spatial_shape"] = list(output.shape[2:]) or pred["spatial_shape"]

    changes = {" x ".join(map(str, old_size)): " x ".join(map(str, size)), listing(old_names): listing(names)}
    changes[f"{len(old_names)} channels"] = f"{len(names)} channels"
    if "mpp" in train and "mpp" in package.record:
        changes[f"{base['mpp']} micrometres"] = f"{package.record['mpp']} micrometres"
    if "spacing" in train:
        changes[" x ".join(map(str, base["spacing"]))] = " x ".join(map(str, train["spacing"]))
    if pred["format"] == "segmentation":  # the background is none
        changes[f"{len(old_names) - 1} abdominal organs"] = f"{len(names) - 1} abdominal organ{'s' * (len(names) > 2)}"
    for key in ("name", "task", "description", "image_classes", "label_classes", "pred_classes"):
        for old, new in changes.items():
            metadata[key] = metadata[key].replace(old, new)
    if labels and pred["format"] != "segmentation" and sorted(labels) != ["mitotic", "non_mitotic"]:
        metadata["label_classes"] = listing(sorted(labels, key=lambda name: labels[name]))
    return metadata


def tell_of_weights(metadata: dict[str, Any], package: Package) -> dict[str, Any]:
    """What metadata.json says of the weights and of the variants."""
    networks = [name for name, overlay in package.baked.items() if "network_def" in overlay]
    variants = f" The network is that of the variant {networks[-1]}." if networks else ""
    variants += f" Variants that are part of this package: {', '.join(package.baked)}." if package.baked else ""
    if package.weights:
        version, log = metadata["version"], metadata["changelog"]
        if version in log:
            log[version] = log[version].removesuffix(", without weights")
        described = re.sub(r" No weights are shipped[^.]*\.", "", metadata["description"])
        use = re.sub(r": no clinically trained weights are shipped.*$", ".", metadata["intended_use"])
        metadata |= {"description": f"{described} {package.note}", "intended_use": f"{use} {package.note}"}
    metadata["description"] += variants
    return metadata


# ---- text and code


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


# ---- folders and files


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


def file_digest(path: Path, kind: str = "sha256") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


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


def described(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


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


def main(
    *names: str,
    output_dir: str = "dist",
    weights: str = "",
    variant: str = "",
    weights_url: str = "",
    base_url: str = "",
    zoo_dir: str = "",
) -> None:
    """Write NAME_vVERSION.zip of each bundle, its manifest (.json), and model_info.json, to OUTPUT_DIR.

    A package runs anywhere: the bundle's own code is inside. The same bundle gives the same bytes. Without weights it
    is marked as untrained, and so are weights of synthetic data.

    Args:
        names: of bundles; all by default.
        output_dir: where the files go. Entries of other packages in model_info.json are kept.
        weights: the model.pt that a training wrote; of one bundle.
        variant: the overlays that it was trained with, separated by commas, as `demo`; they become part of the configs.
        weights_url: an address of that file. It is named in large_files.yml then, with its hash, and not put inside.
        base_url: where the zips will be found, for model_info.json.
        zoo_dir: a folder, or a clone of the model zoo, in which to lay out what a pull request to it needs. What bars
            one still is listed, and written to OUTPUT_DIR/NAME_vVERSION_zoo.txt.
    """
    there = sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/metadata.json"))
    chosen = list(dict.fromkeys(map(str, names))) or there
    if strange := [name for name in chosen if name not in there]:
        raise DataError(f"{', '.join(strange)}: there is no such bundle, expected {', '.join(there)}.")
    if weights and len(chosen) > 1:
        raise DataError(f"--weights are those of one bundle, {len(chosen)} were named. Name one.")
    output = Path(str(output_dir)).expanduser()
    packages = [read_package(BUNDLES / name, str(weights), variant, str(weights_url)) for name in chosen]
    read_object(output / "model_info.json")  # before anything is written
    for package in packages:
        refuse_to_replace(package, output / f"{package.title}.zip")
        if zoo_dir:
            refuse_zoo(Path(str(zoo_dir)).expanduser(), package.bundle.name)
    for package in packages:
        archive = output / f"{package.title}.zip"
        with tempfile.TemporaryDirectory() as temporary:
            folder = write_package(package, Path(temporary) / package.bundle.name)
            write_zip(folder, archive, package.bundle.name)
            write_json(archive.with_suffix(".json"), manifest(package, folder, archive))
            add_to_list(output / "model_info.json", package, archive, str(base_url))
            print(f"{archive} ({archive.stat().st_size / 1e6:.1f} MB). {package.note}")
            if zoo_dir:
                pull_request(
                    package, folder, Path(str(zoo_dir)).expanduser(), archive.with_name(f"{package.title}_zoo.txt")
                )


if __name__ == "__main__":
    show_errors_briefly()
    fire.Fire(main)
